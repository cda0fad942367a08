"""Bundle of the tasks that CORE is measured on: find or download it, read it, and check it line by line.

A bundle is a folder or a zip file of:

    core.yaml            icl_tasks: a list of {label, dataset_uri, num_fewshot: [int], icl_task_type and, if not " ",
                         continuation_delimiter; has_categories: true, if the rows have a category}
    eval_meta_data.csv   columns "Eval Task" (the label) and "Random baseline" (the accuracy of guessing, in percent)
    eval_data/           JSON lines: {query, choices, gold}, {context_options, continuation, gold} or
                         {context, continuation}, each with {category} where core.yaml says so
"""

from __future__ import annotations

import csv
import io
import json
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import yaml

from nanochat.common import UserError, as_user_error, base_dir, print0
from nanochat.data.download import download
from nanochat.data.import_text import read_utf8
from nanochat.data.shards import file_sha256
from nanochat.eval.core_prompts import TASK_TYPES, CoreExample, CoreTask

PUBLIC_BUNDLE = "https://karpathy-public.s3.us-west-2.amazonaws.com/eval_bundle.zip"
BUNDLE_NAME = "eval_bundle"  # in the base folder, as a folder or with .zip
BundlePath = Path | zipfile.Path  # of a file or folder in a bundle, which may be a zip file


class TaskEntry(TypedDict, total=False):
    """An entry of core.yaml, checked."""

    label: str
    dataset_uri: str  # file in eval_data
    icl_task_type: str
    num_fewshot: list[int]  # of one number
    continuation_delimiter: str
    has_categories: bool
    line: int  # added by the loader


@dataclass(frozen=True)
class Bundle:
    """The tasks of a bundle. `missing`: labels of tasks that core.yaml lists and eval_data lacks."""

    path: Path
    tasks: tuple[CoreTask, ...]
    missing: tuple[str, ...]

    def select(self, labels: Sequence[str]) -> list[CoreTask]:
        """Return the tasks with these labels, in the bundle's order. Raises UserError for an unknown label."""
        known = [task.label for task in self.tasks]
        if unknown := set(labels) - set(known):
            raise UserError(f"the bundle has no task {', '.join(sorted(unknown))}: choose from {', '.join(known)}")
        return [task for task in self.tasks if task.label in labels]

    def texts(self) -> Iterator[str]:
        """Yield the text of every option of every task, for example to train a tokenizer."""
        for task in self.tasks:
            for example in task.examples:
                for context, continuation in example.options:
                    yield f"{context} {continuation}\n"


