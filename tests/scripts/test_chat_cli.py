"""The chat script: conversations with a scripted engine, its settings, and a real process in a real terminal."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from nanochat.checkpoint_manager import run_dir, save_checkpoint
from nanochat.common import UserError, visible
from nanochat.gpt import GPT, GPTConfig
from nanochat.layers.sampling_params import SamplingParams
from nanochat.quoting.weights import default_weights
from nanochat.serving.sources import DocumentSources
from nanochat.serving.terminal import Screen
from scripts import chat_cli
from scripts.chat_cli import Chat, Config, main, run_chat
from tests.support.documents import make_index
from tests.support.scripted_engine import (
    SPECIAL,
    TOKENIZER,
    ScriptedEngine,
    assistant,
    last_user_text,
    reply_ids,
    user,
)

ROOT = Path(__file__).resolve().parents[2]


def echo(prompt: list[int]) -> list[int]:
    """Reply with the last message, and the number of user messages in the prompt."""
    return reply_ids(f"{last_user_text(prompt)} {prompt.count(SPECIAL['<|user_start|>'])}")


def make_chat(script: Callable[[list[int]], Iterable[int]] = echo, context: int = 256, **settings: Any) -> Chat:
    return Chat(ScriptedEngine(script, context), Config(**settings), Screen(sys.stdout))  # type: ignore[arg-type]


def run_with_input(monkeypatch: pytest.MonkeyPatch, chat: Chat, *lines: str | type[BaseException]) -> None:
    """Run the chat with these lines as the user's input, or exceptions in their place; then the input ends."""
    remaining = iter([*lines, EOFError])

    def read() -> str:
        line = next(remaining)
        if isinstance(line, str):
            return line
        raise line

    monkeypatch.setattr(chat_cli, "read_message", read)
    run_chat(chat)


# A conversation


