"""Messages of OpenAI's API: limits, and what is continued. tests/openai_api/test_routes.py has the table of shapes."""

from __future__ import annotations

from typing import Any

import pytest

from nanochat.openai_api.messages import to_conversation
from nanochat.openai_api.requests import ChatMessage
from nanochat.serving.chat_request import LIMITS
from nanochat.serving.chat_session import beginning_ids
from nanochat.serving.refusals import Refusal
from tests.support.scripted_engine import SPECIAL, TOKENIZER, assistant, reply_ids, user


def convert(*messages: dict[str, Any]) -> Any:
    return to_conversation([ChatMessage.model_validate(message) for message in messages])


def call(offset: int, expression: str, result: str | None = None) -> dict[str, Any]:
    return {"offset": offset, "expression": expression, "result": result}


@pytest.mark.parametrize(
    ("calls", "expected"),
    [
        ([call(1, "6*7", "42")], [("text", "a"), ("python", "6*7"), ("python_output", "42"), ("text", "bc")]),
        ([call(3, "1")], [("text", "abc"), ("python", "1")]),
        ([call(0, "1"), call(0, "2")], [("python", "1"), ("python", "2"), ("text", "abc")]),
        ([call(2, "2"), call(1, "1")], [("text", "a"), ("python", "1"), ("text", "b"), ("python", "2"), ("text", "c")]),
        ([call(99, "1")], [("text", "abc"), ("python", "1")]),
    ],
)
def test_calls_stand_where_they_were(calls: Any, expected: list[tuple[str, str]]) -> None:
    message = {"role": "assistant", "content": "abc", "calculator_calls": calls}
    conversation = convert(user("q"), message, user("next"))
    parts = [(part["type"], part["text"]) for part in conversation.messages[1]["content"]]
    assert parts == expected


def test_a_beginning_is_not_ended() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "python", "text": "1"}]
    assert beginning_ids(TOKENIZER, parts) == reply_ids(parts)[:-1]
    assert beginning_ids(TOKENIZER, "") == []
    ids = beginning_ids(TOKENIZER, "<|assistant_end|>")
    assert SPECIAL["<|assistant_end|>"] not in ids
    assert convert(user("a"), assistant("b")) == ([user("a")], "b")
    assert convert(user("a"), assistant("")) == ([user("a")], "")
    assert convert(assistant("b")) == ([user("")], "b")


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([user("x" * (LIMITS.message_characters + 1))], "messages.0.content has 8001 characters"),
        ([user("x" * 8000)] * 5, "the messages have 40000 characters in all"),
        ([{"role": "developer", "content": "a"}], "no message of the user"),
        ([user("a"), {"role": "tool", "content": None}], "messages.1.content is missing"),
        ([{"role": "user", "content": [{"type": "text"}]}], "a part of type 'text'"),
        ([{"role": "user", "content": [{"type": "input_audio", "text": "a"}]}], "a part of type 'input_audio'"),
    ],
)
def test_refusals(messages: list[dict[str, Any]], reason: str) -> None:
    with pytest.raises(Refusal, match=reason):
        convert(*messages)
