"""`Task`: a sequence of conversations and a score for completions; `TaskSequence` and `TaskMixture` combine tasks, and
`FreshRows` takes other rows of a task in each pass over them.

A conversation is `{"messages": [...]}` (nanochat/tokenization/chat_format.py) whose last message is the reference
answer; further keys are specific to the task. A multiple-choice conversation also has `"letters": ("A", "B", ...)`, and
its reference answer is one of them. Rows, their order and all random draws are the same on every machine and in every
run.
"""

from __future__ import annotations

import copy
import functools
import itertools
import random
import re
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from nanochat.common import UserError
from nanochat.tokenization.chat_format import Conversation

LETTERS = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")


class Task(ABC):
    """A sequence of conversations: `len(task)`, `task[i]`, iteration.

    `start`, `stop` and `step` select rows as the slice of a list does. `shuffle`, a seed, permutes the rows first; the
    permutation depends on the seed and the number of rows only, so slices of one shuffle that do not overlap are
    disjoint. A subclass defines `num_examples` and `get_example`, and `evaluate` if its completions can be right or
    wrong.
    """

    name = "task"
    eval_type = "generative"  # or "categorical"
    num_choices: int | None = None  # of every row of a categorical task; None: rows differ

    def __init__(
        self, *, start: int | None = None, stop: int | None = None, step: int | None = None, shuffle: int | None = None
    ) -> None:
        if step == 0:
            raise UserError(f"{self.name}: step is 0: must be another number")
        self._slice = slice(start, stop, step)
        self._shuffle = shuffle

    @abstractmethod
    def num_examples(self) -> int:
        """Return the number of rows before slicing."""

    @abstractmethod
    def get_example(self, index: int) -> Conversation:
        """Return the conversation of row `index`, 0 <= index < num_examples()."""

    def evaluate(self, conversation: Conversation, completion: str) -> bool:  # noqa: ARG002
        """Return True if `completion` answers the conversation's last question correctly.

        `completion` is the decoded answer without its end token; tool calls are spelled with their special tokens. For
        a categorical task it is the chosen letter. Raises UserError if the task has no notion of a correct answer.
        """
        raise UserError(
            f"{self.name} has no score: it is for training only (a task that can be scored defines `evaluate`)"
        )

    def reward(self, conversation: Conversation, completion: str) -> float:
        """Return the reward of reinforcement learning: 1 for a correct completion, 0 for a wrong one."""
        return float(self.evaluate(conversation, completion))

    @functools.cached_property
    def chance(self) -> float:
        """Expected accuracy of random guessing: the mean of 1 / number of letters over the selected rows, or 0."""
        if self.eval_type != "categorical" or not len(self):
            return 0.0
        if self.num_choices is not None:
            return 1 / self.num_choices
        return sum(1 / len(conversation["letters"]) for conversation in self) / len(self)

    @functools.cached_property
    def _row_indices(self) -> Sequence[int]:
        rows: Sequence[int] = range(self.num_examples())
        if self._shuffle is not None:
            rows = [int(row) for row in np.random.default_rng(self._shuffle).permutation(len(rows))]
        return rows[self._slice]

    def __len__(self) -> int:
        return len(self._row_indices)

    def __getitem__(self, index: int) -> Conversation:
        """Return a conversation by position as a list does: -1 is the last; raises IndexError out of range."""
        return self.get_example(self._row_indices[index])

    def __iter__(self) -> Iterator[Conversation]:
        return (self.get_example(row) for row in self._row_indices)


class CategoricalTask(Task):
    """A multiple-choice task: a completion is correct if it is the letter of the reference answer."""

    eval_type = "categorical"

    def evaluate(self, conversation: Conversation, completion: str) -> bool:
        return bool(completion == conversation["messages"][-1]["content"])


class TaskSequence(Task):
    """Several tasks, one after another."""

    name = "sequence"

    def __init__(self, tasks: Sequence[Task]) -> None:
        super().__init__()
        self.tasks = list(tasks)
        self._ends = list(itertools.accumulate((len(task) for task in self.tasks), initial=0))
        self._order: Sequence[int] = range(self.num_examples())

    def num_examples(self) -> int:
        return self._ends[-1]

    def locate(self, index: int) -> tuple[int, int]:
        """Return (index into `tasks`, row of that task) for position `index`, 0 <= index < len."""
        position = self._order[index]
        task_index = bisect_right(self._ends, position) - 1
        return task_index, position - self._ends[task_index]

    def get_example(self, index: int) -> Conversation:
        task_index, row = self.locate(index)
        return self.tasks[task_index][row]

    def for_pass(self, number: int) -> TaskSequence:
        """Return the conversations of a pass, counted from 0: others of `FreshRows`, the same of other tasks."""
        result = copy.copy(self)
        result.tasks = [task.for_pass(number) if isinstance(task, FreshRows) else task for task in self.tasks]
        return result


