"""The Rust encoder against tiktoken, its twin: the same ids for every text, by every way in."""

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
from nanochat.tokenization.encoders import TiktokenEncoder, encoder_class
from nanochat.tokenizer import SPECIAL_TOKENS, SPLIT_PATTERN, Tokenizer

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

# Characters on which the rules differ, and any other.
character = st.one_of(
    st.sampled_from("aZ's'ſtlLvEréd ’  \n\r\t\x0b\x85\xa0\u2003\u200b07٣Ⅳ½.!\u0301ا世𝔸😀"),
    st.characters(exclude_categories=["Cs"]),
)
texts_of = st.text(character, max_size=40)


def pair(pattern: str, num_tokens: int = 400) -> tuple[Any, TiktokenEncoder]:
    tokens = _rustbpe.train(TEXTS, num_tokens, pattern)
    return _rustbpe.Encoder(pattern, tokens, SPECIAL_TOKENS), TiktokenEncoder(pattern, tokens, SPECIAL_TOKENS)


OURS, ANOTHER = pair(SPLIT_PATTERN), pair(r"\w+|[^\w]")
PAIRS = {"ours": OURS, "GPT-2": pair(GPT2), "GPT-4": pair(GPT4), "another": ANOTHER}


def test_the_extension_is_the_default() -> None:
    assert encoder_class() is _rustbpe.Encoder


@pytest.mark.parametrize("name", list(PAIRS))
@given(st.lists(texts_of, max_size=8))
@settings(deadline=None)
def test_strings(name: str, texts: list[str]) -> None:
    ours, twin = PAIRS[name]
    expected = twin.encode_lists(texts)
    assert [ours.encode(text) for text in texts] == expected
    assert ours.encode_lists(texts, 2) == expected
    assert [text.decode() for text in ours.decode_batch(expected)] == texts


@given(
    st.lists(st.one_of(st.binary(max_size=30), texts_of.map(str.encode), st.just(b"\xe4\xb8a\xff\xfe\xff")), max_size=8)
)
@settings(deadline=None)
def test_bytes_come_back_whatever_they_are(pieces: list[bytes]) -> None:
    ours, twin = OURS
    assert ours.encode_lists(pieces) == twin.encode_lists(pieces)
    joined = b"".join(pieces)
    assert ours.encode(joined) == twin.encode(joined)
    assert ours.decode_bytes(ours.encode(joined)) == twin.decode_bytes(twin.encode(joined)) == joined


@given(
    st.lists(texts_of, max_size=20), st.sampled_from([pa.string(), pa.large_string(), pa.binary(), pa.large_binary()])
)
@settings(deadline=None)
def test_arrow(texts: list[str], kind: pa.DataType) -> None:
    ours, twin = OURS
    array = pa.array([text.encode() for text in texts], pa.binary()).cast(kind)
    half = len(texts) // 2
    for given_texts in (array, pa.chunked_array([array[:half], array[half:]], kind), array[half:]):
        ids, offsets = map(np.asarray, ours.encode_batch(given_texts, 2))
        expected_ids, expected_offsets = twin.encode_batch(given_texts)
        np.testing.assert_array_equal(ids, expected_ids, strict=True)
        np.testing.assert_array_equal(offsets, expected_offsets, strict=True)


def test_lone_surrogates() -> None:
    ours, twin = OURS
    for text in ("a\ud800b", "\udfff", "\ud83d\ude00"):
        assert ours.encode(text) == twin.encode(text)
        assert ours.encode_lists([text]) == twin.encode_lists([text])


@pytest.mark.parametrize("num_threads", [1, 2, 7])
def test_long_texts_are_shared_by_threads_without_a_trace(num_threads: int) -> None:
    ours, twin = OURS
    long = " ".join(TEXTS) * 1500
    texts = ["", long, "x", long[1000:], "", "y z"]
    ids, offsets = map(np.asarray, ours.encode_batch(texts, num_threads))
    assert ids.dtype == np.uint16
    expected = [twin.encode(text) for text in texts]
    assert offsets.tolist() == np.cumsum([0, *map(len, expected)]).tolist()
    assert ids.tolist() == [i for row in expected for i in row]


