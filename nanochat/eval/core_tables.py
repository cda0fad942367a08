"""Tables of CORE for the terminal and as CSV: of one model, and of two models on the same examples."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from nanochat.core_eval import CoreScore, core_metric
from nanochat.eval.core_bundle import Bundle
from nanochat.eval.task_result import TaskResult
from nanochat.reporting.markdown import format_duration
from nanochat.reporting.schema import Metric
from nanochat.reporting.significance import format_p_value, mean_metric, paired_gain, scale_metric

RESULT_HEADER = f"{'task':34} {'right':>6} {'95% interval':>16} {'n':>7} {'guessing':>9} {'baseline':>9} {'centred':>8}"
COMPARISON_HEADER = f"{'task':34} {'A':>6} {'B':>6} {'B - A':>7} {'95% interval':>18} {'n':>7}  McNemar"


def core_name(bundle: Bundle) -> str:
    """Return `CORE`, or `CORE over 21 of 22` if the bundle lacks tasks."""
    num_tasks = len(bundle.tasks)
    return f"CORE over {num_tasks} of {num_tasks + len(bundle.missing)}" if bundle.missing else "CORE"


# --- one model --------------------------------------------------------------------------------------------------------


def result_row(result: TaskResult) -> str:
    """Return a row of the table for the terminal."""
    low, high = result.interval
    return (
        f"{result.name:34} {result.accuracy:6.1%} [{low:6.1%}, {high:6.1%}] {result.num_examples:7,} "
        f"{result.chance:9.1%} {result.baseline:9.1%} {result.centred:8.3f} {format_duration(result.seconds):>9}"
    )


def results_csv(results: Sequence[TaskResult], name: str, score: CoreScore) -> str:
    """Return the table as CSV, with the model's CORE, called `name`, and the CORE of guessing in the last rows."""
    header = ("task", "accuracy", "low_95", "high_95", "n", "guessing", "baseline", "centred", "cut")
    rows: list[tuple[Any, ...]] = []
    for result in results:
        cells = (result.name, result.accuracy, *result.interval, result.num_examples)
        rows.append((*cells, result.chance, result.baseline, result.centred, result.num_cut))
    metric = score.metric
    rows.append((name, "", *metric["interval"], metric["n"], "", "", metric["value"], ""))
    rows.append(("guessing alone", *[""] * 6, score.guessing, ""))
    return _to_csv([header, *rows])


def result_notes(results: Sequence[TaskResult], bundle: Bundle) -> list[str]:
    """Return notes on missing tasks and truncated prompts."""
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


# --- two models, A and B ----------------------------------------------------------------------------------------------


def task_gain(a: TaskResult, b: TaskResult) -> Metric:
    """Return B's accuracy minus A's on the same examples, with its interval and McNemar's p-value."""
    assert (a.name, a.examples_hash) == (b.name, b.examples_hash), f"{a.name} and {b.name}: other examples"
    return paired_gain(a.correct, b.correct)


def core_gain(before: Sequence[TaskResult], after: Sequence[TaskResult]) -> Metric:
    """Return B's CORE minus A's and its 95% interval: the mean of the tasks' paired gains on the centred scale.

    The interval treats the tasks as independent. It covers the sampling of examples, not of training seeds or data.
    """
    gains = [scale_metric(task_gain(a, b), 1 / (1 - a.baseline)) for a, b in zip(before, after, strict=True)]
    return {**mean_metric(gains), "n": sum(result.num_examples for result in before)}


def comparison_row(a: TaskResult, b: TaskResult) -> str:
    """Return a row of the table for the terminal."""
    gain = task_gain(a, b)
    low, high = gain["interval"]
    return (
        f"{a.name:34} {a.accuracy:6.1%} {b.accuracy:6.1%} {gain['value']:+7.1%} [{low:+7.1%}, {high:+7.1%}] "
        f"{a.num_examples:7,}  {format_p_value(gain['p'])}"
    )


def comparison_summary(before: Sequence[TaskResult], after: Sequence[TaskResult], name: str) -> Iterator[str]:
    """Yield a line on both CORE scores and their difference, and a line on the tasks that differ."""
    score_a = core_metric(before).metric["value"]
    score_b = core_metric(after).metric["value"]
    gain = core_gain(before, after)
    low, high = gain["interval"]
    yield (
        f"{name}: A {score_a:.4f}, B {score_b:.4f}, B - A {gain['value']:+.4f}, "
        f"95% interval of the paired difference {low:+.4f} to {high:+.4f}"
    )
    different = [a.name for a, b in zip(before, after, strict=True) if task_gain(a, b)["p"] < 0.05]
    expected = f"of two equally good models at most one in twenty would, {len(before) / 20:.1f} of {len(before)}"
    yield f"Tasks that differ with p < 0.05: {', '.join(different) or 'none'} ({expected})"


def comparison_csv(before: Sequence[TaskResult], after: Sequence[TaskResult], name: str) -> str:
    """Return the table as CSV, with both CORE scores, called `name`, in the last row."""
    header = ("task", "accuracy_a", "accuracy_b", "difference", "low_95", "high_95", "n", "p")
    rows: list[tuple[Any, ...]] = []
    for a, b in zip(before, after, strict=True):
        gain = task_gain(a, b)
        rows.append((a.name, a.accuracy, b.accuracy, gain["value"], *gain["interval"], gain["n"], gain["p"]))
    gain = core_gain(before, after)
    scores = (core_metric(results).metric["value"] for results in (before, after))
    rows.append((name, *scores, gain["value"], *gain["interval"], gain["n"], ""))
    return _to_csv([header, *rows])


def _to_csv(rows: Iterable[Sequence[Any]]) -> str:
    """Return rows as CSV, floats with six significant digits."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([f"{cell:.6g}" if isinstance(cell, float) else cell for cell in row] for row in rows)
    return text.getvalue()
