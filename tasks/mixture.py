"""Default mixtures of midtraining and SFT (`MIXTURES`), and mixture files, which replace them.

    [[entry]]                  # a --mixture file, in TOML: one block per task, in any order
    task = "SpellingBee"       # a name of tasks/registry.py
    rows = 5000                # drawn at random; default: all rows (required for tasks that generate their rows)
    epochs = 2                 # times that each row is used; default 1
    fresh = true               # other rows in each pass over the mixture, until all were used; needs `rows`
    split = "train"            # the default
    val_split = "test"         # the split that validation rows come from; "none" for no validation rows
    options = {quoted = true}  # further keyword arguments of the task's constructor

Rows are drawn by a shuffle with the mixture's seed. Tasks that generate their rows use different rows in midtraining
and SFT.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

from nanochat.common import UserError, base_dir, expand_path, print0
from nanochat.configurator import load_toml
from nanochat.data.shards import default_data_dir, read_manifest
from nanochat.system.json_text import short_repr
from tasks.common import FreshRows, Task, TaskMixture
from tasks.customjson import file_sha256
from tasks.hub import DatasetUnavailableError
from tasks.identity import FILE_NAME as IDENTITY_FILE
from tasks.registry import UNBOUNDED_TASKS, canonical_name, get_task

MAX_CONVERSATIONS = 50_000_000  # of a mixture, epochs included: their order is a list in memory
MAX_VAL_ROWS = 200  # per entry
TRAIN_ROWS_PER_VAL_ROW = 20  # an entry has at most one validation row for this many training rows
FIRST_ROW = {"mid": 0, "sft": 1_000_000}  # of tasks that generate their rows: the stages share no row


@dataclass(frozen=True)
class MixtureEntry:
    """Rows of one task, each used `epochs` times. `origin` is the prefix of error messages: the file and the entry."""

    task: str
    rows: int | None = None
    epochs: int = 1
    fresh: bool = False
    split: str = "train"
    val_split: str = "test"
    options: Mapping[str, Any] = field(default_factory=dict)
    origin: str = ""


class _EntryCounts(TypedDict):
    name: str
    split: str
    rows: int
    epochs: int
    val_rows: int


class EntryDescription(_EntryCounts, total=False):
    """An entry as it goes into the report and the data hash. Its `repr` is hashed, so keys keep their order."""

    file: str  # with `sha256` if the entry reads a file
    sha256: str
    fresh: bool
    options: dict[str, Any]


class Mixture(NamedTuple):
    """Training and validation conversations, and a description of each entry for the report and the data hash."""

    train: TaskMixture
    val: TaskMixture
    description: list[EntryDescription]


# (stage, kind of base data) -> entries
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
    # The embedded world. Facts and FactChoice never ask for held-out facts; HardProblems is reserved for RL.
    ("mid", "world"): (
        MixtureEntry("WorldChat", 1_000),
        MixtureEntry("WorldNotes", 2_500),  # base text, so that later stages do not forget it
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
) -> Mixture:
    """Build the mixture of a stage, "mid" or "sft".

    `kind` is "world" for a model trained on the embedded story world, else "web". `conversations` is a JSONL file to
    add, `mixture_file` a TOML file to use instead of the default table. With `allow_missing`, data sets that cannot be
    loaded are skipped. Raises UserError for a fault in a file, and for a data set that cannot be loaded.
    """
    entries = list(read_mixture(Path(mixture_file)) if mixture_file else MIXTURES[stage, kind])
    if conversations:
        entries.append(MixtureEntry("CustomJSON", options={"path": str(conversations)}))
    train: list[Task] = []
    val: list[Task] = []
    description = []
    for index, entry in enumerate(entries):
        entry = _resolve_identity(entry, kind)
        if entry.task == "Identity" and kind == "web" and "path" not in entry.options and not mixture_file:
            print0(
                f"No {base_dir() / IDENTITY_FILE}: Identity is left out. `python -m dev.gen_synthetic_data` writes it."
            )
            continue
        try:
            train_task, val_task = _build_tasks(entry, FIRST_ROW[stage], seed + index)
        except DatasetUnavailableError as error:
            if not allow_missing:
                raise UserError(f"{entry.origin}{error}. --allow_missing trains without {entry.task}") from error
            print0(f"{entry.task} is left out: {error}")
            continue
        except UserError as error:
            raise UserError(f"{entry.origin}{error}") from error
        train += [train_task] * entry.epochs
        if val_task is not None:
            val.append(val_task)
        if (total := sum(map(len, train))) > MAX_CONVERSATIONS:
            raise UserError(
                f"{entry.origin}the mixture has {total:,} rows by now: at most {MAX_CONVERSATIONS:,} in all"
            )
        description.append(_describe(entry, len(train_task), 0 if val_task is None else len(val_task)))
    if not sum(map(len, train)):
        raise UserError("nothing to train on: no entry of the mixture has a row")
    if not sum(map(len, val)):
        print0("Too few conversations to hold any out: validation uses those that are trained on.")
        val = train
    return Mixture(TaskMixture(train, seed), TaskMixture(val, seed), description)


def detect_data_kind(if_none: str = "web") -> str:
    """Return the kind of the base data: "world" for the embedded story world, else "web"; `if_none` without data."""
    manifest = read_manifest(default_data_dir())
    if manifest is None:
        return if_none
    return "world" if manifest.source == "storyworld" else "web"


def read_mixture(path: Path) -> list[MixtureEntry]:
    """Read the entries of a mixture file. Raises UserError that names the file and the entry."""
    content = load_toml(path, "mixture")
    blocks = content.pop("entry", None)
    if content or not isinstance(blocks, list) or not blocks:
        unknown = f"; {short_repr(next(iter(content)))} is unknown" if content else ""
        raise UserError(f"mixture {path}: must have [[entry]] blocks and nothing else{unknown}")
    return [_parse_entry(block, f"mixture {path}, entry {number}: ") for number, block in enumerate(blocks, 1)]


# key: (type, its name in error messages)
_ENTRY_KEYS: dict[str, tuple[type, str]] = {
    "task": (str, "text"),
    "rows": (int, "a whole number"),
    "epochs": (int, "a whole number"),
    "fresh": (bool, "true or false"),
    "split": (str, "text"),
    "val_split": (str, "text"),
    "options": (dict, "a table"),
}


_MAX_COUNTS = {"rows": 10_000_000, "epochs": 1000}
_SET_BY_ENTRY = {  # options that an entry sets by its own keys
    "split": "split",
    "stop": "rows",
    "shuffle": "the mixture's seed",
}


def _parse_entry(block: Any, origin: str) -> MixtureEntry:
    if not isinstance(block, dict) or "task" not in block:
        raise UserError(f'{origin}must name its task = "..."')
    for key, value in block.items():
        if key not in _ENTRY_KEYS:
            raise UserError(f"{origin}unknown key {short_repr(key)}; known are {', '.join(_ENTRY_KEYS)}")
        expected_type, type_name = _ENTRY_KEYS[key]
        if type(value) is not expected_type:
            raise UserError(f"{origin}{key} = {short_repr(value)} must be {type_name}")
        if isinstance(value, int) and key in _MAX_COUNTS and not 1 <= value <= _MAX_COUNTS[key]:
            number = short_repr(value)
            raise UserError(f"{origin}{key} = {number} must be at least 1 and at most {_MAX_COUNTS[key]:,}")
    try:
        entry = MixtureEntry(**{**block, "task": canonical_name(block["task"])}, origin=origin)
    except UserError as error:
        raise UserError(f"{origin}{error}") from error
    reserved = {**_SET_BY_ENTRY, "size": "rows", "start": "rows"} if entry.task in UNBOUNDED_TASKS else _SET_BY_ENTRY
    if taken := [key for key in entry.options if key in reserved]:
        raise UserError(f"{origin}options must not have {taken[0]!r}: {reserved[taken[0]]} sets it")
    if entry.task in UNBOUNDED_TASKS and entry.rows is None:
        raise UserError(f"{origin}{entry.task} generates its rows, so rows = must be set")
    if entry.fresh and (entry.task in UNBOUNDED_TASKS or entry.rows is None):
        raise UserError(f"{origin}fresh = true needs rows = and a task that has all its rows from the start")
    return entry


def _resolve_identity(entry: MixtureEntry, kind: str) -> MixtureEntry:
    """Set the source of an Identity entry: the base folder's file if it exists, else templates."""
    if entry.task != "Identity" or "path" in entry.options:
        return entry
    file = base_dir() / IDENTITY_FILE
    options = {"path": str(file)} if file.is_file() else {"kind": kind}
    return dataclasses.replace(entry, options={**options, **entry.options})


