"""SmolTalk: general conversations, from the subset made for small models (`HuggingFaceTB/smol-smoltalk`)."""

from __future__ import annotations

import itertools
from typing import Any

from nanochat.common import UserError
from nanochat.tokenization.chat_format import Conversation, render_turns
from tasks.common import row_rng
from tasks.hub import HubTask
from tasks.system_messages import add_system_message

SYSTEM_MESSAGE_PROB = 0.15


class SmolTalk(HubTask):
    """Splits: train (460K rows on the hub) and test (24K).

    A conversation without a system message gets one with probability 0.15, drawn by its row. A row that is no valid
    conversation (roles out of turn, no text) is replaced by the next valid one and recorded in `invalid_rows`.
    """

    name = "SmolTalk"
    repo_id = "HuggingFaceTB/smol-smoltalk"
    columns = ("messages",)

    def __init__(self, split: str = "test", **kwargs: Any) -> None:
        super().__init__("data", split, **kwargs)
        self.invalid_rows: set[int] = set()

    def get_example(self, index: int) -> Conversation:
        for row in itertools.chain(range(index, self.num_examples()), range(index)):
            conversation = {"messages": self.get_row(row)["messages"]}
            try:
                render_turns(conversation)
            except UserError:
                self.invalid_rows.add(row)
                continue
            return add_system_message(conversation, row_rng(self.name, row), SYSTEM_MESSAGE_PROB)
        raise UserError(f"{self.repo_id} ({self.split}) has no valid conversation")
