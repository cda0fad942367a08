"""What of a conversation fits, and answers as they stream in: what comes out is what the model would be shown next."""

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
from nanochat.serving.chat_session import Piece, fit_messages, has_ended, join, last_stage, pieces, reply
from tests.support.scripted import SPECIAL, TOKENIZER, Scripted, answer_ids, assistant, user

# Fitting


def turns(count: int, system: str | None = None) -> list[dict[str, Any]]:
    """`count` questions with the answers between them; each question and each answer takes ten tokens in all."""
    asked: list[dict[str, Any]] = [] if system is None else [{"role": "system", "content": system}]
    for number in range(count):
        asked += [user(f"ask...{number:>2}"), assistant(f"say...{number:>2}")]
    return asked[:-1]


def test_what_fits_is_asked_whole() -> None:
    messages = turns(3)
    ids, dropped = fit_messages(TOKENIZER, messages, 1000, 10)
    assert (ids, dropped) == (TOKENIZER.render_for_completion({"messages": messages}), 0)


@pytest.mark.parametrize("system", [None, "Be brief."])
def test_the_oldest_questions_go_with_their_answers(system: str | None) -> None:
    messages = turns(6, system)
    whole = len(fit_messages(TOKENIZER, messages, 10_000, 0)[0])
    seen = set()
    for context in range(60, whole + 12):
        ids, dropped = fit_messages(TOKENIZER, messages, context, 10)
        seen.add(dropped)
        assert dropped % 2 == 0
        assert len(ids) <= context - 10
        kept = messages[: system is not None] + messages[(system is not None) + dropped :]
        assert ids == TOKENIZER.render_for_completion({"messages": kept})
        if dropped:  # no more was left out than had to be
            more = messages[: system is not None] + messages[(system is not None) + dropped - 2 :]
            assert len(TOKENIZER.render_for_completion({"messages": more})) > context - 10
        assert (system or "") in TOKENIZER.decode(ids)
        assert "ask... 5" in TOKENIZER.decode(ids)
    assert seen == set(range(0, max(seen) + 2, 2))
    assert len(seen) > 3


def test_a_last_message_that_is_too_long_is_named_with_what_fits() -> None:
    messages = [*turns(2), assistant("ok"), user("x" * 100)]
    with pytest.raises(UserError, match=r"it takes 104 tokens, and 80 fit \(the context is 90, of which 10 are kept"):
        fit_messages(TOKENIZER, messages, 90, 10)
    with pytest.raises(UserError, match="it takes 107 tokens with the system message"):
        fit_messages(TOKENIZER, [{"role": "system", "content": "."}, user("x" * 100)], 90, 10)
    assert len(fit_messages(TOKENIZER, messages, 114, 10)[0]) == 104


@pytest.mark.parametrize(
    ("messages", "why"),
    [
        ([], "at least one message"),
        ([user("a"), assistant("b")], "the last message must be the user's"),
        ([user("a"), user("b")], "message 2: role 'user' where 'assistant' is due"),
        ([{"role": "system", "content": "a"}], "must be followed by a user message"),
    ],
)
def test_what_asks_nothing_is_refused(messages: list[dict[str, Any]], why: str) -> None:
    with pytest.raises(UserError, match=why):
        fit_messages(TOKENIZER, messages, 100, 10)


# Pieces


def test_a_character_is_shown_when_it_is_whole() -> None:
    ids = TOKENIZER.encode("a€🙂")
    assert [len(TOKENIZER.decode_bytes([i])) for i in ids] == [1, 2, 1, 2, 2]
    assert list(pieces(TOKENIZER, ids)) == [Piece("text", "a"), Piece("text", "€"), Piece("text", "🙂")]


def test_half_a_character_is_given_up_where_a_part_or_the_answer_ends() -> None:
    half = TOKENIZER.encode("€")[:1]
    ids = [*half, SPECIAL["<|python_start|>"], *half, SPECIAL["<|python_end|>"], *TOKENIZER.encode("b"), *half]
    assert list(pieces(TOKENIZER, ids)) == [
        Piece("text", "�"),
        *(Piece("python", ""), Piece("python", "�")),
        *(Piece("text", "b"), Piece("text", "�")),
    ]


def test_a_call_and_its_result() -> None:
    content = [
        {"type": "text", "text": "So "},
        {"type": "python", "text": "6*7"},
        {"type": "python_output", "text": "42"},
        {"type": "text", "text": "!"},
    ]
    found = list(pieces(TOKENIZER, answer_ids(content)))
    assert "".join(f"[{piece.kind}]" if not piece.text else piece.text for piece in found) == (
        "So [python]6*7[python_output]42!"
    )
    assert [piece.kind for piece in found] == ["text"] * 3 + ["python"] * 4 + ["python_output"] * 3 + ["text"]
    assert join(found) == content


def test_pieces_come_as_the_tokens_do() -> None:
    taken = []

    def source() -> Iterator[int]:
        for token in answer_ids("abc"):
            taken.append(token)
            yield token

    stream = pieces(TOKENIZER, source())
    assert next(stream) == Piece("text", "a")
    assert len(taken) == 1


