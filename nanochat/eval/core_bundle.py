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
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import yaml

from nanochat.common import UserError, as_user_error, base_dir, print0
from nanochat.data.download import download
from nanochat.data.shards import file_sha256
from nanochat.eval.bundle_files import MB, BundleFiles, check_plain_path, open_files, read_text
from nanochat.eval.core_prompts import TASK_TYPES, CoreExample, CoreTask
from nanochat.system.json_text import parse_json, short_repr

PUBLIC_BUNDLE = "https://karpathy-public.s3.us-west-2.amazonaws.com/eval_bundle.zip"
BUNDLE_NAME = "eval_bundle"  # in the base folder, as a folder or with .zip
MAX_DOWNLOAD_BYTES = 1024 * MB
MAX_YAML_BYTES = 1 << 17  # of core.yaml, which is read at about 100 KB a second; CORE's has 3 KB
MAX_CSV_BYTES = MB
MAX_FEWSHOT = 100
MAX_OPTIONS = 1000  # of an example
MAX_NAME_LEN = 100  # of a label or a delimiter, in characters


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
    """YAML loader that adds its line to each mapping, and to the error for an invalid value (the 45th of a month).

    It refuses aliases and merges, by which a short text can name more values than fit into memory, and keys that come
    twice.
    """

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.MarkedYAMLError(problem="aliases are not allowed: write the value again", problem_mark=mark)
        return super().compose_node(parent, index)

    def flatten_mapping(self, node: Any) -> None:
        keys = set()
        for key, _ in node.value:
            problem = None
            if key.tag == "tag:yaml.org,2002:merge":
                problem = "merges are not allowed: write the keys again"
            elif isinstance(key.value, str) and (key.tag, key.value) in keys:
                problem = f"the key {short_repr(key.value)} comes twice"
            if problem:
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            if isinstance(key.value, str):
                keys.add((key.tag, key.value))

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
    num_bytes = 0

    def count(block_bytes: int) -> None:
        nonlocal num_bytes
        num_bytes += block_bytes
        if num_bytes > MAX_DOWNLOAD_BYTES:
            path.with_name(path.name + ".part").unlink(missing_ok=True)
            raise UserError(f"{address} sends more than {MAX_DOWNLOAD_BYTES // MB:,} MB: that is no evaluation bundle")

    try:
        download(address, path, on_bytes=count)
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
    with open_files(path) as files:
        task_list, table = files.place("core.yaml"), files.place("eval_meta_data.csv")
        baselines = _read_baselines(files)
        for entry in _read_task_list(files):
            label = entry["label"]
            if label not in baselines:
                raise UserError(f"{task_list}, line {entry['line']}: {table} has no line for the task {label}")
            if files.has(f"eval_data/{entry['dataset_uri']}"):
                tasks.append(_read_task(files, entry, baselines[label]))
            else:
                missing.append(label)
    if not tasks:
        raise UserError(f"{path}: none of the tasks in core.yaml has its file in eval_data")
    return Bundle(path, tuple(tasks), tuple(missing))


def _read_task(files: BundleFiles, entry: TaskEntry, baseline: float) -> CoreTask:
    """Read the examples of a task. Prints a line if they are too few for its few-shot prompts."""
    rows = list(_read_examples(files, entry))
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


def _read_task_list(files: BundleFiles) -> Iterator[TaskEntry]:
    """Yield the entry of each task in core.yaml. Raises UserError that names the line at fault."""
    file = files.place("core.yaml")
    text = read_text(files, "core.yaml", MAX_YAML_BYTES)
    loader = None
    try:
        loader = _Loader(text)
        content = loader.get_single_data()
    except (yaml.YAMLError, RecursionError) as error:
        # Some errors do not have a line: take the one that the loader has reached, or count up to the position.
        mark: Any = getattr(error, "problem_mark", None) or loader
        line = mark.line if mark else text.count("\n", 0, getattr(error, "position", 0))
        raise UserError(f"{file}, line {line + 1}: not YAML ({' '.join(str(error).split())[:400]})") from error
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
        return f"{short_repr(entry)}: each of icl_tasks must be a mapping"

    def fault(name: str, rule: str) -> str:
        return f"{name} is {short_repr(entry.get(name))}: it must be {rule}"

    label, uri = entry.get("label"), entry.get("dataset_uri")
    if not isinstance(label, str) or not 0 < len(label) <= MAX_NAME_LEN or not label.isprintable():
        return fault("label", f"a text of 1 to {MAX_NAME_LEN} printable characters")
    if not isinstance(uri, str):
        return fault("dataset_uri", "a text, the path of a file in eval_data")
    try:
        check_plain_path(uri)
    except UserError as error:
        return f"dataset_uri: {error}"
    if entry.get("icl_task_type") not in TASK_TYPES:
        return fault("icl_task_type", f"one of {', '.join(TASK_TYPES)}")
    num_fewshot: Any = entry.get("num_fewshot")
    is_one_number = isinstance(num_fewshot, list) and len(num_fewshot) == 1 and type(num_fewshot[0]) is int
    if not is_one_number or not 0 <= num_fewshot[0] <= MAX_FEWSHOT:
        return fault("num_fewshot", f"a list of one number, from 0 to {MAX_FEWSHOT}")
    delimiter = entry.get("continuation_delimiter", " ")
    if not isinstance(delimiter, str) or len(delimiter) > MAX_NAME_LEN:
        return fault("continuation_delimiter", f"a text of at most {MAX_NAME_LEN} characters")
    if not isinstance(entry.get("has_categories", False), bool):
        return fault("has_categories", "true or false")
    return None


