"""The list of all permanent facts with the sentences that state them, and prompts for the model to continue."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from random import Random

from nanochat.data.storyworld.grammar import Pattern
from nanochat.data.storyworld.narrator import Narrator
from nanochat.data.storyworld.relations import RELATIONS
from nanochat.data.storyworld.writer import generate_stories

PROMPT_WORDS = 6


@dataclass(frozen=True)
class Fact:
    """The `value` of the `property` of `subject` (a name, thing, place or general word).

    `sentences` state it and `questions` ask for it, in every wording of the grammar (present tense, by name).
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


def generate_prompts(count: int, seed: int = 0) -> list[str]:
    """Return the first words of `count` stories of the test split, for a model to continue."""
    prompts = []
    for text in islice(generate_stories("test", seed), count):
        words = text.split("\n")[0].split(" ")
        prompts.append(" ".join(words[:PROMPT_WORDS]))
    return prompts
