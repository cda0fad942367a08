"""CORE's tables of two models on the same examples: by hand, and against a bootstrap."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest

from nanochat.core_eval import core_metric
from nanochat.eval.core_tables import comparison_row, comparison_summary, core_gain, task_gain
from nanochat.eval.task_result import TaskResult
from nanochat.reporting.schema import Z95, proportion
from nanochat.reporting.significance import mcnemar, paired_gain, unpaired_gain


def result(correct: list[bool], baseline: float = 0.0, label: str = "t", examples: str = "same") -> TaskResult:
    """A result with these examples solved."""
    return TaskResult(label, [int(right) for right in correct], 0.5, baseline, 0, examples, 0.0)


def answers(both: int, lost: int, won: int, neither: int) -> tuple[list[bool], list[bool]]:
    """Return which examples A and B solve: so many both, only A (lost), only B (won), neither."""
    a = [True] * both + [True] * lost + [False] * won + [False] * neither
    return a, [True] * both + [False] * lost + [True] * won + [False] * neither


def test_why_pairing_narrows_the_interval() -> None:
    """The variance of a difference is that of A and that of B, less twice what they have in common.

    Models find the same examples easy, and have much in common: here only 40 of 400 results differ. The unpaired
    interval adds both variances, as if the examples had been different ones, and does not separate B from A; the paired
    interval subtracts the covariance, and does. If the results are independent, both are equally wide.
    """
    a, b = answers(both=220, lost=12, won=28, neither=140)
    gain = task_gain(result(a), result(b))
    x, y = np.array(a, float), np.array(b, float)
    covariance = (x * y).mean() - x.mean() * y.mean()
    assert covariance == pytest.approx(220 / 400 - 232 / 400 * 248 / 400)
    paired = Z95 * math.sqrt((x.var() + y.var() - 2 * covariance) / 400)
    unpaired = Z95 * math.sqrt((x.var() + y.var()) / 400)
    low, high = gain["interval"]
    assert (high - low) / 2 == pytest.approx(paired, rel=0.03)
    assert low > 0
    assert gain["p"] == mcnemar(a, b) < 0.05
    other_low, other_high = unpaired_gain(proportion(sum(a), 400), proportion(sum(b), 400))["interval"]
    assert (other_high - other_low) / 2 == pytest.approx(unpaired, rel=0.03)
    assert other_low < 0
    assert other_high - other_low > 2 * (high - low)

    a, b = answers(both=100, lost=100, won=100, neither=100)
    widths = [
        np.ptp(found["interval"])
        for found in (paired_gain(a, b), unpaired_gain(proportion(200, 400), proportion(200, 400)))
    ]
    assert widths[0] == pytest.approx(widths[1], rel=0.02)


def test_core_gain_agrees_with_a_bootstrap() -> None:
    """The value is the mean over tasks of centred differences; the interval is that of resampled examples."""
    rng = random.Random(3)
    draw = np.random.default_rng(3)
    before, after = [], []
    resampled = np.zeros(4000)
    for label, count, baseline, gain in (("a", 2000, 0.25, 0.05), ("b", 800, 0.5, 0.1), ("c", 500, 0.0, 0.0)):
        ease = [rng.random() for _ in range(count)]
        correct_a, correct_b = ([e + 0.3 * rng.random() > 0.6 - better for e in ease] for better in (0, gain))
        before.append(result(correct_a, baseline, label))
        after.append(result(correct_b, baseline, label))
        difference = (np.array(correct_b, float) - np.array(correct_a, float)) / (1 - baseline)
        resampled += difference[draw.integers(0, count, (4000, count))].mean(1) / 3
    core = core_gain(before, after)
    assert core["value"] == pytest.approx(core_metric(after)[0]["value"] - core_metric(before)[0]["value"])
    assert core["n"] == 3300
    assert core["interval"] == pytest.approx(np.quantile(resampled, [0.025, 0.975]).tolist(), abs=0.002)
    separate = math.hypot(core_metric(before)[1], core_metric(after)[1])
    assert np.ptp(core["interval"]) / 2 < 0.7 * Z95 * separate, "narrower than with different examples"


def test_no_comparison_of_other_examples() -> None:
    with pytest.raises(AssertionError, match="other examples"):
        task_gain(result([True]), result([True], examples="other"))


def test_the_table() -> None:
    before, after = [result(correct, 0.25, "name") for correct in answers(0, 0, 8, 2)]
    low = (
        9 / 12 - 1 / 12 - Z95 * math.sqrt((9 / 12 + 1 / 12 - (8 / 12) ** 2) / 12)
    )  # after one more lost and one more won
    cells = comparison_row(before, after).split()
    assert cells == ["name", "0.0%", "80.0%", "+80.0%", "[", f"{low:+.1%},", "+100.0%]", "10", "p", "=", "0.008"]
    scores, different = comparison_summary([before], [after], "CORE")
    assert scores.startswith("CORE: A -0.3333, B 0.7333, B - A +1.0667, 95% interval of the paired difference +0.4")
    assert different.startswith("Tasks that differ with p < 0.05: name (")
    assert "0.1 of 1" in different
