"""BaseText: pieces of the text that the base model was trained on, so that fine-tuning does not forget it."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

from nanochat.common import UserError
from nanochat.data.shards import open_split
from nanochat.tokenization.chat_format import Conversation
from tasks.common import Task

MAX_TEXT_CHARS = 64_000_000  # of the beginning of the data: all of it is in memory
SPLITS = {"train": "train", "test": "val"}


class BaseText(Task):
    """Documents, not conversations: `{"text": ...}`, each a piece of a document of at most `max_chars` characters.

    A document that is longer than a row of fine-tuning would be cut there, and its rest never be read. Split "test" is
    the validation shard.
    """

    name = "BaseText"

    def __init__(self, split: str = "train", *, max_chars: int = 1000, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if split not in SPLITS:
            raise UserError(f"{self.name} has no split {split!r}: must be one of {', '.join(SPLITS)}")
        if max_chars < 1:
            raise UserError(f"max_chars is {max_chars}: must be at least 1")
        self.split = split
        self.max_chars = max_chars

    @functools.cached_property
    def _pieces(self) -> list[str]:
        pieces: list[str] = []
        num_chars = 0
        for array in open_split("train" if self.split == "train" else "val").iter_arrays():
            for text in array.to_pylist():
                pieces += cut(text, self.max_chars)
                num_chars += len(text)
                if num_chars >= MAX_TEXT_CHARS:
                    return pieces
        return pieces

    def num_examples(self) -> int:
        return len(self._pieces)

    def get_example(self, index: int) -> Conversation:
        return {"text": self._pieces[index]}


def cut(text: str, max_chars: int) -> Iterator[str]:
    """Yield the pieces of a text: each ends after a line, else after a word, else after `max_chars` characters.

    >>> list(cut("One line.\\nAnother line.", max_chars=16))
    ['One line.\\n', 'Another line.']
    """
    start = 0
    while start < len(text):
        end = start + max_chars
        if end < len(text):
            for mark in ("\n", " "):
                found = text.rfind(mark, start + max_chars // 2, end)
                if found != -1:
                    end = found + 1
                    break
        if piece := text[start:end]:
            yield piece
        start = end
