"""The Rust encoder gives the ids of tiktoken and of the reference for every text and every type of input."""

from __future__ import annotations

import ctypes
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat.common import UserError
from nanochat.tokenization import encoders
from nanochat.tokenization.bpe_reference import ReferenceTokenizer
from nanochat.tokenization.encoders import TiktokenEncoder, encoder_class
from nanochat.tokenizer import SPECIAL_TOKENS, SPLIT_PATTERN, Tokenizer, split_pattern

_rustbpe = pytest.importorskip(
    "nanochat.tokenization._rustbpe", reason="the Rust extension is not built: bash dev/setup.sh"
)

GPT2 = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
GPT4 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEXTS = [
    "It's the cat's mat, and they'Ve SEEN it; we'll see 12345 cats.\n\n  Indeed: the mat!!!\r\n",
    "Привет, мир! 你好，世界。 नमस्ते ١٢٣ Ⅳ e\u0301 'ſ \u00a0\u3000\u2003x <|bos|>",
    "aaaaaaaa abababab " * 4,
] * 3

# Characters on which the patterns differ, and all others.
character = st.one_of(
    st.sampled_from("aZ's'ſtlLvEréd ’  \n\r\t\x0b\x85\xa0\u2003\u200b07٣Ⅳ½.!\u0301ا世𝔸😀"),
    st.characters(exclude_categories=["Cs"]),
)
texts_of = st.text(character, max_size=40)


def pair(pattern: str, num_tokens: int = 400) -> tuple[Any, TiktokenEncoder]:
    """Return the Rust encoder and tiktoken's of the same vocabulary."""
    tokens = _rustbpe.train(TEXTS, num_tokens, pattern)
    return _rustbpe.Encoder(pattern, tokens, SPECIAL_TOKENS), TiktokenEncoder(pattern, tokens, SPECIAL_TOKENS)


NANOCHAT = pair(SPLIT_PATTERN)
PAIRS = {"nanochat": NANOCHAT, "GPT-2": pair(GPT2), "GPT-4": pair(GPT4), "words": pair(r"\w+|[^\w]")}
PAIRS |= {f"nanochat, digits {digits}": pair(split_pattern(digits)) for digits in (1, 3)}


def test_the_extension_is_the_default() -> None:
    assert encoder_class() is _rustbpe.Encoder


@pytest.mark.parametrize("name", list(PAIRS))
@given(st.lists(texts_of, max_size=8))
@settings(deadline=None)
def test_strings(name: str, texts: list[str]) -> None:
    rust, tiktoken = PAIRS[name]
    expected = tiktoken.encode_lists(texts)
    assert [rust.encode(text) for text in texts] == expected
    assert rust.encode_lists(texts, 2) == expected
    assert [text.decode() for text in rust.decode_batch(expected)] == texts


@given(texts_of)
@settings(deadline=None)
def test_equals_the_reference(text: str) -> None:
    reference = ReferenceTokenizer(_rustbpe.train(TEXTS, 400, SPLIT_PATTERN))
    rust, tiktoken = NANOCHAT
    assert rust.encode(text) == tiktoken.encode(text) == reference.encode(text)


@given(
    st.lists(st.one_of(st.binary(max_size=30), texts_of.map(str.encode), st.just(b"\xe4\xb8a\xff\xfe\xff")), max_size=8)
)
@settings(deadline=None)
def test_any_bytes_are_decoded_to_themselves(texts: list[bytes]) -> None:
    rust, tiktoken = NANOCHAT
    assert rust.encode_lists(texts) == tiktoken.encode_lists(texts)
    joined = b"".join(texts)
    assert rust.encode(joined) == tiktoken.encode(joined)
    assert rust.decode_bytes(rust.encode(joined)) == tiktoken.decode_bytes(tiktoken.encode(joined)) == joined


@given(
    st.lists(texts_of, max_size=20), st.sampled_from([pa.string(), pa.large_string(), pa.binary(), pa.large_binary()])
)
@settings(deadline=None)
def test_arrow(texts: list[str], kind: pa.DataType) -> None:
    rust, tiktoken = NANOCHAT
    array = pa.array([text.encode() for text in texts], pa.binary()).cast(kind)
    half = len(texts) // 2
    for given_texts in (array, pa.chunked_array([array[:half], array[half:]], kind), array[half:]):
        ids, offsets = map(np.asarray, rust.encode_batch(given_texts, 2))
        expected_ids, expected_offsets = tiktoken.encode_batch(given_texts)
        np.testing.assert_array_equal(ids, expected_ids, strict=True)
        np.testing.assert_array_equal(offsets, expected_offsets, strict=True)


