"""The readable BPE: properties that hold for any text, and vocabularies worked out by hand."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat.tokenization.bpe_reference import ReferenceTokenizer, encode_word, split_words, train
from nanochat.tokenizer import SPECIAL_TOKENS

TEXTS = ["the cat sat on the mat, the cat's mat", "she sees 1234 seas; he sees 56\n\n  indeed\n", "Привет, мир"] * 3


@pytest.fixture(scope="module")
def tokenizer() -> ReferenceTokenizer:
    return ReferenceTokenizer(train(TEXTS, 300))


@given(st.text())
@settings(deadline=None)
def test_words_join_to_the_text(text: str) -> None:
    assert b"".join(split_words(text)).decode() == text


@given(st.text(st.sampled_from("the catsmé 12\n\t '!и")))
@settings(deadline=None)
def test_every_text_comes_back(tokenizer: ReferenceTokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert len(ids) <= len(text.encode())


def test_trained_words_are_single_tokens(tokenizer: ReferenceTokenizer) -> None:
    """A word of the training text, encoded with all its merges, is one token."""
    assert b" cat" in tokenizer.ranks
    assert tokenizer.encode(" cat") == [tokenizer.ranks[b" cat"]]


def test_ties_go_to_the_lower_pair_of_ids() -> None:
    assert train(["zy ab"], 257, r"\w+")[256] == b"ab"
    assert train(["ba ab"], 257, r"\w+")[256] == b"ab"


def test_training_ends_when_no_pair_is_left() -> None:
    assert train(["abc abc"], 1000)[256:] == [b"ab", b"abc", b" abc"]
    assert train([], 1000) == [bytes([byte]) for byte in range(256)]


def test_merges_do_not_cross_words() -> None:
    assert all(b" " not in token[1:] for token in train(["a b a b a b"], 300)[256:])


def test_overlapping_pairs_merge_from_the_left() -> None:
    ranks = {b"a": 0, b"aa": 1, b"aaa": 2}
    assert encode_word(b"aaaaa", ranks) == [1, 2]  # aa aa a -> aa aaa


def test_special_tokens_are_never_text(tokenizer: ReferenceTokenizer) -> None:
    for number, name in enumerate(SPECIAL_TOKENS):
        assert tokenizer.encode_special(name) == 300 + number
        assert max(tokenizer.encode(name)) < 300
        assert tokenizer.decode([300 + number]) == name
    with pytest.raises(ValueError, match="not in list"):
        tokenizer.encode_special("<|nothing|>")