def _read_baselines(files: BundleFiles) -> dict[str, float]:
    """Return task -> random baseline, in [0, 1)."""
    file = files.place("eval_meta_data.csv")
    reader = csv.DictReader(io.StringIO(read_text(files, "eval_meta_data.csv", MAX_CSV_BYTES), newline=""))
    baselines: dict[str, float] = {}
    try:
        if not {"Eval Task", "Random baseline"} <= set(reader.fieldnames or ()):
            raise UserError("the columns 'Eval Task' and 'Random baseline' must be there")
        for row in reader:
            label = row["Eval Task"] or ""
            percent = _parse_percent(row["Random baseline"])
            if baselines.setdefault(label, percent) != percent:
                raise UserError(f"the task {short_repr(label)} has another random baseline in an earlier line")
    except (UserError, csv.Error) as error:
        raise UserError(f"{file}, line {reader.line_num or 1}: {error}") from error
    return baselines


def _parse_percent(text: str | None) -> float:
    """Return a percentage as a proportion in [0, 1)."""
    try:
        percent = float(text or "nothing")
    except ValueError:
        raise UserError(f"the random baseline is {short_repr(text)}: must be a number, in percent") from None
    if not 0 <= percent < 100:
        raise UserError(f"the random baseline is {percent} percent: must be at least 0 and below 100")
    return percent / 100


def _read_examples(files: BundleFiles, entry: TaskEntry) -> Iterator[tuple[CoreExample, str]]:
    """Yield the examples of a task, each with its category or "". Empty lines are skipped."""
    name = f"eval_data/{entry['dataset_uri']}"
    file = files.place(name)
    is_empty = True
    for number, line in enumerate(read_text(files, name).split("\n"), 1):
        if not line.strip():
            continue
        is_empty = False
        try:
            row = parse_json(line)
            yield (
                _parse_example(row, entry["icl_task_type"]),
                _parse_category(row) if entry.get("has_categories") else "",
            )
        except UserError as error:
            raise UserError(f"{file}, line {number}: {error}") from error
    if is_empty:
        raise UserError(f"{file}, line 1: the file has no examples")


def _parse_example(row: Any, task_type: str) -> CoreExample:
    """Return the example of a row. Raises UserError that names the key at fault.

    >>> _parse_example({"query": "Ice is", "choices": ["cold", "hot"], "gold": 0}, "multiple_choice")
    CoreExample(options=(('Ice is', 'cold'), ('Ice is', 'hot')), gold=0)
    """
    if not isinstance(row, dict):
        raise UserError("a line must be a JSON object")

    def text(name: str) -> str:
        value = row.get(name)
        if not isinstance(value, str) or not (value or name != "continuation"):
            raise UserError(f"{name} must be a text" + (", not empty" if name == "continuation" else ""))
        return value

    def texts(name: str) -> list[str]:
        value = row.get(name)
        if not isinstance(value, list) or len(value) < 2 or not all(isinstance(item, str) and item for item in value):
            raise UserError(f"{name} must be a list of two texts or more")
        if len(value) > MAX_OPTIONS:
            raise UserError(f"{name} has {len(value):,} texts: at most {MAX_OPTIONS:,} are allowed")
        return value

    if task_type == "language_modeling":
        return CoreExample(((text("context"), text("continuation")),))
    if task_type == "multiple_choice":
        options = [(text("query"), choice) for choice in texts("choices")]
    else:
        options = [(context, text("continuation")) for context in texts("context_options")]
    gold = row.get("gold")
    if type(gold) is not int or not 0 <= gold < len(options):
        raise UserError(f"gold is {short_repr(gold)}: it must be a number from 0 to {len(options) - 1}")
    return CoreExample(tuple(options), gold)


def _parse_category(row: Any) -> str:
    """Return the category of a row. Raises UserError if it has none."""
    category = row.get("category")
    if not isinstance(category, str) or not category:
        raise UserError("category must be a text, because core.yaml sets has_categories")
    return category