def test_lone_surrogates() -> None:
    rust, tiktoken = NANOCHAT
    for text in ("a\ud800b", "\udfff", "\ud83d\ude00"):
        assert rust.encode(text) == tiktoken.encode(text)
        assert rust.encode_lists([text]) == tiktoken.encode_lists([text])


@pytest.mark.parametrize("num_threads", [1, 2, 7])
def test_long_texts_cut_for_several_threads_give_the_same_ids(num_threads: int) -> None:
    rust, tiktoken = NANOCHAT
    long = " ".join(TEXTS) * 1500
    texts = ["", long, "x", long[1000:], "", "y z"]
    ids, offsets = map(np.asarray, rust.encode_batch(texts, num_threads))
    assert ids.dtype == np.uint16
    expected = [tiktoken.encode(text) for text in texts]
    assert offsets.tolist() == np.cumsum([0, *map(len, expected)]).tolist()
    assert ids.tolist() == [i for row in expected for i in row]


@pytest.mark.parametrize("word", ["a", "ab", " ", "\n", "'", "é", "1", "the", "世", "a\u0301", "\U0001f600", "=-"])
def test_long_words(word: str) -> None:
    for rust, tiktoken in (PAIRS[name] for name in PAIRS if name != "words"):
        for length in (1, 5, 16, 64, 129, 3000):
            for text in (word * length, f"x {word * length}.", word * length + "q"):
                assert rust.encode(text) == tiktoken.encode(text)


def test_more_tokens_than_fit_into_16_bits() -> None:
    tokens = [bytes([byte]) for byte in range(256)]
    tokens += [b"%05d" % number for number in range(65_530 - 256)]
    for specials, dtype in ((["<a>"] * 6, np.uint16), (["<a>"] * 7, np.uint32)):
        encoder = _rustbpe.Encoder(r"\w+", tokens, specials)
        ids, offsets = map(np.asarray, encoder.encode_batch(["65000", "00000 00001"]))
        assert ids.dtype == dtype
        assert ids.tolist() == [65_256, 256, 257]
        assert offsets.tolist() == [0, 1, 3]


def test_arrays_stay_alive_and_can_be_written() -> None:
    ids = np.asarray(NANOCHAT[0].encode_batch(["the cat"] * 1000)[0])
    copy = ids.copy()
    for _ in range(10):
        NANOCHAT[0].encode_batch(["other text"] * 1000)
    np.testing.assert_array_equal(ids, copy)
    ids[0] = 7
    assert ids[0] == 7


