"""MMLU: questions of 57 subjects, from school to profession, each with four choices (`cais/mmlu`)."""

from __future__ import annotations

import functools
from typing import Any

from nanochat.tokenization.chat_format import Conversation
from tasks.common import make_multiple_choice
from tasks.hub import HubTask


class MMLU(HubTask):
    """Splits: test, validation and dev of all subjects; train (auxiliary_train), which is made of other data sets."""

    name = "MMLU"
    eval_type = "categorical"
    repository = "cais/mmlu"
    columns = ("question", "subject", "choices", "answer")

    def __init__(self, split: str = "test", **rows: Any) -> None:
        if split in ("train", "auxiliary_train"):
            super().__init__("auxiliary_train", "train", **rows)
        else:
            super().__init__("all", split, **rows)

    @functools.cached_property
    def chance(self) -> float:
        """All questions have four choices."""
        return 0.25

    def get_example(self, index: int) -> Conversation:
        row = self.row(index)
        return {**make_multiple_choice(row["question"], row["choices"], row["answer"]), "subject": row["subject"]}
