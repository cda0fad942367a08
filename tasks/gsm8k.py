"""GSM8K: grade-school word problems with solutions that call a calculator (`openai/gsm8k`).

A step of a solution reads `12 / 60 = $<<12/60=0.2>>0.2`. The annotation in angle brackets becomes a call of the
calculator and its result; the text around it is kept. The last line, `#### 10`, is the answer.
"""

from __future__ import annotations

import re
from typing import Any

from nanochat.common import UserError
from nanochat.tokenization.chat_format import Conversation
from tasks.common import extract_final_number, final_numbers_match, make_conversation, text_part, tool_call_parts
from tasks.hub import HubTask

_ANNOTATION = re.compile(r"<<([^<>]+)=([^<>=]+)>>")


class GSM8K(HubTask):
    """Splits: train (7,473 rows) and test (1,319).

    A completion is correct if the number after its last `####` equals that of the reference answer, compared as numbers
    (`tasks.common.final_numbers_match`).
    """

    name = "GSM8K"
    repo_id = "openai/gsm8k"
    columns = ("question", "answer")

    def __init__(self, split: str = "test", *, subset: str = "main", **kwargs: Any) -> None:
        """Load a split. Raises UserError for a subset other than "main"."""
        if subset != "main":
            raise UserError(f"{self.name} has no subset {subset!r}: must be main")
        super().__init__(subset, split, **kwargs)

    def get_example(self, index: int) -> Conversation:
        row = self.get_row(index)
        if extract_final_number(row["answer"]) is None:
            raise UserError(f"{self.name} ({self.split}), row {index}: the answer has no number after ####")
        return make_conversation(row["question"], solution_parts(row["answer"]))

    def evaluate(self, conversation: Conversation, completion: str) -> bool:
        return final_numbers_match(conversation, completion)


def solution_parts(solution: str) -> list[dict[str, str]]:
    """Split a solution into text parts and tool calls. Only `<<expression=result>>` is a call; other brackets are text.

    >>> [part["text"] for part in solution_parts("He has 2*3=<<2*3=6>>6.\\n#### 6")]
    ['He has 2*3=', '2*3', '6', '6.\\n#### 6']
    """
    parts = []
    end = 0
    for match in _ANNOTATION.finditer(solution):
        parts += [text_part(solution[end : match.start()]), *tool_call_parts(match[1], match[2])]
        end = match.end()
    parts.append(text_part(solution[end:]))
    return [part for part in parts if part["text"]]