def test_the_history_is_kept_until_it_is_cleared(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    chat = make_chat()
    run_with_input(monkeypatch, chat, "one", "", "  two ", "/clear", "three")
    assert capsys.readouterr().out.split("\n") == [
        *("one 1", "", "two 2", ""),
        *("(cleared: a new conversation begins)", "three 1", "", "", ""),
    ]
    assert chat.messages == [user("three"), assistant("three 1")]


def test_the_prompt_has_the_whole_history(monkeypatch: pytest.MonkeyPatch) -> None:
    content = [{"type": "python", "text": "1+1"}, {"type": "python_output", "text": "2"}, {"type": "text", "text": "!"}]
    chat = make_chat(lambda _: reply_ids(content), temperature=0.3, top_k=7, max_tokens=99, seed=5)
    run_with_input(monkeypatch, chat, "a", "b")
    messages = [user("a"), assistant(content), user("b"), assistant("")]
    scripted: Any = chat.engine
    assert scripted.calls == [
        (TOKENIZER.render_for_completion({"messages": messages[:2]}), SamplingParams(0.3, 7, 99, seed=5)),
        (TOKENIZER.render_for_completion({"messages": messages}), SamplingParams(0.3, 7, 99, seed=6)),
    ]
    assert chat.messages[-1] == assistant(content)


def test_old_messages_that_do_not_fit_are_dropped_with_a_notice(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    chat = make_chat(context=120)
    run_with_input(monkeypatch, chat, *(f"{i}" * 20 for i in range(4)))
    shown = [line for line in capsys.readouterr().out.split("\n") if line]
    assert shown == [
        f"{'0' * 20} 1",
        f"{'1' * 20} 2",
        "(the oldest 2 messages no longer fit and were dropped)",
        f"{'2' * 20} 2",
        "(the oldest 2 messages no longer fit and were dropped)",
        f"{'3' * 20} 2",
    ]
    assert [message["content"][0] for message in chat.messages] == ["2", "2", "3", "3"]


def test_a_message_that_is_too_long_is_refused_and_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    chat = make_chat()
    run_with_input(monkeypatch, chat, "a", "x\n" * 500, "b")
    lines = [line for line in capsys.readouterr().out.split("\n") if line]
    assert lines[0] == "a 1"
    assert lines[1].startswith("(the message is too long: it has 1003 tokens, and 192 fit")
    assert lines[2:] == ["b 2"]


@pytest.mark.parametrize("num_tokens", [0, 3])
def test_ctrl_c_stops_a_reply_and_keeps_its_beginning(
    num_tokens: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def script(prompt: list[int]) -> Iterator[int]:
        yield from TOKENIZER.encode("abc")[:num_tokens]
        if last_user_text(prompt) == "go":
            raise KeyboardInterrupt
        yield from reply_ids("")

    chat = make_chat(script)
    run_with_input(monkeypatch, chat, "go", "on")
    assert capsys.readouterr().out.split("\n")[:2] == ["abc"[:num_tokens], "(stopped)"]
    first = [user("go"), assistant("abc")] if num_tokens else []  # a message without a reply is dropped
    assert chat.messages == ([*first, user("on"), assistant("abc")] if num_tokens else [])


def test_a_reply_that_was_cut_off_has_a_notice(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_with_input(monkeypatch, make_chat(lambda _: reply_ids("abcdef"), max_tokens=3), "q")
    assert capsys.readouterr().out.split("\n")[:2] == ["abc", "(cut off: the reply reached its maximum length)"]


def test_commands(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    chat = make_chat()
    run_with_input(monkeypatch, chat, "/help", "/nothing", "/", "/usr/bin is what?", "/quit", "never asked")
    out = capsys.readouterr().out
    assert "/clear   start a new conversation" in out
    assert "(/nothing is not a command; /help lists them)" in out
    assert "(/ is not a command" in out
    assert "/usr/bin is what? 1" in out
    assert "never" not in out


def test_the_second_ctrl_c_at_the_prompt_exits(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stop = KeyboardInterrupt
    run_with_input(monkeypatch, make_chat(), stop, "a", stop, stop, "never asked")
    out = capsys.readouterr().out
    assert out.count("(Ctrl-C again, Ctrl-D or /quit exits)") == 2
    assert "a 1" in out
    assert "never" not in out


# The documents


@pytest.fixture(params=[True, False], ids=["grounded", "plain"])
def documents(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[DocumentSources]:
    documents = DocumentSources(make_index(tmp_path), request.param)
    yield documents
    documents.close()


def test_the_sources_of_an_answer(
    documents: DocumentSources, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def script(prompt: list[int]) -> list[int]:
        assert last_user_text(prompt).startswith(">") == (documents.is_grounded and "giraffe" not in str(prompt))
        return reply_ids("Wait for three minutes.")

    engine: Any = ScriptedEngine(script, context=2048)
    chat = Chat(engine, Config(), Screen(sys.stdout), documents)
    run_with_input(monkeypatch, chat, "How do I brew tea?", "/sources", "/clear", "/sources")
    lines = capsys.readouterr().out.split("\n")
    assert lines[0] == "Wait for three minutes."
    assert lines[1] == "[1] drinks/tea.md: Tea / How to brew tea" + " (read before the answer)" * documents.is_grounded
    shown = lines.index(lines[1], 2)
    assert lines[shown + 1].startswith("Boil water. Pour")
    assert "(no answer yet, or no passage for it)" in lines[shown + 2 :]
    assert chat.messages == []
    run_with_input(monkeypatch, make_chat(), "/sources")
    assert "(no documents are indexed" in capsys.readouterr().out


def test_hostile_documents_are_shown_as_escapes(
    documents: DocumentSources, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    engine: Any = ScriptedEngine(lambda _: reply_ids("It lays eggs."), context=2048)
    chat = Chat(engine, Config(), Screen(sys.stdout), documents)
    run_with_input(monkeypatch, chat, "Is there a wombat?", "/sources")
    out = capsys.readouterr().out
    assert visible(out) == out
    assert out.count("\\x1b[2J\\u202egpj.md") == 4  # name and heading, twice
    assert "\\x1b]0;title\\x07" in out
    assert chat.messages[0] == user("Is there a wombat?")  # without the passage


def test_an_answer_without_a_passage_says_so(
    documents: DocumentSources, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    engine: Any = ScriptedEngine(lambda _: reply_ids("Xyzzy."))
    run_with_input(monkeypatch, Chat(engine, Config(), Screen(sys.stdout), documents), "giraffe?")
    assert capsys.readouterr().out.startswith("Xyzzy.\n(no passage of the documents has these words)\n")


def test_a_grounded_chat_quotes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with closing(DocumentSources(make_index(tmp_path), True, default_weights())) as documents:
        engine: Any = ScriptedEngine(lambda _: reply_ids("I am small."), context=2048)
        chat = Chat(engine, Config(), Screen(sys.stdout), documents)
        run_with_input(monkeypatch, chat, "What is tea?", "Who are you?", "Who is the king of Velmora?")
    out = capsys.readouterr().out
    assert out.startswith("Tea is a drink made of leaves.\n[1] drinks/tea.md: Tea (quoted)\n")
    assert "I am small.\n" in out
    assert "I found nothing about that in the documents.\n" in out
    assert [message["content"] for message in chat.messages[:2]] == ["What is tea?", "Tea is a drink made of leaves."]


def test_one_question_with_documents(run_here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_model(run_here, "sft", "z", context=600)
    make_index(run_here / "documents").close()
    main(Config(prompt="Where is tea from?", max_tokens=5, temperature=0, device="cpu"))
    out, err = capsys.readouterr()
    assert out == "zzzzz\n"  # the reply alone
    assert "[1] drinks/tea.md: Tea\n" in err
    main(Config(prompt="Where is tea from?", max_tokens=5, temperature=0, device="cpu", grounded=True))
    out, err = capsys.readouterr()
    assert out in ("Tea is a drink made of leaves.\n", "It came from China.\n")
    assert "[1] drinks/tea.md: Tea (quoted)\n" in err
    settings = {"max_tokens": 5, "temperature": 0, "device": "cpu", "grounded": True, "quote": False}
    main(Config(prompt="Where is tea from?", **settings))
    assert "[1] drinks/tea.md: Tea (read before the answer)\n" in capsys.readouterr().err
    main(Config(prompt="Where is tea from?", max_tokens=5, temperature=0, device="cpu", sources="off"))
    assert "drinks" not in capsys.readouterr().err


# The settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"top_k": 0}, "top_k is 0"),
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"sources": "off", "grounded": True}, "grounded needs the passages"),
        ({"sources": "some"}, "sources"),
        ({"prompt": " "}, "prompt is ' ': must contain a question"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Config(**settings)


# A real model


def save_model(folder: Path, source: str, likely: str = "", context: int = 64) -> None:
    """Save a tiny random model, which generates almost always the bytes of `likely` if there are any."""
    TOKENIZER.save(folder / "tokenizer")
    vocab_size = TOKENIZER.get_vocab_size()
    model = GPT(GPTConfig(sequence_len=context, vocab_size=vocab_size, n_layer=1, n_head=1, n_kv_head=1, n_embd=16))
    model.init_weights()
    with torch.no_grad():
        # All embeddings share one large component, so the head can make a token likely at every position.
        model.embed.weight[:, 0] = 30
        model.head.weight[TOKENIZER.encode(likely), 0] = 4
    meta = {
        "model_config": asdict(model.config),
        "compute_dtype": "float32",
        "tokenizer_hash": TOKENIZER.hash(),
        "step": 7,
    }
    save_checkpoint(run_dir(source, "d1"), 7, model.state_dict(), {}, meta)


def test_one_question(run_here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_model(run_here, "sft", "z")
    main(Config(prompt="hello", max_tokens=5, temperature=0, device="cpu"))
    out, err = capsys.readouterr()
    assert out == "zzzzz\n"  # the reply alone
    assert "(cut off" in err
    assert "chatsft_checkpoints" in err
    with pytest.raises(UserError, match="the message is too long"):
        main(Config(prompt="hello" * 50, device="cpu"))
    with pytest.raises(UserError, match="no rl checkpoint"):
        main(Config(prompt="hello", source="rl", device="cpu"))


@pytest.mark.usefixtures("run_here")
def test_without_a_model_the_error_says_what_to_train() -> None:
    with pytest.raises(UserError, match=r"no chat model in .*: train one"):
        main(Config(device="cpu"))


def test_the_default_source_is_the_last_stage(run_here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for source, letter in (("mid", "m"), ("sft", "s"), ("rl", "r")):
        save_model(run_here, source, letter)
        main(Config(prompt="?", max_tokens=1, temperature=0, device="cpu"))
        assert capsys.readouterr().out == f"{letter}\n"


def test_without_a_terminal_each_line_is_a_message(
    run_here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save_model(run_here, "sft", "z")
    monkeypatch.setattr(sys, "stdin", io.StringIO("one\ntwo\n"))
    main(Config(max_tokens=3, temperature=0, device="cpu"))
    out = capsys.readouterr().out
    assert out.count("zzz") == 2
    assert "> " not in out
    assert "\x1b" not in out


@pytest.mark.slow
def test_in_a_real_terminal(base_dir: Path) -> None:
    """Ctrl-C during a reply in three turns, /clear, two ways of pasting several lines, Ctrl-C at the prompt, Ctrl-D."""
    pexpect = pytest.importorskip("pexpect", reason="no pexpect: `uv pip install pexpect` (Linux and macOS)")
    save_model(base_dir, "sft", "z", context=4000)
    environment = {**os.environ, "NANOCHAT_DTYPE": "float32", "TERM": "xterm", "PYTHONPATH": str(ROOT)}
    command = ["-m", "scripts.chat_cli", "-t", "0", "--device=cpu"]
    chat = pexpect.spawn(sys.executable, command, env=environment, cwd=str(ROOT), encoding="utf-8", timeout=120)
    chat.setwinsize(50, 120)
    prompt = r"\r\n(\x1b\[\?2004h)?> "  # readline asks the terminal to mark pasted text
    chat.expect("sft d1, step 7")
    chat.expect(prompt)
    for turn in range(3):
        chat.sendline(f"hello {turn}")
        chat.expect("zzzz")
        chat.sendintr()  # the reply would have thousands of tokens
        chat.expect(r"\(stopped\)")
        chat.expect(prompt)
    chat.sendline("/clear")
    chat.expect("a new conversation begins")
    chat.expect(prompt)
    wall = "\n".join(f"line {i} of the pasted text" for i in range(200))
    chat.send(f"\x1b[200~{wall}\x1b[201~")
    chat.sendline("")
    chat.expect(r"the message is too long: it has \d+ tokens")
    chat.expect(prompt)
    chat.sendline("first line\nsecond line")  # pasted without marks: still one message
    chat.expect("zzzz")
    chat.sendintr()
    chat.expect(r"\(stopped\)")
    chat.expect(prompt)
    chat.sendintr()
    chat.expect("Ctrl-C again")
    chat.expect(prompt)
    chat.sendeof()
    chat.expect(pexpect.EOF)
    assert "Traceback" not in chat.before
    chat.close()
    assert chat.exitstatus == 0
