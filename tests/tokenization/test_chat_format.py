"""The loss mask of conversations in the batches that the model is trained on, and the treatment of malformed ones."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nanochat.common import UserError
from nanochat.data.packing import conversation_batches, packed_rows
from nanochat.gpt import GPT, GPTConfig
from nanochat.runtime import Runtime
from nanochat.serving.chat_request import DEFAULT_PARAMS, parse_request
from nanochat.tokenization.chat_format import check_conversation, plain_messages, steering_key
from tasks.customjson import parse_conversation
from tests.support.conversation_cases import ACCEPTED, REFUSED, REFUSED_BY_WORD
from tests.support.refusals import refusal
from tests.support.talks import SPECIAL, TOKENIZER, Talk, talk

CPU = Runtime(0, 0, 1, torch.device("cpu"), torch.float32, 0)
T = 100
BOS, USER, USER_END = "<|bos|>", "<|user_start|>", "<|user_end|>"
ASSISTANT, END = "<|assistant_start|>", "<|assistant_end|>"
CALL, CALL_END, OUT, OUT_END = "<|python_start|>", "<|python_end|>", "<|output_start|>", "<|output_end|>"


def batch_of(*talks: Talk, sequence_len: int = T) -> list[list[tuple[str, str | None]]]:
    """Return the rows of the first batch as (input token, target token), by name; None = not trained on."""
    loader = conversation_batches(list(talks), TOKENIZER, CPU, batch_size=2, sequence_len=sequence_len)
    batch = next(loader)
    loader.close()

    def name(token: int) -> str | None:
        return None if token == -1 else TOKENIZER.decode([token])

    return [
        [(str(name(i)), name(t)) for i, t in zip(inputs, targets, strict=True)]
        for inputs, targets in zip(batch.inputs.tolist(), batch.targets.tolist(), strict=True)
    ]


def targets_of(*talks: Talk, sequence_len: int = T) -> str:
    """Return the targets of the first row, joined."""
    return "".join(target for _, target in batch_of(*talks, sequence_len=sequence_len)[0] if target)


def test_every_token_of_a_batch() -> None:
    """Each input and target of a row with a system message, two turns and a tool call; the other row is padding."""
    answer = [
        {"type": "text", "text": "So"},
        {"type": "python", "text": "2*3"},
        {"type": "python_output", "text": "6"},
        {"type": "text", "text": "!"},
    ]
    conversation = talk("a", answer, "<|bos|>b", "ok", system="S")
    row, padding = batch_of(conversation)
    expected: list[tuple[str, str | None]] = [
        *[(BOS, None), (USER, None), ("S", None), ("\n", None), ("\n", None), ("a", None), (USER_END, None)],
        *[(ASSISTANT, "S"), ("S", "o"), ("o", CALL)],
        *[(CALL, "2"), ("2", "*"), ("*", "3"), ("3", CALL_END), (CALL_END, None)],
        *[(OUT, None), ("6", None), (OUT_END, "!")],
        *[("!", END), (END, None)],
        *[(USER, None), *((letter, None) for letter in "<|bos|>b"), (USER_END, None)],
        *[(ASSISTANT, "o"), ("o", "k"), ("k", END), (END, None)],
    ]
    assert row == [*expected, *[(BOS, None)] * (T - len(expected))]
    assert padding == [(BOS, None)] * T


def test_two_conversations_in_a_row() -> None:
    """The first token of the second conversation is not a target of the first."""
    row, _ = batch_of(talk("a", "b"), talk("c", "d"))
    first = [(BOS, None), (USER, None), ("x", None), (USER_END, None), (ASSISTANT, "y"), ("y", END), (END, None)]
    orders = []
    for pairs in (("ab", "cd"), ("cd", "ab")):
        names = ({"x": pair[0], "y": pair[1]} for pair in pairs)
        orders.append([(n.get(i, i), n.get(str(t), t)) for n in names for i, t in first])
    assert row[:14] in orders
    assert row[14:] == [(BOS, None)] * (T - 14)


def test_a_full_row_has_its_last_target() -> None:
    """A row has T + 1 tokens, of which the last is only a target."""
    conversation = talk("a", "b" * 10)
    ids, _ = TOKENIZER.render_conversation(conversation)
    assert targets_of(conversation, sequence_len=len(ids) - 1) == "b" * 10 + END
    assert batch_of(conversation, sequence_len=len(ids) - 1)[0][-1] == ("b", END)


# Conversations for rows of 16 + 1 tokens (<|bos|>, two tokens around each turn, a token for each character), and their
# targets, or "" if there are none, or the beginning of an error.
CASES: dict[str, tuple[Any, str]] = {
    "single turn": (talk("q", "a"), "a" + END),
    "too long, cut at a turn": (talk("q", "a", "q", "much longer"), "a" + END),
    "too long by one token": (talk("q", "abc", "q", "four"), "abc" + END),
    "as long as a row": (talk("q", "abc", "q", "led"), "abc" + END + "led" + END),
    "too long in the first answer": (talk("q", "0123456789abcdef"), "0123456789ab"),
    "last question without an answer": (talk("q", "a", "q"), "a" + END),
    "only a tool call": (talk("q", ("1+1", "2")), CALL + "1+1" + CALL_END + END),
    "only a tool's output": (talk("q", [{"type": "python_output", "text": "2"}]), END),
    "an empty answer": (talk("q", ""), END),
    "an answer without parts": (talk("q", []), END),
    "an empty question": (talk("", "a"), "a" + END),
    "an empty system message": (talk("q", "a", system=""), "a" + END),
    "no answer": (talk("q"), ""),
    "too long in the first question": (talk("q" * 16, "a"), ""),
    "a system message that is too long": (talk("q", "a", system="s" * 16), ""),
    "two user messages in a row": ({"messages": [{"role": "user", "content": "a"}] * 2}, "message 2: role 'user'"),
    "the assistant first": ({"messages": [{"role": "assistant", "content": "a"}]}, "message 1: role 'assistant'"),
    "two assistant messages in a row": (
        {"messages": [*talk("q", "a")["messages"], {"role": "assistant", "content": "a"}]},
        "message 3: role 'assistant'",
    ),
    "a system message later": (
        {"messages": [*talk("q", "a")["messages"], {"role": "system", "content": "s"}]},
        "message 3: role 'system'",
    ),
    "only a system message": ({"messages": [{"role": "system", "content": "s"}]}, "message 1: a system message"),
    "no message": ({"messages": []}, "at least one message"),
    "nothing": ({}, "a conversation must be"),
}


@pytest.mark.parametrize("name", CASES)
def test_unusual_conversations(name: str) -> None:
    """Each gives its targets, is left out, or raises an error with its number; the ordinary one is not affected."""
    conversation, expected = CASES[name]
    ordinary = talk("p", "z")
    if expected and not expected.startswith(("message", "at least", "a conversation")):
        rows = list(packed_rows([ordinary, conversation], TOKENIZER, 16, 0, num_epochs=1))
        targets = [TOKENIZER.decode(row.targets[row.targets != -1].tolist()) for row in rows]
        assert sorted(targets) in (sorted(["z" + END, expected]), ["z" + END + expected], [expected + "z" + END])
        assert rows[-1].cursor.left_out == 0
    elif not expected:
        [row] = packed_rows([ordinary, conversation], TOKENIZER, 16, 0, num_epochs=1)
        assert TOKENIZER.decode(row.targets[row.targets != -1].tolist()) == "z" + END
        assert row.cursor.left_out == 1
    else:
        with pytest.raises(UserError, match=f"conversation 1: .*{expected}"):
            list(packed_rows([ordinary, conversation], TOKENIZER, 16, 0, num_epochs=1))


def test_only_trained_tokens_have_a_gradient() -> None:
    """Only the logits before a trained token have a gradient."""
    model = GPT(GPTConfig(sequence_len=T, vocab_size=265, n_layer=1, n_head=1, n_kv_head=1, n_embd=16))
    model.init_weights()
    loader = conversation_batches([talk("a", ("1+1", "2"), "b", "c", system="S")], TOKENIZER, CPU, 1, T)
    batch = next(loader)
    loader.close()
    logits = model(batch.inputs).detach().requires_grad_()
    losses = torch.nn.functional.cross_entropy(logits[0], batch.targets[0], ignore_index=-1, reduction="sum")
    losses.backward()
    assert logits.grad is not None
    has_gradient = logits.grad[0].abs().sum(-1) > 0
    next_token = dict(itertools.pairwise(batch.inputs[0].tolist()))
    assert has_gradient.tolist() == (batch.targets[0] != -1).tolist()
    assert int(has_gradient.sum()) == 8
    assert next_token[SPECIAL[OUT]] == ord("2")  # the tool's result is an input
    assert losses.item() == pytest.approx(model(batch.inputs, batch.targets, loss_reduction="sum").item())


# --- as other programs write them: the same is accepted, and refused, everywhere --------------------------------------


def by_file(messages: list[Any]) -> list[int]:
    """Ids of a line of a conversation file."""
    return TOKENIZER.render_conversation(parse_conversation(json.dumps(messages).encode()))[0]


def by_request(messages: list[Any]) -> list[int]:
    """Ids of the messages of a request to the web server."""
    request = parse_request(json.dumps({"messages": messages}).encode(), DEFAULT_PARAMS)
    last = [{"role": "assistant", "content": request.beginning}] if request.beginning else []
    return TOKENIZER.render_conversation({"messages": [*request.messages, *last]})[0]


DOORS = {"file": by_file, "request": by_request}


@pytest.mark.parametrize("door", DOORS.values(), ids=DOORS)
@pytest.mark.parametrize("name", ACCEPTED)
def test_accepted_everywhere(name: str, door: Callable[[list[Any]], list[int]]) -> None:
    messages, plain = ACCEPTED[name]
    assert door(messages) == TOKENIZER.render_conversation({"messages": plain})[0]
    assert plain_messages({"messages": messages}) == plain


@pytest.mark.parametrize("door", DOORS.values(), ids=DOORS)
@pytest.mark.parametrize("name", REFUSED | REFUSED_BY_WORD)
def test_refused_everywhere(name: str, door: Callable[[list[Any]], list[int]]) -> None:
    messages, words = (REFUSED | REFUSED_BY_WORD)[name]
    with pytest.raises(UserError) as caught:
        door(messages)
    if name != "no message":  # each names it in its own words
        assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError) as caught:
        TOKENIZER.render_conversation({"messages": messages})
    assert words in str(caught.value)


@pytest.mark.parametrize("weights", [(0, 0), (0, 1), (1, 0), (1, 1), (None, 0), (0.0, 1.0)])
def test_weight(weights: tuple[Any, Any]) -> None:
    """The ids of a conversation do not depend on weights; its targets are those of the answers of weight 1."""
    conversation = talk("q", ("1+1", "2"), "r", "long")
    ids, mask = TOKENIZER.render_conversation(conversation)
    second = mask.index(1, len(mask) - mask[::-1].index(0))  # the first trained token of the second answer
    for index, weight in zip((1, 3), weights, strict=True):
        conversation["messages"][index]["weight"] = weight
    weighted_ids, weighted_mask = TOKENIZER.render_conversation(conversation)
    kept = [weight is None or weight == 1 for weight in weights]
    expected = [int(is_trained and kept[position >= second]) for position, is_trained in enumerate(mask)]
    assert weighted_ids == (ids[: len(weighted_ids)] if any(kept) else [])
    assert weighted_mask == expected[: len(weighted_ids)]
    assert not any(expected[len(weighted_ids) :])  # what is left out after the last trained answer has no target
    if any(kept):
        targets = targets_of(conversation)
        assert targets == (CALL + "1+1" + CALL_END + END) * kept[0] + ("long" + END) * kept[1]


STEERING = st.sampled_from(
    """
    weight weights train trainable loss loss_weight mask lossMask isTrained name tool_calls toolCalls TOOL_CALLS tools
    function_call tool_call_id refusal images audio reasoning_content thinking ignore
    """.split()
)
HARMLESS = st.sampled_from(
    """
    id source source_name username timestamp lang constraints tokens glossary lossless toolbox metadata score model
    created filename
    """.split()
)
VALUES = st.integers() | st.booleans() | st.text(min_size=1) | st.just([1]) | st.just({"a": 1})


@given(STEERING, HARMLESS, VALUES)
def test_keys(steering: str, harmless: str, value: Any) -> None:
    """A key that steers training is refused with its name; other keys change nothing."""
    assert steering_key({harmless: value}) is None
    assert (steering_key({harmless: value, steering: value}) or "").startswith(f"{steering} is ")
    assert steering_key(dict.fromkeys([steering], None)) is None


part_values = st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=5)
odd = st.recursive(
    part_values,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["type", "text", "role", "content", "weight", "name"]), inner)
    ),
    max_leaves=6,
)
parts = st.lists(
    st.fixed_dictionaries(
        {"type": st.sampled_from(["text", "python", "image_url"]), "text": st.text(max_size=4) | odd}
    ),
    max_size=3,
)
odd_messages = st.fixed_dictionaries(
    {
        "role": st.sampled_from(["system", "developer", "user", "assistant", "tool"]) | odd,
        "content": st.text(max_size=5) | parts | odd,
    },
    optional={"weight": st.sampled_from([0, 1]) | odd, "name": odd, "tool_calls": odd, "id": odd},
)


@given(st.lists(odd_messages | odd, max_size=4))
def test_any_messages(messages: list[Any]) -> None:
    """Messages are accepted, and equal to their plain form, or refused in one line, in a file as in a request."""
    conversation = {"messages": messages}
    if refusal(check_conversation, conversation):
        assert refusal(by_request, messages)
        return
    turns = check_conversation(conversation)
    assert check_conversation({"messages": plain_messages(conversation)}) == turns
    ids = by_request(messages)
    if any(span.is_trained for turn in turns for span in turn):
        assert by_file(messages) == ids
    else:
        with pytest.raises(UserError, match="nothing to learn from"):
            by_file(messages)
