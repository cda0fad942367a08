"""Rendering of many conversations at once: one call of the encoder for all their texts, ids and masks in arrays.

This is the fast twin of `Tokenizer.render_conversation`, which handles one conversation and is the one to read. A
`SpanTable` lists the spans of all conversations, one after another. The encoder, which works without Python's lock and
in several threads, gives the number of tokens of each text; a special token is one. All else is arithmetic on arrays:

    conversation       0                                      1
    span               <|bos|>  <|user_start|>  2+2?   ...    <|bos|>  ...
    number of tokens   1        1               4             1
    ids                258      259             50 43 50 63   258
    mask               0        0               0  0  0  0    0

Letters in shape comments: S spans, N tokens, C conversations.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from nanochat.tokenization.chat_format import Conversation, Span, document_text, render_turns

RenderedArrays = tuple[np.ndarray, np.ndarray]
"""Ids (int64) and loss mask (bool) of a conversation, of equal length."""

BOS = Span("<|bos|>", is_special=True, is_trained=False)
TEXT = -1  # in place of the id of a special token


@dataclass
class SpanTable:
    """The spans of conversations, and the ends of the answers, by which conversations that are too long are cut."""

    spans: list[Span] = field(default_factory=list)  # (S,) of all conversations
    first_spans: list[int] = field(default_factory=list)  # (C,) the first span of each conversation, <|bos|>
    is_document: list[bool] = field(default_factory=list)  # (C,)
    answer_ends: list[int] = field(default_factory=list)  # the last span of each answer of all conversations
    answer_conversations: list[int] = field(default_factory=list)  # the conversation of each answer

    @classmethod
    def from_conversations(cls, conversations: Iterable[Conversation]) -> SpanTable:
        """Collect the spans. Raises `UserError` for a malformed conversation, before the next one is read."""
        table = cls()
        for index, conversation in enumerate(conversations):
            text = document_text(conversation)
            turns = [[Span(text, False, True)]] if text is not None else render_turns(conversation)
            table.first_spans.append(len(table.spans))
            table.is_document.append(text is not None)
            table.spans.append(BOS)
            for turn in turns:
                table.spans += turn
                if turn[-1].is_trained:
                    table.answer_ends.append(len(table.spans) - 1)
                    table.answer_conversations.append(index)
        return table

    @property
    def texts(self) -> list[str]:
        """The spans to encode, in order."""
        return [text for text, is_special, _ in self.spans if not is_special]

    def to_arrays(
        self, text_ids: np.ndarray, offsets: np.ndarray, special_tokens: Mapping[str, int], max_tokens: int | None
    ) -> list[RenderedArrays]:
        """Return ids and mask of each conversation, of at most `max_tokens` tokens, or empty arrays.

        `text_ids` and `offsets`: the encoded `texts`, as `Tokenizer.encode_arrays` returns them. `special_tokens`:
        name -> id.
        """
        if not self.first_spans:
            return []
        special_ids = np.array([special_tokens[name] if is_special else TEXT for name, is_special, _ in self.spans])
        is_text = special_ids == TEXT
        num_tokens = np.ones(len(special_ids), dtype=np.int64)
        num_tokens[is_text] = np.diff(offsets)
        span_ends = np.cumsum(num_tokens)  # (S,)

        ids = np.repeat(special_ids, num_tokens)  # (N,)
        ids[ids == TEXT] = text_ids
        mask = np.repeat([is_trained for _, _, is_trained in self.spans], num_tokens)  # (N,)
        starts = span_ends[self.first_spans] - 1  # (C,) the position of each <|bos|>
        sizes = np.diff(starts, append=len(ids))
        ends = starts + self._cut(sizes, starts, span_ends, max_tokens)
        trained_before = np.concatenate([[0], np.cumsum(mask)])  # (N + 1,)
        ends = np.where(trained_before[ends] > trained_before[starts], ends, starts)
        bounds = zip(starts.tolist(), ends.tolist(), strict=True)
        return [(ids[start:end], mask[start:end]) for start, end in bounds]

    def _cut(self, sizes: np.ndarray, starts: np.ndarray, span_ends: np.ndarray, max_tokens: int | None) -> np.ndarray:
        """Return how many tokens of each conversation remain, (C,).

        `sizes`, `starts`: tokens of each conversation and the position of its first, (C,). `span_ends`: the position
        after each span, (S,).
        """
        limit = int(sizes.max()) if max_tokens is None else max_tokens
        answers = np.array(self.answer_conversations, dtype=np.int64)
        answer_sizes = span_ends[np.array(self.answer_ends, dtype=np.int64)] - starts[answers]  # tokens up to each end
        fits = answer_sizes <= limit
        remaining = np.zeros(len(sizes), dtype=np.int64)
        remaining[answers[fits]] = answer_sizes[fits]  # the last of a conversation's answers is assigned last
        remaining[(remaining == 0) & (sizes > limit)] = limit  # within the first answer
        return np.where(self.is_document, np.minimum(sizes, limit), remaining)
