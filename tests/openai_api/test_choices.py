"""Choices: text, calls and log probabilities of a completion, in deltas that add up to the whole."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat.inference.generation_request import TokenEvent
from nanochat.openai_api.choices import ChoiceBuilder, Delta, TokenLogprob, chat_logprobs, completion_logprobs
from tests.openai_api.test_stop_strings import cut_whole_text
from tests.support.scripted_engine import SPECIAL, TOKENIZER, reply_ids

Parts = list[dict[str, str]]


def build(tokens: list[int], stops: list[str] | None = None, is_cut: bool = False) -> tuple[list[Delta], ChoiceBuilder]:
    """The deltas of some tokens, the last one that of the end."""
    builder = ChoiceBuilder(TOKENIZER, stops or [])
    deltas = [builder.push(TokenEvent(token, False, -1.0 - token, [])) for token in tokens]
    return [*deltas, builder.finish(is_cut)], builder


def joined(deltas: list[Delta]) -> Delta:
    total = Delta()
    for delta in deltas:
        total.add(delta)
    return total


parts = st.lists(
    st.fixed_dictionaries(
        {"type": st.sampled_from(["text", "python", "python_output"]), "text": st.text("ab€🙂", min_size=1, max_size=5)}
    ),
    max_size=6,
)


@given(parts, st.lists(st.text("ab€", min_size=1, max_size=3), max_size=2))
def test_the_deltas_add_up_to_the_reply(content: Parts, stops: list[str]) -> None:
    tokens = reply_ids(content or "")
    deltas, builder = build(tokens, stops)
    total = joined(deltas)
    text = "".join(part["text"] for part in content if part["type"] == "text")
    expected, found = cut_whole_text(text, stops)
    assert (total.text, builder.has_stopped) == (expected, found is not None)
    assert [call.index for call in total.calls] == list(range(len(total.calls)))
    assert all(call.offset <= len(expected) for call in total.calls)
    if found is None:
        assert builder.num_tokens == len(tokens)
        shown = "".join(call.expression + (call.result or "") for call in total.calls)
        assert shown == "".join(part["text"] for part in content if part["type"] != "text")
        ids = [entry.token for entry in total.logprobs]
        assert TOKENIZER.decode_bytes(ids).decode("utf-8") == text
        for entry in total.logprobs:
            assert entry.logprob == -1.0 - entry.token


def test_a_call_is_given_once_it_is_complete() -> None:
    content = [
        {"type": "text", "text": "a"},
        {"type": "python", "text": "6*7"},
        {"type": "python_output", "text": "42"},
    ]
    deltas, _ = build([*reply_ids(content)[:-1], *TOKENIZER.encode("b")])
    [(position, delta)] = [(index, delta) for index, delta in enumerate(deltas) if delta.calls]
    assert [call.as_json() for call in delta.calls] == [{"index": 0, "offset": 1, "expression": "6*7", "result": "42"}]
    assert position == len(deltas) - 3  # with the end of the result: "b" and the end of the reply follow


@pytest.mark.parametrize(
    ("tail", "expected"),
    [
        ([SPECIAL["<|python_start|>"], ord("1")], [("1", None)]),
        ([SPECIAL["<|python_start|>"], ord("1"), SPECIAL["<|python_end|>"]], [("1", None)]),
        ([SPECIAL["<|python_start|>"], ord("1"), SPECIAL["<|python_end|>"], ord("x")], [("1", None)]),
        ([SPECIAL["<|output_start|>"], ord("1"), SPECIAL["<|output_end|>"]], [("", "1")]),
        ([SPECIAL["<|python_start|>"]] * 2, [("", None), ("", None)]),
    ],
)
def test_a_reply_that_ends_within_a_call(tail: list[int], expected: list[tuple[str, str | None]]) -> None:
    deltas, _ = build(tail, is_cut=True)
    assert [(call.expression, call.result) for call in joined(deltas).calls] == expected


@pytest.mark.parametrize(("is_cut", "expected"), [(True, "a"), (False, "a\ufffd")])
def test_half_a_character_at_the_end(is_cut: bool, expected: str) -> None:
    deltas, _ = build([ord("a"), 0xE2], is_cut=is_cut)
    assert joined(deltas).text == expected


def test_a_forced_token_has_no_log_probability() -> None:
    builder = ChoiceBuilder(TOKENIZER)
    assert builder.push(TokenEvent(ord("a"), True, -1.0, [])).logprobs == []
    assert len(builder.push(TokenEvent(ord("b"), False, -1.0, [])).logprobs) == 1


def test_log_probabilities_wait_for_their_text() -> None:
    builder = ChoiceBuilder(TOKENIZER, ["abc"])
    assert not builder.push(TokenEvent(ord("a"), False, -1.0, []))
    delta = builder.push(TokenEvent(ord("x"), False, -2.0, []))
    assert (delta.text, [entry.logprob for entry in delta.logprobs]) == ("ax", [-1.0, -2.0])


def test_shapes() -> None:
    entry = TokenLogprob(0xE2, -0.5, [(0xE2, -0.5), (0xE3, -1.0)], 3)
    chat: Any = chat_logprobs(TOKENIZER, [entry])
    assert chat["content"][0]["token"] == "\ufffd"
    assert chat["content"][0]["bytes"] == [0xE2]
    assert [top["bytes"] for top in chat["content"][0]["top_logprobs"]] == [[0xE2], [0xE3]]
    assert completion_logprobs(TOKENIZER, [entry], start=10) == {
        "tokens": ["\ufffd"],
        "token_logprobs": [-0.5],
        "top_logprobs": [{"\ufffd": -0.5}],  # both have the same text
        "text_offset": [13],
    }
