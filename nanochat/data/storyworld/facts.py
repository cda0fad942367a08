"""The list of everything that is permanently true, with the sentences that say so; and openings to write on from."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from random import Random

from nanochat.data.storyworld.narrator import Narrator
from nanochat.data.storyworld.relations import RELATIONS
from nanochat.data.storyworld.writer import generate_stories


@dataclass(frozen=True)
class Fact:
    """`subject` (a name, thing, place or general word) has as its `property` the `value`.

    `sentences` state it and `questions` ask for it, in every wording of the grammar (present tense, by name).
    """

    subject: str
    property: str
    value: str
    sentences: tuple[str, ...]
    questions: tuple[str, ...]


def list_facts() -> list[Fact]:
    """All facts of the world, always in the same order."""
    return list(_facts())


def _facts() -> Iterator[Fact]:
    for relation in RELATIONS.values():
        for subject, value in relation.values.items():
            stated = tuple(_say(relation.name, subject, pattern, ".") for pattern in relation.statements["present"])
            asked = tuple(_say(relation.name, subject, pattern, "?") for pattern in relation.questions)
            yield Fact(subject, relation.name, value, stated, asked)


def _say(relation: str, subject: str, pattern: tuple[tuple[object, ...], ...], mark: str) -> str:
    narrator = Narrator(Random(0), {})
    narrator.plain = True
    narrator.fact(relation, subject, pattern)
    narrator.say(mark)
    return narrator.text()


def generate_prompts(count: int, seed: int = 0) -> list[str]:
    """Beginnings of `count` stories of the test split, each a few words long, for a model to write on from."""
    openings = []
    for text in islice(generate_stories("test", seed), count):
        words = text.split("\n")[0].split(" ")
        openings.append(" ".join(words[:6]))
    return openings
