"""Schema of the report's sections: one JSON file for each, checked when it is written and again when it is read.

A section is named after the script that writes it; chat_eval writes one for each stage: chat_eval_mid, chat_eval_sft,
chat_eval_rl. Its keys are those of `Section`. A key that is absent, or None, is left out of the report. Numbers may be
numpy's or tensors. NaN and infinity become null: "not finite" in a table, and a gap in a curve.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TypedDict, cast

from nanochat.common import UserError, base_dir, check_file_writable, write_json_atomic
from nanochat.system import environment
from nanochat.system.errors import hide_credentials
from nanochat.system.files import read_regular_file
from nanochat.system.json_files import MAX_BYTES
from nanochat.tokenization.chat_format import render_turns

FORMAT = 1
Z95 = 1.959964  # standard deviations on each side of the mean that cover 95% of a normal distribution
SECTION_ORDER = (
    *("train_on", "read_documents", "dataset", "tok_train", "tok_eval"),
    *("base_train", "base_loss", "memorisation_base", "base_eval", "chat_eval_base"),
    *("core_compare", "hf_loss", "hf_eval"),
    *("mid_train", "memorisation_mid", "chat_eval_mid", "chat_sft", "memorisation_sft", "chat_eval_sft"),
    *(f"document_eval_{stage}{suffix}" for stage in ("mid", "sft", "rl") for suffix in ("", "_grounded", "_generated")),
    *("chat_rl", "memorisation_rl", "chat_eval_rl", "chat_eval"),
)
STAGES = ("base", "mid", "sft", "rl")  # the columns of the tables by stage


class Answers(TypedDict):
    """The examples of a task that a model solves. Stages with the same examples are compared example by example."""

    problems: str  # hash of the examples
    correct: str  # "0110...": one digit for each example


class Metric(TypedDict, total=False):
    """A metric with more than its value. Accuracies have an interval and `chance`, and a table of their own."""

    value: float
    n: int  # examples
    interval: list[float]  # [low, high], 95%
    chance: float  # the accuracy of guessing
    p: float  # of a difference: the p-value under the hypothesis that there is none


class Curve(TypedDict):
    """A curve. Curves with the same labels share one pair of axes."""

    x: list[float | None]
    y: list[float | None]  # None is a gap
    xlabel: str
    ylabel: str


class Section(TypedDict, total=False):
    """One script's part of the report."""

    format: int  # of this schema
    stage: str  # the section's name
    time: str  # of writing, in UTC
    title: str  # heading; default: the section's name
    seconds: float  # wall time of the script, interrupted runs included
    settings: Any  # name -> value, or the script's config (a dataclass); None is shown as "not set"
    environment: dict[str, Any]  # facts that only the script knows, such as {"device": "cuda", "processes": 8}
    metrics: dict[str, Any]  # name -> number or `Metric`; the name has the unit, unless it is a proportion
    answers: dict[str, Answers]  # by the name of the accuracy
    headline: list[str]  # names of the metrics for the table at the top; default: all of them
    model: str  # column of that table, one of STAGES; default: the stage that the section's name contains, if any
    checkpoint: str  # the model that was measured, as TAG:STEP; model cards of other checkpoints leave the section out
    curves: dict[str, Curve]
    # {"prompt": str, "text": str (the continuation)} and, where a checker exists, {"share_sound": number in [0, 1],
    # "verdicts": [{"sentence": str, "sound": bool, "reason": str}]}; or conversations, {"messages": [...]} as in
    # nanochat.tokenization.chat_format, which come at the end of the report, with a "caption" if they have one.
    samples: list[dict[str, Any]]
    notes: list[str]


_KEY_TYPES: dict[str, Any] = {
    **dict.fromkeys(("stage", "time", "title", "model", "checkpoint"), str),
    **dict.fromkeys(("settings", "environment", "metrics", "answers", "curves"), dict),
    **dict.fromkeys(("headline", "samples", "notes"), list),
    "format": int,
    "seconds": (int, float),
}


