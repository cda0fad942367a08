"""nanochat/conversations/forms.py: at least eight forms for each fact, others in the test."""

from __future__ import annotations

import random
import string

import pytest

from nanochat.conversations.facts import Fact
from nanochat.conversations.forms import CORES, NUM_HELD_OUT, cores, draw_questions, fill, framed, lower_first

SLOTS = {
    "heading": "Green tea", "term": "a vector", "is": "is", "items": "What are the tools", "row": "Green",
    "column": "price", "label": "What it costs",
    "question": "What is tea?", "who": "Who", "predicate": "won the race", "do": "does",
    "subject": "a hut", "can": "can", "said": "said", "quote": "Go away!", "speaker": "the hen", "happens": "happens",
    "condition": "when it rains", "claim": "it is hot", "year": "1803", "previous": "They ran home",
}  # fmt: skip


def fact(kind: str, **changes: object) -> Fact:
    names = {name for core in CORES[kind] for _, name, _, _ in string.Formatter().parse(core) if name}
    slots = {name.removesuffix("_lower") for name in names} | ({"do"} if "has" in names else set())
    fields: dict[str, object] = {"document": "a.md", "title": "The Race"} | changes
    kind_of = {"items": "list", "cell": "table"}.get(kind, kind)
    return Fact(kind_of, {name: SLOTS[name] for name in slots & SLOTS.keys()}, ("It is so.",), **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", CORES)
def test_each_kind_has_eight_forms_for_training_and_others_for_the_test(kind: str) -> None:
    train, test = cores(fact(kind), is_test=False), cores(fact(kind), is_test=True)
    assert len(set(train)) >= 8
    assert len(set(test)) == NUM_HELD_OUT
    assert not set(train) & set(test)
    questions = draw_questions(fact(kind), 8, random.Random(0))
    assert len(set(questions)) == 8
    assert not any(mark in question for question in questions for mark in "{}")
    assert all(question[0].isupper() or question[0] == '"' for question in questions)


def test_other_scripts_have_forms_without_words() -> None:
    chinese = fact("section", is_english=False, title="茶")
    questions = draw_questions(chinese, 8, random.Random(0))
    assert len(set(questions)) == 8
    assert not any("document" in question or "Tell" in question for question in questions)


def test_the_title_is_named_where_it_is_needed() -> None:
    needed = [framed(fact("agent", needs_title=True), "Who won?", random.Random(seed)) for seed in range(50)]
    assert all('"The Race"' in question for question in needed)
    assert len(set(needed)) > 5
    free = [framed(fact("agent"), "Who won?", random.Random(seed)) for seed in range(200)]
    assert 20 < sum("The Race" in question for question in free) < 180
    assert framed(fact("agent", title=""), "Who won?", random.Random(0)) == "Who won?"
    in_test = {framed(fact("agent", needs_title=True), "Who won?", random.Random(seed), True) for seed in range(9)}
    assert len(in_test) == 1
    assert not in_test & set(needed)


def test_sentences_after_in_are_questions() -> None:
    for seed in range(100):
        question = framed(fact("agent", needs_title=True), "Tell me who won.", random.Random(seed))
        assert not question.startswith(("In ", "According"))


@pytest.mark.parametrize(
    ("core", "expected"),
    [
        ("{who} {predicate}?", "Who won the race?"),
        ("Say {who_lower} {predicate}.", "Say who won the race."),
        ("{question_lower}", "What is tea?"),
        ("Tell me: {question_lower}", "Tell me: what is tea?"),
        ("Name them: {items_lower}?", "Name them: what are the tools?"),
    ],
)
def test_fill(core: str, expected: str) -> None:
    assert fill(Fact("agent", SLOTS, ("It is so.",)), core) == expected


def test_capitals_that_stay() -> None:
    assert [lower_first(text) for text in ("I ran", "DNA is", "McDonald is", "")] == [
        "I ran",
        "DNA is",
        "McDonald is",
        "",
    ]