def test_several_python_threads_at_once() -> None:
    rust, tiktoken = NANOCHAT
    texts = [" ".join(TEXTS[i % 3 :]) * 20 for i in range(12)]
    expected = [tiktoken.encode(text) for text in texts]
    results: list[list[list[int]]] = []
    threads = [threading.Thread(target=lambda: results.append(rust.encode_lists(texts, 2))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [expected] * 4


def test_invalid_arguments() -> None:
    tokens = [bytes([byte]) for byte in range(256)]
    for pattern, bad, message in (
        ("(", tokens, "split pattern"),
        (r"\w", tokens[1:], "0x00 has no token"),
        (r"\w", [*tokens, b"a"], "token 256 has the same bytes as token 97"),
        (r"\w", [*tokens, b""], "token 256 is empty: every token needs at least one byte"),
    ):
        with pytest.raises(ValueError, match=regex.escape(message)):
            _rustbpe.Encoder(pattern, bad, [])
    with pytest.raises(ValueError, match="split pattern"):
        TiktokenEncoder("(", tokens, [])
    ranks = {token: rank for rank, token in enumerate([*tokens, b""])}
    with pytest.raises(UserError, match=r"^vocabulary: token 256 is empty"):
        Tokenizer(r"\w", ranks, {name: len(ranks) + i for i, name in enumerate(SPECIAL_TOKENS)})
    encoder = NANOCHAT[0]
    for wrong in (7, None, [b"a"]):
        with pytest.raises(TypeError):
            encoder.encode(wrong)
    for wrong in ("one text", b"one text", [7], 7):
        with pytest.raises(TypeError):
            encoder.encode_batch(wrong)
    with pytest.raises(TypeError):  # instead of running out of memory
        encoder.encode_batch([*(f"é{i} " * 20_000 for i in range(100)), range(1 << 50)], 2)
    for unknown in (-1, 409, 1 << 40, 1 << 70, -1 << 70):
        for encoder in NANOCHAT:
            with pytest.raises(KeyError):
                encoder.decode_bytes([unknown])
            with pytest.raises(KeyError):
                encoder.decode_batch([[97], [unknown]])


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (pa.array(["a", None, "b"]), "row 1 is null"),
        (pa.array([1, 2]), "expected a column of type string"),
        (pa.array(["a", "a"]).dictionary_encode(), "dictionary"),
        (pa.table({"text": ["a"]}), "expected a column of type string"),
    ],
)
def test_arrow_that_is_no_text(texts: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NANOCHAT[0].encode_batch(texts)


class StoredStream:
    """An exporter that returns the same capsule every time, which the protocol forbids."""

    def __init__(self) -> None:
        self.capsule = pa.chunked_array([["ab"], ["c"]]).__arrow_c_stream__()

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        return self.capsule


class StoredArray:
    """The same for an array; `lose` sets one of its buffers to null."""

    def __init__(self) -> None:
        self.capsules = pa.array(["ab", "c"]).__arrow_c_array__()

    def __arrow_c_array__(self, requested_schema: object = None) -> object:
        return self.capsules

    def lose(self, buffer: int) -> None:
        address_of = ctypes.pythonapi.PyCapsule_GetPointer
        address_of.restype, address_of.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
        fields = ctypes.cast(address_of(self.capsules[1], b"arrow_array"), ctypes.POINTER(ctypes.c_void_p))
        ctypes.cast(fields[5] or 0, ctypes.POINTER(ctypes.c_void_p))[buffer] = None


@pytest.mark.parametrize(
    ("stored", "reader"),
    [
        (StoredStream(), pa.chunked_array),
        (StoredStream(), NANOCHAT[0].encode_lists),
        (StoredArray(), pa.array),
        (StoredArray(), NANOCHAT[0].encode_lists),
    ],
)
def test_arrow_that_was_consumed_before(stored: Any, reader: Any) -> None:
    """A consumed capsule still has the addresses of functions and buffers that were freed; it is refused."""
    assert len(reader(stored)) == 2
    for _ in range(2):
        with pytest.raises(ValueError, match="read already"):
            NANOCHAT[0].encode_batch(stored)


@pytest.mark.parametrize(("buffer", "message"), [(1, "not a valid array"), (2, "without their data")])
def test_arrow_without_its_buffers(buffer: int, message: str) -> None:
    stored = StoredArray()
    stored.lose(buffer)
    with pytest.raises(ValueError, match=message):
        NANOCHAT[0].encode_batch(stored)


def test_an_arrow_stream_of_batches_is_refused() -> None:
    def batches() -> Any:
        yield pa.record_batch({"text": ["a"]})
        raise OSError("the disk is gone")

    schema = pa.schema({"text": pa.string()})
    with pytest.raises(ValueError, match="expected a column"):
        NANOCHAT[0].encode_batch(pa.RecordBatchReader.from_batches(schema, batches()))


@pytest.mark.shared_data
@pytest.mark.parametrize(
    "name", ["textbooks/shard_00000", "tokenizer/russian", "tokenizer/chinese", "tokenizer/python"]
)
def test_real_text(shared_data: Path, name: str) -> None:
    column = pq.read_table(shared_data / "text" / f"{name}.parquet")["text"][:400]
    tokens = _rustbpe.train(column.to_pylist(), 5000, SPLIT_PATTERN)
    rust = _rustbpe.Encoder(SPLIT_PATTERN, tokens, SPECIAL_TOKENS)
    tiktoken = TiktokenEncoder(SPLIT_PATTERN, tokens, SPECIAL_TOKENS)
    ids, offsets = tiktoken.encode_batch(column)
    for texts, num_threads in ((column, 2), (column.to_pylist(), 1)):
        rust_ids, rust_offsets = map(np.asarray, rust.encode_batch(texts, num_threads))
        np.testing.assert_array_equal(rust_ids, ids, strict=True)
        np.testing.assert_array_equal(rust_offsets, offsets, strict=True)


@pytest.mark.parametrize("name", list(PAIRS))
@given(st.lists(st.text(st.sampled_from(" \n\t\r\x0b\x1c\x85\xa0\u2003\u3000xé1!'\ud800"), max_size=30), max_size=4))
@settings(deadline=None)
def test_long_runs_of_spaces(name: str, texts: list[str]) -> None:
    """Texts that tiktoken cannot cut into words have the same ids; here each text with a space is taken for one."""
    rust, tiktoken = PAIRS[name]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoders, "_MAX_SPACES", 0)
        assert tiktoken.encode_lists(texts) == rust.encode_lists(texts) == [tiktoken.encode(text) for text in texts]


@pytest.mark.parametrize("space", [" ", "\n ", "\xa0"])
@pytest.mark.slow
def test_a_million_spaces(space: str) -> None:
    rust, tiktoken = NANOCHAT
    text = "x" + space * 1_000_001 + "y"
    assert tiktoken.encode(text) == rust.encode(text)
    assert tiktoken.encode_lists(["a", text]) == rust.encode_lists(["a", text])
    assert tiktoken.encode(text.encode() + b"\xff") == rust.encode(text.encode() + b"\xff")
