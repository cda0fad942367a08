"""What the tasks of the embedded world share: which facts are kept for the test, and a generator for every example.

A fact is a pair (property, subject). 40% of the pairs of every property are held out: the base text states them, but no
training conversation ever asks for one. Two pairs that answer each other ("the best friend of Mia is Tom" and the
other way round, hot and cold) are held out together.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from functools import cache
from random import Random
from typing import TypeVar

from nanochat.common import UserError
from nanochat.storyworld import Fact, facts
from nanochat.storyworld.relations import RELATIONS
from tasks.common import Task, row_random

T = TypeVar("T")
Pair = tuple[str, str]  # property, subject
HELD_OUT_SHARE = 0.4
SPLITS = ("train", "test")


class WorldTask(Task):
    """A task in two splits, "train" and "test", without end; `size` says how many examples there are to be.

    An example depends on the split, the seed and its index only. Raises UserError for another split or a size under 1.
    """

    train_size = 10_000  # unless `size` says otherwise
    test_size = 1_000

    def __init__(self, split: str = "test", size: int | None = None, seed: int = 0, **rows: int | None) -> None:
        super().__init__(**rows)
        if split not in SPLITS:
            raise UserError(f"{self.name}: split is {split!r}; it must be one of {', '.join(SPLITS)}")
        if size is not None and size < 1:
            raise UserError(f"{self.name}: size is {size}; it must be at least 1")
        self.split, self.seed = split, seed
        self.num = (self.train_size if split == "train" else self.test_size) if size is None else size

    def num_examples(self) -> int:
        """As many as were asked for."""
        return self.num

    def random(self, index: int) -> Random:
        """What is random in an example."""
        return row_random(self.name, self.split, self.seed, index)


def pick(rng: Random, options: Sequence[T]) -> T:
    """One of the options. (Only `Random.random` is the same in every version of Python.)"""
    return options[int(rng.random() * len(options))]


def shuffled(rng: Random, options: Sequence[T]) -> list[T]:
    """The options in a random order."""
    left = list(options)
    return [left.pop(int(rng.random() * len(left))) for _ in options]


def number_of(*key: object) -> int:
    """A 32-bit hash that is the same everywhere."""
    return zlib.crc32(repr(key).encode())


@cache
def held_out_pairs() -> frozenset[Pair]:
    """The (property, subject) pairs that no training conversation asks for."""
    held: set[Pair] = set()
    for relation in RELATIONS.values():
        values = relation.values
        groups = {tuple(sorted({s, v} if values.get(v) == s else {s})) for s, v in values.items()}
        left = round(HELD_OUT_SHARE * len(values))
        for group in sorted(groups, key=lambda group: number_of(relation.name, group)):
            if len(group) <= left:
                held.update((relation.name, subject) for subject in group)
                left -= len(group)
    return frozenset(held)


@cache
def facts_of(split: str) -> tuple[Fact, ...]:
    """The facts that are asked for in a split."""
    held = held_out_pairs()
    return tuple(fact for fact in facts() if ((fact.property, fact.subject) in held) == (split == "test"))


@cache
def answers(fact: Fact) -> tuple[str, ...]:
    """The sentences of a fact that name the value last, where there are any.

    "The flute is made of silver" goes on as the base text does; "Silver is what the flute is made of" asks a small
    model for the value before it has said what it speaks of.
    """
    subject, value = fact.subject.lower(), fact.value.lower()
    ordered = [text for text in fact.sentences if text.lower().rfind(value) > text.lower().find(subject)]
    return tuple(ordered) or fact.sentences


# A question is asked as it stands, or with something before it; after a comma or colon it begins with a small letter.
FRAMES = (
    "{}",
    "Hello! {}",
    "I have a question. {}",
    "Please help me. {}",
    "Tell me, {}",
    "Can you tell me: {}",
    "I want to know: {}",
    "I wonder, {}",
)
_WHOLE = tuple(frame for frame in FRAMES if frame[:-3][-1:] not in (",", ":"))


def framed(question: str) -> list[str]:
    """A question in every frame that it goes with.

    >>> framed("Do you know where Mia lives?")[-1]
    'Please help me. Do you know where Mia lives?'
    """
    if question.startswith("Do you know"):
        return [frame.format(question) for frame in _WHOLE]
    return [frame.format(question if frame in _WHOLE else question[0].lower() + question[1:]) for frame in FRAMES]
