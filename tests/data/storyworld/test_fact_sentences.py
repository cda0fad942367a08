"""The list of facts: true, stated in the text, without contradiction."""

from __future__ import annotations

import re
from collections import Counter
from itertools import islice

import pytest

from nanochat.data.storyworld import check_text, generate_stories, list_facts
from nanochat.data.storyworld.narrator import Narrator
from nanochat.data.storyworld.relations import RELATIONS
from nanochat.data.storyworld.world import CHARACTERS
from tests.support.stories import sample_documents


@pytest.mark.slow
def test_facts_are_many_and_true() -> None:
    facts = list_facts()
    assert len({(fact.subject, fact.property) for fact in facts}) == len(facts) >= 400
    for fact in facts:
        assert len(set(fact.sentences)) == len(fact.sentences) >= 1
        assert fact.questions
        for sentence in fact.sentences:
            assert fact.value in sentence.lower() or fact.value in sentence
            assert [verdict.reason for verdict in check_text(sentence)] == [""], sentence


@pytest.mark.slow
def test_every_fact_recurs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is stated at least 8 times in 1.5 million words, counted by the narrator's calls."""
    statements = {
        id(pattern)
        for relation in RELATIONS.values()
        for by_tense in (relation.statements, relation.tails)
        for patterns in by_tense.values()
        for pattern in patterns
    }
    num_stated: Counter[tuple[str, str]] = Counter()
    emit_fact = Narrator.emit_fact

    def count(narrator: Narrator, relation: str, subject: str, pattern: tuple[object, ...]) -> None:
        num_stated[relation, subject] += id(pattern) in statements
        emit_fact(narrator, relation, subject, pattern)

    monkeypatch.setattr(Narrator, "emit_fact", count)
    num_words = sum(len(text.split()) for text in islice(generate_stories("train", 9), 10_000))
    rarest = min((num_stated[fact.property, fact.subject], fact.property, fact.subject) for fact in list_facts())
    assert rarest[0] >= 8 * num_words / 1.5e6, rarest


@pytest.mark.slow
def test_most_facts_occur_word_for_word() -> None:
    """In 10,000 documents, without counting pronouns and other wordings."""
    sentences = set(re.findall(r"[A-Z][^.!?\"\n]*\.", "\n".join(sample_documents("train", 20_000)[:10_000])))
    num_literal = sum(any(sentence in sentences for sentence in fact.sentences) for fact in list_facts())
    assert num_literal >= 0.7 * len(list_facts())


@pytest.mark.slow
def test_no_two_sentences_contradict() -> None:
    """In all plain statements of a home, a favorite food or a color, each subject has one value."""
    text = " ".join(sample_documents("train", 20_000)[:3000])
    names = "|".join(map(re.escape, CHARACTERS))
    for pattern in (
        rf"\b({names}) lives ((?:in|on|by|under|above|behind|beside|near) the [^.,\"?]+)[.,]",
        rf"favorite food of ({names}) (?:is|was) ([^.,\"?]+)[.,]",
        rf"best friend of ({names}) (?:is|was) ([^.,\"?]+)[.,]",
        r"color of (?:the|\S+'s) (\w+) (?:is|was) ([^.,\"?]+)[.,]",
        r"opposite of (\w+) is (\w+)[.,]",
        r"young (\w+) is called an? (\w+)[.,]",
    ):
        values_of: dict[str, set[str]] = {}
        for subject, value in re.findall(pattern, text):
            values_of.setdefault(subject, set()).add(value)
        assert len(values_of) >= 15, pattern
        assert all(len(values) == 1 for values in values_of.values()), values_of
