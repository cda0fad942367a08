"""What midtraining and fine-tuning learn from: a table of tasks for each, or a file of the user's own.

    [[entry]]                  # a --mixture file, in TOML: one such block for each task, in any order
    task = "SpellingBee"       # a name of tasks/registry.py
    rows = 5000                # how many, chosen at random; without it all, where the task has an end
    epochs = 2                 # how often each of them; 1 without it
    split = "train"            # the default
    val_split = "test"         # the split that validation takes some rows of; "none" for none
    options = {quoted = true}  # whatever else the task's constructor takes

Where rows are chosen it is by a shuffle with the mixture's seed. Midtraining and fine-tuning see other rows of the
tasks that have no end.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nanochat.common import UserError, base_dir, print0
from nanochat.data.shards import default_data_dir, read_manifest
from tasks.common import Task, TaskMixture
from tasks.customjson import file_sha256
from tasks.hub import DatasetUnavailableError
from tasks.identity import FILE_NAME as IDENTITY_FILE
from tasks.registry import UNBOUNDED_TASKS, canonical_name, get_task

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

VAL_ROWS = 200  # of each entry, at most, and at most one for every VAL_PART that are trained on
VAL_PART = 20
FIRST_ROW = {"mid": 0, "sft": 1_000_000}  # of the tasks without end


@dataclass(frozen=True)
class MixtureEntry:
    """Rows of one task, each as often as `epochs` says; `where` begins what is said of its mistakes."""

    task: str
    rows: int | None = None
    epochs: int = 1
    split: str = "train"
    val_split: str = "test"
    options: Mapping[str, Any] = field(default_factory=dict)
    where: str = ""


MIXTURES: dict[tuple[str, str], tuple[MixtureEntry, ...]] = {
    ("mid", "web"): (
        MixtureEntry("SmolTalk", 460_000),
        MixtureEntry("MMLU", 100_000, val_split="validation"),
        MixtureEntry("GSM8K"),
        MixtureEntry("Identity", epochs=2),
        MixtureEntry("SimpleSpelling", 200_000),
        MixtureEntry("SpellingBee", 80_000),
    ),
    ("sft", "web"): (
        MixtureEntry("ARC-Easy"),
        MixtureEntry("ARC-Challenge"),
        MixtureEntry("GSM8K"),
        MixtureEntry("SmolTalk", 10_000),
        MixtureEntry("Identity", 1_000),
        MixtureEntry("SimpleSpelling", 300),
        MixtureEntry("SpellingBee", 300),
    ),
    # The embedded data. Facts and FactChoice never ask for what is held out; of HardProblems nothing is shown.
    ("mid", "world"): (
        MixtureEntry("WorldChat", 1_000),
        MixtureEntry("WorldNotes", 2_500),  # what later stages should not forget
        MixtureEntry("Facts", 4_000),
        MixtureEntry("FactChoice", 1_000),
        MixtureEntry("WordProblems", 5_000),
        MixtureEntry("SimpleSpelling", 14_000),
        MixtureEntry("SpellingBee", 5_000),
        MixtureEntry("Identity", 500),
    ),
    ("sft", "world"): (
        MixtureEntry("WorldChat", 500),
        MixtureEntry("WorldNotes", 2_000),
        MixtureEntry("Facts", 800),
        MixtureEntry("FactChoice", 300),
        MixtureEntry("WordProblems", 3_500),
        MixtureEntry("SimpleSpelling", 1_000),
        MixtureEntry("SpellingBee", 3_500),
        MixtureEntry("Identity", 300),
    ),
}


def build_mixture(
    stage: str,
    kind: str,
    *,
    conversations: str | Path | None = None,
    mixture_file: str | Path | None = None,
    allow_missing: bool = False,
    seed: int = 42,
) -> tuple[Task, Task, list[dict[str, Any]]]:
    """What to train on in a stage, "mid" or "sft", what to validate on, and a description for report and data hash.

    `kind` is "world" for a model of the embedded data, else "web". `conversations` is a JSONL file to add,
    `mixture_file` a TOML file to use instead of the table. With `allow_missing` a data set that cannot be had is left
    out. The description has for each entry its name, split, rows, epochs and validation rows, and the hash of its file.
    Raises UserError for whatever is wrong with the files, and for a data set that cannot be had.
    """
    entries = list(read_mixture(Path(mixture_file)) if mixture_file else MIXTURES[stage, kind])
    if conversations:
        entries.append(MixtureEntry("CustomJSON", options={"path": str(conversations)}))
    train, val, description = [], [], []
    for number, entry in enumerate(entries):
        entry = _complete(entry, kind)
        if entry.task == "Identity" and kind == "web" and "path" not in entry.options and not mixture_file:
            print0(f"No {base_dir() / IDENTITY_FILE}: left out. `python -m dev.gen_synthetic_data` writes one.")
            continue
        try:
            chosen, checked = _tasks(entry, FIRST_ROW[stage], seed + number)
        except DatasetUnavailableError as error:
            if not allow_missing:
                raise UserError(f"{entry.where}{error}. --allow_missing goes on without {entry.task}") from error
            print0(f"{entry.task} is left out: {error}")
            continue
        except UserError as error:
            raise UserError(f"{entry.where}{error}") from error
        train += [chosen] * entry.epochs
        val += [checked] if checked else []
        description.append(_described(entry, len(chosen), len(checked or [])))
    if not sum(map(len, train)):
        raise UserError("nothing to train on: no entry of the mixture has a row")
    if not sum(map(len, val)):
        print0("Too few conversations to set any aside: validation is on those that are trained on.")
        val = train
    return TaskMixture(train, seed), TaskMixture(val, seed), description


def detect_data_kind(if_none: str = "web") -> str:
    """Whose mixture fits the base folder's data: "world" for the embedded data, else "web"."""
    manifest = read_manifest(default_data_dir())
    if manifest is None:
        return if_none
    return "world" if manifest.source == "storyworld" else "web"


