"""The chat in the terminal: how the chunks of a reply are printed, and which characters never are."""

from __future__ import annotations

import io
import sys

import pytest

from nanochat.common import command
from nanochat.serving.chat_session import Chunk
from nanochat.serving.terminal import DIM, NOT_DIM, Screen


def printed(capsys: pytest.CaptureFixture[str], *chunks: tuple[str, str]) -> str:
    """Show the chunks of a reply, and return the output."""
    screen = Screen(io.StringIO())
    for kind, text in chunks:
        screen.show(Chunk(kind, text))
    screen.end_reply()
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("chunks", "text"),
    [
        ([("text", "a"), ("text", "b")], "ab\n"),
        ([("text", "so "), ("python", ""), ("python", "6*"), ("python", "7"), ("python_output", "")], "so [6*7 = ]\n"),
        ([("text", "so"), ("python", ""), ("python", "1"), ("text", "go")], "so [1] go\n"),
        (
            [
                ("python", ""),
                ("python", "1"),
                ("python_output", ""),
                ("python_output", "1"),
                ("text", "."),
                ("text", "2"),
            ],
            "[1 = 1].2\n",
        ),
        ([("python", ""), ("python", "1"), ("python", ""), ("python", "2")], "[1] [2]\n"),
        ([("text", "a\n"), ("python_output", ""), ("python_output", "1"), ("text", "b")], "a\n[= 1] b\n"),
    ],
)
def test_a_tool_call_is_printed_in_brackets(
    chunks: list[tuple[str, str]], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert printed(capsys, *chunks) == text


@pytest.mark.parametrize("has_colours", [False, True])
def test_a_reply_cannot_control_the_terminal(has_colours: bool, capsys: pytest.CaptureFixture[str]) -> None:
    """However its sequences are cut into chunks; the sequences that dim a call are the screen's own."""
    reply = [("text", "a\x1b"), ("text", "[2J\tb\r\n\x9b1m\x07é🙂\u202e"), ("python", ""), ("python", "\x1b]0;x\x07")]
    with command():
        screen = Screen(sys.stderr)
        screen.has_colours = has_colours
        for kind, text in reply:
            screen.show(Chunk(kind, text))
        screen.end_reply()
        screen.notice("(\x1b[31m)")
    dim, not_dim = (DIM, NOT_DIM) if has_colours else ("", "")
    out, err = capsys.readouterr()
    text, _, call = out.partition("\n")
    assert text == r"a\x1b[2J" + "\t" + r"b\r"
    assert call == rf"\x9b1m\x07é🙂\u202e{dim} [{not_dim}{dim}\x1b]0;x\x07{not_dim}{dim}]{not_dim}" + "\n"
    assert err == rf"{dim}(\x1b[31m){not_dim}" + "\n"
