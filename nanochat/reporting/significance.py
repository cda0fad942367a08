"""What a stage brought: models compared on the same problems, problem by problem, and the report's tables of that.

Two accuracies with overlapping intervals may still differ for certain: both models met the same easy and the same hard
problems. Only those that one solved and the other did not say anything about which is better.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction

from nanochat.reporting.markdown import format_table
from nanochat.reporting.schema import STAGES, Z95, Section, is_accuracy, stage_of


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


def scale_metric(metric: Section, factor: float) -> Section:
    """A metric and its interval on another scale."""
    low, high = metric["interval"]
    return {**metric, "value": factor * metric["value"], "interval": [factor * low, factor * high]}


def mean_metric(metrics: Sequence[Section]) -> Section:
    """The mean of independent metrics, its interval from theirs (Zou and Donner, Stat. Med. 27, 2008, 1693-1702)."""
    value = math.fsum(metric["value"] for metric in metrics) / len(metrics)
    low = math.hypot(*(metric["value"] - metric["interval"][0] for metric in metrics)) / len(metrics)
    high = math.hypot(*(metric["interval"][1] - metric["value"] for metric in metrics)) / len(metrics)
    return {"value": value, "interval": [value - low, value + high]}


def _discordant(before: Sequence[bool], after: Sequence[bool]) -> tuple[int, int]:
    """How many problems only the first solved, and only the second."""
    pairs = list(zip(before, after, strict=True))
    return sum(a and not b for a, b in pairs), sum(b and not a for a, b in pairs)


# Accuracies of all stages, as the report has them.


def accuracies_by_task(sections: Mapping[str, Section]) -> dict[str, dict[str, Section]]:
    """Every metric that says what guessing gives, by task and model in the order of the stages; later sections win."""
    found: dict[str, dict[str, Section]] = {}
    for stage, section in sections.items():
        model = stage_of(stage, section)
        for name, metric in section.get("metrics", {}).items() if model else ():
            if is_accuracy(metric):
                known = (section.get("answers") or {}).get(name)
                found.setdefault(name, {})[str(model)] = {**metric, "answers": known}
    return {task: {model: by[model] for model in STAGES if model in by} for task, by in found.items()}


def gains_by_stage(by_model: Mapping[str, Section]) -> dict[str, Section]:
    """For each model but the first, its gain over the one before: paired, with "p", if both met the same problems."""
    found = {}
    for earlier, later in itertools.pairwise(by_model):
        before, after = by_model[earlier], by_model[later]
        a, b = (metric.get("answers") or {"problems": None, "correct": ""} for metric in (before, after))
        if a["problems"] == b["problems"] and len(a["correct"]) == len(b["correct"]) > 0:
            gain = paired_gain([mark == "1" for mark in a["correct"]], [mark == "1" for mark in b["correct"]])
        else:
            gain = unpaired_gain(before, after)
        found[later] = {**gain, "over": earlier}
    return found


def accuracy_tables(sections: Mapping[str, Section], picture: str) -> Iterator[str]:
    """The report's blocks on accuracy by stage, and on what each stage brought; none where nothing was scored."""
    found = accuracies_by_task(sections)
    if not found:
        return
    models = [model for model in STAGES if any(model in row for row in found.values())]
    yield "### Accuracy by stage"
    yield "In percent, with 95% intervals, beside what guessing gives and the number of problems."
    yield format_table(
        ["task", "chance", *models, "problems"],
        [
            [task, _chance(by_model), *(_percent(by_model.get(model)) for model in models), _counts(by_model)]
            for task, by_model in found.items()
        ],
    )
    steps = list(itertools.pairwise(models))
    if steps:
        yield "### What each stage brought"
        yield (
            "In percentage points over the stage before, with 95% intervals. p is that of the exact McNemar test, "
            "problem by problem: where nothing has changed, it falls below 0.05 once in twenty times."
        )
        changes = {task: gains_by_stage(by_model) for task, by_model in found.items()}
        yield format_table(
            ["task", *(f"{later} over {earlier}" for earlier, later in steps)],
            [[task, *(_gain(change.get(b), a) for a, b in steps)] for task, change in changes.items()],
        )
    yield f"![accuracy by stage]({picture})"
    yield "Bars are 95% intervals; the broken line is what guessing gives."


def accuracy_lines(sections: Mapping[str, Section]) -> Iterator[str]:
    """Accuracy by stage as a table for the terminal; none where nothing was scored."""
    found = accuracies_by_task(sections)
    models = [model for model in STAGES if any(model in row for row in found.values())]
    title = "right, in %"
    width = max(map(len, [title, *found]))
    if found:
        yield f"{title:{width}}  guessing" + "".join(f"{model:>14}" for model in models)
    for task, by_model in found.items():
        cells = [f"{_short(by_model[model]) if model in by_model else '':>12}  " for model in models]
        change = gains_by_stage(by_model)
        for place, model in enumerate(models):
            if change.get(model, {}).get("p", 1) < 0.05:
                cells[place] = f"{cells[place].rstrip():>12} {'*' if change[model]['value'] > 0 else '!'}"
        yield f"{task:{width}} {_chance(by_model):>9}{''.join(cells)}".rstrip()
    if any("p" in gain for by_model in found.values() for gain in gains_by_stage(by_model).values()):
        yield "±: half of the 95% interval. *: better than the stage before on the same problems (p < 0.05), !: worse."


def _short(metric: Section) -> str:
    """An accuracy: `41.2 ±2.1`."""
    low, high = metric["interval"]
    return f"{100 * metric['value']:.1f} ±{50 * (high - low):.1f}"


def _chance(by_model: Mapping[str, Section]) -> str:
    """What guessing gives, of the last model's problems."""
    return f"{100 * list(by_model.values())[-1]['chance']:.1f}"


def _counts(by_model: Mapping[str, Section]) -> str:
    """The number of problems; several, where the models did not have equally many."""
    counts = [metric["n"] for metric in by_model.values() if isinstance(metric.get("n"), int)]
    return " / ".join(f"{count:,}" for count in dict.fromkeys(counts))


def _percent(metric: Section | None) -> str:
    """An accuracy: `41.2 [39.1, 43.3]`."""
    if metric is None:
        return ""
    low, high = metric["interval"]
    return f"{100 * metric['value']:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def _gain(gain: Section | None, expected: str) -> str:
    """A gain: `+3.1 [+1.0, +5.2], p = 0.004`; and over which stage, if not over the one that is expected."""
    if gain is None:
        return ""
    low, high = gain["interval"]
    text = f"{100 * gain['value']:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"
    text += f", {format_p_value(gain['p'])}" if "p" in gain else ", other problems"
    return text if gain["over"] == expected else f"{text}, over {gain['over']}"


def format_p_value(p: float) -> str:
    """A p-value for people: `p = 0.004`."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"
