"""The tokenizer: texts to ids and back, its file, and every token of rendered conversations."""

from __future__ import annotations

import base64
import hashlib
import json
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import regex
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nanochat import tokenizer as module
from nanochat.common import UserError
from nanochat.tokenization.bpe_reference import ReferenceTokenizer
from nanochat.tokenization.encoders import TiktokenEncoder
from nanochat.tokenizer import (
    MIN_VOCAB_SIZE,
    SPECIAL_TOKENS,
    SPLIT_PATTERN,
    HuggingFaceTokenizer,
    RustBPETokenizer,
    StreamDecoder,
    Tokenizer,
    get_tokenizer,
    trainable_tokenizer_class,
)
from tests.support.damage import damaged_bytes, mutated_json, outcome

TEXTS = ["the cat sat on the mat, the cat's mat", "she sees 1234 seas; he sees 56\n\n  indeed\n", "Привет, мир"] * 3


def train(tokenizer_class: type[Tokenizer] = RustBPETokenizer, vocab_size: int = 300) -> Tokenizer:
    if tokenizer_class is RustBPETokenizer:
        pytest.importorskip(
            "nanochat.tokenization._rustbpe", reason="the Rust extension is not built: bash dev/setup.sh"
        )
    return tokenizer_class.train_from_iterator(iter(TEXTS), vocab_size)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """A tokenizer trained by the Rust extension if it is built, else by Hugging Face."""
    return train(trainable_tokenizer_class())


def reference_of(tokenizer: Tokenizer) -> ReferenceTokenizer:
    """Return the readable tokenizer with the same vocabulary."""
    names = sorted(tokenizer.special_tokens, key=tokenizer.special_tokens.__getitem__)
    return ReferenceTokenizer(list(tokenizer.ranks), tokenizer.pattern, names)


# --- training ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokenizer_class", [RustBPETokenizer, HuggingFaceTokenizer])
def test_both_trainers(tokenizer_class: type[Tokenizer], tmp_path: Path) -> None:
    tokenizer = train(tokenizer_class)
    assert tokenizer.get_vocab_size() == 300
    assert list(tokenizer.ranks)[:256] == [bytes([byte]) for byte in range(256)]
    assert [tokenizer.encode_special(name) for name in SPECIAL_TOKENS] == list(range(291, 300))
    assert tokenizer.get_bos_token_id() == 291
    tokenizer.save(tmp_path)
    loaded = Tokenizer.from_directory(tmp_path)
    assert loaded.hash() == tokenizer.hash()
    reference = reference_of(tokenizer)
    for text in TEXTS:
        assert loaded.encode(text) == tokenizer.encode(text) == reference.encode(text)
        assert len(tokenizer.encode(text)) < len(text.encode())


def test_the_smallest_vocabulary_and_one_token_less(tokenizer: Tokenizer) -> None:
    smallest = type(tokenizer).train_from_iterator(TEXTS, MIN_VOCAB_SIZE)
    assert MIN_VOCAB_SIZE == 265
    assert smallest.encode("cat") == [99, 97, 116]
    with pytest.raises(UserError, match="vocab_size 264: must be at least 265"):
        type(tokenizer).train_from_iterator(TEXTS, 264)


def test_nothing_to_train_on_and_a_bad_pattern(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="nothing to train on"):
        type(tokenizer).train_from_iterator([], 300)
    with pytest.raises(ValueError, match="pattern"):
        HuggingFaceTokenizer.train_from_iterator(TEXTS, 300, pattern="(unclosed")
    with pytest.raises(ValueError, match="pattern"):
        type(tokenizer).train_from_iterator(TEXTS, 300, pattern="(unclosed")


def test_hugging_face_trains_without_the_extension(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "nanochat.tokenization._rustbpe", None)
    monkeypatch.delattr(sys.modules["nanochat.tokenization"], "_rustbpe", raising=False)
    assert trainable_tokenizer_class() is HuggingFaceTokenizer
    assert "Hugging Face" in capsys.readouterr().out


# --- text -------------------------------------------------------------------------------------------------------------


@given(st.lists(st.text()))
@settings(deadline=None)
def test_every_text_comes_back(tokenizer: Tokenizer, texts: list[str]) -> None:
    rows = tokenizer.encode(texts)
    assert rows == [tokenizer.encode(text) for text in texts]
    assert [tokenizer.decode(row) for row in rows] == texts


