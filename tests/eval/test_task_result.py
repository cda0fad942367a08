"""The result of a task: accuracy, its interval, the centred scale, tool calls, and what the report stores."""

from __future__ import annotations

import pytest

from nanochat.eval.task_result import TaskResult
from nanochat.reporting.schema import proportion


def make_result(num_correct: list[int], **fields: int) -> TaskResult:
    return TaskResult("t", num_correct, 0.25, baseline=0.2, num_cut=0, examples_hash="h", seconds=0.0, **fields)


def test_an_example_is_correct_if_any_sample_is() -> None:
    result = make_result([1, 2, 0, 0, 0], num_samples=2, num_tool_calls=1)
    assert result.num_examples == 5
    assert result.correct == [True, True, False, False, False]
    assert result.accuracy == 0.4
    assert result.interval == tuple(proportion(2, 5)["interval"])
    assert result.tool_share == 0.1  # of 10 completions


def test_the_centred_scale_is_0_at_the_baseline_and_1_at_the_top() -> None:
    assert make_result([1, 0, 0, 0, 0]).centred == 0
    assert make_result([1, 1]).centred == 1
    assert make_result([1, 0, 1, 0, 1]).centred == pytest.approx(0.5)


def test_the_report_stores_the_metric_and_each_example() -> None:
    result = make_result([1, 0, 3], num_samples=3)
    assert result.metric == {**proportion(2, 3), "chance": 0.25}
    assert result.answers == {"problems": "h", "correct": "101"}


def test_a_result_without_examples() -> None:
    result = make_result([])
    assert (result.accuracy, result.interval, result.tool_share) == (0.0, (0.0, 1.0), 0.0)
