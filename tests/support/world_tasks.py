"""Facts and training tasks of the embedded world, and a search for held-out facts, for the tests of its tasks."""

from __future__ import annotations

import re
from functools import cache

from nanochat.data.storyworld import Fact, list_facts
from nanochat.data.storyworld.narrator import Narrator
from nanochat.data.storyworld.relations import RELATIONS
from nanochat.data.storyworld.world import CHARACTERS, THINGS
from nanochat.tokenization.chat_format import Conversation
from tasks.common import Task, row_rng
from tasks.world.chat import WorldChat
from tasks.world.common import held_out_pairs
from tasks.world.facts import FactChoice, Facts

ALL_FACTS = list_facts()
HELD_OUT_FACTS = [fact for fact in ALL_FACTS if (fact.property, fact.subject) in held_out_pairs()]
CHAT_TASK = WorldChat("train", size=1_500)
TRAINING_TASKS: list[Task] = [Facts("train", size=1_500), FactChoice("train", size=1_500), CHAT_TASK]
TEST_TASKS: list[Task] = [Facts(), FactChoice()]
SUBJECT_PRONOUNS = {"m": "He", "f": "She"}


@cache
def chat_conversations() -> list[Conversation]:
    """The conversations of CHAT_TASK."""
    return list(CHAT_TASK)


def contents(conversation: Conversation, role: str) -> list[str]:
    return [message["content"] for message in conversation["messages"] if message["role"] == role]


def asks_for(text: str, fact: Fact) -> bool:
    """Return True if a text asks for a fact, in any wording and frame."""
    return any(wording[1:] in text for wording in fact.questions)


@cache
def held_out_facts_by_sentence() -> dict[str, list[Fact]]:
    """The sentences that state held-out facts, by name or with a pronoun."""
    facts_by_sentence: dict[str, list[Fact]] = {}
    for fact in HELD_OUT_FACTS:
        name = THINGS[fact.subject].owner if fact.subject in THINGS else fact.subject
        pronoun = SUBJECT_PRONOUNS[CHARACTERS[name].sex] if name in CHARACTERS else name
        for sentence in {*fact.sentences, *(sentence.replace(name, pronoun, 1) for sentence in fact.sentences)}:
            facts_by_sentence.setdefault(sentence, []).append(fact)
    return facts_by_sentence


def stated_held_out_facts(conversation: Conversation) -> list[Fact]:
    """The held-out facts that the answers state, by name or, if the subject was named before, with a pronoun."""
    text_so_far = ""
    facts: list[Fact] = []
    for message in conversation["messages"]:
        text_so_far += message["content"]
        if message["role"] == "assistant":
            for sentence in re.split(r"(?<=[.!?])\s+", message["content"]):
                candidates = held_out_facts_by_sentence().get(sentence, [])
                facts += [fact for fact in candidates if fact.subject in text_so_far]
    return facts


@cache
def past_sentences(fact: Fact) -> set[str]:
    """The sentences, without full stop, that state a fact in a story."""
    sentences = set()
    for pattern in RELATIONS[fact.property].statements["past"]:
        narrator = Narrator(row_rng("past"), {})
        narrator.full_names = True
        narrator.emit_fact(fact.property, fact.subject, pattern)
        sentences.add(narrator.text())
    return sentences
