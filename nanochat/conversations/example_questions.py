"""Example questions for an empty chat: held-out rows of the tasks that a model was trained on.

Only tasks whose rows are generated are asked, so nothing is downloaded. A model of other conversations has no examples
here; one of documents has those of its index (passages/examples.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from nanochat.common import UserError
from tasks.registry import get_task

TASKS = ("WorldChat", "Facts", "WordProblems", "SpellingBee", "HardProblems", "Identity")  # the first are shown first
NUM_EXAMPLES = 4
MAX_CHARACTERS = 90
NUM_ROWS = 40  # of each task, among which questions are searched


def example_questions(meta: Mapping[str, Any]) -> list[str]:
    """Return up to `NUM_EXAMPLES` questions for the model of a checkpoint, of as many tasks as possible."""
    trained = _trained_tasks(meta)
    rows = [list(_questions(name)) for name in TASKS if name in trained]
    by_turns = [questions[i] for i in range(NUM_EXAMPLES) for questions in rows if i < len(questions)]
    return list(dict.fromkeys(by_turns))[:NUM_EXAMPLES]


def _trained_tasks(meta: Mapping[str, Any]) -> set[str]:
    """The tasks in the names of a run's metrics (`val_loss/Facts`), and in the setting `tasks` of RL."""
    history = meta.get("loop", {}).get("history", [])
    metrics = {name.rpartition("/")[2] for point in history for name in point}
    settings = meta.get("settings") or {}
    return metrics | set(re.findall(r"\w+", str(settings.get("tasks") or "")))


def _questions(name: str) -> Iterator[str]:
    """Yield questions of a task's test split: short, in one line, and without a system message."""
    try:
        task = get_task(name, split="test")
    except UserError:  # a file of the user's that replaces the task's rows is damaged
        return
    for index in range(min(NUM_ROWS, len(task))):
        first = task[index]["messages"][0]
        text = first["content"]
        is_short = isinstance(text, str) and len(text) <= MAX_CHARACTERS and "\n" not in text
        if first["role"] == "user" and is_short and text.endswith(("?", ".")):
            yield text