class FreshRows(Task):
    """`rows` conversations of a task for each pass: a pass goes on where the one before it ended.

    After the last conversation comes the first one again, so `rows` may be more than the task has.
    """

    def __init__(self, task: Task, rows: int) -> None:
        super().__init__()
        self.name = task.name
        self.task = task
        self.rows = rows
        self._first = 0

    def num_examples(self) -> int:
        return self.rows if len(self.task) else 0

    def get_example(self, index: int) -> Conversation:
        return self.task[(self._first + index) % len(self.task)]

    def for_pass(self, number: int) -> FreshRows:
        """Return the conversations of a pass, counted from 0."""
        result = copy.copy(self)
        result._first = number * self.rows
        return result


class TaskMixture(TaskSequence):
    """Several tasks with their rows in one random order. A task that is listed n times contributes each row n times."""

    name = "mixture"

    def __init__(self, tasks: Sequence[Task], seed: int = 42) -> None:
        super().__init__(tasks)
        self._order = np.random.default_rng(seed).permutation(self.num_examples()).tolist()


def make_conversation(question: str, answer: str | list[dict[str, str]], **extras: Any) -> Conversation:
    """Return a conversation of one question and its answer: text, or a list of parts (text and tool calls)."""
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": messages, **extras}


def text_part(text: str) -> dict[str, str]:
    """Return a text part of an assistant message."""
    return {"type": "text", "text": text}


def tool_call_parts(expression: str, result: str) -> list[dict[str, str]]:
    """Return two parts of an assistant message: a call of the calculator and its result."""
    return [{"type": "python", "text": expression}, {"type": "python_output", "text": result}]


def make_multiple_choice(
    question: str, choices: Sequence[str], answer: int, letters: Sequence[str] = LETTERS
) -> Conversation:
    """Return a multiple-choice conversation; `answer` is the index of the correct choice.

    >>> print(make_multiple_choice("Which one flies?", ["an owl", "a pig"], 0)["messages"][0]["content"])
    Which one flies?
    - an owl=A
    - a pig=B
    Answer with the letter only.
    """
    letters = tuple(letters[: len(choices)])
    assert len(letters) == len(choices), "each choice needs a letter"
    assert 0 <= answer < len(choices), "`answer` is an index into `choices`"
    # The letter follows its choice, so that the model has read the choice when it reads the letter.
    lines = [f"- {choice}={letter}" for choice, letter in zip(choices, letters, strict=True)]
    prompt = "\n".join([question, *lines, "Answer with the letter only."])
    return make_conversation(prompt, letters[answer], letters=letters)


# Spaces belong to the sign before them: with several `\s*` in a row, a long run of spaces would take for ever.
_NUMBER = re.compile(
    r"\s*(?:(?P<sign>[-+\u2212])\s*)?(?:\$\s*)?(?:(?P<inner>[-+\u2212])\s*)?"
    r"(?P<digits>(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)"
)
_MAX_DIGITS = 100


def parse_number(text: str) -> Fraction | None:
    """Return the number at the beginning of a text, or None. Accepts spaces, a dollar sign and thousands separators.

    >>> parse_number(" $1,000.50 in all"), parse_number("-7."), parse_number("no")
    (Fraction(2001, 2), Fraction(-7, 1), None)
    """
    match = _NUMBER.match(text)
    if match is None or len(match["digits"]) > _MAX_DIGITS or (match["sign"] and match["inner"]):
        return None
    number = Fraction(match["digits"].replace(",", ""))
    is_positive = (match["sign"] or match["inner"] or "+") == "+"
    return number if is_positive else -number


def extract_final_number(completion: str) -> Fraction | None:
    """Return the number after the last `####`, the marker of a solution's result, or None if there is none.

    >>> extract_final_number("4 and 3 are 7.\\n#### 7"), extract_final_number("It is 7.")
    (Fraction(7, 1), None)
    """
    _, marker, rest = completion.rpartition("####")
    return parse_number(rest) if marker else None


def final_numbers_match(conversation: Conversation, completion: str) -> bool:
    """Return True if completion and reference answer have equal final numbers; 1,000 equals 1000.0."""
    number = extract_final_number(completion)
    return number is not None and number == extract_final_number(reference_text(conversation))


def reference_text(conversation: Conversation) -> str:
    """Return the text of the reference answer, without tool calls and their results."""
    content = conversation["messages"][-1]["content"]
    if isinstance(content, str):
        return content
    return "".join(part["text"] for part in content if part["type"] == "text")


def row_rng(*key: object) -> random.Random:
    """Return a random generator seeded by `key` (a name, a seed, a row): the same numbers in every process."""
    return random.Random(":".join(map(str, key)))
