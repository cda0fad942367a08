"""The parts of a question."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat.quoting.question import CUES, read_question


def rarity(term: str) -> float:
    return 1.0 if term.startswith("vel") else 0.5


def test_quotations_terms_and_unknown_words() -> None:
    asked = read_question("I am reading “The Race”. Can you tell me who won the prizes of Velmora?", rarity)
    assert asked.quotations == ("the race",)
    assert asked.terms == {"won": 0.5, "priz": 0.5, "velmora": 1.0}
    assert asked.unknown == {"velmora"}
    assert "who" in asked.cues
    assert asked.plain[:3] == ("i", "am", "reading")
    assert read_question('Who said "Go to Velmora"?', rarity).unknown == {"velmora"}


@pytest.mark.parametrize(
    ("question", "cue"),
    [
        ('How does "Hair" end?', "end"),
        ('With which words does "Hair" begin?', "begin"),
        ('What comes next: "It rained"?', "after"),
        ("Why did she laugh?", "why"),
        ("How many huts are there?", "number"),
        ("List the kinds of tea.", "list"),
        ("Who was she?", "who"),
    ],
)
def test_cues(question: str, cue: str) -> None:
    assert cue in read_question(question, rarity).cues


def test_quoted_words_are_no_cues() -> None:
    assert "end" not in read_question('Who said "This is the end"?', rarity).cues


@given(st.text(max_size=300))
def test_any_text_is_read(text: str) -> None:
    asked = read_question(text, rarity)
    assert asked.cues <= set(CUES)
    assert all(0 < weight <= 1 for weight in asked.terms.values())
