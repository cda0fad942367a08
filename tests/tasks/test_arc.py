"""ARC: letters of the choices, and the score of a constant answer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tasks.arc import ARC
from tasks.registry import get_task


@pytest.mark.parametrize("name", ["ARC-Easy", "ARC-Challenge"])
def test_always_answering_b_scores_the_fraction_of_b(name: str, hub_data: Path) -> None:
    task = get_task(name)
    table = pq.read_table(next((hub_data / "allenai/ai2_arc" / name).glob("test-*")))
    is_b = [key == "B" for key in table["answerKey"].to_pylist()]
    accuracy = sum(task.evaluate(conversation, "B") for conversation in task) / len(task)
    assert 0.1 < accuracy < 0.4
    assert accuracy == sum(is_b) / len(is_b)
    assert abs(task.chance - 0.25) < 0.001


@pytest.mark.shared_data
@pytest.mark.usefixtures("hub_data")
def test_rows_have_three_to_five_letters() -> None:
    task = get_task("ARC-Challenge")
    num_rows = Counter(len(conversation["letters"]) for conversation in task)
    assert num_rows == {4: 1165, 3: 4, 5: 3}
    assert task.chance == pytest.approx((1165 / 4 + 4 / 3 + 3 / 5) / 1172)
    for conversation in task:
        assert conversation["messages"][-1]["content"] in conversation["letters"]


def test_numbered_choices_get_letters(write_to_mirror: Callable[..., Path]) -> None:
    rows = [
        {"question": "Q", "choices": {"text": ["p", "q", "r"], "label": ["1", "2", "3"]}, "answerKey": "3"},
        {"question": "Q", "choices": {"text": ["p", "q"], "label": ["B", "D"]}, "answerKey": "D"},
    ]
    write_to_mirror("allenai/ai2_arc/ARC-Easy/test-00000-of-00001.parquet", rows)
    task = ARC("ARC-Easy")
    assert task[0]["letters"] == ("A", "B", "C")
    assert task[0]["messages"][-1]["content"] == "C"
    assert task[1]["letters"] == ("B", "D")
    assert task[1]["messages"][-1]["content"] == "D"
    assert task.chance == (1 / 3 + 1 / 2) / 2
