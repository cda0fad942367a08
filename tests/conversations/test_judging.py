"""nanochat/conversations/judging.py: right answers, and answers that a passage supports."""

from __future__ import annotations

import pytest

from nanochat.conversations.judging import answer_matches, is_supported

EXPECTED = ["The hen ran away.", "It was late."]
PASSAGE = "In 1803 Captain Lewis crossed the Missouri River with 33 men. The boats were heavy and slow."


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("The hen ran away. It was late.", True),
        ("the hen   ran away", True),
        ("The hen ran away.", True),
        ("It was late.", False),
        ("The hen ran away. It was early.", False),
        ("The hen ran away. It was late. And so on.", False),
        ("The hen ran", False),
        ("", False),
    ],
)
def test_answer_matches(answer: str, expected: bool) -> None:
    assert answer_matches(answer, EXPECTED) is expected


def test_nothing_matches_nothing() -> None:
    assert not answer_matches("", [])
    assert not answer_matches("", [""])
    assert answer_matches("绿茶很好。", ["绿茶很好。"])


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("Captain Lewis crossed the Missouri River in 1803.", ""),
        ("He had 33 men and heavy boats.", ""),
        ("Captain Lewis crossed the river in 1804.", "a number"),
        ("Captain Clark crossed the Missouri River.", "a name"),
        ("The boats carried horses, tents, rifles and flour.", "too many words"),
        ("It was.", "no word"),
    ],
)
def test_is_supported(answer: str, reason: str) -> None:
    found = is_supported(answer, PASSAGE)
    assert found.startswith(reason) if reason else not found
