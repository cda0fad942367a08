"""CORE's tables, for the terminal and as CSV: of one model, and of two on the same examples."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from nanochat.core_eval import core_metric
from nanochat.eval.core_bundle import Bundle
from nanochat.eval.task_result import TaskResult
from nanochat.reporting.markdown import format_duration
from nanochat.reporting.schema import Section
from nanochat.reporting.significance import format_p_value, mean_metric, paired_gain, scale_metric

HEADER = f"{'task':34} {'right':>6} {'95% interval':>16} {'n':>7} {'guessing':>9} {'baseline':>9} {'centred':>8}"
PAIR_HEADER = f"{'task':34} {'A':>6} {'B':>6} {'B - A':>7} {'95% interval':>18} {'n':>7}  McNemar"


def core_name(bundle: Bundle) -> str:
    """`CORE`, or over how many tasks of how many."""
    count = len(bundle.tasks)
    return f"CORE over {count} of {count + len(bundle.missing)}" if bundle.missing else "CORE"


def line(result: TaskResult) -> str:
    """A row of the table at the terminal."""
    low, high = result.metric["interval"]
    return (
        f"{result.name:34} {result.accuracy:6.1%} [{low:6.1%}, {high:6.1%}] {result.num_examples:7,} "
        f"{result.chance:9.1%} {result.baseline:9.1%} {result.centred:8.3f} {format_duration(result.seconds):>9}"
    )


def as_csv(results: Sequence[TaskResult], name: str, found: Section, floor: float) -> str:
    """The table as a file. `found`, `floor`: CORE as a metric, and that of guessing alone."""
    names = ("task", "accuracy", "low_95", "high_95", "n", "guessing", "baseline", "centred", "cut")
    rows: list[tuple[Any, ...]] = [
        (
            *(
                result.name,
                result.accuracy,
                *result.metric["interval"],
                result.num_examples,
                result.chance,
                result.baseline,
            ),
            *(result.centred, result.num_cut),
        )
        for result in results
    ]
    rows.append((name, "", *found["interval"], found["n"], "", "", found["value"], ""))
    rows.append(("guessing alone", *[""] * 6, floor, ""))
    return _csv([names, *rows])


def notes_on(results: Sequence[TaskResult], bundle: Bundle) -> list[str]:
    """What a reader of the score should know."""
    notes = []
    if bundle.missing:
        notes.append(f"Tasks without data, which the score leaves out: {', '.join(bundle.missing)}.")
    for result in results:
        if result.num_cut:
            notes.append(
                f"{result.name}: {result.num_cut} of {result.num_examples} prompts were too long for the context and "
                "lost their beginning."
            )
    return notes


# Two models, A and B.


def gain_of(a: TaskResult, b: TaskResult) -> Section:
    """B's accuracy - A's, its interval and McNemar's p, from the same examples."""
    assert (a.name, a.examples_hash) == (b.name, b.examples_hash), f"{a.name} and {b.name}: other examples"
    return paired_gain(a.correct, b.correct)


def core_gain(before: Sequence[TaskResult], after: Sequence[TaskResult]) -> Section:
    """B's CORE - A's and its 95% interval: the mean of the tasks' paired gains, each on its centred scale.

    The interval takes the tasks for independent. It is that of these examples, not of other seeds or other text.
    """
    gains = [scale_metric(gain_of(a, b), 1 / (1 - a.baseline)) for a, b in zip(before, after, strict=True)]
    return {**mean_metric(gains), "n": sum(result.num_examples for result in before)}


def pair_line(a: TaskResult, b: TaskResult) -> str:
    """A row of the table at the terminal."""
    gain = gain_of(a, b)
    low, high = gain["interval"]
    return (
        f"{a.name:34} {a.accuracy:6.1%} {b.accuracy:6.1%} {gain['value']:+7.1%} [{low:+7.1%}, {high:+7.1%}] "
        f"{a.num_examples:7,}  {format_p_value(gain['p'])}"
    )


def pair_summary(before: Sequence[TaskResult], after: Sequence[TaskResult], name: str) -> Iterator[str]:
    """Both CORE scores, their difference, and how many tasks differ."""
    (a, _, _), (b, _, _), gain = core_metric(before), core_metric(after), core_gain(before, after)
    low, high = gain["interval"]
    yield (
        f"{name}: A {a['value']:.4f}, B {b['value']:.4f}, B - A {gain['value']:+.4f}, "
        f"95% interval of the paired difference {low:+.4f} to {high:+.4f}"
    )
    differ = [a.name for a, b in zip(before, after, strict=True) if gain_of(a, b)["p"] < 0.05]
    expected = f"of two equally good models at most one in twenty would, {len(before) / 20:.1f} of {len(before)}"
    yield f"Tasks that differ with p < 0.05: {', '.join(differ) or 'none'} ({expected})"


def pair_csv(before: Sequence[TaskResult], after: Sequence[TaskResult], name: str) -> str:
    """The table as a file."""
    names = ("task", "accuracy_a", "accuracy_b", "difference", "low_95", "high_95", "n", "p")
    rows: list[tuple[Any, ...]] = []
    for a, b in zip(before, after, strict=True):
        gain = gain_of(a, b)
        rows.append((a.name, a.accuracy, b.accuracy, gain["value"], *gain["interval"], gain["n"], gain["p"]))
    gain = core_gain(before, after)
    scores = (core_metric(results)[0]["value"] for results in (before, after))
    rows.append((name, *scores, gain["value"], *gain["interval"], gain["n"], ""))
    return _csv([names, *rows])


def _csv(rows: Iterable[Sequence[Any]]) -> str:
    """Rows as CSV, numbers with six digits."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([f"{cell:.6g}" if isinstance(cell, float) else cell for cell in row] for row in rows)
    return text.getvalue()