def check_results_writable(section: str, *files: Path) -> None:
    """Try the places of a section and of other files that a script will write. Only rank 0 tries them.

    Every script calls it before its work: a result without a place would be lost. Raises `UserError`.
    """
    if os.environ.get("RANK", "0") == "0":
        for path in (_section_path(section), *files):
            check_file_writable(path)


def _section_path(name: str) -> Path:
    if not re.fullmatch(r"[a-z0-9_]+", name):
        raise ValueError(f"the section's name is {name!r}: must have lower-case letters, digits and underscores only")
    return base_dir() / "report" / f"{name}.json"


def log_section(name: str, section: Mapping[str, Any]) -> Path:
    """Write a `Section` to `report/<name>.json`, atomically, in place of an earlier one. Only rank 0 writes.

    Adds the time (UTC) and the environment. Returns the path. Raises ValueError if the section violates the schema.
    """
    path = _section_path(name)
    if os.environ.get("RANK", "0") != "0":
        return path
    present = {key: value for key, value in section.items() if value is not None}
    if isinstance(present.get("metrics"), dict):  # drop None (not measured), keep NaN (measured)
        present["metrics"] = {metric: value for metric, value in present["metrics"].items() if value is not None}
    plain: dict[str, Any] = _to_plain_json(present)
    _check_section(plain)
    facts = {**environment.describe_environment(), **plain.pop("environment", {})}
    now = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")
    write_json_atomic(path, {"format": FORMAT, "stage": name, "time": now, **plain, "environment": facts})
    return path


def proportion(count: int, total: int) -> Metric:
    """Return `count` of `total` as a metric with Wilson's 95% interval (J. Am. Stat. Assoc. 22, 1927, 209-212).

    With p = count / total, n = total and z = 1.96 the ends are

        (p + z^2 / 2n ± z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n)

    >>> proportion(8, 10)
    {'value': 0.8, 'n': 10, 'interval': [0.4901..., 0.9433...]}
    """
    if not total:
        return {"value": 0.0, "n": 0, "interval": [0.0, 1.0]}
    p = count / total
    middle = p + Z95 * Z95 / (2 * total)
    margin = Z95 * math.sqrt(p * (1 - p) / total + (Z95 / (2 * total)) ** 2)
    scale = 1 + Z95 * Z95 / total
    low = max(0.0, (middle - margin) / scale)
    high = min(1.0, (middle + margin) / scale)
    return {"value": p, "n": total, "interval": [low, high]}


def stage_of(name: str, section: Section) -> str | None:
    """Return the stage that a section is about: its `model`, or the stage in its name; None if it has neither."""
    stage = section.get("model") or next((stage for stage in STAGES if stage in name.split("_")), None)
    return stage if stage in STAGES else None


def is_accuracy(metric: Any) -> bool:
    """Return True if a metric is an accuracy: a proportion with an interval and the accuracy of guessing."""
    if not isinstance(metric, dict):
        return False
    shares = [metric.get("value"), metric.get("chance"), *(metric.get("interval") or [None])]
    return all(isinstance(share, (int, float)) and 0 <= share <= 1 for share in shares)


def read_sections(folder: Path) -> tuple[dict[str, Section], list[str]]:
    """Return a report folder's sections by name, in SECTION_ORDER, and one line for each file that cannot be used."""
    sections: dict[str, Section] = {}
    problems: list[str] = []
    order = {name: index for index, name in enumerate(SECTION_ORDER)}
    paths = [path for path in folder.glob("*.json") if not path.name.startswith(".")]
    for path in sorted(paths, key=lambda path: (order.get(path.stem, len(order)), path.stem)):
        try:
            section = json.loads(read_regular_file(path, MAX_BYTES).decode("utf-8"), parse_constant=lambda _: None)
            if not isinstance(section, dict):
                raise ValueError("not a JSON object")
            _check_section(section)
        except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
            problems.append(f"{path.name} is left out: not whole JSON ({error})")
        except (OSError, ValueError) as error:
            problems.append(f"{path.name} is left out: {error}")
        else:
            sections[path.stem] = cast(Section, {key: value for key, value in section.items() if value is not None})
    return sections, problems


