"""MMLU: both layouts of its files, and the score of a constant answer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tasks.common import make_multiple_choice
from tasks.mmlu import MMLU


def test_always_answering_b_scores_the_fraction_of_b(hub_data: Path) -> None:
    task = MMLU("test", step=7)
    table = pq.read_table(next((hub_data / "cais/mmlu/all").glob("test-*")))
    is_b = [answer == 1 for answer in table["answer"].to_pylist()][::7]
    accuracy = sum(task.evaluate(conversation, "B") for conversation in task) / len(task)
    assert 0.1 < accuracy < 0.4
    assert accuracy == sum(is_b) / len(is_b)


@pytest.mark.usefixtures("hub_data")
def test_every_row_has_as_many_choices_as_the_task_says() -> None:
    task = MMLU("test", step=7)
    assert {len(conversation["letters"]) for conversation in task} == {task.num_choices} == {4}
    assert task.chance == 0.25


@pytest.mark.parametrize("is_wrapped", [False, True])
def test_flat_and_wrapped_columns_are_read(is_wrapped: bool, write_to_mirror: Callable[..., Path]) -> None:
    row = {"question": "Q", "subject": "S", "choices": ["p", "q", "r", "s"], "answer": 2}
    rows = [{"train": row} if is_wrapped else row] * 3
    write_to_mirror("cais/mmlu/auxiliary_train/train-00000-of-00001.parquet", rows)
    task = MMLU("auxiliary_train")
    assert len(task) == 3
    assert task[0] == {**make_multiple_choice("Q", ["p", "q", "r", "s"], 2), "subject": "S"}
