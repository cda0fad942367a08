"""The report: `report/report.md` and its pictures, rendered whole from the JSON sections that the stages have written.

    python -m nanochat.report            # render it, and print a short summary
    python -m nanochat.report reset      # forget the sections of earlier runs

The Markdown is a pure function of the sections and of `$NANOCHAT_USD_PER_HOUR` (the machine's price, for 8 x H100 about
24), so it can be rendered at any time and again. What a section may hold is said in `nanochat.reporting.schema`.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanochat.common import UserError, base_dir, print0, write_text_atomic
from nanochat.configurator import Settings, cli, setting
from nanochat.reporting.markdown import escape, fence, format_duration, format_number, format_table, wrap_text
from nanochat.reporting.schema import STAGES, Section, is_accuracy, log_section, read_sections, stage_of
from nanochat.reporting.significance import accuracies_by_task, accuracy_lines, accuracy_tables

__all__ = ["Report", "get_report", "log_section", "main", "read_sections", "render"]
_ACCURACIES = "accuracies.png"  # no stage's name ends like this
_WIDTH = 100  # of text, in the report and at the terminal
Sections = Mapping[str, Section]


def render(base: Path | None = None) -> Path:
    """Render the report of a base folder (default: ours); gives the path of report.md.

    A file that is no section is left out, with a line that names it. Raises UserError if there is no section at all.
    """
    from nanochat.reporting.plots import plot_accuracies, plot_curves  # slow to import, and only needed here

    folder = (base or base_dir()) / "report"
    sections, faults = read_sections(folder)
    for fault in faults:
        print0(f"report: {fault}")
    if not sections:
        raise UserError(f"nothing to report in {folder}: run a stage first, for example python -m nanochat.dataset")
    blocks = ["# nanochat report", *_summary(sections), *_environment(sections)]
    blocks += [f"> {escape(fault)}" for fault in faults]
    pictures = {stage: f"{stage}.png" for stage, section in sections.items() if section.get("curves")}
    for stage, section in sections.items():
        blocks += _stage(stage, section, pictures.get(stage))
    blocks += _conversations(sections)
    for stage, name in pictures.items():
        plot_curves(sections[stage]["curves"], folder / name)
    if found := accuracies_by_task(sections):
        plot_accuracies(found, folder / _ACCURACIES)
        pictures[""] = _ACCURACIES
    write_text_atomic(folder / "report.md", "\n\n".join(blocks) + "\n")
    for stale in set(folder.glob("*.png")) - {folder / name for name in pictures.values()}:
        stale.unlink()
    return folder / "report.md"


def _metric(metric: Any) -> str:
    """A metric for people: `0.4120 [0.3910, 0.4330], n = 1,172`."""
    if not isinstance(metric, dict):
        return format_number(metric)
    text = format_number(metric.get("value"))
    if interval := metric.get("interval"):
        text += f" [{format_number(interval[0])}, {format_number(interval[1])}]"
    return text + (f", n = {metric['n']:,}" if isinstance(metric.get("n"), int) else "")


def _setting(value: Any) -> str:
    """A setting exactly as it can be given again."""
    if value is None:
        return "not set"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _headline(sections: Sections) -> tuple[list[str], dict[str, dict[str, str]]]:
    """The table of metrics by stage: its columns (models), and metric -> {model: text}; later stages beat earlier.

    Accuracies have a table of their own.
    """
    cells: dict[str, dict[str, str]] = {}
    for stage, section in sections.items():
        model = stage_of(stage, section)
        metrics: dict[str, Any] = section.get("metrics", {}) if model else {}
        for name in section.get("headline", list(metrics)):
            if name in metrics and not is_accuracy(metrics[name]):
                cells.setdefault(name, {})[str(model)] = _metric(metrics[name])
    return [model for model in STAGES if any(model in row for row in cells.values())], cells


def _seconds(sections: Sections) -> dict[str, float]:
    """Wall time of the stages that say it."""
    return {stage: section["seconds"] for stage, section in sections.items() if "seconds" in section}


def _cost(seconds: float) -> str:
    """What that time costs at `$NANOCHAT_USD_PER_HOUR`, in words."""
    price = os.environ.get("NANOCHAT_USD_PER_HOUR")
    if not price:
        return "not stated"
    try:
        rate = float(price)
    except ValueError:
        rate = math.nan
    if not 0 <= rate < math.inf:
        raise UserError(f"NANOCHAT_USD_PER_HOUR={price}: give the price of an hour of this machine, for example 24")
    return f"${rate * seconds / 3600:,.2f} at ${rate:g} an hour"


def _summary(sections: Sections) -> Iterator[str]:
    """Metrics by stage, time by stage, cost."""
    yield "## Summary"
    models, cells = _headline(sections)
    if models:
        yield format_table(
            ["metric", *models], [[name, *(row.get(m, "") for m in models)] for name, row in cells.items()]
        )
    yield from accuracy_tables(sections, _ACCURACIES)
    seconds = _seconds(sections)
    total = math.fsum(seconds.values())
    yield "### Time and cost"
    if seconds:
        rows = [[stage, sections[stage].get("time", ""), format_duration(spent)] for stage, spent in seconds.items()]
        yield format_table(["stage", "finished", "time"], [*rows, ["total", "", format_duration(total)]])
    yield f"Cost: {escape(_cost(total))}."


def _environment(sections: Sections) -> Iterator[str]:
    """One row a fact; where stages differ (the run moved, or the code changed), each value with its stages."""
    facts: dict[str, dict[str, list[str]]] = {}
    for stage, section in sections.items():
        for name, value in section.get("environment", {}).items():
            if value is not None:
                facts.setdefault(name, {}).setdefault(_setting(value), []).append(stage)
    rows = []
    for name, values in facts.items():
        told = [value if len(values) == 1 else f"{value} ({', '.join(who)})" for value, who in values.items()]
        rows.append([name, "; ".join(told)])
    if rows:
        yield "## Environment"
        yield format_table(["what", "value"], rows)


def _stage(stage: str, section: Section, picture: str | None) -> Iterator[str]:
    """One stage: notes, metrics, curves, samples, and its settings folded away."""
    yield f"## {escape(section.get('title', '')) or escape(stage)}"
    if section.get("notes"):
        yield "\n".join(f"- {escape(note)}" for note in section["notes"])
    if section.get("metrics"):
        yield format_table(
            ["metric", "value"], [[name, _metric(metric)] for name, metric in section["metrics"].items()]
        )
    if picture:
        yield f"![{escape(', '.join(section['curves']))}]({picture})"
    for sample in section.get("samples", []):
        if "messages" not in sample:
            yield from _sample(sample)
    if section.get("settings"):
        yield "<details><summary>Settings</summary>"
        yield format_table(
            ["setting", "value"], [[name, _setting(value)] for name, value in section["settings"].items()]
        )
        yield "</details>"


def _sample(sample: Section) -> Iterator[str]:
    """The prompt, the whole text in a fence, and what the checker says of it."""
    prompt = escape(sample["prompt"])
    yield f"Prompt: {prompt}" if prompt else "Without a prompt:"
    yield fence(sample["prompt"] + sample["text"], _WIDTH)
    if sample.get("share_sound") is not None:
        yield f"Checker: {sample['share_sound']:.0%} of the sentences are sound."
    unsound = [verdict for verdict in sample.get("verdicts") or [] if not verdict.get("sound")]
    if unsound:
        yield "\n".join(
            f"- not sound: {escape(str(verdict.get('sentence', '')))}"
            + (f" ({escape(str(verdict['reason']))})" if verdict.get("reason") else "")
            for verdict in unsound
        )


def _conversations(sections: Sections) -> Iterator[str]:
    """What was talked with each model: the end of the report."""
    for stage, sample in _talks(sections):
        yield f"## A conversation with the {escape(stage_of(stage, sections[stage]) or stage)} model"
        yield fence(_script(sample["messages"]), _WIDTH)


def _talks(sections: Sections) -> list[tuple[str, Section]]:
    """The samples that are conversations, with their stages."""
    return [
        (stage, sample)
        for stage, section in sections.items()
        for sample in section.get("samples", [])
        if "messages" in sample
    ]


def _script(messages: Sequence[Mapping[str, Any]]) -> str:
    """A conversation as in a play; a call of the calculator stands in brackets with its result.

    >>> call = [{"type": "python", "text": "2+2"}, {"type": "python_output", "text": "4"}]
    >>> answer = {"role": "assistant", "content": [*call, {"type": "text", "text": " Four."}]}
    >>> print(_script([{"role": "user", "content": "2 + 2?"}, answer]))
    user: 2 + 2?
    <BLANKLINE>
    assistant: [2+2 = 4] Four.
    """
    turns = []
    for message in messages:
        content = message["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        said = ""
        for part in parts:
            if part["type"] == "python_output" and said.endswith("]"):
                said = f"{said[:-1]} = {part['text']}]"
            else:
                said += part["text"] if part["type"] == "text" else f"[{part['text']}]"
        turns.append(f"{message['role']}: {said}")
    return "\n\n".join(turns)


def _print_summary(sections: Sections) -> None:
    """What a person at the terminal wants to see at the end of a run."""
    for stage, section in sections.items():
        for sample in section.get("samples", []):
            if "messages" in sample:
                continue
            share = sample.get("share_sound")
            print0(f"--- {stage}" + (f": {share:.0%} of the sentences sound" if share is not None else ""))
            print0(wrap_text(sample["prompt"] + sample["text"], _WIDTH).strip("\n"))
    print0("---")
    models, cells = _headline(sections)
    for name, row in cells.items():
        print0(wrap_text(f"{name}: " + ", ".join(f"{row[m]} ({m})" for m in models if m in row), _WIDTH))
    for line in accuracy_lines(sections):
        print0(line)
    seconds = _seconds(sections)
    total = math.fsum(seconds.values())
    for stage, spent in [*seconds.items(), ("total", total)]:
        print0(f"{format_duration(spent):>8}  {stage}")
    print0(f"cost: {_cost(total)}")
    for stage, sample in _talks(sections)[-1:]:
        print0(f"--- a conversation with the {stage_of(stage, sections[stage]) or stage} model")
        print0(wrap_text(_script(sample["messages"]), _WIDTH))
        print0("---")


class Report:
    """The report of the base folder, to add to and to render from a program or a notebook."""

    def log(self, section: str, data: Mapping[str, Any]) -> Path:
        """Write `data` as a section of the report in place of an earlier one of that title; returns its path.

        Numbers are metrics; "settings" is a dict of settings; other values become notes `name: value`. Raises
        `UserError` for a title without a letter or digit.
        """
        name = re.sub(r"[^a-z0-9]+", "_", section.lower()).strip("_")
        if not name:
            raise UserError(f"section is {section!r}: a title needs at least one of a-z and 0-9")
        content: dict[str, Any] = {"title": section, "metrics": {}, "notes": []}
        for key, value in data.items():
            if key == "settings":
                content["settings"] = value
            elif isinstance(value, (int, float)) and not isinstance(value, bool):
                content["metrics"][key] = value
            else:
                content["notes"].append(f"{key}: {value}")
        return log_section(name, content)

    def generate(self) -> Path:
        """Render report.md and its pictures; returns the path of report.md."""
        return render()

    def reset(self) -> None:
        """Remove the sections and all that was rendered from them."""
        folder = base_dir() / "report"
        for path in [*folder.glob("*.json"), *folder.glob("*.png"), folder / "report.md"]:
            path.unlink(missing_ok=True)


def get_report() -> Report:
    """Return the report of the base folder."""
    return Report()


@dataclass(frozen=True)
class Config(Settings):
    """What to do with the report."""

    action: str = setting("generate", "render the report, or forget it", choices=("generate", "reset"), positional=True)


def main(config: Config) -> None:
    """Render and summarise; or remove the sections and what was rendered from them."""
    folder = base_dir() / "report"
    if config.action == "reset":
        get_report().reset()
        print0(f"report: {folder} is empty now")
        return
    path = render()
    _print_summary(read_sections(folder)[0])
    print0(f"report: {path}")


if __name__ == "__main__":
    cli(Config, main, __doc__)
