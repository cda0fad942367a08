"""Chat in the terminal: read the user's messages, and print replies while they are generated."""

from __future__ import annotations

import os
import re
import select
import sys
from typing import TextIO

from nanochat.serving.chat_session import Chunk

PASTE_SECONDS = 0.05  # lines that arrive faster than this one after another belong to one message


class Screen:
    """Writes to the terminal: the text of replies as it is, everything else dimmed where colours are supported."""

    def __init__(self, notices: TextIO) -> None:
        """`notices`: the stream for everything that is not a reply."""
        self.notices = notices
        self.has_colours = sys.stdout.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
        self._last_kind = "text"  # of the last chunk of the reply
        self._last_character = ""

    def notice(self, text: str) -> None:
        """Print a line that is not part of a reply."""
        print(self._dim(text), file=self.notices, flush=True)

    def show(self, chunk: Chunk) -> None:
        """Print a chunk of a reply; a tool call is printed in brackets, with its result: [6*7 = 42]."""
        if chunk.kind != self._last_kind or not chunk.text:
            self._write(self._dim(self._separator(chunk)))
        self._write(printable(chunk.text) if chunk.kind == "text" else self._dim(printable(chunk.text)))
        self._last_kind = chunk.kind
        self._last_character = chunk.text[-1:]

    def end_reply(self) -> None:
        """Close an open bracket and end the line."""
        self._write(self._dim("]" if self._last_kind != "text" else "") + "\n")
        self._last_kind = "text"
        self._last_character = ""

    def _separator(self, chunk: Chunk) -> str:
        """Return the text between the previous chunk and one of another kind, or the next call."""
        if (self._last_kind, chunk.kind) == ("python", "python_output"):
            return " = "
        if chunk.kind == "text":
            return "] " if chunk.text[:1].isalnum() else "]"
        opening = "[" if chunk.kind == "python" else "[= "
        if self._last_kind != "text":
            return "] " + opening
        return " " + opening if self._last_character.strip() else opening

    def _dim(self, text: str) -> str:
        return f"\033[2m{text}\033[0m" if self.has_colours and text else text

    def _write(self, text: str) -> None:
        print(text, end="", flush=True)


def printable(text: str) -> str:
    """Replace control characters, which could move the cursor, change colours or ring the bell, by U+FFFD."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", "\ufffd", text)


def read_message() -> str:
    """Read a message of the user: a line, or several if they were pasted. Raises `EOFError` at the end of the input."""
    if not sys.stdin.isatty():
        return input()
    lines = [input("> ")]
    while os.name == "posix" and select.select([sys.stdin], [], [], PASTE_SECONDS)[0]:
        try:
            lines.append(input())
        except EOFError:
            break
    return "\n".join(lines)


def enable_line_editing() -> None:
    """Enable arrow keys, a history of lines, and pasting several lines as one message, if readline is available."""
    try:
        import readline
    except ImportError:
        return
    if "libedit" not in (readline.__doc__ or ""):
        readline.parse_and_bind("set enable-bracketed-paste on")
        readline.parse_and_bind("set disable-completion on")  # completion of file names
