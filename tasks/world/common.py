"""What the tasks of the embedded world share: which facts are kept for the test, and a generator for every example.

A fact is a pair (property, subject). Of what is true of a subject up to half is held out, 342 pairs in all: the base
text states them, but no training conversation ever asks for one. About every subject something is asked in training;
so of a subject with a single property, as a word with its opposite, nothing is held out. Two pairs that answer each
other ("the best friend of Mia is Tom" and the other way round) are held out together.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from functools import cache
from random import Random
from typing import TypeVar

from nanochat.common import UserError
from nanochat.data.storyworld import Fact, list_facts
from nanochat.data.storyworld.relations import RELATIONS
from tasks.common import Task, row_rng

T = TypeVar("T")
Pair = tuple[str, str]  # property, subject
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
        return row_rng(self.name, self.split, self.seed, index)


def pick(rng: Random, options: Sequence[T]) -> T:
    """One of the options. (Only `Random.random` is the same in every version of Python.)"""
    return options[int(rng.random() * len(options))]


def shuffled(rng: Random, options: Sequence[T], count: int | None = None) -> list[T]:
    """The options in a random order, or the first `count` of them."""
    left = list(options)
    return [left.pop(int(rng.random() * len(left))) for _ in options[:count]]


def stable_hash(*key: object) -> int:
    """A 32-bit hash that is the same everywhere."""
    return zlib.crc32(repr(key).encode())


@cache
def held_out_pairs() -> frozenset[Pair]:
    """The (property, subject) pairs that no training conversation asks for."""
    properties: dict[str, list[str]] = {}
    for relation in RELATIONS.values():
        for subject in relation.values:
            properties.setdefault(subject, []).append(relation.name)
    held: set[Pair] = set()
    for subject, names in properties.items():
        quota = len(names) // 2
        mutual = {name: group for name in names if (group := _mutual(name, subject))}
        chosen = [name for name, group in mutual.items() if stable_hash(name, group) % len(names) < quota]
        rest = sorted(set(names) - set(mutual), key=lambda name: stable_hash(name, subject))
        held.update((name, subject) for name in [*chosen, *rest][:quota])
    return frozenset(held)


def _mutual(relation: str, subject: str) -> tuple[str, ...]:
    """The two subjects of which each is the other's value, sorted; nothing if they are not."""
    values = RELATIONS[relation].values
    value = values[subject]
    return tuple(sorted((subject, value))) if values.get(value) == subject else ()


@cache
def facts_in_split(split: str) -> tuple[Fact, ...]:
    """The facts that are asked for in a split."""
    held = held_out_pairs()
    return tuple(fact for fact in list_facts() if ((fact.property, fact.subject) in held) == (split == "test"))


# Which of a fact's sentences answers a question. They name the value last, after the subject, as most of the base text
# does; and they begin as no answer about another property of the same subject: "Mia has" leaves open, hair or kite?
# The subject stands as in the question: a small model that reads "lemons" does not find "Lemons" to begin with.
_ANSWERS = {"food": 2, "trait": 1, "fear": 2, "color": 1, "kept": 1, "sight": 1}  # otherwise the first


def answer_sentence(fact: Fact) -> str:
    """The sentence that answers every question for a fact."""
    return fact.sentences[_ANSWERS.get(fact.property, 0)]


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


def frame_question(question: str) -> list[str]:
    """A question in every frame that it goes with.

    >>> frame_question("Do you know where Mia lives?")[-1]
    'Please help me. Do you know where Mia lives?'
    """
    if question.startswith("Do you know"):
        return [frame.format(question) for frame in _WHOLE]
    return [frame.format(question if frame in _WHOLE else question[0].lower() + question[1:]) for frame in FRAMES]
