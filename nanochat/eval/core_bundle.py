"""The bundle of tasks that CORE is measured on: read, checked line by line, and made into few-shot prompts.

A folder or a zip file of:

    core.yaml            icl_tasks: a list of {label, dataset_uri, num_fewshot: [int], icl_task_type and, if not " ",
                         continuation_delimiter; has_categories: true, if the lines have a category}
    eval_meta_data.csv   columns "Eval Task" (the label) and "Random baseline" (what chance gives, in percent)
    eval_data/           JSON lines: {query, choices, gold}, {context_options, continuation, gold} or
                         {context, continuation}, each with {category} where core.yaml says so
"""

from __future__ import annotations

import csv
import io
import json
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from nanochat.common import UserError, as_user_error, base_dir, print0
from nanochat.data.download import download
from nanochat.data.import_text import read_utf8
from nanochat.eval.core_prompts import TASK_TYPES, CoreExample, CoreTask

FOLDER = "eval_bundle"


@dataclass(frozen=True)
class Bundle:
    """What a bundle holds. `missing`: the tasks that it lists and has no data of."""

    path: Path
    tasks: tuple[CoreTask, ...]
    missing: tuple[str, ...]


class _Loader(yaml.SafeLoader):  # type: ignore[misc]  # yaml comes without types
    """YAML in which every mapping knows its line, and so does a value that cannot be, as the 45th of a month."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        return {**super().construct_mapping(node, deep), "line": node.start_mark.line + 1}

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        try:
            value = super().construct_object(node, deep)
            return value.encode("utf-8").decode("utf-8") if isinstance(value, str) else value
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise yaml.MarkedYAMLError(problem=str(error), problem_mark=node.start_mark) from error


def find_bundle(asked: str | None = None) -> Path | None:
    """The bundle asked for; else that in the base folder, as a folder or a zip file; None if there is none.

    An address is downloaded into the base folder, where later runs find it. Raises UserError if that fails.
    """
    here = base_dir() / FOLDER
    if asked and asked.startswith(("https://", "http://")):
        return _fetch(asked, here.with_suffix(".zip"))
    places = [Path(asked)] if asked else [here, here.with_suffix(".zip")]
    with as_user_error(f"no evaluation bundle at {places[0]}"):
        there = [place for place in places if place.exists()]
    return next(iter(there), None)


def _fetch(address: str, path: Path) -> Path:
    """Bring a bundle to this path, or use what is there."""
    if path.exists():
        print0(f"Using {path}: remove it to download it again")
        return path
    print0(f"Downloading {address} to {path}")
    download(address, path)
    if not zipfile.is_zipfile(path):
        path.unlink()
        raise UserError(f"{address} is no zip file, and so no evaluation bundle")
    return path


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
            rows = list(_read_examples(file, kind, entry.get("has_categories", False)))
            examples, categories = tuple(example for example, _ in rows), tuple(name for _, name in rows if name)
            delimiter = entry.get("continuation_delimiter", " ")
            task = CoreTask(label, kind, fewshot, delimiter, baselines[label], examples, categories)
            if (others := task.max_fewshot) < fewshot:
                print0(f"{label}: its prompts should have {fewshot} examples, but only {others} others exist")
            tasks.append(task)
    except OSError as error:
        raise UserError(f"the evaluation bundle {path} cannot be read: {error}") from error
    if not tasks:
        raise UserError(f"{path}: none of the tasks in core.yaml has its file in eval_data")
    return Bundle(path, tuple(tasks), tuple(missing))


def _root(path: Path) -> Any:
    """The folder that holds core.yaml: this one, the zip file's, or the only one inside; with a path's methods."""
    with as_user_error(f"the evaluation bundle {path} cannot be read"):
        root: Any = path if path.is_dir() else zipfile.Path(path)
    if not (root / "core.yaml").is_file():
        inside = [place for place in root.iterdir() if (place / "core.yaml").is_file()]
        if len(inside) != 1:
            raise UserError(f"{path} is no evaluation bundle: core.yaml is missing")
        return inside[0]
    return root


def _read_list(file: Any) -> Iterator[tuple[int, dict[str, Any]]]:
    """The tasks of core.yaml, each with its line."""
    text, loader = read_utf8(file), None
    try:
        loader = _Loader(text)
        content = loader.get_single_data()
    except (yaml.YAMLError, RecursionError) as error:
        mark: Any = getattr(error, "problem_mark", None) or loader  # how far it has read, if it does not say where
        line = mark.line if mark else text.count("\n", 0, getattr(error, "position", 0))
        raise UserError(f"{file}, line {line + 1}: not YAML ({' '.join(str(error).split())})") from error
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
    if entry.get("icl_task_type") not in TASK_TYPES:
        return f"icl_task_type is {entry.get('icl_task_type')!r}: it must be {', '.join(TASK_TYPES)}"
    shots = entry.get("num_fewshot")
    if not (isinstance(shots, list) and len(shots) == 1 and isinstance(shots[0], int) and shots[0] >= 0):
        return f"num_fewshot is {shots!r}: it must be a list of one number, at least 0"
    if not isinstance(entry.get("continuation_delimiter", " "), str):
        return "continuation_delimiter must be a text"
    if not isinstance(entry.get("has_categories", False), bool):
        return f"has_categories is {entry['has_categories']!r}: it must be true or false"
    return None


def _read_baselines(file: Any) -> dict[str, float]:
    """Task -> what counts as 0, as a share."""
    reader = csv.DictReader(io.StringIO(read_utf8(file), newline=""))
    found = {}
    try:
        if not {"Eval Task", "Random baseline"} <= set(reader.fieldnames or ()):
            raise ValueError("the columns 'Eval Task' and 'Random baseline' must be there")
        for row in reader:
            percent = float(row["Random baseline"] or "nothing")
            if not 0 <= percent < 100:
                raise ValueError(f"a random baseline of {percent} percent")
            found[row["Eval Task"]] = percent / 100
    except (ValueError, csv.Error) as error:
        raise UserError(f"{file}, line {reader.line_num or 1}: {error}") from error
    return found


def _read_examples(file: Any, kind: str, has_categories: bool) -> Iterator[tuple[CoreExample, str]]:
    """The examples of a task, each with its category or ""; empty lines are none."""
    found = False
    for number, line in enumerate(read_utf8(file).split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            json.dumps(row, ensure_ascii=False).encode("utf-8")  # fails at half a surrogate pair, which is no text
            yield _example(row, kind), _category(row) if has_categories else ""
        except (ValueError, RecursionError) as error:
            raise UserError(f"{file}, line {number}: {error}") from error
        found = True
    if not found:
        raise UserError(f"{file}, line 1: no examples are there")


def _example(row: Any, kind: str) -> CoreExample:
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
        return CoreExample(((text("context"), text("continuation")),))
    if kind == "multiple_choice":
        options = [(text("query"), choice) for choice in texts("choices")]
    else:
        options = [(context, text("continuation")) for context in texts("context_options")]
    gold = row.get("gold")
    if type(gold) is not int or not 0 <= gold < len(options):
        raise ValueError(f"gold is {gold!r}: it must be a number from 0 to {len(options) - 1}")
    return CoreExample(tuple(options), gold)


def _category(row: Any) -> str:
    """The category that a line names."""
    if not isinstance(category := row.get("category"), str) or not category:
        raise ValueError("category must be a text, for core.yaml says has_categories")
    return category
