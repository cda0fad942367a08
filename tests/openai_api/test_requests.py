"""Requests of OpenAI's API: any JSON is accepted, or refused in one line."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat.openai_api.messages import to_conversation
from nanochat.openai_api.requests import (
    ChatCompletionRequest,
    CompletionRequest,
    DetokenizeRequest,
    TokenizeRequest,
    check_model,
    parse_request,
)
from nanochat.serving.chat_request import DEFAULT_PARAMS, MAX_ERROR_CHARACTERS
from nanochat.serving.refusals import Refusal, error_body
from tests.support.scripted_engine import TOKENIZER, user

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
roles = st.sampled_from(["system", "developer", "user", "assistant", "tool", "function"])
text_parts = st.lists(
    st.fixed_dictionaries({"type": st.sampled_from(["text", "refusal"]) | json_values}, optional={"text": json_values}),
    max_size=3,
)
messages = st.lists(
    st.fixed_dictionaries(
        {"role": roles | json_values},
        optional={
            "content": st.text(max_size=9) | text_parts | json_values,
            "calculator_calls": st.lists(
                st.fixed_dictionaries({"offset": st.integers(0, 9), "expression": st.text(max_size=3)}), max_size=2
            )
            | json_values,
            "tool_calls": json_values | st.just([{"function": {"name": "f", "arguments": "{}"}}]),
        },
    )
    | json_values,
    max_size=4,
)
FIELDS = sorted({*ChatCompletionRequest.model_fields, *CompletionRequest.model_fields, "more"} - {"messages", "prompt"})


@given(
    json_values
    | st.fixed_dictionaries({"messages": messages}, optional=dict.fromkeys(FIELDS, json_values))
    | st.fixed_dictionaries({"messages": messages})
    | st.fixed_dictionaries({"prompt": json_values}, optional=dict.fromkeys(FIELDS, json_values))
)
def test_any_json_is_accepted_or_refused_in_one_line(body: Any) -> None:
    reasons = []
    for form in (ChatCompletionRequest, CompletionRequest, TokenizeRequest, DetokenizeRequest):
        try:
            request = parse_request(json.dumps(body).encode(), form)
            if isinstance(request, (ChatCompletionRequest, CompletionRequest)):
                request.params(DEFAULT_PARAMS)
            if isinstance(request, ChatCompletionRequest):
                conversation = to_conversation(request.messages)
                TOKENIZER.render_for_completion({"messages": conversation.messages})
        except Refusal as refusal:
            reasons.append((refusal.status, error_body("/v1/", refusal)["error"]["message"]))
    for status, reason in reasons:
        assert (status, len(reason) <= MAX_ERROR_CHARACTERS + 10, "\n" in reason) == (400, True, False)


def test_what_is_refused_names_the_field() -> None:
    body = json.dumps({"messages": [user("a"), {"role": "user", "content": [{"type": "text", "text": 5}]}]}).encode()
    with pytest.raises(Refusal, match=r"messages.1.content.0.text is 5: input should be a valid string") as refusal:
        parse_request(body, ChatCompletionRequest)
    assert refusal.value.param == "messages.1.content.0.text"
    with pytest.raises(Refusal, match=r"messages.0.role is missing"):
        parse_request(b'{"messages": [{}]}', ChatCompletionRequest)


def test_defaults() -> None:
    chat = parse_request(json.dumps({"messages": [user("a")]}).encode(), ChatCompletionRequest)
    assert chat.params(DEFAULT_PARAMS) == DEFAULT_PARAMS
    assert (chat.stops, chat.num_logprobs, chat.has_usage_chunk) == ([], None, False)
    completion = parse_request(b'{"prompt": "a"}', CompletionRequest)
    assert completion.params(DEFAULT_PARAMS).max_tokens == 16
    assert completion.prompts == ["a"]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [("a", ["a"]), (["a", "b"], ["a", "b"]), ([1, 2], [[1, 2]]), ([[1], [2, 3]], [[1], [2, 3]])],
)
def test_forms_of_a_prompt(prompt: Any, expected: Any) -> None:
    assert parse_request(json.dumps({"prompt": prompt}).encode(), CompletionRequest).prompts == expected


def test_the_model() -> None:
    for name in (None, "", "a", "b"):
        check_model(name, ["a", "b"])
    with pytest.raises(Refusal, match="the model 'c' is not served: it is a here"):
        check_model("c", ["a", "b"])
