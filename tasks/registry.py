"""The registry of tasks: their names in flags and mixture files, and `get_task`, which builds one by name."""

from __future__ import annotations

import contextlib
import difflib
import functools
import importlib
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args, get_type_hints

from nanochat.common import UserError
from nanochat.system.json_text import short_repr
from tasks.common import Task

MAX_OPTION = 2**32  # of a whole number: a seed, a number of rows

# Name -> module:class. The module is imported when the task is built: some modules are slow to import.
_CLASS_PATHS = {
    "ARC-Easy": "tasks.arc:ARC",
    "ARC-Challenge": "tasks.arc:ARC",
    "MMLU": "tasks.mmlu:MMLU",
    "GSM8K": "tasks.gsm8k:GSM8K",
    "HumanEval": "tasks.humaneval:HumanEval",
    "SmolTalk": "tasks.smoltalk:SmolTalk",
    "SpellingBee": "tasks.spellingbee:SpellingBee",
    "SimpleSpelling": "tasks.spellingbee:SimpleSpelling",
    "Identity": "tasks.identity:Identity",
    "CustomJSON": "tasks.customjson:CustomJSON",
    "BaseText": "tasks.documents.base_text:BaseText",
    "Facts": "tasks.world.facts:Facts",
    "FactChoice": "tasks.world.facts:FactChoice",
    "WordProblems": "tasks.world.problems:WordProblems",
    "HardProblems": "tasks.world.problems:HardProblems",
    "WorldChat": "tasks.world.chat:WorldChat",
    "WorldNotes": "tasks.world.notes:WorldNotes",
}

# Tasks whose rows are generated on demand: `size` sets how many there are, and larger indices give new rows.
UNBOUNDED_TASKS = (
    "SpellingBee",
    "SimpleSpelling",
    "Facts",
    "FactChoice",
    "WordProblems",
    "HardProblems",
    "WorldChat",
    "WorldNotes",
)


def _build_task(name: str, *args: Any, **options: Any) -> Task:
    module, _, class_name = _CLASS_PATHS[name].partition(":")
    task_class: Callable[..., Task] = getattr(importlib.import_module(module), class_name)
    if class_name == "ARC":
        return task_class(name, *args, **options)
    return task_class(*args, **options)


TASKS: Mapping[str, Callable[..., Task]] = {name: functools.partial(_build_task, name) for name in _CLASS_PATHS}


def _load_class(name: str) -> Callable[..., Task]:
    """Return the class named `module:Class`, from tasks/module.py."""
    module_name, _, class_name = name.partition(":")
    if not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", module_name):
        raise UserError(f"task {name!r}: {module_name!r} is no module of tasks/; write my_task:MyTask")
    try:
        module = importlib.import_module(f"tasks.{module_name}")
    except ModuleNotFoundError as error:
        raise UserError(f"task {name!r}: {error}; the class must be in tasks/{module_name}.py") from error
    task_class = getattr(module, class_name, None)
    if not (isinstance(task_class, type) and issubclass(task_class, Task)):
        raise UserError(f"task {name!r}: tasks/{module_name}.py has no class {class_name!r} derived from Task")
    return task_class


def canonical_name(name: str) -> str:
    """Return a task's name as spelled in the registry; upper and lower case are equivalent.

    `my_task:MyTask`, the class `MyTask` of tasks/my_task.py, is returned unchanged. Raises UserError for an unknown
    name, with the names closest to it.
    """
    if ":" in name:
        _load_class(name)
        return name
    names_by_lower = {known.lower(): known for known in TASKS}
    if name.lower() in names_by_lower:
        return names_by_lower[name.lower()]
    close_matches = difflib.get_close_matches(name.lower(), names_by_lower, n=3)
    if close_matches:
        raise UserError(
            f"no task {name!r}; did you mean {' or '.join(names_by_lower[match] for match in close_matches)}?"
        )
    raise UserError(f"no task {name!r}; known are {', '.join(TASKS)}")


_TYPE_NAMES = {str: "text", int: "a whole number", bool: "true or false", float: "a number"}


def check_options(name: str, options: Mapping[str, Any]) -> None:
    """Raise UserError for an option whose value is not of the type that the task's constructor declares."""
    module, _, class_name = _CLASS_PATHS.get(name, f"tasks.{name}").partition(":")
    task_class = getattr(importlib.import_module(module), class_name)
    declared: dict[str, Any] = {}
    for base in reversed(task_class.__mro__):
        if "__init__" in vars(base):
            with contextlib.suppress(NameError, TypeError):  # annotations of a user's class that have no value here
                declared.update(get_type_hints(vars(base)["__init__"]))
    for key, value in options.items():
        types = get_args(declared.get(key)) or (declared.get(key, Any),)
        is_valid = Any in types or (type(value) in types) or (Path in types and isinstance(value, Path))
        if not (is_valid or (value is None and type(None) in types) or (type(value) is int and float in types)):
            known = [_TYPE_NAMES[known_type] for known_type in types if known_type in _TYPE_NAMES]
            if known:
                raise UserError(f"{name}: {key} is {short_repr(value)}: must be {' or '.join(known)}")
        if type(value) is int and abs(value) > MAX_OPTION:
            raise UserError(f"{name}: {key} is {short_repr(value)}: must be at most {MAX_OPTION:,}")


def get_task(name: str, split: str = "test", **options: Any) -> Task:
    """Return the task of that name (in any case); `options` are keyword arguments of its constructor.

    Raises UserError for an unknown name, split or option.
    """
    name = canonical_name(name)
    check_options(name, options)
    try:
        if ":" in name:
            task = _load_class(name)(split, **options)
            task.name = name
            return task
        return TASKS[name](split, **options)
    except TypeError as error:
        given = ", ".join(f"{key}={short_repr(value)}" for key, value in options.items())
        raise UserError(f"{name} cannot be built with {given or 'no options'}: {error}") from error
