"""Sentences that state each fact of the world, and questions that ask for it.

The facts themselves are the tables of world.py, and relations.py names their properties. `list_facts` words them all.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from nanochat.data.storyworld.grammar import Pattern
from nanochat.data.storyworld.narrator import Narrator
from nanochat.data.storyworld.relations import RELATIONS


@dataclass(frozen=True)
class Fact:
    """A fact: the `value` of the `property` of `subject`. A property is the name of a relation (relations.py).

    `subject` is a character, a thing, a place or a general word. `sentences` state the fact and `questions` ask for it,
    in every wording of the grammar (present tense, by name).
    """

    subject: str
    property: str
    value: str
    sentences: tuple[str, ...]
    questions: tuple[str, ...]


def list_facts() -> list[Fact]:
    """Return all facts of the world, always in the same order."""
    return list(_iter_facts())


def _iter_facts() -> Iterator[Fact]:
    for relation in RELATIONS.values():
        statements = relation.statements["present"]
        for subject, value in relation.values.items():
            sentences = tuple(_render(relation.name, subject, pattern, ".") for pattern in statements)
            questions = tuple(_render(relation.name, subject, pattern, "?") for pattern in relation.questions)
            yield Fact(subject, relation.name, value, sentences, questions)


def _render(relation: str, subject: str, pattern: Pattern, mark: str) -> str:
    narrator = Narrator(Random(0), {})
    narrator.full_names = True
    narrator.emit_fact(relation, subject, pattern)
    narrator.say(mark)
    return narrator.text()
