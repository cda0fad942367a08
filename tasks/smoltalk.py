"""SmolTalk: general conversations, of which the smaller, simpler selection is used (`HuggingFaceTB/smol-smoltalk`)."""

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

    Conversations without a system message get one of ours in 15% of the cases, chosen by the row. A row that is no
    conversation (roles out of turn, no text) gives the next one that is instead, and is noted in `invalid`.
    """

    name = "SmolTalk"
    repository = "HuggingFaceTB/smol-smoltalk"
    columns = ("messages",)

    def __init__(self, split: str = "test", **rows: Any) -> None:
        super().__init__("data", split, **rows)
        self.invalid_rows: set[int] = set()

    def get_example(self, index: int) -> Conversation:
        for row in itertools.chain(range(index, self.num_examples()), range(index)):
            conversation = {"messages": self.row(row)["messages"]}
            try:
                render_turns(conversation)
            except UserError:
                self.invalid_rows.add(row)
                continue
            return add_system_message(conversation, row_rng(self.name, row), SYSTEM_MESSAGE_PROB)
        raise UserError(f"{self.repository} ({self.split}) has no conversation")