def _build_tasks(entry: MixtureEntry, first_row: int, seed: int) -> tuple[Task, Task | None]:
    """Return the training task of an entry, and its validation task or None."""
    if entry.task in UNBOUNDED_TASKS:
        assert entry.rows is not None, "an entry of a task that generates its rows sets `rows`"
        train = get_task(entry.task, entry.split, size=first_row + entry.rows, start=first_row, **entry.options)
    elif entry.fresh:
        assert entry.rows is not None, "_parse_entry has checked it"
        train = FreshRows(get_task(entry.task, entry.split, shuffle=seed, **entry.options), entry.rows)
    else:
        train = get_task(entry.task, entry.split, stop=entry.rows, shuffle=seed, **entry.options)
        if entry.rows and len(train) < entry.rows:
            print0(f"{entry.task} has {len(train):,} of the {entry.rows:,} rows requested: all are used.")
    if entry.val_split == "none" or not len(train):
        return train, None
    num_val_rows = min(MAX_VAL_ROWS, max(1, len(train) // TRAIN_ROWS_PER_VAL_ROW))
    return train, get_task(entry.task, entry.val_split, stop=num_val_rows, shuffle=seed, **entry.options)


def _describe(entry: MixtureEntry, num_rows: int, num_val_rows: int) -> EntryDescription:
    description: EntryDescription = {
        "name": entry.task,
        "split": entry.split,
        "rows": num_rows,
        "epochs": entry.epochs,
        "val_rows": num_val_rows,
    }
    if entry.fresh:
        description["fresh"] = True
    if path := entry.options.get("filepath") or entry.options.get("path"):
        file = expand_path(path)
        description["file"] = file.name
        description["sha256"] = file_sha256(file)
    if options := {key: value for key, value in entry.options.items() if key not in ("filepath", "path")}:
        description["options"] = options
    return description


def format_description(description: Sequence[EntryDescription]) -> str:
    """Format a mixture's description as one line for the log.

    >>> entries = [{"name": "GSM8K", "rows": 7473, "epochs": 1}, {"name": "Identity", "rows": 1000, "epochs": 2}]
    >>> format_description(entries)
    'GSM8K 7,473, Identity 2 x 1,000'
    """
    parts = []
    for entry in description:
        times = f"{entry['epochs']} x " if entry["epochs"] > 1 else ""
        parts.append(f"{entry['name']} {times}{entry['rows']:,}{' a pass' if entry.get('fresh') else ''}")
    return ", ".join(parts)
