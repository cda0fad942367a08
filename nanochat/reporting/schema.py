"""What the stages have to report: one JSON section each, checked when it is written and again when it is read.

A section is a dictionary with any of these keys; a key that is absent, or None, is left out of the report:

    title        str    heading of the section; default: the stage's name
    seconds      float  wall time of the stage, interrupted runs included
    settings     dict   name -> value, or the stage's config (a dataclass); None is shown as "not set"
    environment  dict   what only the stage knows: {"device": "cuda", "compute dtype": "bfloat16", "processes": 8}
    metrics      dict   name -> number, or {"value": number, "n": examples, "interval": [low, high]} (95%);
                        the unit stands in the name, unless it is a share. An accuracy also has "chance": number,
                        what guessing gives, and stands in the table of accuracies by stage
    answers      dict   accuracy's name -> {"problems": hash of them, "correct": "0110..."}, an entry for each problem:
                        two stages that have met the same problems are compared problem by problem
    headline     list   names of the metrics for the table at the top; default: all of them
    model        str    column of that table: base, mid, sft or rl; default: told by the stage's name, if at all
    checkpoint   str    what was measured, as TAG:STEP: the model card of another checkpoint leaves the section out
    curves       dict   name -> {"x": [...], "y": [...], "xlabel": str, "ylabel": str};
                        curves with the same labels share one pair of axes
    samples      list   of {"prompt": str, "text": str (what follows the prompt)} and, where a checker exists,
                        "share_sound": number in [0, 1], "verdicts": [{"sentence": str, "sound": bool, "reason": str}];
                        or of conversations, {"messages": [...]} as in tokenization/chat_format.py, which end the report
    notes        list   of str: what a reader should know

Stages are named as their scripts are; chat_eval runs once for each model: chat_eval_mid, chat_eval_sft, chat_eval_rl.
Numbers may be numpy's or tensors. NaN and infinity become null: shown as "not finite", and as a gap in a curve.
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
from typing import Any

from nanochat.common import UserError, base_dir, write_json_atomic
from nanochat.system import environment
from nanochat.tokenization.chat_format import render_turns

FORMAT = 1
Z95 = 1.959964  # standard deviations on both sides of a mean that hold 95% of a normal distribution
SECTION_ORDER = (
    *("dataset", "tok_train", "tok_eval", "base_train", "base_loss", "base_eval", "chat_eval_base"),
    *("core_compare", "hf_loss", "hf_eval"),
    *("mid_train", "chat_eval_mid", "chat_sft", "chat_eval_sft", "chat_rl", "chat_eval_rl", "chat_eval"),
)
STAGES = ("base", "mid", "sft", "rl")  # the columns of the tables by stage
Section = dict[str, Any]
_KINDS: dict[str, Any] = {
    **dict.fromkeys(("stage", "time", "title", "model", "checkpoint"), str),
    **dict.fromkeys(("settings", "environment", "metrics", "answers", "curves"), dict),
    **dict.fromkeys(("headline", "samples", "notes"), list),
    "format": int,
    "seconds": (int, float),
}


def log_section(stage: str, section: dict[str, Any]) -> Path:
    """Write a stage's section to `report/<stage>.json` in place of an earlier one, whole or not at all; rank 0 only.

    Stamps the time (UTC) and the environment. Raises ValueError for a section that departs from the convention above.
    """
    if not re.fullmatch(r"[a-z0-9_]+", stage):
        raise ValueError(f"stage {stage!r}: small letters, digits and underscores only")
    path = base_dir() / "report" / f"{stage}.json"
    if os.environ.get("RANK", "0") != "0":
        return path
    given = {key: value for key, value in section.items() if value is not None}
    if isinstance(given.get("metrics"), dict):  # what was not measured goes; what was measured as NaN stays
        given["metrics"] = {name: metric for name, metric in given["metrics"].items() if metric is not None}
    plain: Section = _plain(given)
    _check(plain)
    known = {**environment.describe_environment(), **plain.pop("environment", {})}
    now = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")
    write_json_atomic(path, {"format": FORMAT, "stage": stage, "time": now, **plain, "environment": known})
    return path


def proportion(count: int, total: int) -> Section:
    """`count` of `total` as a metric, with Wilson's 95% interval (J. Am. Stat. Assoc. 22, 1927, 209-212).

    >>> proportion(8, 10)
    {'value': 0.8, 'n': 10, 'interval': [0.4901..., 0.9433...]}
    """
    if not total:
        return {"value": 0.0, "n": 0, "interval": [0.0, 1.0]}
    z, p = Z95, count / total
    middle = p + z * z / (2 * total)
    margin = z * math.sqrt(p * (1 - p) / total + (z / (2 * total)) ** 2)
    scale = 1 + z * z / total
    low, high = max(0.0, (middle - margin) / scale), min(1.0, (middle + margin) / scale)
    return {"value": p, "n": total, "interval": [low, high]}


def stage_of(stage: str, section: Section) -> str | None:
    """The model that a section is about: what it says itself, or what its stage's name says; None for neither."""
    model = section.get("model") or next((name for name in STAGES if name in stage.split("_")), None)
    return model if model in STAGES else None


