"""What a stage brought: two models compared on the same problems, problem by problem.

Two accuracies with overlapping intervals may still differ for certain: both models met the same easy and the same hard
problems. Only those that one solved and the other did not say anything about which is better.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

from nanochat.sections import Z95, Section


def mcnemar(before: Sequence[bool], after: Sequence[bool]) -> float:
    """Two-sided p-value that two models are equally good, from the same problems: the exact binomial test.

    Under that hypothesis each problem that only one of them solved is a fair coin (McNemar, Psychometrika 12, 1947,
    153-157). 1 if there is none.

    >>> mcnemar([False] * 6, [True] * 6)  # heads six times of six, or tails
    0.03125
    """
    lost, won = _discordant(before, after)
    total = lost + won
    ways = term = 1
    for i in range(1, min(lost, won) + 1):
        term = term * (total - i + 1) // i
        ways += term
    return min(1.0, float(Fraction(2 * ways, 1 << total)))


def paired_gain(before: Sequence[bool], after: Sequence[bool]) -> Section:
    """Accuracy after - before on the same problems, its 95% interval, and the p-value of no difference.

    The interval is Wald's with one problem more lost and one more won (Bonett and Price, J. Educ. Behav. Stat. 37,
    2012, 479-488), which keeps its promise where few problems differ.

    >>> gain = paired_gain([True, True, False, False], [True, False, True, True])
    >>> gain["value"], gain["n"], gain["p"]
    (0.25, 4, 1.0)
    """
    lost, won = _discordant(before, after)
    n = len(before)
    p, q = (won + 1) / (n + 2), (lost + 1) / (n + 2)
    margin = Z95 * math.sqrt((p + q - (p - q) ** 2) / (n + 2))
    interval = [max(-1.0, p - q - margin), min(1.0, p - q + margin)]
    return {"value": (won - lost) / max(1, n), "n": n, "interval": interval, "p": mcnemar(before, after)}


def unpaired_gain(before: Section, after: Section) -> Section:
    """Accuracy after - before on different problems, as metrics with Wilson's intervals, and its 95% interval.

    (Newcombe, Statistics in Medicine 17, 1998, 873-890, method 10.)
    """
    gain = after["value"] - before["value"]
    (low_before, high_before), (low_after, high_after) = before["interval"], after["interval"]
    low = gain - math.hypot(after["value"] - low_after, high_before - before["value"])
    high = gain + math.hypot(high_after - after["value"], before["value"] - low_before)
    return {"value": gain, "interval": [low, high]}


def mean_of(metrics: Sequence[Section]) -> Section:
    """The mean of independent metrics, its interval from theirs (Zou and Donner, Stat. Med. 27, 2008, 1693-1702)."""
    value = math.fsum(metric["value"] for metric in metrics) / len(metrics)
    low = math.hypot(*(metric["value"] - metric["interval"][0] for metric in metrics)) / len(metrics)
    high = math.hypot(*(metric["interval"][1] - metric["value"] for metric in metrics)) / len(metrics)
    return {"value": value, "interval": [value - low, value + high]}


def _discordant(before: Sequence[bool], after: Sequence[bool]) -> tuple[int, int]:
    """How many problems only the first solved, and only the second."""
    pairs = list(zip(before, after, strict=True))
    return sum(a and not b for a, b in pairs), sum(b and not a for a, b in pairs)
