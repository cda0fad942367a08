"""Request validation: what is refused and why, the limits, the defaults, and arbitrary JSON."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat.common import UserError
from nanochat.layers.sampling_params import SamplingParams
from nanochat.serving.chat_request import (
    DEFAULT_PARAMS,
    LIMITS,
    MAX_ERROR_CHARACTERS,
    SAMPLING_FIELDS,
    ChatRequest,
    check_messages,
    parse_request,
    shorten,
)
from tests.support.scripted_engine import TOKENIZER, assistant, user

HELLO = {"messages": [user("Hello")]}


def parse(body: Any, defaults: SamplingParams = DEFAULT_PARAMS) -> ChatRequest:
    """Parse a body that is given as JSON data."""
    return parse_request(json.dumps(body).encode(), defaults)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "the body is not JSON"),
        (b'{"messages": [', "the body is not JSON"),
        (b"\xff\xfe", "the body is not UTF-8"),
        (b"[" * 30_000, "the body is not JSON"),
        (b"[" * 100_000, "the body has too many values: at most 500 messages with 2000 parts"),
        (b"[" + b"{}," * 30_000 + b"{}]", "the body has too many values"),
        (b'{"messages": [' + b'{"role":"user","content":' * 900, "the body is not JSON"),
        (json.dumps(HELLO).encode("utf-16"), "the body is not UTF-8 but UTF-16"),
        (b'{"messages": [{"role": "user", "content": "\xed\xa0\x80"}]}', "the body is not UTF-8"),
        (b'{"messages": [], "messages": [{"role": "user", "content": "a"}]}', "the key 'messages' comes twice"),
        (b'{"messages": [{"role": "user", "content": "a", "content": "b"}]}', "the key 'content' comes twice"),
        (b'{"\\ud800": 1}', "half a surrogate pair, \\ud800"),
        (b'{"messages": [{"role":"user","content":"a"}], "top_k": ' + b"[" * 900 + b"]" * 900 + b"}", "top_k is [[["),
        (b'{"temperature": 1' + b"0" * 5000 + b"}", "the body is not JSON"),
        ([], 'the body is []: must be an object, {"messages": [...]}'),
        ({}, "messages is missing, empty or not a list"),
        ({"messages": []}, "messages is missing, empty or not a list"),
        ({"messages": {"role": "user"}}, "messages is missing, empty or not a list"),
        ({"messages": ["hi"]}, "message 1: must have a role and a content"),
        ({"messages": [None]}, "message 1: must have a role and a content"),
        ({"messages": [{"role": "user"}]}, "message 1: must have a role and a content"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "role 'robot' where 'user' is due"),
        ({"messages": [{"role": [], "content": "x"}]}, "role [] where 'user' is due"),
        ({"messages": [user("a"), user("b")]}, "message 2: role 'user' where 'assistant' is due"),
        ({"messages": [{"role": "user", "content": 5}]}, "must be text or a list of text parts, not int"),
        ({"messages": [{"role": "user", "content": [{"text": "a"}]}]}, "1: a part must be {\"type\": text,"),
        ({"messages": [user("a"), assistant([{"type": "image", "text": ""}])]}, "message 2: a part must be"),
        ({"messages": [user("a"), assistant([[1]])]}, "message 2: a part must be"),
        ({"messages": [user("\ud800")]}, "the body has half a surrogate pair, \\ud800: text must be valid Unicode"),
        ({**HELLO, "temprature": 1}, "unknown field 'temprature': must be one of messages, temperature, top_k"),
        ({**HELLO, "num_samples": 2}, "unknown field 'num_samples': must be one of messages, temperature, top_k"),
        ({**HELLO, "temperature": 2.01}, "temperature is 2.01: must be a number from 0 to 2"),
        ({**HELLO, "temperature": -0.1}, "temperature is -0.1: must be a number from 0 to 2"),
        ({**HELLO, "temperature": float("nan")}, "the body is not JSON (NaN is no number of JSON)"),
        ({**HELLO, "temperature": float("inf")}, "the body is not JSON (Infinity is no number of JSON)"),
        ({**HELLO, "temperature": "hot"}, "temperature is 'hot': must be a number from 0 to 2"),
        ({**HELLO, "top_p": 0}, "top_p is 0: must be a number from 0.01 to 1"),
        ({**HELLO, "top_p": "1"}, "top_p is '1': must be a number from 0.01 to 1"),
        ({**HELLO, "temperature": True}, "temperature is True: must be a number from 0 to 2"),
        ({**HELLO, "top_k": 0}, "top_k is 0: must be a whole number from 1 to 200"),
        ({**HELLO, "top_k": 201}, "top_k is 201: must be a whole number from 1 to 200"),
        ({**HELLO, "top_k": 1.5}, "top_k is 1.5: must be a whole number from 1 to 200"),
        ({**HELLO, "max_tokens": 0}, "max_tokens is 0: must be a whole number from 1 to 4096"),
        ({**HELLO, "max_tokens": 4097}, "max_tokens is 4097: must be a whole number from 1 to 4096"),
        ({**HELLO, "max_tokens": 10**300}, "000: must be a whole number from 1 to 4096"),
        ({**HELLO, "max_tokens": 10**4000}, "a number of 4,001 digits"),
        ({**HELLO, "seed": -1}, "seed is -1: must be a whole number from 0 to 4294967295"),
        ({"messages": [user("x" * 8001)]}, "message 1 has 8001 characters: at most 8000 are allowed"),
        (
            {"messages": [user("a"), assistant([{"type": "text", "text": "x" * 4001}] * 2), user("b")]},
            "message 2 has 8002 characters: at most 8000 are allowed",
        ),
        (
            {"messages": [user("x" * 8000), assistant("x" * 8000)] * 2 + [user("x")]},
            "the messages have 32001 characters in all: at most 32000 are allowed",
        ),
        ({"messages": [user("a"), assistant("b")] * 250 + [user("c")]}, "there are 501 messages: at most 500 are"),
        (
            {"messages": [user("a"), assistant([{"type": "text", "text": ""}] * 1999), user("b")]},
            "the messages have 2001 parts in all: at most 2000 are allowed",
        ),
        ({"messages": [user("a"), assistant([{}] * 9000), user("b")]}, "the messages have 9002 parts in all"),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, str) else "",
)  # fmt: skip
def test_an_invalid_request_is_refused_with_the_reason(body: Any, message: str) -> None:
    with pytest.raises(UserError) as refusal:
        parse_request(body if isinstance(body, bytes) else json.dumps(body).encode(), DEFAULT_PARAMS)
    assert message in str(refusal.value)


@pytest.mark.parametrize("name", ["x" * 500_000, "\ud800" * 1000, "\u001b]52;c;" * 1000])
def test_no_reason_repeats_much_of_what_was_sent(name: str) -> None:
    """Wherever a long text stands in a request, the reason is short and is valid Unicode."""
    bodies = [
        name,
        [name],
        {name: 1},
        *({**HELLO, field: value} for field in SAMPLING_FIELDS for value in (name, [name], {name: name})),
        *({"messages": value} for value in (name, {name: name}, [name], [[name]], [{name: name}])),
        *({"messages": [{"role": role, "content": "a"}]} for role in (name, [name], {name: name})),
        *({"messages": [user("a"), assistant([part])]} for part in (name, [name], {"type": name}, {"type": {name: 1}})),
        {"messages": [user("a"), assistant([{"type": "text", "text": [name]}])]},
        {"messages": [user("a"), assistant([{"type": "text", "text": "", name: name}]), {"role": name, "content": ""}]},
        {"messages": [{"role": "user", "content": {name: name}}]},
    ]
    for body in bodies:
        with pytest.raises(UserError) as refusal:
            parse(body)
        reason = shorten(str(refusal.value))
        assert len(reason) <= MAX_ERROR_CHARACTERS + 10
        reason.encode("utf-8")
        assert parse_request(json.dumps(HELLO).encode(), DEFAULT_PARAMS).messages == HELLO["messages"]


def test_the_largest_request_is_within_the_bound_on_its_structure() -> None:
    """Text that looks like structure: as many braces and commas as its limits allow, in as many messages and parts."""
    parts = [{"type": "text", "text": "{[,,"}] * (LIMITS.parts // 400)
    messages = [*[user(",{" * 40), assistant(parts)] * 249, user("a")]
    parse({"messages": messages})
    commas = [user("," * 8000), assistant("," * 8000), user("{" * 8000), assistant("[" * 7999), user("a")]
    parse({"messages": commas})


def test_values_at_the_limits_are_accepted() -> None:
    largest = [user("x" * 8000), assistant("ä" * 8000), user("x" * 8000), assistant("x" * 7999), user("x")]
    longest = [{"role": "system", "content": "s"}, *([user("a"), assistant("b")] * 249), user("c")]
    assert len(longest) == 500
    check_messages(longest)
    for temperature, top_k, max_tokens, seed in [(0, 1, 1, 0), (2, 200, 4096, 2**32 - 1), (0.5, 7, 9, 1)]:
        settings = {"temperature": temperature, "top_k": top_k, "max_tokens": max_tokens, "seed": seed}
        request = parse({"messages": largest, **settings})
        assert request == ChatRequest(largest, SamplingParams(temperature, top_k, max_tokens, seed=seed))


def test_a_setting_that_is_missing_or_null_has_its_default() -> None:
    defaults = SamplingParams(0.1, top_k=2, max_tokens=3, seed=4)
    request = parse({**HELLO, "top_k": None, "max_tokens": 8}, defaults)
    assert request == ChatRequest(HELLO["messages"], replace(defaults, max_tokens=8))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
odd_messages = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant", "system"]) | json_values},
        optional={"content": json_values | st.lists(st.fixed_dictionaries({"type": json_values, "text": json_values}))},
    )
    | json_values,
    max_size=3,
)


@given(
    json_values
    | st.fixed_dictionaries(
        {"messages": odd_messages},
        optional=dict.fromkeys(("temperature", "top_k", "max_tokens", "seed", "more"), json_values),
    )
)
def test_any_json_is_accepted_or_refused(body: Any) -> None:
    """An accepted request can be rendered; a refused one raises `UserError` and nothing else."""
    try:
        request = parse(body)
    except UserError:
        return
    TOKENIZER.render_conversation({"messages": request.messages})
    assert 0 <= request.params.temperature <= 2