def read_mixture(path: Path) -> list[MixtureEntry]:
    """The entries of a mixture file. Raises UserError that names the file and the entry."""
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"mixture {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"mixture {path}: {error}") from error
    blocks = content.pop("entry", None)
    if content or not isinstance(blocks, list) or not blocks:
        extra = f"; {next(iter(content))!r} is unknown" if content else ""
        raise UserError(f"mixture {path}: it must have [[entry]] blocks and nothing else{extra}")
    return [_entry(block, f"mixture {path}, entry {number}: ") for number, block in enumerate(blocks, 1)]


_KEYS: dict[str, tuple[type, str]] = {
    "task": (str, "text"),
    "rows": (int, "a whole number"),
    "epochs": (int, "a whole number"),
    "split": (str, "text"),
    "val_split": (str, "text"),
    "options": (dict, "a table"),
}


def _entry(block: Any, where: str) -> MixtureEntry:
    if not isinstance(block, dict) or "task" not in block:
        raise UserError(f'{where}it must name its task = "..."')
    for key, value in block.items():
        if key not in _KEYS:
            raise UserError(f"{where}unknown key {key!r}; known are {', '.join(_KEYS)}")
        kind, called = _KEYS[key]
        if type(value) is not kind:
            raise UserError(f"{where}{key} = {value!r} must be {called}")
        if isinstance(value, int) and value < 1:
            raise UserError(f"{where}{key} = {value} must be at least 1")
    try:
        entry = MixtureEntry(**{**block, "task": canonical_name(block["task"])}, where=where)
    except UserError as error:
        raise UserError(f"{where}{error}") from error
    if entry.task in UNBOUNDED_TASKS and entry.rows is None:
        raise UserError(f"{where}{entry.task} has no end, so rows = must say how many")
    return entry


def _complete(entry: MixtureEntry, kind: str) -> MixtureEntry:
    """The entry, with where the identity comes from: the file of the base folder if there is one, else templates."""
    if entry.task != "Identity" or "path" in entry.options:
        return entry
    file = base_dir() / IDENTITY_FILE
    options = {"path": str(file)} if file.is_file() else {"kind": kind}
    return dataclasses.replace(entry, options={**options, **entry.options})


def _tasks(entry: MixtureEntry, first: int, seed: int) -> tuple[Task, Task | None]:
    """What an entry trains on, and what it validates on."""
    if entry.task in UNBOUNDED_TASKS:
        assert entry.rows is not None, "an entry of a task without end says how many rows"
        size = first + entry.rows
        train = get_task(entry.task, entry.split, size=size, start=first, **entry.options)
    else:
        train = get_task(entry.task, entry.split, stop=entry.rows, shuffle=seed, **entry.options)
        if entry.rows and len(train) < entry.rows:
            print0(f"{entry.task} has {len(train):,} of the {entry.rows:,} rows asked for: all are used.")
    if entry.val_split == "none" or not len(train):
        return train, None
    number = min(VAL_ROWS, max(1, len(train) // VAL_PART))
    return train, get_task(entry.task, entry.val_split, stop=number, shuffle=seed, **entry.options)


def _described(entry: MixtureEntry, rows: int, val_rows: int) -> dict[str, Any]:
    found: dict[str, Any] = {"name": entry.task, "split": entry.split, "rows": rows, "epochs": entry.epochs}
    found["val_rows"] = val_rows
    if path := entry.options.get("path"):
        found |= {"file": Path(path).name, "sha256": file_sha256(Path(path))}
    if options := {key: value for key, value in entry.options.items() if key != "path"}:
        found["options"] = dict(options)
    return found


def format_description(description: Sequence[Mapping[str, Any]]) -> str:
    """A description in one line, for the log.

    >>> parts = [{"name": "GSM8K", "rows": 7473, "epochs": 1}, {"name": "Identity", "rows": 1000, "epochs": 2}]
    >>> format_description(parts)
    'GSM8K 7,473, Identity 2 x 1,000'
    """
    times = [f"{entry['epochs']} x " if entry["epochs"] > 1 else "" for entry in description]
    return ", ".join(f"{entry['name']} {n}{entry['rows']:,}" for entry, n in zip(description, times, strict=True))