@pytest.mark.parametrize("word", ["a", "ab", " ", "\n", "'", "é", "1", "the", "世", "a\u0301", "\U0001f600", "=-"])
def test_long_words(word: str) -> None:
    for ours, twin in (OURS, PAIRS["GPT-2"], PAIRS["GPT-4"]):
        for length in (1, 5, 16, 64, 129, 3000):
            for text in (word * length, f"x {word * length}.", word * length + "q"):
                assert ours.encode(text) == twin.encode(text)


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
    ids = np.asarray(OURS[0].encode_batch(["the cat"] * 1000)[0])
    copy = ids.copy()
    for _ in range(10):
        OURS[0].encode_batch(["other text"] * 1000)
    np.testing.assert_array_equal(ids, copy)
    ids[0] = 7
    assert ids[0] == 7


def test_several_python_threads_at_once() -> None:
    ours, twin = OURS
    texts = [" ".join(TEXTS[i % 3 :]) * 20 for i in range(12)]
    expected = [twin.encode(text) for text in texts]
    found: list[list[list[int]]] = []
    threads = [threading.Thread(target=lambda: found.append(ours.encode_lists(texts, 2))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 4


def test_mistakes() -> None:
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
    encoder = OURS[0]
    for wrong in (7, None, [b"a"]):
        with pytest.raises(TypeError):
            encoder.encode(wrong)
    for wrong in ("one text", b"one text", [7], 7):
        with pytest.raises(TypeError):
            encoder.encode_batch(wrong)
    with pytest.raises(TypeError):  # and not an end of the process for want of memory
        encoder.encode_batch([*(f"é{i} " * 20_000 for i in range(100)), range(1 << 50)], 2)
    for unknown in (-1, 409, 1 << 40, 1 << 70, -1 << 70):
        for either in OURS:
            with pytest.raises(KeyError):
                either.decode_bytes([unknown])
            with pytest.raises(KeyError):
                either.decode_batch([[97], [unknown]])


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
        OURS[0].encode_batch(texts)


class StoredStream:
    """Exports the same capsule again and again, as no exporter should."""

    def __init__(self) -> None:
        self.capsule = pa.chunked_array([["ab"], ["c"]]).__arrow_c_stream__()

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        return self.capsule


class StoredArray:
    """The same for an array; it can lose a buffer as well."""

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
        (StoredStream(), OURS[0].encode_lists),
        (StoredArray(), pa.array),
        (StoredArray(), OURS[0].encode_lists),
    ],
)
def test_arrow_that_was_taken_before(stored: Any, reader: Any) -> None:
    """What is left has addresses of functions and buffers in it still, of memory that is no longer there."""
    assert len(reader(stored)) == 2
    for _ in range(2):
        with pytest.raises(ValueError, match="read already"):
            OURS[0].encode_batch(stored)


@pytest.mark.parametrize(("buffer", "message"), [(1, "not a valid array"), (2, "without their data")])
def test_arrow_without_its_buffers(buffer: int, message: str) -> None:
    stored = StoredArray()
    stored.lose(buffer)
    with pytest.raises(ValueError, match=message):
        OURS[0].encode_batch(stored)


def test_an_arrow_stream_that_fails_says_why() -> None:
    def batches() -> Any:
        yield pa.record_batch({"text": ["a"]})
        raise OSError("the disk is gone")

    schema = pa.schema({"text": pa.string()})
    with pytest.raises(ValueError, match="expected a column"):
        OURS[0].encode_batch(pa.RecordBatchReader.from_batches(schema, batches()))


@pytest.mark.shared_data
@pytest.mark.parametrize(
    "name", ["textbooks/shard_00000", "tokenizer/russian", "tokenizer/chinese", "tokenizer/python"]
)
def test_real_text(shared_data: Path, name: str) -> None:
    column = pq.read_table(shared_data / "text" / f"{name}.parquet")["text"][:400]
    tokens = _rustbpe.train(column.to_pylist(), 5000, SPLIT_PATTERN)
    ours = _rustbpe.Encoder(SPLIT_PATTERN, tokens, SPECIAL_TOKENS)
    twin = TiktokenEncoder(SPLIT_PATTERN, tokens, SPECIAL_TOKENS)
    ids, offsets = twin.encode_batch(column)
    for texts, num_threads in ((column, 2), (column.to_pylist(), 1)):
        ours_ids, ours_offsets = map(np.asarray, ours.encode_batch(texts, num_threads))
        np.testing.assert_array_equal(ours_ids, ids, strict=True)
        np.testing.assert_array_equal(ours_offsets, offsets, strict=True)
