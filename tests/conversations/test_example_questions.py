"""Example questions: of the tasks of a checkpoint, held out, short."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nanochat.conversations.example_questions import MAX_CHARACTERS, NUM_EXAMPLES, example_questions
from tasks.identity import FILE_NAME
from tasks.registry import get_task


def meta(*names: str, **settings: Any) -> dict[str, Any]:
    """The part of a checkpoint's metadata that names its tasks."""
    points = [{"step": 1, "loss": 2.0}, {"step": 2, **{f"val_loss/{name}": 1.0 for name in names}}]
    return {"loop": {"history": points}, "settings": settings}


def first_users(name: str) -> set[str]:
    task = get_task(name, split="test")
    return {task[index]["messages"][0]["content"] for index in range(min(200, len(task)))}


@pytest.mark.slow
def test_each_task_has_its_turn() -> None:
    questions = example_questions(meta("Facts", "WordProblems", "MMLU"))
    assert len(questions) == len(set(questions)) == NUM_EXAMPLES
    assert all(len(question) <= MAX_CHARACTERS for question in questions)
    facts, problems = first_users("Facts"), first_users("WordProblems")
    assert [question in facts for question in questions] == [True, False, True, False]
    assert [question in problems for question in questions] == [False, True, False, True]
    assert questions == example_questions(meta("WordProblems", "Facts"))


def test_the_tasks_of_reinforcement_learning_are_in_its_settings() -> None:
    [*questions] = example_questions(meta(tasks="HardProblems:3|SpellingBee"))
    assert sum(question in first_users("SpellingBee") for question in questions) >= 2


@pytest.mark.parametrize("damaged", [{}, {"settings": None}, meta(), meta("GSM8K", "CustomJSON", tasks="GSM8K")])
def test_no_question_is_invented(damaged: dict[str, Any]) -> None:
    assert example_questions(damaged) == []


def test_a_damaged_identity_file_gives_none(base_dir: Path) -> None:
    (base_dir / FILE_NAME).write_text("{", encoding="utf-8")
    assert example_questions(meta("Identity")) == []
