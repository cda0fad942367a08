"""Tokenizers in GGUF files: patterns by name, merges that give the same ids, refusals."""

from __future__ import annotations

import unicodedata
from typing import Any

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Regex, models, pre_tokenizers

from nanochat.common import UserError
from nanochat.export.gguf_tokenizer import (
    CONTROL,
    NORMAL,
    Splitting,
    choose_splitting,
    from_gguf_tokenizer,
    gguf_merges,
    gguf_tokenizer,
    joins_digits,
)
from nanochat.tokenizer import SPECIAL_TOKENS, SPLIT_PATTERN, Tokenizer, split_pattern
from tests.support.exports import TOKENIZER
from tests.support.gguf import NUMBERS, digits_tokenizer

TOKENIZERS = {digits: digits_tokenizer(digits) for digits in (1, 2, 3)}
EXACT = Splitting("bailingmoe", is_exact=True)


def with_tokens(*tokens: bytes, pattern: str = SPLIT_PATTERN) -> Tokenizer:
    """Return a tokenizer of the bytes and some tokens."""
    ranks = {token: i for i, token in enumerate([*(bytes([i]) for i in range(256)), *tokens])}
    return Tokenizer(pattern, ranks, {name: len(ranks) + i for i, name in enumerate(SPECIAL_TOKENS)})


def test_the_pre_tokenizer_follows_from_the_digits() -> None:
    assert choose_splitting(TOKENIZERS[1], False) == Splitting("bailingmoe", is_exact=True)
    assert choose_splitting(TOKENIZERS[3], False) == Splitting("llama-bpe", is_exact=True)


def test_tokens_of_two_digits_are_refused_or_accepted_knowingly() -> None:
    assert any(joins_digits(token) for token in TOKENIZERS[2].ranks)
    with pytest.raises(UserError, match=r"tokens of two digits, such as .*--digits=1.*--allow_other_digits"):
        choose_splitting(TOKENIZERS[2], False)
    assert choose_splitting(TOKENIZERS[2], True) == Splitting("llama-bpe", is_exact=False)


def test_the_default_pattern_is_exact_without_tokens_of_two_digits() -> None:
    tokenizer = with_tokens(b"an", b" 1", "é".encode())
    assert choose_splitting(tokenizer, False) == EXACT
    other = Tokenizer(split_pattern(1), tokenizer.ranks, tokenizer.special_tokens)
    assert tokenizer.encode(NUMBERS) == other.encode(NUMBERS)


def test_other_patterns_are_refused() -> None:
    with pytest.raises(UserError, match=r"no engine has the split pattern '\\\\w\|\\\\W'"):
        choose_splitting(with_tokens(pattern=r"\w|\W"), True)


NUMERALS = st.text(st.sampled_from("0189²½٣四Ⅳ𝟘"), min_size=2, max_size=4)


@given(text=NUMERALS, data=st.data())
def test_a_token_across_two_numerals_is_found(text: str, data: st.DataObject) -> None:
    """Any bytes of a text of numerals that reach from one into the next, ends of characters included."""
    borders = [len(text[:i].encode()) for i in range(1, len(text))]
    border = data.draw(st.sampled_from(borders))
    start = data.draw(st.integers(0, border - 1))
    end = data.draw(st.integers(border + 1, len(text.encode())))
    assert joins_digits(text.encode()[start:end]) or any(
        not unicodedata.category(character).startswith("N") for character in text
    )


@given(text=st.text(st.characters(exclude_categories=["N", "Cs"]), max_size=5), digit=st.sampled_from("07²٣"))
def test_words_with_one_numeral_are_no_numbers(text: str, digit: str) -> None:
    assert not joins_digits((text + digit + text).encode())


def engine_like(tokenizer: Tokenizer) -> tokenizers.Tokenizer:
    """Return byte-level BPE from the keys alone: vocabulary by position, merges in order, words as they are cut."""
    keys = gguf_tokenizer(tokenizer, EXACT)
    tokens = keys["tokenizer.ggml.tokens"]
    vocab = {token: i for i, token in enumerate(tokens) if keys["tokenizer.ggml.token_type"][i] == NORMAL}
    merges = [tuple(merge.split(" ")) for merge in keys["tokenizer.ggml.merges"]]
    bpe = tokenizers.Tokenizer(models.BPE(vocab, merges))
    split = pre_tokenizers.Split(Regex(tokenizer.pattern), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    return bpe


ENGINES = {digits: engine_like(tokenizer) for digits, tokenizer in TOKENIZERS.items()}


@pytest.mark.parametrize("digits", TOKENIZERS)
@given(text=st.text(max_size=60) | st.text(st.sampled_from("1234567890 .,aé\n")))
def test_merges_give_the_same_ids(digits: int, text: str) -> None:
    assert ENGINES[digits].encode(text).ids == TOKENIZERS[digits].encode(text)


def test_a_token_that_no_merges_lead_to_is_refused() -> None:
    with pytest.raises(UserError, match="no merges lead to the token 'abcd'"):
        gguf_merges(with_tokens(b"abcd"))
    assert gguf_merges(with_tokens(b"ab", b"cd", b"abcd")) == ["a b", "c d", "ab cd"]
    assert gguf_merges(with_tokens(b" a")) == ["\u0120 a"]


def test_special_tokens() -> None:
    keys = gguf_tokenizer(TOKENIZER, EXACT)
    names = keys["tokenizer.ggml.tokens"]
    kinds = keys["tokenizer.ggml.token_type"]
    assert {names[i]: i for i, kind in enumerate(kinds) if kind == CONTROL} == TOKENIZER.special_tokens
    ends = {name: names[keys[f"tokenizer.ggml.{name}_token_id"]] for name in ("bos", "eos", "eot", "eom")}
    assert ends == {"bos": "<|bos|>", "eos": "<|assistant_end|>", "eot": "<|bos|>", "eom": "<|python_end|>"}
    assert keys["tokenizer.ggml.add_bos_token"] is True
    assert "{% generation" not in keys["tokenizer.chat_template"].replace("{%-", "{%")


@pytest.mark.parametrize("digits", [1, 3])
def test_the_tokenizer_of_a_file(digits: int) -> None:
    tokenizer = TOKENIZERS[digits]
    keys = gguf_tokenizer(tokenizer, choose_splitting(tokenizer, False))
    assert from_gguf_tokenizer(keys).hash() == tokenizer.hash()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("pre", "gpt2"),
        ("tokens", None),
        ("tokens", ["a", "b"]),
        ("token_type", [1] * 9),
        ("merges", ["a b"]),
        ("tokens", ["a" * n for n in range(1, 2000)]),
        ("eos_token_id", 0),
        ("model", "llama"),
    ],
)
def test_foreign_tokenizers_are_refused(name: str, value: Any) -> None:
    keys = {**gguf_tokenizer(TOKENIZERS[1], EXACT), f"tokenizer.ggml.{name}": value}
    match = r"its tokenizer is not one of nanochat's|single bytes have no token|longer than those of any vocabulary"
    with pytest.raises(UserError, match=match):
        from_gguf_tokenizer(keys)
