"""Chat in the terminal: read the user's messages, and print replies while they are generated."""

from __future__ import annotations

import os
import select
import sys
from typing import TextIO

from nanochat.serving.chat_session import Chunk
from nanochat.system.console import write_controls

PASTE_SECONDS = 0.05  # lines that arrive faster than this one after another belong to one message
DIM, NOT_DIM = "\033[2m", "\033[0m"


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
        self._write(text, self.notices, is_dim=True)
        self._write("\n", self.notices)

    def show(self, chunk: Chunk) -> None:
        """Print a chunk of a reply; a tool call is printed in brackets, with its result: [6*7 = 42]."""
        if chunk.kind != self._last_kind or not chunk.text:
            self._write(self._separator(chunk), sys.stdout, is_dim=True)
        self._write(chunk.text, sys.stdout, is_dim=chunk.kind != "text")
        self._last_kind = chunk.kind
        self._last_character = chunk.text[-1:]

    def end_reply(self) -> None:
        """Close an open bracket and end the line."""
        self._write("]" if self._last_kind != "text" else "", sys.stdout, is_dim=True)
        self._write("\n", sys.stdout)
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

    def _write(self, text: str, stream: TextIO, is_dim: bool = False) -> None:
        """Write text. `Output`, which a command has as its streams, shows control characters in it as escapes."""
        is_dim = is_dim and self.has_colours and text != ""
        if is_dim:
            write_controls(stream, DIM)
        stream.write(text)
        if is_dim:
            write_controls(stream, NOT_DIM)
        stream.flush()


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
