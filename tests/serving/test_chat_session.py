"""The steps of a reply: fitting the conversation, streaming chunks, and the content that goes into the history."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nanochat.common import UserError
from nanochat.engine import Engine
from nanochat.gpt import GPT, GPTConfig
from nanochat.layers.sampling_params import SamplingParams
from nanochat.serving.chat_session import (
    Chunk,
    fit_messages,
    generate_reply,
    has_ended,
    latest_source,
    stream_chunks,
    to_content,
)
from tests.support.scripted_engine import SPECIAL, TOKENIZER, ScriptedEngine, assistant, reply_ids, user

# Fit the conversation into the context


def exchanges(count: int, system: str | None = None) -> list[dict[str, Any]]:
    """`count` user messages with the replies between them; each message takes ten tokens."""
    messages: list[dict[str, Any]] = [] if system is None else [{"role": "system", "content": system}]
    for number in range(count):
        messages += [user(f"ask...{number:>2}"), assistant(f"say...{number:>2}")]
    return messages[:-1]


def test_a_conversation_that_fits_is_kept_whole() -> None:
    messages = exchanges(3)
    prompt = fit_messages(TOKENIZER, messages, 1000, 10)
    assert prompt.tokens == TOKENIZER.render_for_completion({"messages": messages})
    assert prompt.num_dropped == 0


@pytest.mark.parametrize("system", [None, "Be brief."])
def test_the_oldest_messages_are_dropped_with_their_replies(system: str | None) -> None:
    messages = exchanges(6, system)
    num_system = int(system is not None)
    whole_len = len(fit_messages(TOKENIZER, messages, 10_000, 0).tokens)
    seen = set()
    for context in range(60, whole_len + 12):
        ids, num_dropped = fit_messages(TOKENIZER, messages, context, 10)
        seen.add(num_dropped)
        assert num_dropped % 2 == 0
        assert len(ids) <= context - 10
        kept = messages[:num_system] + messages[num_system + num_dropped :]
        assert ids == TOKENIZER.render_for_completion({"messages": kept})
        if num_dropped:  # no more was dropped than necessary
            more = messages[:num_system] + messages[num_system + num_dropped - 2 :]
            assert len(TOKENIZER.render_for_completion({"messages": more})) > context - 10
        assert (system or "") in TOKENIZER.decode(ids)
        assert "ask... 5" in TOKENIZER.decode(ids)
    assert seen == set(range(0, max(seen) + 2, 2))
    assert len(seen) > 3


def test_a_last_message_that_is_too_long_is_refused_with_the_limit() -> None:
    messages = [*exchanges(2), assistant("ok"), user("x" * 100)]
    message = r"it has 104 tokens, and 80 fit \(the context is 90, of which 10 are reserved for the reply\); shorten it"
    with pytest.raises(UserError, match=message):
        fit_messages(TOKENIZER, messages, 90, 10)
    with pytest.raises(UserError, match="it has 107 tokens with the system message"):
        fit_messages(TOKENIZER, [{"role": "system", "content": "."}, user("x" * 100)], 90, 10)
    assert len(fit_messages(TOKENIZER, messages, 114, 10).tokens) == 104


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "at least one message"),
        ([user("a"), assistant("b")], "the last message must be the user's"),
        ([user("a"), user("b")], "message 2: role 'user' where 'assistant' is due"),
        ([{"role": "system", "content": "a"}], "must be followed by a user message"),
    ],
)
def test_a_conversation_without_a_question_is_refused(messages: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(UserError, match=message):
        fit_messages(TOKENIZER, messages, 100, 10)


# Chunks


def test_a_chunk_has_whole_characters() -> None:
    ids = TOKENIZER.encode("a€🙂")
    assert [len(TOKENIZER.decode_bytes([i])) for i in ids] == [1, 2, 1, 2, 2]
    assert list(stream_chunks(TOKENIZER, ids)) == [Chunk("text", "a"), Chunk("text", "€"), Chunk("text", "🙂")]


def test_an_incomplete_character_is_replaced_at_the_end_of_a_part() -> None:
    half = TOKENIZER.encode("€")[:1]
    ids = [*half, SPECIAL["<|python_start|>"], *half, SPECIAL["<|python_end|>"], *TOKENIZER.encode("b"), *half]
    assert list(stream_chunks(TOKENIZER, ids)) == [
        Chunk("text", "�"),
        *(Chunk("python", ""), Chunk("python", "�")),
        *(Chunk("text", "b"), Chunk("text", "�")),
    ]


def test_a_tool_call_and_its_result() -> None:
    content = [
        {"type": "text", "text": "So "},
        {"type": "python", "text": "6*7"},
        {"type": "python_output", "text": "42"},
        {"type": "text", "text": "!"},
    ]
    chunks = list(stream_chunks(TOKENIZER, reply_ids(content)))
    assert "".join(f"[{chunk.kind}]" if not chunk.text else chunk.text for chunk in chunks) == (
        "So [python]6*7[python_output]42!"
    )
    assert [chunk.kind for chunk in chunks] == ["text"] * 3 + ["python"] * 4 + ["python_output"] * 3 + ["text"]
    assert to_content(chunks) == content


def test_a_chunk_comes_before_the_next_token_is_taken() -> None:
    num_taken = 0

    def tokens() -> Iterator[int]:
        nonlocal num_taken
        for token in reply_ids("abc"):
            num_taken += 1
            yield token

    stream = stream_chunks(TOKENIZER, tokens())
    assert next(stream) == Chunk("text", "a")
    assert num_taken == 1


def test_unexpected_special_tokens_are_not_shown() -> None:
    ids = [SPECIAL["<|user_start|>"], *TOKENIZER.encode("a"), SPECIAL["<|python_end|>"], SPECIAL["<|bos|>"]]
    assert list(stream_chunks(TOKENIZER, ids)) == [Chunk("text", "a")]


def test_text_that_looks_like_a_special_token_is_text() -> None:
    text = "<|python_start|>1<|python_end|>"
    assert to_content(stream_chunks(TOKENIZER, reply_ids(text))) == text


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
contents = st.one_of(
    texts,
    st.lists(
        st.builds(lambda kind, text: {"type": kind, "text": text}, st.sampled_from(["python", "python_output"]), texts)
        | st.builds(lambda text: {"type": "text", "text": text}, texts.filter(bool)),
        max_size=6,
    ).filter(  # the text between two calls is one part
        lambda parts: not any(a["type"] == b["type"] == "text" for a, b in itertools.pairwise(parts))
    ),
)


@given(contents)
def test_the_history_renders_to_the_tokens_that_were_generated(content: Any) -> None:
    ids = reply_ids(content)
    assert reply_ids(to_content(stream_chunks(TOKENIZER, ids))) == ids


@given(st.lists(st.integers(0, TOKENIZER.get_vocab_size() - 1), max_size=30))
def test_any_tokens_make_a_valid_history(ids: list[int]) -> None:
    chunks = list(stream_chunks(TOKENIZER, ids))
    assert {chunk.kind for chunk in chunks} <= {"text", "python", "python_output"}
    messages = [user("?"), assistant(to_content(chunks)), user("and now?")]
    assert fit_messages(TOKENIZER, messages, 10_000, 1).num_dropped == 0


def test_a_reply_has_ended_if_its_last_token_ends_it() -> None:
    for name, expected in {"<|assistant_end|>": True, "<|bos|>": True, "<|user_end|>": False}.items():
        assert has_ended(TOKENIZER, [97, SPECIAL[name]]) == expected
    assert not has_ended(TOKENIZER, [SPECIAL["<|bos|>"], 97])
    assert not has_ended(TOKENIZER, [])


# Replies


def test_a_conversation_of_two_exchanges() -> None:
    call = [{"type": "python", "text": "1+1"}, {"type": "python_output", "text": "2"}, {"type": "text", "text": "2."}]
    replies = iter([reply_ids(call), reply_ids("Yes.")])
    engine = ScriptedEngine(lambda _: next(replies))
    params = SamplingParams(0.5, top_k=7, max_tokens=50, seed=9)
    messages = [user("1+1?")]
    messages.append(assistant(to_content(generate_reply(engine, messages, params))))  # type: ignore[arg-type]
    messages.append(user("Sure?"))
    reply = generate_reply(engine, messages, params)  # type: ignore[arg-type]
    assert to_content(reply) == "Yes."
    assert reply.tokens == reply_ids("Yes.")
    assert reply.has_ended
    (first_prompt, first_params), (second_prompt, _) = engine.calls
    assert first_params == params
    history = [*first_prompt, *reply_ids(call)]
    assert second_prompt == [*history, *TOKENIZER.render_for_completion({"messages": [user("Sure?")]})[1:]]


def test_closing_a_reply_stops_the_model() -> None:
    engine = ScriptedEngine(lambda _: reply_ids("abcdef"))
    reply = generate_reply(engine, [user("?")], SamplingParams())  # type: ignore[arg-type]
    stream = iter(reply)
    assert next(stream).text == "a"
    stream.close()  # type: ignore[attr-defined]
    assert (engine.num_generated, engine.num_closed_early) == (1, 1)
    assert not reply.has_ended


def test_errors_are_raised_before_the_first_chunk() -> None:
    engine = ScriptedEngine(lambda _: [], context=20)
    with pytest.raises(UserError, match="the message is too long"):
        generate_reply(engine, [user("x" * 40)], SamplingParams())  # type: ignore[arg-type]


def test_a_reply_of_a_real_engine() -> None:
    config = GPTConfig(
        sequence_len=32, vocab_size=TOKENIZER.get_vocab_size(), n_layer=1, n_head=1, n_kv_head=1, n_embd=16
    )
    model = GPT(config)
    model.init_weights(0)
    engine = Engine(model, TOKENIZER)
    torch.manual_seed(0)

    def chunks(seed: int) -> list[Chunk]:
        return list(generate_reply(engine, [user("?")], SamplingParams(max_tokens=8, seed=seed)))

    first = chunks(seed=3)
    assert first
    assert first == chunks(seed=3)
    assert first != chunks(seed=4)


# The default checkpoint


def test_the_latest_source_with_a_chat_model(base_dir: Path) -> None:
    with pytest.raises(UserError, match=r"no chat model in .*: train one with scripts.mid_train"):
        latest_source()

    def make_checkpoint(folder: str) -> None:
        path = base_dir / folder / "step_000001"
        path.mkdir(parents=True)
        (path / "meta.json").write_text("{}", encoding="utf-8")

    make_checkpoint("base_checkpoints/d4")
    with pytest.raises(UserError, match="no chat model in"):
        latest_source()
    make_checkpoint("mid_checkpoints/d4")
    assert latest_source() == "mid"
    make_checkpoint("chatsft_checkpoints/d4")
    assert latest_source() == "sft"
    make_checkpoint("chatrl_checkpoints/d2")
    assert (latest_source(), latest_source("d4"), latest_source("d2")) == ("rl", "sft", "rl")
    with pytest.raises(UserError, match="no chat model with the tag d7 in"):
        latest_source("d7")
