"""nanochat/conversations/refusals.py: questions without an answer, and refusals."""

from __future__ import annotations

import random

import pytest

from nanochat.conversations.facts import Fact, document_facts
from nanochat.conversations.forms import CORES
from nanochat.conversations.refusals import REFUSALS, Unanswerable, invent_name, is_refusal
from nanochat.conversations.sentences import content_words, words
from tests.support.tale_documents import documents

FACTS = [fact for document in documents() for fact in document_facts(document).facts]
VOCABULARY = set().union(*(document_facts(document).vocabulary for document in documents()))
NAMES = {document.name: sorted(document_facts(document).names) for document in documents()}


def draw(split: str, count: int = 200, seed: int = 0, vocabulary: set[str] = VOCABULARY) -> list[tuple[str, str, Fact]]:
    source = Unanswerable(FACTS, vocabulary, NAMES, split, seed)
    return list(source.draw(count, 0.3, random.Random(seed)))


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_the_documents_do_not_have_what_is_asked_for(split: str) -> None:
    drawn = draw(split)
    assert len(drawn) > 150
    assert len({question for _, question, _ in drawn}) == len(drawn)
    for kind, question, _ in drawn:
        assert not any(mark in question for mark in "{}")
        if kind == "foreign":
            assert content_words(question) - VOCABULARY, question


def test_swapped_names_are_those_of_other_documents() -> None:
    swapped = [(question, fact) for kind, question, fact in draw("train", 400) if kind == "swapped"]
    assert swapped
    for _, fact in swapped:
        text = next(d for d in documents() if d.name == fact.document).text
        slot = " ".join(fact.slots.values())
        assert any(word not in text for word in slot.split() if word[0].isupper()), slot


def test_the_splits_share_no_invented_name() -> None:
    known = VOCABULARY | {word for text in CORES.values() for core in text for word in content_words(core)}
    found = {}
    for split in ("train", "val", "test"):
        questions = [question for kind, question, _ in draw(split, 300) if kind == "foreign"]
        found[split] = {word for question in questions for word in words(question) if word.capitalize() in question}
        found[split] = {word for word in found[split] if word not in known and word[:3] in SYLLABLES}
    assert all(len(names) > 50 for names in found.values())
    names = [{name for name in found[split] if len(name) > 6} for split in ("train", "val", "test")]
    shared = (names[0] & names[1]) | (names[0] & names[2]) | (names[1] & names[2])
    assert len(shared) < 0.05 * sum(map(len, names)), shared


SYLLABLES = {invent_name(random.Random(seed)).lower()[:3] for seed in range(500)}


def test_draws_are_seeded_and_end() -> None:
    assert draw("train", 50) == draw("train", 50)
    assert draw("train", 50) != draw("train", 50, seed=1)
    assert list(Unanswerable([], set(), {}, "train", 0).draw(10, 0.5, random.Random(0))) == []
    few = list(
        Unanswerable([FACTS[0]], {str(year) for year in range(3000)}, {}, "test", 0).draw(9, 0.5, random.Random(0))
    )
    assert len(few) == 9
    year = Fact("year", {"year": "1803"}, ("In 1803, it rained.",))
    assert not list(Unanswerable([year], {str(n) for n in range(3000)}, {}, "test", 0).draw(9, 0.5, random.Random(0)))


def test_other_scripts_are_asked_for_a_name_alone() -> None:
    russian = Fact("section", {"heading": "Самовар"}, ("Самовар появился в Туле.",), is_english=False)
    drawn = list(Unanswerable([russian], {"самовар"}, {}, "train", 0).draw(20, 0.5, random.Random(0)))
    assert len(drawn) == 20
    assert not any(word in question for _, question, _ in drawn for word in ("What", "Tell", "Самовар"))


@pytest.mark.parametrize("refusal", REFUSALS)
def test_refusals_are_refusals(refusal: str) -> None:
    assert is_refusal(refusal)
    assert is_refusal(refusal.upper().replace(":", " -"))


@pytest.mark.parametrize(
    "text",
    ["", "The hen was late.", "A document is a text.", "I do not know. " + "But here is what I think of it. " * 9],
)
def test_answers_are_no_refusals(text: str) -> None:
    assert not is_refusal(text)
