"""A conversation in the terminal: what the user types, and an answer as it comes."""

from __future__ import annotations

import os
import re
import select
import sys
from typing import TextIO

from nanochat.serving.chat_session import Piece

PASTE_SECONDS = 0.05  # lines that come faster than this one after another are one message


class Screen:
    """Writes to the terminal: answers as they come, everything else dim, where there are colours."""

    def __init__(self, notices: TextIO) -> None:
        self.notices = notices
        self.colours = sys.stdout.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
        self._kind, self._last = "text", ""  # of what stands there of the answer: its last piece and character

    def notice(self, text: str) -> None:
        """A line that is not the model's."""
        print(self._dim(text), file=self.notices, flush=True)

    def show(self, piece: Piece) -> None:
        """A piece of an answer; a call stands in brackets, with its result."""
        if piece.kind != self._kind or not piece.text:
            self._write(self._dim(self._joint(piece)))
        self._write(printable(piece.text) if piece.kind == "text" else self._dim(printable(piece.text)))
        self._kind, self._last = piece.kind, piece.text[-1:]

    def end(self) -> None:
        """The answer is over."""
        self._write(self._dim("]" if self._kind != "text" else "") + "\n")
        self._kind, self._last = "text", ""

    def _joint(self, piece: Piece) -> str:
        """What stands between two pieces that do not belong to one text."""
        if (self._kind, piece.kind) == ("python", "python_output"):
            return " = "
        if piece.kind == "text":
            return "] " if piece.text[:1].isalnum() else "]"
        before = "] " if self._kind != "text" else " " if self._last.strip() else ""
        return before + ("[" if piece.kind == "python" else "[= ")

    def _dim(self, text: str) -> str:
        return f"\033[2m{text}\033[0m" if self.colours and text else text

    def _write(self, text: str) -> None:
        print(text, end="", flush=True)


def printable(text: str) -> str:
    """The text without what would move the cursor, change colours, or ring."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", "\ufffd", text)


def read_message() -> str:
    """What the user types; several lines if they were pasted. Raises `EOFError` at the end of the input."""
    if not sys.stdin.isatty():
        return input()
    lines = [input("> ")]
    while os.name == "posix" and select.select([sys.stdin], [], [], PASTE_SECONDS)[0]:
        try:
            lines.append(input())
        except EOFError:
            break
    return "\n".join(lines)


def set_up_line_editing() -> None:
    """Arrow keys, the lines typed before, and a pasted text as one message, where readline can be had."""
    try:
        import readline
    except ImportError:
        return
    if "libedit" not in (readline.__doc__ or ""):
        readline.parse_and_bind("set enable-bracketed-paste on")
        readline.parse_and_bind("set disable-completion on")  # of file names
