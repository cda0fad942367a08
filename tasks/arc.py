"""ARC: grade-school science questions with multiple choice, an easy and a challenge set (`allenai/ai2_arc`)."""

from __future__ import annotations

from typing import Any

from nanochat.tokenization.chat_format import Conversation
from tasks.common import LETTERS, CategoricalTask, make_multiple_choice
from tasks.hub import HubTask


class ARC(HubTask, CategoricalTask):
    """`subset` is ARC-Easy or ARC-Challenge; splits are train, validation and test.

    Most rows have four choices, some three or five; each row is shown and scored with its own letters. Rows that label
    their choices 1, 2, 3, 4 get A, B, C, D instead, so that every answer is a letter.
    """

    repo_id = "allenai/ai2_arc"
    columns = ("question", "choices", "answerKey")

    def __init__(self, subset: str, split: str = "test", **kwargs: Any) -> None:
        self.name = subset
        super().__init__(subset, split, **kwargs)

    def get_example(self, index: int) -> Conversation:
        row = self.get_row(index)
        labels = row["choices"]["label"]
        letters = labels if set(labels) <= set(LETTERS) else LETTERS
        return make_multiple_choice(row["question"], row["choices"]["text"], labels.index(row["answerKey"]), letters)
