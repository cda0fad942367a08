"""MMLU: questions on 57 subjects, from school to professional level, with four choices each (`cais/mmlu`)."""

from __future__ import annotations

from typing import Any

from nanochat.common import UserError
from nanochat.tokenization.chat_format import Conversation
from tasks.common import CategoricalTask, make_multiple_choice
from tasks.hub import HubTask


class MMLU(HubTask, CategoricalTask):
    """Splits: test, validation and dev of all subjects; train is auxiliary_train, compiled from other data sets."""

    name = "MMLU"
    num_choices = 4
    repo_id = "cais/mmlu"
    columns = ("question", "subject", "choices", "answer")

    def __init__(self, split: str = "test", *, subset: str | None = None, **kwargs: Any) -> None:
        """`subset`: "auxiliary_train" (split "train" only) or "all" (the other splits); default: chosen by split.

        Raises UserError for another subset.
        """
        if split == "auxiliary_train":
            split, subset = "train", "auxiliary_train"
        if subset is None:
            subset = "auxiliary_train" if split == "train" else "all"
        if subset not in ("auxiliary_train", "all"):
            raise UserError(f"{self.name} has no subset {subset!r}: must be auxiliary_train or all")
        super().__init__(subset, split, **kwargs)

    def get_example(self, index: int) -> Conversation:
        row = self.get_row(index)
        conversation = make_multiple_choice(row["question"], row["choices"], row["answer"])
        return {**conversation, "subject": row["subject"]}
