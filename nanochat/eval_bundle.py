"""The bundle of tasks that CORE is measured on: read, checked line by line, and made into few-shot prompts.

A folder or a zip file of:

    core.yaml            icl_tasks: a list of {label, dataset_uri, num_fewshot: [int], icl_task_type and, if not " ",
                         continuation_delimiter}
    eval_meta_data.csv   columns "Eval Task" (the label) and "Random baseline" (what chance gives, in percent)
    eval_data/           JSON lines: {query, choices, gold}, {context_options, continuation, gold} or
                         {context, continuation}
"""

from __future__ import annotations

import csv
import io
import json
import random
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from nanochat.common import UserError, base_dir, print0

FOLDER = "eval_bundle"
KINDS = ("multiple_choice", "schema", "language_modeling")
EXAMPLE_DELIMITER = "\n"  # between the examples of a prompt


@dataclass(frozen=True)
class Example:
    """Options of (context, continuation), of which the one at `gold` is right; a single one is to be written exactly.

    In multiple choice the options differ in their continuations, in a schema in their contexts.
    """

    options: tuple[tuple[str, str], ...]
    gold: int = 0


@dataclass(frozen=True)
class CoreTask:
    """One of the tasks. `baseline`: the accuracy that counts as 0 on the centred scale."""

    label: str
    kind: str
    num_fewshot: int
    delimiter: str
    baseline: float
    examples: tuple[Example, ...]

    def shots(self, index: int, seed: int) -> list[Example]:
        """Solved examples that stand before this one: others of the task, always the same for a seed."""
        count = len(self.examples) - 1  # the others
        chosen = random.Random(f"{seed} {self.label} {index}").sample(range(count), min(self.num_fewshot, count))
        return [self.examples[other + (other >= index)] for other in chosen]

    def prompts(self, index: int, seed: int) -> list[tuple[str, str]]:
        """For each option of an example the text before the continuation, and the continuation.

        Spaces between the two belong to the continuation, because tokens are words with the space before them.
        """
        solved = [example.options[example.gold] for example in self.shots(index, seed)]
        before = "".join(f"{context}{self.delimiter}{end}{EXAMPLE_DELIMITER}" for context, end in solved)
        whole = [(f"{before}{context}{self.delimiter}", end) for context, end in self.examples[index].options]
        return [(text.rstrip(" "), text[len(text.rstrip(" ")) :] + end) for text, end in whole]

    @property
    def guessing(self) -> list[float]:
        """How likely a guess is right, for each example: nobody guesses a text."""
        return [0.0 if self.kind == "language_modeling" else 1 / len(example.options) for example in self.examples]


@dataclass(frozen=True)
class Bundle:
    """What a bundle holds. `missing`: the tasks that it lists and has no data of."""

    path: Path
    tasks: tuple[CoreTask, ...]
    missing: tuple[str, ...]