class _Loader(yaml.SafeLoader):  # type: ignore[misc]  # yaml comes without types
    """YAML loader that adds its line to each mapping, and to the error for an invalid value (the 45th of a month)."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        return {**super().construct_mapping(node, deep), "line": node.start_mark.line + 1}

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        try:
            value = super().construct_object(node, deep)
            return value.encode("utf-8").decode("utf-8") if isinstance(value, str) else value
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise yaml.MarkedYAMLError(problem=str(error), problem_mark=node.start_mark) from error


def open_bundle(source: str | None = None) -> Bundle:
    """Find and read a bundle: `find_bundle`, then `read_bundle`. Raises UserError if there is none."""
    path = find_bundle(source)
    if path is None:
        raise no_bundle_error(source)
    return read_bundle(path)


def no_bundle_error(source: str | None) -> UserError:
    """Return the error for a bundle that is not at `source`."""
    return UserError(
        f"no evaluation bundle at {source or base_dir() / BUNDLE_NAME}: put a folder or a zip file with core.yaml, "
        "eval_meta_data.csv and eval_data there, or name a folder, a zip file or the address of one (https://...) "
        "with --eval_bundle"
    )


def find_bundle(source: str | None = None) -> Path | None:
    """Return the path of a bundle, or None if there is none.

    `source`: a folder, a zip file, or an address; default: `eval_bundle/` or `eval_bundle.zip` in the base folder. An
    address is downloaded to `eval_bundle.zip` in the base folder, unless a bundle is there already. Raises UserError
    if that fails.
    """
    default = base_dir() / BUNDLE_NAME
    is_address = bool(source) and str(source).startswith(("https://", "http://"))
    paths = [Path(source)] if source and not is_address else [default, default.with_suffix(".zip")]
    with as_user_error(f"no evaluation bundle at {paths[0]}"):
        existing = next((path for path in paths if path.exists()), None)
    if not is_address:
        return existing
    if existing:
        print0(f"Using {existing}: remove it to download {source}")
        return existing
    return _fetch(str(source), paths[-1])


def _fetch(address: str, path: Path) -> Path:
    """Download a bundle to `path`, and print its size and SHA-256."""
    print0(f"Downloading {address} to {path}")
    try:
        download(address, path)
    except OSError as error:
        raise UserError(f"{address} cannot be downloaded to {path}: {error}") from error
    if not zipfile.is_zipfile(path):
        path.unlink()
        raise UserError(f"{address} is not a zip file, so it cannot be an evaluation bundle")
    print0(f"Downloaded {describe_file(path)}")
    return path


def describe_file(path: Path) -> str:
    """Return the path of a bundle and, of a zip file, its size and SHA-256, so that a result can name its tasks."""
    if path.is_dir():
        return str(path)
    return f"{path}, {path.stat().st_size:,} bytes, SHA-256 {file_sha256(path)}"


def read_bundle(path: Path) -> Bundle:
    """Read all tasks of a bundle. Raises UserError that names the file and the line at fault."""
    tasks = []
    missing = []
    try:
        root = _find_root(path)
        baselines = _read_baselines(root / "eval_meta_data.csv")
        for entry in _read_task_list(root / "core.yaml"):
            label = entry["label"]
            if label not in baselines:
                place = f"{root / 'core.yaml'}, line {entry['line']}"
                raise UserError(f"{place}: {root / 'eval_meta_data.csv'} has no line for the task {label}")
            data_file = root / "eval_data" / entry["dataset_uri"]
            if data_file.is_file():
                tasks.append(_read_task(data_file, entry, baselines[label]))
            else:
                missing.append(label)
    except OSError as error:
        raise UserError(f"the evaluation bundle {path} cannot be read: {error}") from error
    if not tasks:
        raise UserError(f"{path}: none of the tasks in core.yaml has its file in eval_data")
    return Bundle(path, tuple(tasks), tuple(missing))


def _read_task(data_file: BundlePath, entry: TaskEntry, baseline: float) -> CoreTask:
    """Read the examples of a task. Prints a line if they are too few for its few-shot prompts."""
    rows = list(_read_examples(data_file, entry["icl_task_type"], entry.get("has_categories", False)))
    task = CoreTask(
        label=entry["label"],
        task_type=entry["icl_task_type"],
        num_fewshot=entry["num_fewshot"][0],
        continuation_delimiter=entry.get("continuation_delimiter", " "),
        baseline=baseline,
        examples=tuple(example for example, _ in rows),
        categories=tuple(category for _, category in rows if category),
    )
    if task.max_fewshot < task.num_fewshot:
        print0(
            f"{task.label}: its prompts should have {task.num_fewshot} examples, but the task has only "
            f"{task.max_fewshot} others"
        )
    return task


def _find_root(path: Path) -> BundlePath:
    """Return the folder with core.yaml: `path`, or the only one in it. In a zip file it is a `zipfile.Path`."""
    with as_user_error(f"the evaluation bundle {path} cannot be read"):
        root: BundlePath = path if path.is_dir() else zipfile.Path(path)
    if (root / "core.yaml").is_file():
        return root
    candidates = [folder for folder in root.iterdir() if (folder / "core.yaml").is_file()]
    if len(candidates) != 1:
        raise UserError(f"{path} is not an evaluation bundle: core.yaml is missing")
    return candidates[0]


def _read_task_list(file: BundlePath) -> Iterator[TaskEntry]:
    """Yield the entry of each task in core.yaml. Raises UserError that names the line at fault."""
    text = read_utf8(file)
    loader = None
    try:
        loader = _Loader(text)
        content = loader.get_single_data()
    except (yaml.YAMLError, RecursionError) as error:
        # Some errors do not have a line: take the one that the loader has reached, or count up to the position.
        mark: Any = getattr(error, "problem_mark", None) or loader
        line = mark.line if mark else text.count("\n", 0, getattr(error, "position", 0))
        raise UserError(f"{file}, line {line + 1}: not YAML ({' '.join(str(error).split())})") from error
    entries = content.get("icl_tasks") if isinstance(content, dict) else None
    if not isinstance(entries, list) or not entries:
        raise UserError(f"{file}, line 1: icl_tasks must be a list of tasks")
    labels = set()
    for entry in entries:
        line = entry["line"] if isinstance(entry, dict) else content["line"]
        if problem := _find_problem(entry):
            raise UserError(f"{file}, line {line}: {problem}")
        if entry["label"] in labels:
            raise UserError(f"{file}, line {line}: the task {entry['label']} is listed twice")
        labels.add(entry["label"])
        yield entry


def _find_problem(entry: Any) -> str | None:
    """Return the first rule that an entry of core.yaml breaks, or None."""
    if not isinstance(entry, dict):
        return "each of icl_tasks must be a mapping"
    for name in ("label", "dataset_uri"):
        if not isinstance(entry.get(name), str) or not entry[name]:
            return f"{name} is {entry.get(name)!r}: it must be a text"
    if entry.get("icl_task_type") not in TASK_TYPES:
        return f"icl_task_type is {entry.get('icl_task_type')!r}: it must be one of {', '.join(TASK_TYPES)}"
    num_fewshot: Any = entry.get("num_fewshot")
    is_one_number = isinstance(num_fewshot, list) and len(num_fewshot) == 1 and isinstance(num_fewshot[0], int)
    if not is_one_number or num_fewshot[0] < 0:
        return f"num_fewshot is {num_fewshot!r}: it must be a list of one number, at least 0"
    if not isinstance(entry.get("continuation_delimiter", " "), str):
        return f"continuation_delimiter is {entry['continuation_delimiter']!r}: it must be a text"
    if not isinstance(entry.get("has_categories", False), bool):
        return f"has_categories is {entry['has_categories']!r}: it must be true or false"
    return None


def _read_baselines(file: BundlePath) -> dict[str, float]:
    """Return task -> random baseline, in [0, 1)."""
    reader = csv.DictReader(io.StringIO(read_utf8(file), newline=""))
    baselines = {}
    try:
        if not {"Eval Task", "Random baseline"} <= set(reader.fieldnames or ()):
            raise ValueError("the columns 'Eval Task' and 'Random baseline' must be there")
        for row in reader:
            percent = float(row["Random baseline"] or "nothing")
            if not 0 <= percent < 100:
                raise ValueError(f"the random baseline is {percent} percent: must be at least 0 and below 100")
            baselines[row["Eval Task"]] = percent / 100
    except (ValueError, csv.Error) as error:
        raise UserError(f"{file}, line {reader.line_num or 1}: {error}") from error
    return baselines


def _read_examples(file: BundlePath, task_type: str, has_categories: bool) -> Iterator[tuple[CoreExample, str]]:
    """Yield the examples of a task, each with its category or "". Empty lines are skipped."""
    is_empty = True
    for number, line in enumerate(read_utf8(file).split("\n"), 1):
        if not line.strip():
            continue
        is_empty = False
        try:
            row = json.loads(line)
            json.dumps(row, ensure_ascii=False).encode("utf-8")  # fails at half a surrogate pair, which is no text
            yield _parse_example(row, task_type), _parse_category(row) if has_categories else ""
        except (ValueError, RecursionError) as error:
            raise UserError(f"{file}, line {number}: {error}") from error
    if is_empty:
        raise UserError(f"{file}, line 1: the file has no examples")


def _parse_example(row: Any, task_type: str) -> CoreExample:
    """Return the example of a row. Raises ValueError that names the key at fault.

    >>> _parse_example({"query": "Ice is", "choices": ["cold", "hot"], "gold": 0}, "multiple_choice")
    CoreExample(options=(('Ice is', 'cold'), ('Ice is', 'hot')), gold=0)
    """
    if not isinstance(row, dict):
        raise ValueError("a line must be a JSON object")

    def text(name: str) -> str:
        value = row.get(name)
        if not isinstance(value, str) or not (value or name != "continuation"):
            raise ValueError(f"{name} must be a text" + (", not empty" if name == "continuation" else ""))
        return value

    def texts(name: str) -> list[str]:
        value = row.get(name)
        if not isinstance(value, list) or len(value) < 2 or not all(isinstance(item, str) and item for item in value):
            raise ValueError(f"{name} must be a list of two texts or more")
        return value

    if task_type == "language_modeling":
        return CoreExample(((text("context"), text("continuation")),))
    if task_type == "multiple_choice":
        options = [(text("query"), choice) for choice in texts("choices")]
    else:
        options = [(context, text("continuation")) for context in texts("context_options")]
    gold = row.get("gold")
    if type(gold) is not int or not 0 <= gold < len(options):
        raise ValueError(f"gold is {gold!r}: it must be a number from 0 to {len(options) - 1}")
    return CoreExample(tuple(options), gold)


def _parse_category(row: Any) -> str:
    """Return the category of a row. Raises ValueError if it has none."""
    category = row.get("category")
    if not isinstance(category, str) or not category:
        raise ValueError("category must be a text, because core.yaml sets has_categories")
    return category
