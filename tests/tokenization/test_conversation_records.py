"""Records in the shapes of other programs: converted, or named in the error."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat.common import UserError
from nanochat.tokenization.conversation_records import to_conversation
from tasks.customjson import parse_conversation
from tests.support.refusals import refusal

USER = {"role": "user", "content": "Q"}
ANSWER = {"role": "assistant", "content": "A"}
SYSTEM = {"role": "system", "content": "S"}
HUMAN = {"from": "human", "value": "Q"}
GPT = {"from": "gpt", "value": "A"}
ALPACA = {"instruction": "Q", "output": "A"}

CONVERTED: list[tuple[Any, list[Any]]] = [
    ([USER, ANSWER], [USER, ANSWER]),
    ({"messages": [USER, ANSWER], "id": 1, "prompt": "Q", "text": "Q A", "name": "a"}, [USER, ANSWER]),
    ({"messages": [USER, ANSWER], "system": "S"}, [SYSTEM, USER, ANSWER]),
    ({"messages": [HUMAN, GPT]}, [USER, ANSWER]),
    ({"conversations": [HUMAN, GPT], "id": "x"}, [USER, ANSWER]),
    ({"conversations": [{"from": "system", "value": "S"}, HUMAN, GPT]}, [SYSTEM, USER, ANSWER]),
    ({"conversations": [HUMAN, GPT], "system": "S"}, [SYSTEM, USER, ANSWER]),
    ({"conversations": [HUMAN, GPT], "system": "", "tools": "[]"[:0]}, [USER, ANSWER]),
    ({"conversations": [USER, ANSWER]}, [USER, ANSWER]),
    ([{"from": "user", "value": "Q"}, {"from": "chatgpt", "value": "A"}], [USER, ANSWER]),
    ({"conversations": [HUMAN, {**GPT, "weight": 0}, HUMAN, GPT]}, [USER, {**ANSWER, "weight": 0}, USER, ANSWER]),
    (ALPACA, [USER, ANSWER]),
    ({**ALPACA, "input": "", "text": "the prompt"}, [USER, ANSWER]),
    ({**ALPACA, "input": None}, [USER, ANSWER]),
    ({**ALPACA, "input": "I"}, [{**USER, "content": "Q\n\nI"}, ANSWER]),
    ({**ALPACA, "instruction": "", "input": "I"}, [{**USER, "content": "I"}, ANSWER]),
    ({**ALPACA, "system": "S", "history": []}, [SYSTEM, USER, ANSWER]),
]

REFUSED: list[tuple[Any, str]] = [
    (5, "a conversation must be an object or a list of messages, not 5"),
    ({}, "its keys are none"),
    ({"a": 1, "b": 2}, "its keys are a, b"),
    ({"messages": [USER, ANSWER], "conversations": [HUMAN, GPT]}, '"messages" and "conversations"'),
    ({"conversations": []}, 'a conversation must be {"conversations": [...]} with at least one message'),
    ({"conversations": [HUMAN, {"from": "function_call", "value": "f"}]}, "message 2: it is from 'function_call'"),
    ({"conversations": [HUMAN, {"from": "observation", "value": "f"}]}, "message 2: it is from 'observation'"),
    ({"conversations": [{"from": ["human"], "value": "f"}]}, "message 1: it is from ['human']"),
    ({"conversations": [HUMAN, {**GPT, "value": 5}]}, "message 2: an assistant's content must be text"),
    ({"conversations": [HUMAN, {**GPT, "loss": True}]}, "message 2: loss is True"),
    ({"conversations": [HUMAN, GPT], "tools": "[{}]"}, "tools is '[{}]'"),
    ({"messages": [SYSTEM, USER, ANSWER], "system": "S"}, '"system" and a system message'),
    ({"messages": [USER, ANSWER], "system": 5}, "system is 5: must be text"),
    ({"messages": [USER, ANSWER], "weight": 0}, "weight is 0: a message has"),
    ({"messages": [USER, ANSWER], "label": False}, "label is False"),
    ({"prompt": "Q", "chosen": "A", "rejected": "B"}, "chosen is 'A': answers are trained on, not preferences"),
    ({"prompt": "Q", "completion": "A"}, "these are pairs of a prompt and a completion"),
    ({"prompt": "Q", "response": "A"}, "these are pairs of a prompt and a response"),
    ({"question": "Q", "answer": "A"}, "these are pairs of a question and an answer"),
    ({"text": "a"}, "these are documents without turns"),
    ({**ALPACA, "output": None}, "output is None: must be text"),
    ({**ALPACA, "input": 5}, "input is 5: must be text"),
    ({**ALPACA, "history": [["q", "a"]]}, "history: earlier turns are messages"),
]


@pytest.mark.parametrize(("record", "messages"), CONVERTED, ids=lambda value: str(value)[:60])
def test_converted(record: Any, messages: list[Any]) -> None:
    assert parse_conversation(json.dumps(record).encode()) == {"messages": messages}


@pytest.mark.parametrize(("record", "words"), REFUSED, ids=lambda value: str(value)[:60])
def test_refused(record: Any, words: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_conversation(json.dumps(record).encode())
    assert words in str(caught.value)


KEYS = ["messages", "conversations", "from", "value", "role", "content", "instruction", "input", "output", "system"]
records = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3) | st.sampled_from(["human", "gpt", "user"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*KEYS, "tools", "label", "chosen"]), inner)
    ),
    max_leaves=12,
)


@given(records)
def test_any_record_is_converted_or_refused_in_a_line(record: Any) -> None:
    if refusal(to_conversation, record) is None:
        assert isinstance(to_conversation(record)["messages"], list)
    refusal(parse_conversation, json.dumps(record).encode())
