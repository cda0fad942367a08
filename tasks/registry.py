"""Every task by its name, as flags and mixtures call it."""

from __future__ import annotations

import difflib
import functools
import importlib
from collections.abc import Callable, Mapping
from typing import Any

from nanochat.common import UserError
from tasks.common import Task

# Where each stands: imported when it is asked for, since some need much.
_CLASSES = {
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
    "Facts": "tasks.world.facts:Facts",
    "FactChoice": "tasks.world.facts:FactChoice",
    "WordProblems": "tasks.world.problems:WordProblems",
    "HardProblems": "tasks.world.problems:HardProblems",
    "WorldChat": "tasks.world.chat:WorldChat",
    "WorldNotes": "tasks.world.notes:WorldNotes",
}

# These are generated: they have as many rows as `size` asks for, and other rows further on.
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


def _make(name: str, *arguments: Any, **options: Any) -> Task:
    module, _, class_name = _CLASSES[name].partition(":")
    constructor = getattr(importlib.import_module(module), class_name)
    task: Task = constructor(*([name] if class_name == "ARC" else []), *arguments, **options)
    return task


TASKS: Mapping[str, Callable[..., Task]] = {name: functools.partial(_make, name) for name in _CLASSES}


def canonical_name(name: str) -> str:
    """The name as the catalogue spells it; small and capital letters are alike. Raises UserError with the nearest."""
    by_small_name = {known.lower(): known for known in TASKS}
    if name.lower() not in by_small_name:
        near = difflib.get_close_matches(name.lower(), by_small_name, n=3)
        raise UserError(
            f"no task {name!r}; did you mean {' or '.join(by_small_name[small] for small in near)}?"
            if near
            else f"no task {name!r}; known are {', '.join(TASKS)}"
        )
    return by_small_name[name.lower()]


def get_task(name: str, split: str = "test", **options: Any) -> Task:
    """The task of that name, in any letters. `options` are those of its constructor.

    Raises UserError for an unknown name, split or option.
    """
    name = canonical_name(name)
    try:
        return TASKS[name](split, **options)
    except TypeError as error:
        given = ", ".join(f"{key}={value!r}" for key, value in options.items())
        raise UserError(f"{name} cannot be made with {given or 'no options'}: {error}") from error