def _to_plain_json(value: Any) -> Any:
    """Convert a value to JSON's own types. Numbers that are not finite become None; strings become encodable.

    Credentials in strings are hidden: a setting may be an address with a password.
    """
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, str):
        return hide_credentials(value).encode("utf-8", "replace").decode("utf-8")
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _to_plain_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {_to_plain_json(str(key)): _to_plain_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_to_plain_json(item) for item in value]
    if hasattr(value, "tolist"):  # numpy's and torch's arrays and numbers, without importing either
        return _to_plain_json(value.tolist())
    return _to_plain_json(str(value).removeprefix("torch."))  # a path, a device, a dtype


def _check_section(section: Mapping[str, Any]) -> None:
    """Raise ValueError, naming the key, if a section violates the schema."""
    for key, value in section.items():
        _require(key in _KEY_TYPES, f"unknown key {key}: must be one of {', '.join(sorted(_KEY_TYPES))}")
        _require(value is None or isinstance(value, _KEY_TYPES[key]), f"{key} has a wrong type: see `Section`")
    _require(section.get("format", FORMAT) == FORMAT, f"format {section.get('format')}; this version reads {FORMAT}")
    for name, metric in (section.get("metrics") or {}).items():
        _require(_is_metric(metric), f"metric {name} is neither a number nor {{value, n, interval: [low, high]}}")
    for name, answers in (section.get("answers") or {}).items():
        _require(_is_answers(answers), f"answers {name} need problems, a text, and correct, a text of 0 and 1")
    for name, curve in (section.get("curves") or {}).items():
        _require(_is_curve(curve), f"curve {name} needs x and y, equally long lists of numbers, and xlabel and ylabel")
    for sample in section.get("samples") or []:
        _require(
            _is_sample(sample),
            "a sample has the texts prompt and text, or messages and perhaps a caption; share_sound is a number",
        )
    for key in ("notes", "headline"):
        _require(all(isinstance(text, str) for text in section.get(key) or []), f"{key} is a list of texts")


def _require(is_valid: bool, rule: str) -> None:
    if not is_valid:
        raise ValueError(rule)


def _is_number(value: object) -> bool:
    """Return True for a number, and for None: a number that was not finite."""
    return value is None or isinstance(value, (int, float))


def _is_metric(metric: Any) -> bool:
    if not isinstance(metric, dict):
        return _is_number(metric)
    interval = metric.get("interval") or [0, 0]
    is_pair = isinstance(interval, list) and len(interval) == 2 and all(map(_is_number, interval))
    return is_pair and _is_number(metric.get("value")) and _is_number(metric.get("chance"))


def _is_answers(answers: Any) -> bool:
    if not (isinstance(answers, dict) and all(isinstance(answers.get(key), str) for key in ("problems", "correct"))):
        return False
    return set(answers["correct"]) <= {"0", "1"}


def _is_curve(curve: Any) -> bool:
    if not (isinstance(curve, dict) and all(isinstance(curve.get(key), str) for key in ("xlabel", "ylabel"))):
        return False
    x = curve.get("x")
    y = curve.get("y")
    return isinstance(x, list) and isinstance(y, list) and len(x) == len(y) and all(map(_is_number, [*x, *y]))


def _is_sample(sample: Any) -> bool:
    if isinstance(sample, dict) and "messages" in sample:
        try:
            return isinstance(sample.get("caption", ""), str) and bool(render_turns(sample))
        except UserError:
            return False
    if not (isinstance(sample, dict) and all(isinstance(sample.get(key), str) for key in ("prompt", "text"))):
        return False
    verdicts = sample.get("verdicts") or []
    has_verdicts = isinstance(verdicts, list) and all(isinstance(verdict, dict) for verdict in verdicts)
    return has_verdicts and _is_number(sample.get("share_sound"))
