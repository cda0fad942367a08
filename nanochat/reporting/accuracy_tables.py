"""Tables of the report on accuracies: accuracy by stage, and the gain of each stage over the one before it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any, cast

from nanochat.reporting.markdown import format_table
from nanochat.reporting.schema import STAGES, Answers, Metric, Section, is_accuracy, stage_of
from nanochat.reporting.significance import format_p_value, paired_gain, unpaired_gain


class Accuracy(Metric, total=False):
    """An accuracy of one stage on one task, with the solved examples if the section has them."""

    answers: Answers | None


class Gain(Metric, total=False):
    """The gain of a stage over an earlier one."""

    over: str  # the earlier stage


def accuracies_by_task(sections: Mapping[str, Section]) -> dict[str, dict[str, Accuracy]]:
    """Return task -> stage -> accuracy, stages in the order of STAGES; a later section replaces an earlier one's."""
    by_task: dict[str, dict[str, Accuracy]] = {}
    for name, section in sections.items():
        stage = stage_of(name, section)
        metrics: Mapping[str, Any] = section.get("metrics", {}) if stage else {}
        for task, metric in metrics.items():
            if is_accuracy(metric):
                answers = (section.get("answers") or {}).get(task)
                accuracy = cast(Accuracy, {**metric, "answers": answers})
                by_task.setdefault(task, {})[str(stage)] = accuracy
    return {
        task: {stage: accuracies[stage] for stage in STAGES if stage in accuracies}
        for task, accuracies in by_task.items()
    }


def gains_by_stage(accuracies: Mapping[str, Accuracy]) -> dict[str, Gain]:
    """Return for each stage but the first its gain over the one before it.

    A gain is paired, with a p-value, if both stages were measured on the same examples.
    """
    gains: dict[str, Gain] = {}
    for earlier, later in itertools.pairwise(accuracies):
        before = accuracies[earlier]
        after = accuracies[later]
        marks = _paired_marks(before.get("answers"), after.get("answers"))
        gain = paired_gain(*marks) if marks else unpaired_gain(before, after)
        gains[later] = {**gain, "over": earlier}
    return gains


def _paired_marks(before: Answers | None, after: Answers | None) -> tuple[list[bool], list[bool]] | None:
    """Return for each stage a mark per example, True = solved; None if the examples differ or are not known."""
    if before is None or after is None or before["problems"] != after["problems"]:
        return None
    if len(before["correct"]) != len(after["correct"]) or not before["correct"]:
        return None
    return [mark == "1" for mark in before["correct"]], [mark == "1" for mark in after["correct"]]


def accuracy_tables(sections: Mapping[str, Section], picture: str) -> Iterator[str]:
    """Yield the report's Markdown blocks on accuracies by stage and their gains; none if there are no accuracies."""
    by_task = accuracies_by_task(sections)
    if not by_task:
        return
    stages = _stages_of(by_task)
    yield "### Accuracy by stage"
    yield "In percent, with 95% intervals, with the accuracy of guessing (chance) and the number of problems."
    rows = [
        [task, _chance(row), *(_percent_cell(row.get(stage)) for stage in stages), _counts_cell(row)]
        for task, row in by_task.items()
    ]
    yield format_table(["task", "chance", *stages, "problems"], rows)
    steps = list(itertools.pairwise(stages))
    if steps:
        yield "### Gain of each stage"
        yield (
            "In percentage points over the stage before, with 95% intervals. p is the p-value of the exact McNemar "
            "test, problem by problem; between equally good models it falls below 0.05 once in twenty times."
        )
        rows = []
        for task, row in by_task.items():
            gains = gains_by_stage(row)
            rows.append([task, *(_gain_cell(gains.get(later), earlier) for earlier, later in steps)])
        yield format_table(["task", *(f"{later} over {earlier}" for earlier, later in steps)], rows)
    yield f"![accuracy by stage]({picture})"
    yield "Bars are 95% intervals; the dashed line is the accuracy of guessing."


def accuracy_lines(sections: Mapping[str, Section]) -> Iterator[str]:
    """Yield the lines of a table of accuracies by stage for the terminal; none if there are no accuracies."""
    by_task = accuracies_by_task(sections)
    stages = _stages_of(by_task)
    title = "right, in %"
    width = max(map(len, [title, *by_task]))
    if by_task:
        yield f"{title:{width}}  guessing" + "".join(f"{stage:>14}" for stage in stages)
    has_p_value = False
    for task, row in by_task.items():
        gains = gains_by_stage(row)
        has_p_value = has_p_value or any("p" in gain for gain in gains.values())
        cells = []
        for stage in stages:
            text = _short_cell(row[stage]) if stage in row else ""
            mark = " "
            if stage in gains and gains[stage].get("p", 1) < 0.05:
                mark = "*" if gains[stage]["value"] > 0 else "!"
            cells.append(f"{text:>12} {mark}")
        yield f"{task:{width}} {_chance(row):>9}{''.join(cells)}".rstrip()
    if has_p_value:
        yield "±: half of the 95% interval. *: better than the stage before on the same problems (p < 0.05), !: worse."


def _stages_of(by_task: Mapping[str, Mapping[str, Accuracy]]) -> list[str]:
    """Return the stages that have an accuracy on any task, in order."""
    return [stage for stage in STAGES if any(stage in row for row in by_task.values())]


def _short_cell(accuracy: Accuracy) -> str:
    """Return an accuracy as `41.2 ±2.1`."""
    low, high = accuracy["interval"]
    return f"{100 * accuracy['value']:.1f} ±{50 * (high - low):.1f}"


def _percent_cell(accuracy: Accuracy | None) -> str:
    """Return an accuracy as `41.2 [39.1, 43.3]`."""
    if accuracy is None:
        return ""
    low, high = accuracy["interval"]
    return f"{100 * accuracy['value']:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def _chance(row: Mapping[str, Accuracy]) -> str:
    """Return the accuracy of guessing on the last stage's examples."""
    return f"{100 * list(row.values())[-1]['chance']:.1f}"


def _counts_cell(row: Mapping[str, Accuracy]) -> str:
    """Return the number of examples; several numbers if the stages' numbers differ."""
    counts = [accuracy["n"] for accuracy in row.values() if isinstance(accuracy.get("n"), int)]
    return " / ".join(f"{count:,}" for count in dict.fromkeys(counts))


def _gain_cell(gain: Gain | None, expected: str) -> str:
    """Return a gain as `+3.1 [+1.0, +5.2], p = 0.004`; names the earlier stage if it is not `expected`."""
    if gain is None:
        return ""
    low, high = gain["interval"]
    text = f"{100 * gain['value']:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"
    text += f", {format_p_value(gain['p'])}" if "p" in gain else ", other problems"
    return text if gain["over"] == expected else f"{text}, over {gain['over']}"
