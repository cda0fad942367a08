"""Statistics of differences: against enumeration, simulation and published examples."""

from __future__ import annotations

import itertools
import math
import random

import pytest

from nanochat.reporting.schema import proportion
from nanochat.reporting.significance import (
    format_p_value,
    mcnemar,
    mean_metric,
    paired_gain,
    scale_metric,
    unpaired_gain,
)


def pairs(lost: int, won: int, both: int = 0, neither: int = 0) -> tuple[list[bool], list[bool]]:
    """Return which examples two models solve: so many only the first (lost), only the second (won), both, neither."""
    first = [True] * lost + [False] * won + [True] * both + [False] * neither
    return first, [False] * lost + [True] * won + [True] * both + [False] * neither


@pytest.mark.parametrize(("lost", "won"), list(itertools.product(range(5), repeat=2)))
def test_mcnemar_is_the_share_of_coin_tosses_as_far_from_even(lost: int, won: int) -> None:
    """By counting every sequence of heads and tails."""
    sequences = list(itertools.product((0, 1), repeat=lost + won))
    num_far = sum(abs(sum(toss) - (lost + won) / 2) >= abs(won - lost) / 2 for toss in sequences)
    assert mcnemar(*pairs(lost, won, both=3, neither=2)) == num_far / len(sequences)


def test_mcnemar_of_many_examples() -> None:
    """60 won and 40 lost: twice the tail of the binomial distribution, 0.0569; and no overflow of larger numbers."""
    assert mcnemar(*pairs(40, 60)) == pytest.approx(0.05689, abs=5e-6)
    assert mcnemar(*pairs(60, 40, both=10_000)) == mcnemar(*pairs(40, 60))
    assert 0 < mcnemar(*pairs(3000, 3300)) < 0.001
    assert mcnemar(*pairs(0, 5000)) == pytest.approx(0, abs=1e-300)


@pytest.mark.parametrize(("won", "lost", "n"), [(0.1, 0.05, 1000), (0.01, 0.0, 300), (0.3, 0.3, 60)])
def test_the_paired_interval_covers_the_truth(won: float, lost: float, n: int) -> None:
    """The interval has the known difference in at least about 95 of 100 experiments."""
    rng = random.Random(7)
    num_covered = 0
    repeats = 600
    for _ in range(repeats):
        draws = [rng.random() for _ in range(n)]
        wins = sum(d < won for d in draws)
        losses = sum(won <= d < won + lost for d in draws)
        low, high = paired_gain(*pairs(losses, wins, neither=n - wins - losses))["interval"]
        num_covered += low <= won - lost <= high
    assert num_covered / repeats > 0.93
    assert (num_covered / repeats < 0.975) or won < 0.05


def test_the_paired_gain_by_hand() -> None:
    gain = paired_gain(*pairs(4, 14, both=20, neither=10))
    assert (gain["value"], gain["n"]) == (10 / 48, 48)
    middle = 10 / 50
    margin = 1.959964 * math.sqrt((15 / 50 + 5 / 50 - 0.2**2) / 50)
    assert gain["interval"] == pytest.approx([middle - margin, middle + margin])
    assert paired_gain([], [])["value"] == 0


def test_the_unpaired_gain_is_newcombes_example() -> None:
    """56 of 70 and 48 of 80: from +0.0524 to +0.3339 (Newcombe 1998, table II, method 10)."""
    gain = unpaired_gain(proportion(48, 80), proportion(56, 70))
    assert gain["value"] == pytest.approx(0.2)
    assert gain["interval"] == pytest.approx([0.0524, 0.3339], abs=5e-5)


def test_the_mean_of_one_and_of_equal_metrics() -> None:
    metric = {"value": 0.5, "interval": [0.3, 0.6]}
    assert mean_metric([metric]) == {"value": 0.5, "interval": pytest.approx([0.3, 0.6])}
    assert mean_metric([metric] * 4) == {"value": 0.5, "interval": pytest.approx([0.4, 0.55])}, "half as wide for four"


def test_a_scaled_metric() -> None:
    metric = {"value": 0.5, "interval": [0.25, 1.0], "n": 4}
    assert scale_metric(metric, 2) == {"value": 1.0, "interval": [0.5, 2.0], "n": 4}


@pytest.mark.parametrize(
    ("p", "text"),
    [(0.0009, "p < 0.001"), (0.0042, "p = 0.004"), (0.0999, "p = 0.100"), (0.25, "p = 0.25"), (1, "p = 1.00")],
)
def test_format_p_value(p: float, text: str) -> None:
    assert format_p_value(p) == text
