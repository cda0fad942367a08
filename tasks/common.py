"""What a task is: a sequence of conversations, and a way to say whether an answer is right.

A conversation is `{"messages": [...]}` (nanochat/tokenization/chat_format.py) whose last message is the right answer;
other keys are the task's own. A categorical one also has `"letters": ("A", "B", ...)`, and its answer is one of them.
Everything here is the same on every machine and in every run: rows, their order, and what a seed gives.
"""

from __future__ import annotations

import functools
import random
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from nanochat.common import UserError
from nanochat.tokenization.chat_format import Conversation

LETTERS = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")


class Task(ABC):
    """Conversations, by index: `len(task)`, `task[i]`, iteration.

    `start`, `stop` and `step` choose among the rows as a slice of a list does. `shuffle`, a seed, first puts the rows
    in a random order that depends on nothing else: slices of one shuffle that do not overlap share no row.
    A subclass gives `num_examples` and `get_example`, and `evaluate` if its answers can be right or wrong.
    """

    name = "task"
    eval_type = "generative"  # or "categorical"

    def __init__(
        self, *, start: int | None = None, stop: int | None = None, step: int | None = None, shuffle: int | None = None
    ) -> None:
        self._slice = slice(start, stop, step)
        self._shuffle = shuffle

    @abstractmethod
    def num_examples(self) -> int:
        """Number of rows before slicing."""

    @abstractmethod
    def get_example(self, index: int) -> Conversation:
        """The conversation of a row, 0 <= index < num_examples()."""

    def evaluate(self, conversation: Conversation, completion: str) -> bool:
        """Whether `completion` answers the conversation's last question rightly.

        `completion` is the decoded answer without its end token, with tool calls by the names of their special tokens;
        of a categorical task, the letter. Raises UserError if no answer of this task is right or wrong.
        """
        if self.eval_type == "categorical":
            return bool(completion == conversation["messages"][-1]["content"])
        raise UserError(f"{self.name} is to learn from: its answers are not right or wrong, so it has no score")

    def reward(self, conversation: Conversation, completion: str) -> float:
        """What reinforcement learning is to increase: 1 for a right answer, 0 for a wrong one."""
        return float(self.evaluate(conversation, completion))

    @functools.cached_property
    def chance(self) -> float:
        """The accuracy of a guess: the mean of 1 / number of letters over the chosen rows; generative: 0."""
        if self.eval_type != "categorical" or not len(self):
            return 0.0
        return sum(1 / len(conversation["letters"]) for conversation in self) / len(self)

    @functools.cached_property
    def _rows(self) -> Sequence[int]:
        rows: Sequence[int] = range(self.num_examples())
        if self._shuffle is not None:
            rows = [int(row) for row in np.random.default_rng(self._shuffle).permutation(len(rows))]
        return rows[self._slice]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Conversation:
        """As in a list: -1 is the last, and IndexError is raised beyond the ends."""
        return self.get_example(self._rows[index])

    def __iter__(self) -> Iterator[Conversation]:
        return (self.get_example(row) for row in self._rows)


class TaskSequence(Task):
    """Several tasks, one after another."""

    name = "sequence"

    def __init__(self, tasks: Sequence[Task]) -> None:
        super().__init__()
        self.tasks = list(tasks)
        self._ends = np.cumsum([0, *(len(task) for task in self.tasks)])

    def num_examples(self) -> int:
        """The sum of all lengths."""
        return int(self._ends[-1])

    def locate(self, index: int) -> tuple[int, int]:
        """Which task, and which of its rows, stands at `index`, 0 <= index < len."""
        task = int(np.searchsorted(self._ends, index, side="right")) - 1
        return task, index - int(self._ends[task])

    def get_example(self, index: int) -> Conversation:
        task, row = self.locate(index)
        return self.tasks[task][row]


class TaskMixture(TaskSequence):
    """Several tasks, their rows in one random order: every row once for each time that its task is listed."""

    name = "mixture"

    def __init__(self, tasks: Sequence[Task], seed: int = 42) -> None:
        super().__init__(tasks)
        self._order = np.random.default_rng(seed).permutation(self.num_examples())

    def locate(self, index: int) -> tuple[int, int]:
        return super().locate(int(self._order[index]))


def make_conversation(question: str, answer: str | list[dict[str, str]], **extras: Any) -> Conversation:
    """A conversation of one question and its answer: text, or parts such as tool calls."""
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": messages, **extras}


def text_part(words: str) -> dict[str, str]:
    """A part of an answer: what the model says."""
    return {"type": "text", "text": words}


def tool_call_parts(expression: str, result: str) -> list[dict[str, str]]:
    """Two parts of an answer: the calculator is called, and gives its result."""
    return [{"type": "python", "text": expression}, {"type": "python_output", "text": result}]


def make_multiple_choice(
    question: str, choices: Sequence[str], answer: int, letters: Sequence[str] = LETTERS
) -> Conversation:
    """A categorical conversation; `answer` is the index of the right choice.

    >>> print(make_multiple_choice("Which one flies?", ["an owl", "a pig"], 0)["messages"][0]["content"])
    Which one flies?
    - an owl=A
    - a pig=B
    Answer with the letter only.
    """
    letters = tuple(letters[: len(choices)])
    assert len(letters) == len(choices), "a letter for each choice"
    assert 0 <= answer < len(choices), "one of the choices is right"
    # The letter follows the text, so that the model has read what it stands for.
    lines = [f"- {choice}={letter}" for choice, letter in zip(choices, letters, strict=True)]
    prompt = "\n".join([question, *lines, "Answer with the letter only."])
    return make_conversation(prompt, letters[answer], letters=letters)


_NUMBER = re.compile(
    r"\s*(?P<sign>[-+\u2212])?\s*\$?\s*(?P<inner>[-+\u2212])?\s*"
    r"(?P<digits>(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)"
)
_MAX_DIGITS = 100


def parse_number(words: str) -> Fraction | None:
    """The number that a text begins with, or None. Spaces, a dollar sign, and commas between thousands may be there.

    >>> parse_number(" $1,000.50 in all"), parse_number("-7."), parse_number("no")
    (Fraction(2001, 2), Fraction(-7, 1), None)
    """
    match = _NUMBER.match(words)
    if match is None or len(match["digits"]) > _MAX_DIGITS or (match["sign"] and match["inner"]):
        return None
    number = Fraction(match["digits"].replace(",", ""))
    return number if (match["sign"] or match["inner"] or "+") == "+" else -number


def extract_final_number(completion: str) -> Fraction | None:
    """The number after the last `####`, where a worked answer says its result; None if there is none.

    >>> extract_final_number("4 and 3 are 7.\\n#### 7"), extract_final_number("It is 7.")
    (Fraction(7, 1), None)
    """
    _, marker, rest = completion.rpartition("####")
    return parse_number(rest) if marker else None


def final_numbers_match(conversation: Conversation, completion: str) -> bool:
    """Whether a completion's final number is that of the right answer, as numbers: 1,000 is 1000.0."""
    number = extract_final_number(completion)
    return number is not None and number == extract_final_number(reference_text(conversation))


def reference_text(conversation: Conversation) -> str:
    """The text of the right answer, without its tool calls."""
    content = conversation["messages"][-1]["content"]
    if isinstance(content, str):
        return content
    return "".join(part["text"] for part in content if part["type"] == "text")


def row_rng(*key: object) -> random.Random:
    """Random numbers that depend on the key only (a name, a seed, a row): the same in every process."""
    return random.Random(":".join(map(str, key)))
