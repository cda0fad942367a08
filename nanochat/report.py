"""The report: `report/report.md` and its plots, rendered from the JSON sections that the scripts have written.

    python -m nanochat.report            # render it, and print a short summary
    python -m nanochat.report reset      # remove the sections of earlier runs

The Markdown is a pure function of the sections and of `$NANOCHAT_USD_PER_HOUR` (the machine's price, for 8 x H100 about
24), so it can be rendered again at any time. Its parts are in `nanochat/reporting/`; `nanochat.reporting.schema`
documents the sections.
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
from urllib.parse import quote

from nanochat.common import UserError, base_dir, check_file_writable, print0, write_text_atomic
from nanochat.configurator import Settings, cli, setting
from nanochat.reporting.accuracy_tables import accuracies_by_task, accuracy_lines, accuracy_tables
from nanochat.reporting.markdown import escape, fence, format_duration, format_number, format_table, wrap_text
from nanochat.reporting.schema import (
    STAGES,
    Section,
    check_results_writable,
    is_accuracy,
    log_section,
    read_sections,
    stage_of,
)

__all__ = ["Report", "check_results_writable", "get_report", "log_section", "main", "read_sections", "render"]

_ACCURACIES_PNG = "accuracies.png"  # no section has this name
_WIDTH = 100  # columns of text, in the report and at the terminal

Sections = Mapping[str, Section]


def render(base: Path | None = None) -> Path:
    """Render the report of a base folder (default: `base_dir()`) and return the path of report.md.

    A file that is not a section is left out, with a line that names it. Raises UserError if there is no section.
    """
    from nanochat.reporting.plots import plot_accuracies, plot_curves  # slow to import, and only needed here

    folder = (base or base_dir()) / "report"
    sections, problems = read_sections(folder)
    for problem in problems:
        print0(f"report: {problem}")
    if not sections:
        raise UserError(f"nothing to report in {folder}: run a script first, for example python -m nanochat.dataset")
    check_file_writable(folder / "report.md")
    blocks = ["# nanochat report", *_summary(sections), *_environment(sections)]
    blocks += [f"> {escape(problem)}" for problem in problems]
    pictures = {name: f"{name}.png" for name, section in sections.items() if section.get("curves")}
    for name, section in sections.items():
        blocks += _section_blocks(name, section, pictures.get(name))
    blocks += _conversation_blocks(sections)
    for name, picture in pictures.items():
        plot_curves(sections[name]["curves"], folder / picture)
    files = set(pictures.values())
    if accuracies := accuracies_by_task(sections):
        plot_accuracies(accuracies, folder / _ACCURACIES_PNG)
        files.add(_ACCURACIES_PNG)
    write_text_atomic(folder / "report.md", "\n\n".join(blocks) + "\n")
    for stale in set(folder.glob("*.png")) - {folder / file for file in files}:
        stale.unlink(missing_ok=True)  # another process may render at the same time
    return folder / "report.md"


def _format_metric(metric: Any) -> str:
    """Return a metric as `0.4120 [0.3910, 0.4330], n = 1,172`."""
    if not isinstance(metric, dict):
        return format_number(metric)
    text = format_number(metric.get("value"))
    if interval := metric.get("interval"):
        text += f" [{format_number(interval[0])}, {format_number(interval[1])}]"
    return text + (f", n = {metric['n']:,}" if isinstance(metric.get("n"), int) else "")


def _format_setting(value: Any) -> str:
    """Return a setting in the form that a command line accepts."""
    if value is None:
        return "not set"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _headline(sections: Sections) -> tuple[list[str], dict[str, dict[str, str]]]:
    """Return the table of metrics by stage: the stages, and metric -> {stage: text}. Later sections replace earlier.

    Accuracies are left out, because they have a separate table.
    """
    cells: dict[str, dict[str, str]] = {}
    for section_name, section in sections.items():
        stage = stage_of(section_name, section)
        metrics: Mapping[str, Any] = section.get("metrics", {}) if stage else {}
        for name in section.get("headline", list(metrics)):
            if name in metrics and not is_accuracy(metrics[name]):
                cells.setdefault(name, {})[str(stage)] = _format_metric(metrics[name])
    return [stage for stage in STAGES if any(stage in row for row in cells.values())], cells


def _wall_times(sections: Sections) -> dict[str, float]:
    """Return section -> wall time in seconds, for the sections that have one."""
    return {name: section["seconds"] for name, section in sections.items() if "seconds" in section}


def _format_cost(seconds: float) -> str:
    """Return the cost of `seconds` at `$NANOCHAT_USD_PER_HOUR`."""
    price = os.environ.get("NANOCHAT_USD_PER_HOUR")
    if not price:
        return "not stated"
    try:
        rate = float(price)
    except ValueError:
        rate = math.nan
    if not 0 <= rate < math.inf:
        raise UserError(
            f"NANOCHAT_USD_PER_HOUR is {price!r}: must be the price of an hour of this machine, for example 24"
        )
    return f"${rate * seconds / 3600:,.2f} at ${rate:g} an hour"


def _summary(sections: Sections) -> Iterator[str]:
    """Yield the blocks of the summary: metrics and accuracies by stage, time by script, cost."""
    yield "## Summary"
    stages, cells = _headline(sections)
    if stages:
        rows = [[name, *(row.get(stage, "") for stage in stages)] for name, row in cells.items()]
        yield format_table(["metric", *stages], rows)
    yield from accuracy_tables(sections, _ACCURACIES_PNG)
    wall_times = _wall_times(sections)
    total = math.fsum(wall_times.values())
    yield "### Time and cost"
    if wall_times:
        rows = [
            [name, sections[name].get("time", ""), format_duration(seconds)] for name, seconds in wall_times.items()
        ]
        yield format_table(["script", "finished", "time"], [*rows, ["total", "", format_duration(total)]])
    yield f"Cost: {escape(_format_cost(total))}."


def _environment(sections: Sections) -> Iterator[str]:
    """Yield a table of the environment: one row for each fact.

    Where sections differ (the run moved to another machine, or the code changed), a cell has each value with its
    sections.
    """
    facts: dict[str, dict[str, list[str]]] = {}
    for section_name, section in sections.items():
        for fact, value in section.get("environment", {}).items():
            if value is not None:
                facts.setdefault(fact, {}).setdefault(_format_setting(value), []).append(section_name)
    rows = []
    for fact, values in facts.items():
        if len(values) == 1:
            rows.append([fact, *values])
        else:
            rows.append([fact, "; ".join(f"{value} ({', '.join(names)})" for value, names in values.items())])
    if rows:
        yield "## Environment"
        yield format_table(["fact", "value"], rows)


def _section_blocks(name: str, section: Section, picture: str | None) -> Iterator[str]:
    """Yield the blocks of one section: notes, metrics, curves, samples, and its settings folded away."""
    yield f"## {escape(section.get('title', '')) or escape(name)}"
    if section.get("notes"):
        yield "\n".join(f"- {escape(note)}" for note in section["notes"])
    if section.get("metrics"):
        rows = [[metric, _format_metric(value)] for metric, value in section["metrics"].items()]
        yield format_table(["metric", "value"], rows)
    if picture:
        yield f"![{escape(', '.join(section['curves']))}]({quote(picture)})"
    for sample in section.get("samples", []):
        if "messages" not in sample:
            yield from _sample_blocks(sample)
    if section.get("settings"):
        rows = [[setting, _format_setting(value)] for setting, value in section["settings"].items()]
        yield "<details><summary>Settings</summary>"
        yield format_table(["setting", "value"], rows)
        yield "</details>"


def _sample_blocks(sample: Mapping[str, Any]) -> Iterator[str]:
    """Yield the prompt, the whole text in a fence, and the verdicts of the checker."""
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


def _conversation_blocks(sections: Sections) -> Iterator[str]:
    """Yield the end of the report: the conversations with the model of each stage."""
    for name, sample in _conversations(sections):
        caption = f" ({escape(sample['caption'])})" if sample.get("caption") else ""
        yield f"## A conversation with the {escape(stage_of(name, sections[name]) or name)} model{caption}"
        yield fence(_transcript(sample["messages"]), _WIDTH)


def _conversations(sections: Sections) -> list[tuple[str, dict[str, Any]]]:
    """Return (section, sample) of the samples that are conversations."""
    return [
        (name, sample)
        for name, section in sections.items()
        for sample in section.get("samples", [])
        if "messages" in sample
    ]


def _transcript(messages: Sequence[Mapping[str, Any]]) -> str:
    """Return a conversation as text, a calculator call in brackets with its result.

    >>> call = [{"type": "python", "text": "2+2"}, {"type": "python_output", "text": "4"}]
    >>> answer = {"role": "assistant", "content": [*call, {"type": "text", "text": " Four."}]}
    >>> print(_transcript([{"role": "user", "content": "2 + 2?"}, answer]))
    user: 2 + 2?
    <BLANKLINE>
    assistant: [2+2 = 4] Four.
    """
    turns = []
    for message in messages:
        content = message["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        text = ""
        for part in parts:
            if part["type"] == "python_output" and text.endswith("]"):
                text = f"{text[:-1]} = {part['text']}]"
            else:
                text += part["text"] if part["type"] == "text" else f"[{part['text']}]"
        turns.append(f"{message['role']}: {text}")
    return "\n\n".join(turns)


def _print_summary(sections: Sections) -> None:
    """Print samples, metrics, accuracies, time and cost, and the last conversation."""
    for name, section in sections.items():
        for sample in section.get("samples", []):
            if "messages" not in sample:
                share = sample.get("share_sound")
                print0(f"--- {name}" + (f": {share:.0%} of the sentences sound" if share is not None else ""))
                print0(wrap_text(sample["prompt"] + sample["text"], _WIDTH).strip("\n"))
    print0("---")
    stages, cells = _headline(sections)
    for metric, row in cells.items():
        values = ", ".join(f"{row[stage]} ({stage})" for stage in stages if stage in row)
        print0(wrap_text(f"{metric}: {values}", _WIDTH))
    for line in accuracy_lines(sections):
        print0(line)
    wall_times = _wall_times(sections)
    total = math.fsum(wall_times.values())
    for name, seconds in [*wall_times.items(), ("total", total)]:
        print0(f"{format_duration(seconds):>8}  {name}")
    print0(f"cost: {_format_cost(total)}")
    for name, sample in _conversations(sections)[-1:]:
        print0(f"--- a conversation with the {stage_of(name, sections[name]) or name} model")
        print0(wrap_text(_transcript(sample["messages"]), _WIDTH))
        print0("---")


class Report:
    """The report of the base folder, for use in a program or a notebook."""

    def log(self, section: str, data: Mapping[str, Any]) -> Path:
        """Write `data` as a section of the report, replacing an earlier one with this title. Returns its path.

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
        """Render report.md and its plots. Returns the path of report.md."""
        return render()

    def reset(self) -> None:
        """Remove the sections and everything rendered from them."""
        folder = base_dir() / "report"
        for path in [*folder.glob("*.json"), *folder.glob("*.png"), folder / "report.md"]:
            path.unlink(missing_ok=True)


def get_report() -> Report:
    """Return the report of the base folder."""
    return Report()


@dataclass(frozen=True)
class Config(Settings):
    action: str = setting("generate", "render the report, or remove it", choices=("generate", "reset"), positional=True)


def main(config: Config) -> None:
    """Render the report and print a summary; or remove the sections and everything rendered from them."""
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
