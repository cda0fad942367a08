"""The chat in the terminal: how the chunks of a reply are printed, and which characters never are."""

from __future__ import annotations

import io

import pytest

from nanochat.serving.chat_session import Chunk
from nanochat.serving.terminal import Screen, printable


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


def test_a_reply_cannot_control_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert printable("a\x1b[2J\tb\r\n\x9b1m\x07é🙂") == "a\ufffd[2J\tb\ufffd\n\ufffd1m\ufffdé🙂"
    assert "\x1b" not in printed(capsys, ("text", "\x1b[0m"), ("python", ""), ("python", "\x1b"))
