"""The Hugging Face trainer, compared with the reference and the Rust trainer: every merge is a most frequent pair."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat.tokenization.bpe_reference import count_pairs, encode_word, merge_pair, split_words, train
from nanochat.tokenization.hugging_face_bpe import byte_level_alphabet, train_hugging_face
from nanochat.tokenizer import SPLIT_PATTERN, HuggingFaceTokenizer, RustBPETokenizer

BYTES = [bytes([byte]) for byte in range(256)]
UNTIED_TEXTS = ["aaaa " * 7, "bcbc " * 19, "dede dede bcx " * 41]  # no two pairs are equally frequent


@given(st.lists(st.text(st.sampled_from("aab b\n'sS1é! \té你"), max_size=60), min_size=1, max_size=8).filter(any))
@settings(deadline=None, max_examples=60)
def test_every_merge_is_a_most_frequent_pair(texts: list[str]) -> None:
    tokens = train_hugging_face(texts, 280, SPLIT_PATTERN, None)
    assert tokens[:256] == BYTES
    word_counts = Counter(tuple(word) for text in texts for word in split_words(text))
    for new_id in range(256, len(tokens)):
        pair_counts = count_pairs(word_counts)
        ranks = {token: rank for rank, token in enumerate(tokens[:new_id])}
        pairs = [pair for pair in pair_counts if tokens[pair[0]] + tokens[pair[1]] == tokens[new_id]]
        assert max(pair_counts[pair] for pair in pairs) == max(pair_counts.values())
        assert tuple(encode_word(tokens[new_id], ranks)) in pairs
        merged_counts: Counter[tuple[int, ...]] = Counter()
        for word, count in word_counts.items():
            for pair in pairs:
                word = merge_pair(word, pair, new_id)
            merged_counts[word] += count
        word_counts = merged_counts


def test_the_trainers_agree_where_no_counts_are_equal() -> None:
    pytest.importorskip("nanochat.tokenization._rustbpe", reason="the Rust extension is not built: bash dev/setup.sh")
    rust, hugging_face = (
        tokenizer_class.train_from_iterator(UNTIED_TEXTS, 268)
        for tokenizer_class in (RustBPETokenizer, HuggingFaceTokenizer)
    )
    assert len(rust.ranks) == 259
    assert rust.hash() == hugging_face.hash()
    assert list(hugging_face.ranks) == train(UNTIED_TEXTS, 259)


def test_progress() -> None:
    calls: list[tuple[int, int]] = []
    train_hugging_face(["été abcd"] * 10, 260, SPLIT_PATTERN, lambda *counts: calls.append(counts))
    assert calls[0] == (10, 0)
    assert calls[-1] == (100, 4)


def test_empty_texts() -> None:
    with pytest.raises(ValueError, match="nothing to train on"):
        train_hugging_face(["", ""], 300, SPLIT_PATTERN, None)


def test_the_byte_level_alphabet_is_that_of_tokenizers() -> None:
    from tokenizers import pre_tokenizers

    alphabet = byte_level_alphabet()
    assert set(alphabet) == set(pre_tokenizers.ByteLevel.alphabet())
    assert len(set(alphabet)) == 256