class _Loader(yaml.SafeLoader):  # type: ignore[misc]  # yaml comes without types
    """YAML in which every mapping knows its line."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        return {**super().construct_mapping(node, deep), "line": node.start_mark.line + 1}


def find_bundle(asked: str | None = None) -> Path | None:
    """The bundle asked for; else that in the base folder, as a folder or a zip file; None if there is none."""
    here = base_dir() / FOLDER
    places = [Path(asked)] if asked else [here, here.with_suffix(".zip")]
    return next((place for place in places if place.exists()), None)


def read_bundle(path: Path) -> Bundle:
    """Read all of a bundle. Raises `UserError` that names file and line of whatever is wrong."""
    try:
        root = _root(path)
        baselines = _read_baselines(root / "eval_meta_data.csv")
        tasks, missing = [], []
        for number, entry in _read_list(root / "core.yaml"):
            place = f"{root / 'core.yaml'}, line {number}"
            file = root / "eval_data" / entry["dataset_uri"]
            label, kind, fewshot = entry["label"], entry["icl_task_type"], entry["num_fewshot"][0]
            if label not in baselines:
                raise UserError(f"{place}: {root / 'eval_meta_data.csv'} has no line for the task {label}")
            if not file.is_file():
                missing.append(label)
                continue
            examples = tuple(_read_examples(file, kind))
            if len(examples) <= fewshot:
                others = len(examples) - 1
                print0(f"{label}: its prompts should have {fewshot} examples, but only {others} others exist")
            delimiter = entry.get("continuation_delimiter", " ")
            tasks.append(CoreTask(label, kind, fewshot, delimiter, baselines[label], examples))
    except (OSError, zipfile.BadZipFile, zipfile.zlib.error) as error:  # type: ignore[attr-defined]
        raise UserError(f"the evaluation bundle {path} cannot be read: {error}") from error
    if not tasks:
        raise UserError(f"{path}: none of the tasks in core.yaml has its file in eval_data")
    return Bundle(path, tuple(tasks), tuple(missing))


def _root(path: Path) -> Any:
    """The folder that holds core.yaml: this one, the zip file's, or the only one inside; with a path's methods."""
    root: Any = path if path.is_dir() else zipfile.Path(path)
    if not (root / "core.yaml").is_file():
        inside = [place for place in root.iterdir() if (place / "core.yaml").is_file()]
        if len(inside) != 1:
            raise UserError(f"{path} is no evaluation bundle: core.yaml is missing")
        return inside[0]
    return root


def _read_text(file: Any) -> str:
    """A file as text; one that is no UTF-8, or is not there, is named."""
    if not file.is_file():
        raise UserError(f"{file} is missing")
    content = file.read_bytes()
    try:
        text: str = content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise UserError(f"{file}, line {line}: not UTF-8 ({error})") from error
    return text


def _read_list(file: Any) -> Iterator[tuple[int, dict[str, Any]]]:
    """The tasks of core.yaml, each with its line."""
    try:
        content = yaml.load(_read_text(file), _Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        raise UserError(f"{file}, line {mark.line + 1 if mark else 1}: not YAML ({error})") from error
    entries = content.get("icl_tasks") if isinstance(content, dict) else None
    if not isinstance(entries, list) or not entries:
        raise UserError(f"{file}, line 1: icl_tasks must be a list of tasks")
    labels = set()
    for entry in entries:
        line = entry["line"] if isinstance(entry, dict) else content["line"]
        if problem := _entry_problem(entry):
            raise UserError(f"{file}, line {line}: {problem}")
        if entry["label"] in labels:
            raise UserError(f"{file}, line {line}: the task {entry['label']} stands there twice")
        labels.add(entry["label"])
        yield line, entry


def _entry_problem(entry: Any) -> str | None:
    """What is wrong with an entry of core.yaml."""
    if not isinstance(entry, dict):
        return "each of icl_tasks must be a mapping"
    for name in ("label", "dataset_uri"):
        if not isinstance(entry.get(name), str) or not entry[name]:
            return f"{name} must be a text"
    if entry.get("icl_task_type") not in KINDS:
        return f"icl_task_type is {entry.get('icl_task_type')!r}: it must be {', '.join(KINDS)}"
    shots = entry.get("num_fewshot")
    if not (isinstance(shots, list) and len(shots) == 1 and isinstance(shots[0], int) and shots[0] >= 0):
        return f"num_fewshot is {shots!r}: it must be a list of one number, at least 0"
    if not isinstance(entry.get("continuation_delimiter", " "), str):
        return "continuation_delimiter must be a text"
    return None


def _read_baselines(file: Any) -> dict[str, float]:
    """Task -> what counts as 0, as a share."""
    reader = csv.DictReader(io.StringIO(_read_text(file), newline=""))
    if not {"Eval Task", "Random baseline"} <= set(reader.fieldnames or ()):
        raise UserError(f"{file}, line 1: the columns 'Eval Task' and 'Random baseline' must be there")
    found = {}
    try:
        for row in reader:
            percent = float(row["Random baseline"] or "nothing")
            if not 0 <= percent < 100:
                raise ValueError(f"a random baseline of {percent} percent")
            found[row["Eval Task"]] = percent / 100
    except (ValueError, csv.Error) as error:
        raise UserError(f"{file}, line {reader.line_num}: {error}") from error
    return found


def _read_examples(file: Any, kind: str) -> Iterator[Example]:
    """The examples of a task; empty lines are none."""
    found = False
    for number, line in enumerate(_read_text(file).split("\n"), 1):
        if not line.strip():
            continue
        try:
            yield _example(json.loads(line), kind)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{file}, line {number}: {error}") from error
        found = True
    if not found:
        raise UserError(f"{file}, line 1: no examples are there")


def _example(row: Any, kind: str) -> Example:
    """A line of a task's file. Raises ValueError that says what is wrong with it."""
    if not isinstance(row, dict):
        raise ValueError("a line must be a JSON object")

    def text(name: str) -> str:
        value = row.get(name)
        if not isinstance(value, str) or not (value or name != "continuation"):
            raise ValueError(f"{name} must be a text")
        return value

    def texts(name: str) -> list[str]:
        value = row.get(name)
        if not isinstance(value, list) or len(value) < 2 or not all(isinstance(item, str) and item for item in value):
            raise ValueError(f"{name} must be a list of two texts or more")
        return value

    if kind == "language_modeling":
        return Example(((text("context"), text("continuation")),))
    if kind == "multiple_choice":
        options = [(text("query"), choice) for choice in texts("choices")]
    else:
        options = [(context, text("continuation")) for context in texts("context_options")]
    gold = row.get("gold")
    if type(gold) is not int or not 0 <= gold < len(options):
        raise ValueError(f"gold is {gold!r}: it must be a number from 0 to {len(options) - 1}")
    return Example(tuple(options), gold)