@given(st.text(st.sampled_from("the catsmé 12\n\t '!и")))
@settings(deadline=None)
def test_encoding_equals_the_reference(tokenizer: Tokenizer, text: str) -> None:
    reference = reference_of(tokenizer)
    assert tokenizer.encode(text) == reference.encode(text)
    assert reference.decode(tokenizer.encode(text, prepend="<|bos|>")) == "<|bos|>" + text


@pytest.mark.parametrize("name", SPECIAL_TOKENS)
def test_names_of_special_tokens_stay_text(tokenizer: Tokenizer, name: str) -> None:
    text = f"a{name}b {name}"
    ids = tokenizer.encode(text)
    assert max(ids) < len(tokenizer.ranks)
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode([tokenizer.encode_special(name)]) == name


def test_prepend_and_append(tokenizer: Tokenizer) -> None:
    bos, end = tokenizer.get_bos_token_id(), tokenizer.encode_special("<|user_end|>")
    cat = tokenizer.encode("cat")
    assert tokenizer.encode("cat", prepend=bos) == [bos, *cat]
    assert tokenizer.encode("cat", prepend="<|bos|>", append="<|user_end|>") == [bos, *cat, end]
    assert tokenizer.encode(["cat", ""], prepend=bos, append=end, num_threads=2) == [[bos, *cat, end], [bos, end]]
    assert tokenizer.encode([]) == []
    with pytest.raises(ValueError, match="'<bos>' is not a special token"):
        tokenizer.encode("cat", prepend="<bos>")


