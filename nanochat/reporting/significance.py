"""Statistics of differences between accuracies.

Two accuracies with overlapping intervals may still differ significantly: if both models saw the same examples, both
found the same ones easy. Only the examples that exactly one of the models solved distinguish them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

from nanochat.reporting.schema import Z95, Metric


def mcnemar(before: Sequence[bool], after: Sequence[bool]) -> float:
    """Return the two-sided p-value of the exact McNemar test that two models are equally good.

    `before`, `after`: which of the same examples each model solves. Under the hypothesis each of the n examples that
    only one model solves is a fair coin (McNemar, Psychometrika 12, 1947, 153-157). With k examples lost or won,
    whichever are fewer:

        p = min(1, 2 x sum over i = 0..k of C(n, i) / 2^n)

    >>> mcnemar([False] * 6, [True] * 6)  # six of six coins on one side: 2 / 2^6
    0.03125
    """
    lost, won = _count_discordant(before, after)
    total = lost + won
    tail = term = 1  # C(n, 0)
    for i in range(1, min(lost, won) + 1):
        term = term * (total - i + 1) // i  # C(n, i)
        tail += term
    return min(1.0, float(Fraction(2 * tail, 1 << total)))


def paired_gain(before: Sequence[bool], after: Sequence[bool]) -> Metric:
    """Return the accuracy of `after` minus that of `before` on the same examples, its 95% interval and its p-value.

    The interval is Wald's for paired proportions after one more example lost and one more won (Bonett and Price,
    J. Educ. Behav. Stat. 37, 2012, 479-488), so that its coverage holds where few examples differ. With
    p = (won + 1) / (n + 2) and q = (lost + 1) / (n + 2):

        p - q ± 1.96 sqrt((p + q - (p - q)^2) / (n + 2))

    The p-value of no difference is that of `mcnemar`.

    >>> gain = paired_gain([True, True, False, False], [True, False, True, True])
    >>> gain["value"], gain["n"], gain["p"]
    (0.25, 4, 1.0)
    """
    lost, won = _count_discordant(before, after)
    n = len(before)
    p = (won + 1) / (n + 2)
    q = (lost + 1) / (n + 2)
    margin = Z95 * math.sqrt((p + q - (p - q) ** 2) / (n + 2))
    interval = [max(-1.0, p - q - margin), min(1.0, p - q + margin)]
    return {"value": (won - lost) / max(1, n), "n": n, "interval": interval, "p": mcnemar(before, after)}


def unpaired_gain(before: Metric, after: Metric) -> Metric:
    """Return the accuracy of `after` minus that of `before` on different examples, and its 95% interval.

    The interval combines Wilson's intervals [l1, u1] of p1 = `before` and [l2, u2] of p2 = `after` (Newcombe,
    Statistics in Medicine 17, 1998, 873-890, method 10):

        p2 - p1 - sqrt((p2 - l2)^2 + (u1 - p1)^2)  to  p2 - p1 + sqrt((u2 - p2)^2 + (p1 - l1)^2)
    """
    gain = after["value"] - before["value"]
    low_before, high_before = before["interval"]
    low_after, high_after = after["interval"]
    low = gain - math.hypot(after["value"] - low_after, high_before - before["value"])
    high = gain + math.hypot(high_after - after["value"], before["value"] - low_before)
    return {"value": gain, "interval": [low, high]}


def scale_metric(metric: Metric, factor: float) -> Metric:
    """Return a metric with its value and its interval multiplied by `factor`."""
    low, high = metric["interval"]
    return {**metric, "value": factor * metric["value"], "interval": [factor * low, factor * high]}


def mean_metric(metrics: Sequence[Metric]) -> Metric:
    """Return the mean of k independent metrics, with a 95% interval from theirs.

    The interval recovers the variances from the distances of the ends (Zou and Donner, Stat. Med. 27, 2008, 1693-1702):

        mean - sqrt(sum of (value - low)^2) / k  to  mean + sqrt(sum of (high - value)^2) / k
    """
    value = math.fsum(metric["value"] for metric in metrics) / len(metrics)
    low = math.hypot(*(metric["value"] - metric["interval"][0] for metric in metrics)) / len(metrics)
    high = math.hypot(*(metric["interval"][1] - metric["value"] for metric in metrics)) / len(metrics)
    return {"value": value, "interval": [value - low, value + high]}


def format_p_value(p: float) -> str:
    """Format a p-value, as `p = 0.004`."""
    if p < 0.001:
        return "p < 0.001"
    return f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"


def _count_discordant(before: Sequence[bool], after: Sequence[bool]) -> tuple[int, int]:
    """Return how many examples only `before` solves, and how many only `after`."""
    pairs = list(zip(before, after, strict=True))
    return sum(a and not b for a, b in pairs), sum(b and not a for a, b in pairs)
