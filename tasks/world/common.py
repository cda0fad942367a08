"""Base class and helpers of the embedded world's tasks, and the facts that are held out for testing.

A fact is a pair (property, subject). Up to half of the facts about a subject are held out, 342 pairs in all: the base
text states them, but no training conversation asks for them. Training asks for at least one fact about every subject,
so no fact is held out if a subject has only one, such as a word and its opposite. Two pairs that answer each other
("the best friend of Mia is Tom" and the reverse) are held out together.
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
FactKey = tuple[str, str]  # (property, subject)
SPLITS = ("train", "test")


class WorldTask(Task):
    """A task that generates `size` examples on demand, in the splits "train" and "test".

    An example depends on the split, the seed and its index only. Raises UserError for another split or a size below 1.
    """

    default_train_size = 10_000
    default_test_size = 1_000

    def __init__(self, split: str = "test", size: int | None = None, seed: int = 0, **kwargs: int | None) -> None:
        super().__init__(**kwargs)
        if split not in SPLITS:
            raise UserError(f"{self.name}: split is {split!r}: must be one of {', '.join(SPLITS)}")
        if size is not None and size < 1:
            raise UserError(f"{self.name}: size is {size}: must be at least 1")
        self.split = split
        self.seed = seed
        if size is None:
            size = self.default_train_size if split == "train" else self.default_test_size
        self.size = size

    def num_examples(self) -> int:
        return self.size

    def example_rng(self, index: int) -> Random:
        """Return the random generator of an example."""
        return row_rng(self.name, self.split, self.seed, index)


def pick(rng: Random, options: Sequence[T]) -> T:
    """Return a random option. Only `Random.random` is used: it gives the same numbers in every version of Python."""
    return options[int(rng.random() * len(options))]


def shuffled(rng: Random, options: Sequence[T], count: int | None = None) -> list[T]:
    """Return the options in a random order, or the first `count` of them."""
    remaining = list(options)
    return [remaining.pop(int(rng.random() * len(remaining))) for _ in options[:count]]


def stable_hash(*key: object) -> int:
    """Return a 32-bit hash of `key` that is the same on every machine and in every process."""
    return zlib.crc32(repr(key).encode())


@cache
def held_out_pairs() -> frozenset[FactKey]:
    """Return the (property, subject) pairs that no training conversation asks for."""
    properties_of: dict[str, list[str]] = {}
    for relation in RELATIONS.values():
        for subject in relation.values:
            properties_of.setdefault(subject, []).append(relation.name)
    held_out: set[FactKey] = set()
    for subject, properties in properties_of.items():
        quota = len(properties) // 2
        mutual = {name: group for name in properties if (group := _mutual_subjects(name, subject))}
        # The hash of a mutual pair covers both subjects: its two facts are in the same split.
        mutual_held = [name for name, group in mutual.items() if stable_hash(name, group) % len(properties) < quota]
        others = sorted(set(properties) - set(mutual), key=lambda name: stable_hash(name, subject))
        held_out.update((name, subject) for name in [*mutual_held, *others][:quota])
    return frozenset(held_out)


def _mutual_subjects(relation: str, subject: str) -> tuple[str, ...]:
    """Return a subject and its value, sorted, if each is the other's value; else an empty tuple."""
    values = RELATIONS[relation].values
    value = values[subject]
    return tuple(sorted((subject, value))) if values.get(value) == subject else ()


@cache
def facts_in_split(split: str) -> tuple[Fact, ...]:
    """Return the facts that a split asks for: the held-out ones for "test", the others for "train"."""
    held_out = held_out_pairs()
    return tuple(fact for fact in list_facts() if ((fact.property, fact.subject) in held_out) == (split == "test"))


# The index of the sentence that answers a question, by property; 0 for the others. These sentences name the value last,
# after the subject, as most of the base text does, and no two answers about a subject begin alike: "Mia has" could be
# followed by her hair or by her kite. The subject is spelled as in the question: a small model that reads "lemons" does
# not associate it with a sentence that begins with "Lemons".
_ANSWER_INDEX = {"food": 2, "trait": 1, "fear": 2, "color": 1, "kept": 1, "sight": 1}


def answer_sentence(fact: Fact) -> str:
    """Return the sentence that answers all questions for a fact."""
    return fact.sentences[_ANSWER_INDEX.get(fact.property, 0)]


# Texts around a question. After a comma or colon, the question begins in lower case.
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
_SENTENCE_FRAMES = tuple(frame for frame in FRAMES if frame[:-3][-1:] not in (",", ":"))


def frame_question(question: str) -> list[str]:
    """Return the question in every frame that suits it.

    >>> frame_question("Where does Mia live?")[-1]
    'I wonder, where does Mia live?'
    >>> frame_question("Do you know where Mia lives?")[-1]
    'Please help me. Do you know where Mia lives?'
    """
    if question.startswith("Do you know"):
        return [frame.format(question) for frame in _SENTENCE_FRAMES]
    lowered = question[0].lower() + question[1:]
    return [frame.format(question if frame in _SENTENCE_FRAMES else lowered) for frame in FRAMES]