def is_accuracy(metric: Any) -> bool:
    """Whether a metric is an accuracy: a share that knows its interval, and what guessing gives."""
    if not isinstance(metric, dict):
        return False
    shares = [metric.get("value"), metric.get("chance"), *(metric.get("interval") or [None])]
    return all(isinstance(share, (int, float)) and 0 <= share <= 1 for share in shares)


def read_sections(folder: Path) -> tuple[dict[str, Section], list[str]]:
    """A report folder's sections, stage -> section in the stages' order, and one line for each file that is unfit."""
    sections: dict[str, Section] = {}
    faults: list[str] = []
    order = {stage: index for index, stage in enumerate(SECTION_ORDER)}
    paths = [path for path in folder.glob("*.json") if not path.name.startswith(".")]
    for path in sorted(paths, key=lambda path: (order.get(path.stem, len(order)), path.stem)):
        try:
            section = json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda _: None)
            if not isinstance(section, dict):
                raise ValueError("not a JSON object")
            _check(section)
        except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
            faults.append(f"{path.name} is left out: not whole JSON ({error})")
        except (OSError, ValueError) as error:
            faults.append(f"{path.name} is left out: {error}")
        else:
            sections[path.stem] = {key: value for key, value in section.items() if value is not None}
    return sections, faults


def _plain(value: Any) -> Any:
    """The same value in JSON's own types; numbers that are not finite become None, strings always encode."""
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {_plain(str(key)): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):  # numpy's and torch's arrays and numbers, without importing either
        return _plain(value.tolist())
    return _plain(str(value).removeprefix("torch."))  # a path, a device, a dtype


def _check(section: Section) -> None:
    """Raise ValueError, naming the place, where a section departs from the convention."""
    for key, value in section.items():
        _require(key in _KINDS, f"unknown key {key}; known are {', '.join(sorted(_KINDS))}")
        _require(value is None or isinstance(value, _KINDS[key]), f"{key} is of another type than it should be")
    _require(section.get("format", FORMAT) == FORMAT, f"format {section.get('format')}; this version reads {FORMAT}")
    for name, metric in (section.get("metrics") or {}).items():
        _require(_is_metric(metric), f"metric {name} is neither a number nor {{value, n, interval: [low, high]}}")
    for name, answers in (section.get("answers") or {}).items():
        _require(_is_answers(answers), f"answers {name} need problems, a text, and correct, a text of 0 and 1")
    for name, curve in (section.get("curves") or {}).items():
        _require(_is_curve(curve), f"curve {name} needs x and y, equally long lists of numbers, and xlabel and ylabel")
    for sample in section.get("samples") or []:
        _require(_is_sample(sample), "a sample has the texts prompt and text, or messages; share_sound is a number")
    for key in ("notes", "headline"):
        _require(all(isinstance(text, str) for text in section.get(key) or []), f"{key} is a list of texts")


def _require(holds: bool, rule: str) -> None:
    if not holds:
        raise ValueError(rule)


def _is_number(value: object) -> bool:
    """A number, or null for one that was not finite."""
    return value is None or isinstance(value, (int, float))


def _is_metric(metric: Any) -> bool:
    if not isinstance(metric, dict):
        return _is_number(metric)
    interval = metric.get("interval") or [0, 0]
    pair = isinstance(interval, list) and len(interval) == 2 and all(map(_is_number, interval))
    return pair and _is_number(metric.get("value")) and _is_number(metric.get("chance"))


def _is_answers(answers: Any) -> bool:
    if not (isinstance(answers, dict) and all(isinstance(answers.get(key), str) for key in ("problems", "correct"))):
        return False
    return set(answers["correct"]) <= {"0", "1"}


def _is_curve(curve: Any) -> bool:
    if not (isinstance(curve, dict) and all(isinstance(curve.get(key), str) for key in ("xlabel", "ylabel"))):
        return False
    x, y = curve.get("x"), curve.get("y")
    return isinstance(x, list) and isinstance(y, list) and len(x) == len(y) and all(map(_is_number, [*x, *y]))


def _is_sample(sample: Any) -> bool:
    if isinstance(sample, dict) and "messages" in sample:
        try:
            return bool(render_turns(sample))
        except UserError:
            return False
    if not (isinstance(sample, dict) and all(isinstance(sample.get(key), str) for key in ("prompt", "text"))):
        return False
    verdicts = sample.get("verdicts") or []
    judged = isinstance(verdicts, list) and all(isinstance(verdict, dict) for verdict in verdicts)
    return judged and _is_number(sample.get("share_sound"))