def test_special_tokens_out_of_place_are_not_shown() -> None:
    ids = [SPECIAL["<|user_start|>"], *TOKENIZER.encode("a"), SPECIAL["<|python_end|>"], SPECIAL["<|bos|>"]]
    assert list(pieces(TOKENIZER, ids)) == [Piece("text", "a")]


def test_text_that_looks_like_a_special_token_is_text() -> None:
    assert join(pieces(TOKENIZER, answer_ids("<|python_start|>1<|python_end|>"))) == "<|python_start|>1<|python_end|>"


text = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
contents = st.one_of(
    text,
    st.lists(
        st.builds(lambda kind, text: {"type": kind, "text": text}, st.sampled_from(["python", "python_output"]), text)
        | st.builds(lambda text: {"type": "text", "text": text}, text.filter(bool)),
        max_size=6,
    ).filter(  # the text between two calls is one part
        lambda parts: not any(a["type"] == b["type"] == "text" for a, b in itertools.pairwise(parts))
    ),
)


@given(contents)
def test_the_next_turn_renders_the_tokens_that_were_said(content: Any) -> None:
    ids = answer_ids(content)
    assert answer_ids(join(pieces(TOKENIZER, ids))) == ids


@given(st.lists(st.integers(0, TOKENIZER.get_vocab_size() - 1), max_size=30))
def test_whatever_a_model_says_can_stand_in_the_history(ids: list[int]) -> None:
    found = list(pieces(TOKENIZER, ids))
    assert {piece.kind for piece in found} <= {"text", "python", "python_output"}
    messages = [user("?"), assistant(join(found)), user("and now?")]
    assert fit_messages(TOKENIZER, messages, 10_000, 1)[1] == 0


def test_whether_the_model_ended_it() -> None:
    for name, ended in {"<|assistant_end|>": True, "<|bos|>": True, "<|user_end|>": False}.items():
        assert has_ended(TOKENIZER, [97, SPECIAL[name]]) == ended
    assert not has_ended(TOKENIZER, [SPECIAL["<|bos|>"], 97])
    assert not has_ended(TOKENIZER, [])


# Replies


def test_a_conversation_of_two_turns() -> None:
    call = [{"type": "python", "text": "1+1"}, {"type": "python_output", "text": "2"}, {"type": "text", "text": "2."}]
    answers = iter([answer_ids(call), answer_ids("Yes.")])
    engine = Scripted(lambda _: next(answers))
    messages = [user("1+1?")]
    params = SamplingParams(0.5, top_k=7, max_tokens=50, seed=9)
    messages.append(assistant(join(reply(engine, messages, params))))  # type: ignore[arg-type]
    messages.append(user("Sure?"))
    assert join(reply(engine, messages, params)) == "Yes."  # type: ignore[arg-type]
    (first, first_params), (second, _) = engine.asked
    assert first_params == params
    said = [*first, *answer_ids(call)]
    assert second == [*said, *TOKENIZER.render_for_completion({"messages": [user("Sure?")]})[1:]]


def test_a_reply_that_is_closed_stops_the_model() -> None:
    engine = Scripted(lambda _: answer_ids("abcdef"))
    stream = reply(engine, [user("?")], SamplingParams())  # type: ignore[arg-type]
    assert next(stream).text == "a"
    stream.close()  # type: ignore[attr-defined]
    assert (engine.said, engine.closed) == (1, 1)


def test_mistakes_are_told_before_the_first_piece() -> None:
    engine = Scripted(lambda _: [], context=20)
    with pytest.raises(UserError, match="the message is too long"):
        reply(engine, [user("x" * 40)], SamplingParams())  # type: ignore[arg-type]


def test_a_real_engine_answers() -> None:
    config = GPTConfig(
        sequence_len=32, vocab_size=TOKENIZER.get_vocab_size(), n_layer=1, n_head=1, n_kv_head=1, n_embd=16
    )
    model = GPT(config)
    model.init_weights(0)
    engine = Engine(model, TOKENIZER)
    torch.manual_seed(0)
    first = list(reply(engine, [user("?")], SamplingParams(max_tokens=8, seed=3)))
    assert first
    assert first == list(reply(engine, [user("?")], SamplingParams(max_tokens=8, seed=3)))
    assert first != list(reply(engine, [user("?")], SamplingParams(max_tokens=8, seed=4)))


# Which model


def test_the_last_stage_that_can_talk(base_dir: Path) -> None:
    with pytest.raises(UserError, match=r"no model to talk to in .*: train one with scripts.mid_train"):
        last_stage()

    def make(folder: str) -> None:
        path = base_dir / folder / "step_000001"
        path.mkdir(parents=True)
        (path / "meta.json").write_text("{}", encoding="utf-8")

    make("base_checkpoints/d4")
    with pytest.raises(UserError, match="no model to talk to"):
        last_stage()
    make("mid_checkpoints/d4")
    assert last_stage() == "mid"
    make("chatsft_checkpoints/d4")
    assert last_stage() == "sft"
    make("chatrl_checkpoints/d2")
    assert (last_stage(), last_stage("d4"), last_stage("d2")) == ("rl", "sft", "rl")
    with pytest.raises(UserError, match="no model called d7 to talk to"):
        last_stage("d7")