def test_lone_surrogates_become_replacement_characters(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode(tokenizer.encode("a\ud800b")) == "a\ufffdb"


def test_bytes_that_are_not_utf8(tokenizer: Tokenizer) -> None:
    e_acute = list("é".encode())
    assert tokenizer.decode_bytes(e_acute[:1]) == b"\xc3"
    assert tokenizer.decode(e_acute[:1]) == "\ufffd"
    assert tokenizer.decode(e_acute) == "é"


@given(st.text(max_size=30))
@settings(deadline=None)
def test_a_stream_never_cuts_a_character(tokenizer: Tokenizer, text: str) -> None:
    chunks = list(tokenizer.decode_stream(iter(tokenizer.encode(text))))
    assert "".join(chunks) == text
    assert "\ufffd" in text or not any("\ufffd" in chunk for chunk in chunks)


def test_a_stream_that_ends_within_a_character(tokenizer: Tokenizer) -> None:
    assert list(tokenizer.decode_stream([0x61, 0xC3])) == ["a", "", "\ufffd"]


def test_a_flushed_decoder_starts_anew(tokenizer: Tokenizer) -> None:
    decoder = StreamDecoder(tokenizer)
    assert [decoder.decode(0xC3), decoder.flush(), decoder.flush()] == ["", "\ufffd", ""]
    assert [decoder.decode(token_id) for token_id in "é".encode()] == ["", "é"]


def test_arrays_and_batches(tokenizer: Tokenizer) -> None:
    texts = ["the cat", "", "Привет"]
    ids, offsets = tokenizer.encode_arrays(texts)
    rows = [ids[start:end].tolist() for start, end in pairwise(offsets)]
    assert rows == tokenizer.encode(texts)
    assert tokenizer.decode_batch(rows) == texts
    assert (ids.dtype, offsets.dtype) == (np.uint16, np.int64)
    arrow_ids, arrow_offsets = tokenizer.encode_arrays(pa.array(texts))
    assert (arrow_ids.tolist(), arrow_offsets.tolist()) == (ids.tolist(), offsets.tolist())


def test_the_ids_are_the_same_without_the_extension(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nanochat.tokenization._rustbpe", None)
    tiktoken_tokenizer = Tokenizer(tokenizer.pattern, tokenizer.ranks, tokenizer.special_tokens)
    assert isinstance(tiktoken_tokenizer._encoder, TiktokenEncoder)
    assert tiktoken_tokenizer.hash() == tokenizer.hash()
    rows = tiktoken_tokenizer.encode(TEXTS, prepend="<|bos|>")
    assert rows == tokenizer.encode(TEXTS, prepend="<|bos|>")
    assert tiktoken_tokenizer.decode_batch(rows) == tokenizer.decode_batch(rows)
    assert [array.tolist() for array in tiktoken_tokenizer.encode_arrays(TEXTS)] == [
        array.tolist() for array in tokenizer.encode_arrays(TEXTS)
    ]


@pytest.mark.parametrize("ids", [[300], [-1], [0, 1 << 40]])
def test_an_id_that_does_not_exist(tokenizer: Tokenizer, ids: list[int]) -> None:
    with pytest.raises(KeyError):
        tokenizer.decode_bytes(ids)


def test_token_bytes_counts_raw_bytes(tokenizer: Tokenizer) -> None:
    lengths = tokenizer.token_bytes()
    assert len(lengths) == tokenizer.get_vocab_size()
    assert lengths[:256] == [1] * 256
    assert lengths[-9:] == [0] * 9
    text = "the cat's Привет"
    assert sum(lengths[i] for i in tokenizer.encode(text)) == len(text.encode())


# --- the file ---------------------------------------------------------------------------------------------------------


def test_the_format_of_the_file(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer.json"]
    saved = json.loads((tmp_path / "tokenizer.json").read_bytes())
    assert list(saved) == ["format", "pattern", "ranks", "special_tokens", "sha256"]
    assert (saved["format"], saved["pattern"]) == (1, SPLIT_PATTERN)
    assert {base64.b64decode(token): rank for token, rank in saved["ranks"].items()} == tokenizer.ranks
    assert saved["special_tokens"] == {name: 291 + i for i, name in enumerate(SPECIAL_TOKENS)}
    without = json.dumps({key: saved[key] for key in list(saved)[:-1]}, indent=1) + "\n"
    assert tokenizer.hash() == saved["sha256"] == hashlib.sha256(without.encode("utf-8")).hexdigest()
    (tmp_path / "tokenizer.json").write_text(without, encoding="utf-8")  # as earlier versions wrote it
    assert Tokenizer.from_directory(tmp_path).hash() == tokenizer.hash()


def test_a_missing_file_names_the_command(base_dir: Path) -> None:
    with pytest.raises(UserError, match=r"no tokenizer at .*: train one with `python -m scripts.tok_train`"):
        get_tokenizer()
    assert list(base_dir.iterdir()) == []


def drop(key: str) -> Any:
    return lambda saved: saved.pop(key)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (drop("format"), "format None"),
        (lambda saved: saved.update(format=2), "format 2, but this program reads format 1"),
        (drop("ranks"), "ranks is missing"),
        (drop("special_tokens"), "special_tokens is missing"),
        (lambda saved: saved.update(ranks=[1]), "ranks is [1]: must be an object"),
        (lambda saved: saved["ranks"].update({"AA==": 0.0}), "ranks.AA== is 0.0: must be a whole number"),
        (lambda saved: saved["ranks"].update({"AA==": True}), "ranks.AA== is True: must be a whole number"),
        (lambda saved: saved["ranks"].update({"AB==": saved["ranks"].pop("AA==")}), "'AB==' is not base64 as it is"),
        (lambda saved: saved.update(pattern=None), "pattern is None: must be text"),
        (lambda saved: saved.update(sha256="0"), "its SHA-256 differs"),
        (lambda saved: saved.update(sha257=saved.pop("sha256")), "sha257 is not a known key"),
        (lambda saved: saved.update(pattern=saved["pattern"] + "|x"), "its SHA-256 differs"),
        (lambda saved: saved["ranks"].pop("AA=="), "is damaged: the ids must count up"),
        (lambda saved: saved["ranks"].update({"!!": 5}), "is damaged"),
        (lambda saved: saved["special_tokens"].pop("<|bos|>"), "is damaged: the ids must count up"),
        (lambda saved: saved["special_tokens"].update({"<|bos|>": 0}), "is damaged: the ids must count up"),
        (lambda saved: saved["ranks"].update({"/////w==": saved["ranks"].pop("AA==")}), "0x00"),
        (lambda saved: saved.update(pattern="(unclosed"), "is damaged: split pattern: "),
    ],
)
def test_a_damaged_file_is_refused(tokenizer: Tokenizer, tmp_path: Path, damage: Any, message: str) -> None:
    tokenizer.save(tmp_path)
    path = tmp_path / "tokenizer.json"
    saved = json.loads(path.read_text(encoding="utf-8"))
    damage(saved)
    path.write_text(json.dumps(saved), encoding="utf-8")
    with pytest.raises(UserError, match=regex.escape(message)) as caught:
        Tokenizer.from_directory(tmp_path)
    assert "tokenizer.json" in str(caught.value)


@settings(max_examples=100, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_damage_is_never_silent(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory, data: Any) -> None:
    """Flipped bits, cuts and zeros are refused in one line, unless the JSON still says the same."""
    folder = tmp_path_factory.getbasetemp()
    tokenizer.save(folder)
    path = folder / "tokenizer.json"
    path.write_bytes(data.draw(damaged_bytes(path.read_bytes())))
    loaded, message = outcome(lambda: Tokenizer.from_directory(folder))
    assert str(path) in message or (loaded and loaded.hash() == tokenizer.hash())


@settings(max_examples=100, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data(), has_hash=st.booleans())
def test_wrong_types(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory, data: Any, has_hash: bool) -> None:
    """Refused in one line, or a tokenizer that can be used; never silent if the file has its hash."""
    folder = tmp_path_factory.getbasetemp()
    tokenizer.save(folder)
    path = folder / "tokenizer.json"
    saved = json.loads(path.read_bytes())
    if not has_hash:
        del saved["sha256"]
    path.write_text(json.dumps(data.draw(mutated_json(saved))), encoding="utf-8")
    loaded, message = outcome(lambda: Tokenizer.from_directory(folder))
    assert loaded or str(path) in message
    if loaded:
        assert loaded.decode(loaded.encode("some words 12")) == "some words 12"
        assert not has_hash or loaded.hash() == tokenizer.hash()


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]"])
def test_an_incomplete_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(UserError, match=r"tokenizer\.json"):
        Tokenizer.from_directory(tmp_path)


# --- conversations ----------------------------------------------------------------------------------------------------


def conversation(*messages: tuple[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in messages]}


TOOL_ANSWER = [
    {"type": "text", "text": "s"},
    {"type": "python", "text": "2*3"},
    {"type": "python_output", "text": "6"},
    {"type": "text", "text": "!"},
]


def test_every_token_and_its_mask() -> None:
    tokenizer = Tokenizer(  # of bytes only, so that every token can be read
        SPLIT_PATTERN,
        {bytes([byte]): byte for byte in range(256)},
        {name: 256 + i for i, name in enumerate(SPECIAL_TOKENS)},
    )
    messages = conversation(
        ("system", "S"), ("user", "a"), ("assistant", TOOL_ANSWER), ("user", "<|bos|>"), ("assistant", "ok")
    )
    ids, mask = tokenizer.render_conversation(messages)
    named = list(zip(map(tokenizer.decode, [[i] for i in ids]), mask, strict=True))
    assert named == [
        *[("<|bos|>", 0)],
        *[("<|user_start|>", 0), ("S", 0), ("\n", 0), ("\n", 0), ("a", 0), ("<|user_end|>", 0)],
        *[("<|assistant_start|>", 0), ("s", 1)],
        *[("<|python_start|>", 1), ("2", 1), ("*", 1), ("3", 1), ("<|python_end|>", 1)],
        *[("<|output_start|>", 0), ("6", 0), ("<|output_end|>", 0)],
        *[("!", 1), ("<|assistant_end|>", 1)],
        *[("<|user_start|>", 0), *[(character, 0) for character in "<|bos|>"], ("<|user_end|>", 0)],
        *[("<|assistant_start|>", 0), ("o", 1), ("k", 1), ("<|assistant_end|>", 1)],
    ]
    assert ids.count(tokenizer.get_bos_token_id()) == 1


def test_consecutive_text_parts_are_one_text(tokenizer: Tokenizer) -> None:
    """The borders between consecutive text parts do not change the tokens; a tool call separates two texts."""
    parts = [{"type": "text", "text": text} for text in ("th", "e", "", " ca", "t")]
    whole = tokenizer.render_conversation(conversation(("user", "a"), ("assistant", "the cat")))
    assert [i for part in parts for i in tokenizer.encode(part["text"])] != tokenizer.encode("the cat")
    assert tokenizer.render_conversation(conversation(("user", "a"), ("assistant", parts))) == whole
    with_call = [*parts, *TOOL_ANSWER[1:3], *parts]
    joined = [{"type": "text", "text": "the cat"}, *TOOL_ANSWER[1:3], {"type": "text", "text": "the cat"}]
    split, expected = (conversation(("user", "a"), ("assistant", content)) for content in (with_call, joined))
    assert tokenizer.render_conversation(split) == tokenizer.render_conversation(expected)


def test_cut_at_a_turn_boundary(tokenizer: Tokenizer) -> None:
    turns = [("user", "the cat"), ("assistant", "the mat"), ("user", "she"), ("assistant", "sees seas")]
    whole_ids, whole_mask = tokenizer.render_conversation(conversation(*turns))
    first_ids, first_mask = tokenizer.render_conversation(conversation(*turns[:2]))
    assert whole_ids[: len(first_ids)] == first_ids
    for limit in range(len(whole_ids) + 3):
        ids, mask = tokenizer.render_conversation(conversation(*turns), limit)
        if limit >= len(whole_ids):
            assert (ids, mask) == (whole_ids, whole_mask)
        elif limit >= len(first_ids):
            assert (ids, mask) == (first_ids, first_mask)
        elif any(first_mask[:limit]):
            assert (ids, mask) == (first_ids[:limit], first_mask[:limit])
        else:
            assert (ids, mask) == ([], [])


def test_a_conversation_without_trained_tokens_is_empty(tokenizer: Tokenizer) -> None:
    assert tokenizer.render_conversation(conversation(("user", "the cat"))) == ([], [])
    unanswered = conversation(("user", "a"), ("assistant", "b"), ("user", "c"))
    answered = {"messages": unanswered["messages"][:2]}
    assert tokenizer.render_conversation(unanswered) == tokenizer.render_conversation(answered)


def test_render_for_completion(tokenizer: Tokenizer) -> None:
    unanswered = conversation(("system", "S"), ("user", "the cat"), ("assistant", "sat"), ("user", "the mat"))
    answered = {"messages": [*unanswered["messages"], {"role": "assistant", "content": TOOL_ANSWER}]}
    expected = "<|bos|><|user_start|>S\n\nthe cat<|user_end|><|assistant_start|>sat<|assistant_end|>"
    expected += "<|user_start|>the mat<|user_end|><|assistant_start|>"
    for messages in (unanswered, answered):
        ids = tokenizer.render_for_completion(messages)
        assert tokenizer.decode(ids) == expected
        assert ids[-1] == tokenizer.encode_special("<|assistant_start|>")
    assert tokenizer.render_conversation(answered)[0][: len(ids)] == ids


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({}, "a conversation must be"),
        ([], "a conversation must be"),
        ({"messages": []}, "at least one message"),
        ({"messages": ["hi"]}, "message 1: must have a role and a content"),
        ({"messages": [{"role": "user"}]}, "message 1: must have a role and a content"),
        (conversation(("assistant", "a")), "message 1: role 'assistant' where 'user' is due"),
        (conversation(("user", "a"), ("user", "b")), "message 2: role 'user' where 'assistant' is due"),
        (conversation(("system", "s"), ("assistant", "a")), "message 2: role 'assistant' where 'user' is due"),
        (conversation(("user", "a"), ("system", "s")), "message 2: role 'system' where 'assistant' is due"),
        (conversation(("system", "s")), "message 1: a system message must be followed by a user message"),
        (
            conversation(("system", 1), ("user", "a")),
            "message 1: a system message must be text or a list of text parts, not int",
        ),
        (
            conversation(("user", [])),
            "message 1: a user's content must be text or a list of text parts, not an empty list",
        ),
        (conversation(("user", "a"), ("assistant", None)), "message 2: an assistant's content must be text or a list"),
        (conversation(("user", "a"), ("assistant", [{"type": "image", "text": ""}])), "message 2: a part must be"),
        (conversation(("user", "a"), ("assistant", [{"type": "text"}])), "message 2: a part must be"),
        (conversation(("user", "a"), ("assistant", [{"type": [], "text": "a"}])), "message 2: a part must be"),
    ],
)
def test_a_malformed_message_is_named(tokenizer: Tokenizer, bad: Any, message: str) -> None:
    for render in (tokenizer.render_conversation, tokenizer.render_for_completion):
        with pytest.raises(UserError, match=regex.escape(message)):
            render(bad)


def test_visualize(tokenizer: Tokenizer) -> None:
    ids = [*tokenizer.encode("a"), tokenizer.get_bos_token_id()]
    assert tokenizer.visualize_tokenization(ids, [1, 0]) == "\033[32ma\033[0m|\033[31m<|bos|>\033[0m"


def test_unknown_special_token(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="is not a special token"):
        tokenizer.encode_special("<|nothing|>")


def test_the_base_class_cannot_train() -> None:
    with pytest.raises(NotImplementedError):
        module.Tokenizer.train_from_iterator(TEXTS, 300)
