"""GSM8K: word problems of primary school, worked out with a calculator (`openai/gsm8k`).

In the data a step reads `12 / 60 = $<<12/60=0.2>>0.2`. What stands between the angle brackets becomes a call of the
calculator and its result; the text around it stays as it is. The last line is `#### 10`, the answer.
"""

from __future__ import annotations

import re
from typing import Any

from nanochat.common import UserError
from nanochat.tokenization.chat_format import Conversation
from tasks.common import extract_final_number, final_numbers_match, make_conversation, text_part, tool_call_parts
from tasks.hub import HubTask

_CALL = re.compile(r"<<([^<>]+)=([^<>=]+)>>")


class GSM8K(HubTask):
    """Splits: train (7,473 rows) and test (1,319). Right is the number after `####`, however it is written."""

    name = "GSM8K"
    repository = "openai/gsm8k"
    columns = ("question", "answer")

    def __init__(self, split: str = "test", **rows: Any) -> None:
        super().__init__("main", split, **rows)

    def get_example(self, index: int) -> Conversation:
        row = self.row(index)
        if extract_final_number(row["answer"]) is None:
            raise UserError(f"{self.name} ({self.split}), row {index}: no number after ####")
        return make_conversation(row["question"], solution_parts(row["answer"]))

    def evaluate(self, conversation: Conversation, completion: str) -> bool:
        return final_numbers_match(conversation, completion)


def solution_parts(solution: str) -> list[dict[str, str]]:
    """A worked solution as parts of an answer; annotations that are no `<<expression=result>>` stay text.

    >>> [part["text"] for part in solution_parts("He has 2*3=<<2*3=6>>6.\\n#### 6")]
    ['He has 2*3=', '2*3', '6', '6.\\n#### 6']
    """
    parts = []
    end = 0
    for match in _CALL.finditer(solution):
        parts += [text_part(solution[end : match.start()]), *tool_call_parts(match[1], match[2])]
        end = match.end()
    return [part for part in [*parts, text_part(solution[end:])] if part["text"]]
