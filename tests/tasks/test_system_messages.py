"""System messages: their probability, and those that fit the length of the answers."""

from __future__ import annotations

import random

import pytest

from tasks.common import make_conversation
from tasks.system_messages import GENERAL, LONG, SHORT, add_system_message


@pytest.mark.parametrize(
    ("answer_len", "expected"), [(1, {*GENERAL, *SHORT}), (500, {*GENERAL}), (1000, {*GENERAL, *LONG})]
)
def test_messages_fit_the_length_of_the_answer(answer_len: int, expected: set[str]) -> None:
    rng = random.Random(0)
    conversation = make_conversation("Q", "a" * answer_len)
    with_system = [add_system_message(conversation, rng, 1.0) for _ in range(500)]
    assert {extended["messages"][0]["content"] for extended in with_system} == expected
    assert all(extended["messages"][1:] == conversation["messages"] for extended in with_system)


def test_messages_are_added_with_the_probability_and_only_where_there_is_none() -> None:
    rng = random.Random(0)
    conversation = make_conversation("Q", "A")
    num_added = sum(add_system_message(conversation, rng, 0.3) != conversation for _ in range(2000))
    assert 0.25 < num_added / 2000 < 0.35
    with_system = {"messages": [{"role": "system", "content": "S"}, *conversation["messages"]]}
    assert all(add_system_message(with_system, rng, 1.0) == with_system for _ in range(10))
