"""Conversations rendered in a batch, compared with `Tokenizer.render_conversation`, which renders one at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat.common import UserError
from nanochat.tokenization.chat_format import Conversation
from nanochat.tokenization.encoders import TiktokenEncoder
from nanochat.tokenization.render_batch import SpanTable
from nanochat.tokenizer import SPECIAL_TOKENS, SPLIT_PATTERN, HuggingFaceTokenizer, Tokenizer
from tests.support.talks import BOS, SPECIAL, talk

WITH_MERGES = HuggingFaceTokenizer.train_from_iterator(["the cat's mat, été 123 été\n\n  你好你好 "] * 3, 300)
BY_TIKTOKEN = HuggingFaceTokenizer(SPLIT_PATTERN, WITH_MERGES.ranks, WITH_MERGES.special_tokens)
BY_TIKTOKEN._encoder = TiktokenEncoder(SPLIT_PATTERN, list(WITH_MERGES.ranks), SPECIAL_TOKENS)

TEXTS = st.one_of(
    st.text(st.sampled_from("the cat's é你\n "), max_size=15),
    st.text(max_size=5),
    st.sampled_from(["", *SPECIAL_TOKENS, "the<|bos|>cat<|assistant_end|>"]),
)
PARTS = st.lists(
    st.fixed_dictionaries({"type": st.sampled_from(["text", "python", "python_output"]), "text": TEXTS}), max_size=5
)


@st.composite
def conversations(draw: st.DrawFn) -> Conversation:
    """Conversations of any number of turns, with tool calls and weights, with or without a last answer."""
    if draw(st.integers(0, 4)) == 0:
        return {"text": draw(TEXTS)}
    contents: list[Any] = []
    for _ in range(draw(st.integers(1, 3))):
        contents += [draw(TEXTS), draw(TEXTS | PARTS)]
    conversation = talk(*contents[: len(contents) - draw(st.integers(0, 1))], system=draw(st.none() | TEXTS))
    for message in conversation["messages"]:
        if message["role"] == "assistant" and draw(st.booleans()):
            message["weight"] = draw(st.integers(0, 1))
    return conversation


def as_lists(rendered: list[tuple[np.ndarray, np.ndarray]]) -> list[tuple[list[int], list[int]]]:
    assert all(ids.dtype == np.int64 and mask.dtype == bool for ids, mask in rendered)
    return [(ids.tolist(), mask.astype(int).tolist()) for ids, mask in rendered]


@pytest.mark.parametrize("tokenizer", [WITH_MERGES, BY_TIKTOKEN], ids=["default", "tiktoken"])
@given(batch=st.lists(conversations(), max_size=6), max_tokens=st.none() | st.integers(0, 60))
@settings(max_examples=150, deadline=None)
def test_a_batch_equals_its_conversations(
    tokenizer: Tokenizer, batch: list[Conversation], max_tokens: int | None
) -> None:
    """Ids and masks are equal for any conversations, texts and limits."""
    expected = [tokenizer.render_conversation(conversation, max_tokens) for conversation in batch]
    assert as_lists(tokenizer.render_conversations(batch, max_tokens)) == expected


def test_every_limit() -> None:
    """A conversation between two others is cut at every length, from nothing to more than it has."""
    batch = [talk("a", "b"), talk("the cat", [{"type": "python", "text": "1"}], "mat", "the cat's mat"), {"text": "é"}]
    for max_tokens in range(40):
        expected = [WITH_MERGES.render_conversation(conversation, max_tokens) for conversation in batch]
        assert as_lists(WITH_MERGES.render_conversations(batch, max_tokens)) == expected


def test_large_ids() -> None:
    """With more than 65,536 tokens, for which the encoder returns wider ids."""
    ranks = {bytes([byte]): byte for byte in range(256)}
    for first in range(256):
        for second in range(256):
            ranks[bytes([first, second])] = len(ranks)
    specials = {name: len(ranks) + index for index, name in enumerate(SPECIAL_TOKENS)}
    tokenizer = Tokenizer(SPLIT_PATTERN, ranks, specials)
    batch = [talk("zz", "yy"), talk("ab", "ba")]
    expected = [tokenizer.render_conversation(conversation) for conversation in batch]
    assert as_lists(tokenizer.render_conversations(batch)) == expected
    assert max(ids.max() for ids, _ in tokenizer.render_conversations(batch)) > 1 << 16


def test_a_malformed_conversation_stops_the_reading() -> None:
    read = []

    def source() -> Iterator[Conversation]:
        for number, conversation in enumerate([talk("a", "b"), {"messages": []}, talk("c", "d")]):
            read.append(number)
            yield conversation

    with pytest.raises(UserError, match="at least one message"):
        WITH_MERGES.render_conversations(source())
    assert read == [0, 1]


def test_span_table() -> None:
    """The texts to encode, and the spans after which a conversation may be cut."""
    table = SpanTable.from_conversations([talk("a", "b", "c", "d", "e"), {"text": "t"}, talk("<|bos|>")])
    assert table.texts == ["a", "b", "c", "d", "e", "t", "<|bos|>"]
    assert table.first_spans == [0, 16, 18]
    assert table.answer_conversations == [0, 0, 1]
    assert [table.spans[end].text for end in table.answer_ends] == ["<|assistant_end|>", "<|assistant_end|>", "t"]
    text_ids = np.arange(7, dtype=np.uint16)  # one token for each text
    rendered = as_lists(table.to_arrays(text_ids, np.arange(8), SPECIAL, None))
    assert [len(ids) for ids, _ in rendered] == [13, 2, 0]
    assert [ids[0] for ids, _ in rendered[:2]] == [BOS, BOS]
    assert table.to_arrays(text_ids, np.arange(8), SPECIAL, max_tokens=3)[0][0].tolist() == []
