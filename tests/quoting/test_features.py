"""Features of candidates, against hand-made cases and a slow twin."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat.passages.passage import Passage
from nanochat.quoting.candidates import candidates
from nanochat.quoting.features import FEATURES, features, longest_run
from nanochat.quoting.question import read_question

STORY = Passage(
    "hut.md",
    ("The Hut",),
    'A hut is a small house. It has one door. "Come in," said Mia. The hut burned because of the fire.',
    is_first=True,
    is_last=True,
    begins_section=True,
)


def table(question: str, passage: Passage = STORY) -> dict[str, list[float]]:
    """Feature -> its value for each sentence of a passage."""
    rows = features(read_question(question, lambda term: 1.0 if term == "velmora" else 0.5), candidates([passage]))
    return dict(zip(FEATURES, rows.T.tolist(), strict=True))


@pytest.mark.parametrize(
    ("question", "feature", "sentence"),
    [
        ('How does "The Hut" begin?', "first, asks for the beginning", 0),
        ('How does "The Hut" end?', "last, asks for the end", 3),
        ("What is a hut?", "subject, then is a", 0),
        ('Who said "Come in"?', "candidate quoted, asks who", 2),
        ('What follows "It has one door"?', "sentence before quoted, asks what is next", 2),
        ("Why did the hut burn?", "reason, asks why", 3),
        ("What did Mia say?", "speech, asks what was said", 2),
        ("Tell me about the hut.", "first of section asked for", 0),
    ],
)
def test_a_feature_marks_the_right_sentence(question: str, feature: str, sentence: int) -> None:
    assert np.flatnonzero(table(question)[feature]).tolist() == [sentence]


def test_shares_of_the_terms() -> None:
    found = table("Who said that the small hut is in Velmora?")
    parts = ("in candidate", "in label", "in headings", "in passage", "nowhere")
    assert [sum(found[part][row] for part in parts) for row in range(4)] == pytest.approx([1, 1, 1, 1])
    assert found["in candidate"][0] > found["in candidate"][3] > found["in candidate"][1] == 0
    assert found["nowhere, unknown"] == [1, 1, 1, 1]
    assert table("Is the hut small?")["nowhere, unknown"] == [0, 0, 0, 0]


def test_a_question_without_candidates() -> None:
    assert features(read_question("Who?", lambda _: 0.5), []).shape == (0, len(FEATURES))


@given(st.text(max_size=80), st.text(max_size=80))
def test_features_are_between_0_and_1(question: str, text: str) -> None:
    rows = features(read_question(question, lambda _: 0.5), candidates([Passage("a", ("b",), text)]))
    assert np.isfinite(rows).all()
    assert rows.size == 0 or (rows.min() >= 0 and rows.max() <= 1 + 1e-9)


def slow_run(first: Sequence[str], second: Sequence[str]) -> int:
    pieces = {tuple(second[a:b]) for a in range(len(second)) for b in range(a + 1, len(second) + 1)}
    runs = [b - a for a in range(len(first)) for b in range(a + 1, len(first) + 1) if tuple(first[a:b]) in pieces]
    return max(runs, default=0)


@given(st.lists(st.sampled_from("abc"), max_size=8), st.lists(st.sampled_from("abc"), max_size=8))
def test_the_longest_run_is_that_of_the_slow_twin(first: list[str], second: list[str]) -> None:
    assert longest_run(first, second) == slow_run(first, second)
