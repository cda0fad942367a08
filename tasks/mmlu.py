"""MMLU: questions on 57 subjects, from school to professional level, with four choices each (`cais/mmlu`)."""

from __future__ import annotations

from typing import Any

from nanochat.tokenization.chat_format import Conversation
from tasks.common import CategoricalTask, make_multiple_choice
from tasks.hub import HubTask


class MMLU(HubTask, CategoricalTask):
    """Splits: test, validation and dev of all subjects; train is auxiliary_train, compiled from other data sets."""

    name = "MMLU"
    num_choices = 4
    repo_id = "cais/mmlu"
    columns = ("question", "subject", "choices", "answer")

    def __init__(self, split: str = "test", **kwargs: Any) -> None:
        if split in ("train", "auxiliary_train"):
            super().__init__("auxiliary_train", "train", **kwargs)
        else:
            super().__init__("all", split, **kwargs)

    def get_example(self, index: int) -> Conversation:
        row = self.get_row(index)
        conversation = make_multiple_choice(row["question"], row["choices"], row["answer"])
        return {**conversation, "subject": row["subject"]}
