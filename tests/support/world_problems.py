"""Word problems of the embedded world for the tests of their texts, solutions and splits."""

from __future__ import annotations

import re
from functools import cache

from nanochat.tokenization.chat_format import Conversation
from tasks.common import Task, reference_text
from tasks.world.problems import HardProblems, WordProblems

SPLITS = ("train", "test")
NUM_PROBLEMS = 1_200


@cache
def word_problems(split: str) -> WordProblems:
    return WordProblems(split, NUM_PROBLEMS)


@cache
def hard_problems(shape: str, split: str = "test") -> HardProblems:
    return HardProblems(split, 400, shape=shape)


def question_of(row: Conversation) -> str:
    return str(row["messages"][0]["content"])


def answer_of(task: Task, index: int) -> int:
    return int(reference_text(task[index]).rpartition("#### ")[2])


def numbers_in(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", text)]
