"""ARC: grade-school science as multiple choice, in an easy and a hard set (`allenai/ai2_arc`)."""

from __future__ import annotations

from typing import Any

from nanochat.tokenization.chat_format import Conversation
from tasks.common import LETTERS, make_multiple_choice
from tasks.hub import HubTask


class ARC(HubTask):
    """`subset` is ARC-Easy or ARC-Challenge; splits are train, validation, test.

    Most rows have four choices, some three or five: each is asked and scored by its own letters. Where a row calls its
    choices 1, 2, 3, 4 they are A, B, C, D here, so that every answer is a letter.
    """

    eval_type = "categorical"
    repository = "allenai/ai2_arc"
    columns = ("question", "choices", "answerKey")

    def __init__(self, subset: str, split: str = "test", **rows: Any) -> None:
        self.name = subset
        super().__init__(subset, split, **rows)

    def get_example(self, index: int) -> Conversation:
        row = self.row(index)
        labels, key = row["choices"]["label"], row["answerKey"]
        letters = labels if set(labels) <= set(LETTERS) else LETTERS
        return make_multiple_choice(row["question"], row["choices"]["text"], labels.index(key), letters)
