"""A user's own conversations: a JSONL file, one conversation a line.

A line is a list of messages, or `{"messages": [...]}`, as nanochat/tokenization/chat_format.py
describes them. Blank lines are skipped. The whole file is read and checked at once: what is wrong is named by file and
line before any training.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nanochat.common import UserError
from nanochat.tokenization.chat_format import Conversation, render_turns
from tasks.common import Task

EVERY = 20  # one conversation in twenty is not trained on


class ConversationListTask(Task):
    """Conversations from a list; "test" is every 20th of them, the first ones not among them, "train" the others."""

    def __init__(self, conversations: Sequence[Conversation], split: str = "train", **rows: Any) -> None:
        """Raises UserError for another split than "train", "test" or "all"."""
        super().__init__(**rows)
        if split not in ("train", "test", "all"):
            raise UserError(f"{self.name} has no split {split!r}: train, test and all are there")
        for_test = [row % EVERY == EVERY - 1 for row in range(len(conversations))]
        chosen = zip(conversations, for_test, strict=True)
        self._conversations = [one for one, test in chosen if split == "all" or test == (split == "test")]

    def num_examples(self) -> int:
        return len(self._conversations)

    def get_example(self, index: int) -> Conversation:
        return self._conversations[index]


class CustomJSON(ConversationListTask):
    """The conversations of a JSONL file."""

    name = "CustomJSON"

    def __init__(self, split: str = "train", *, path: str | Path, **rows: Any) -> None:
        """Raises UserError, with file and line, for whatever is no conversation with an answer to learn from."""
        super().__init__(read_conversations(Path(path)), split, **rows)


def read_conversations(path: Path) -> list[Conversation]:
    """All conversations of a JSONL file, checked. Raises UserError for the first one that is wrong, or if none is."""
    try:
        with open(path, "rb") as file:
            lines = [(number, line) for number, line in enumerate(file, 1) if line.strip(b"\xef\xbb\xbf \t\r\n")]
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    found = []
    for number, line in lines:
        try:
            found.append(parse_conversation(line))
        except UserError as error:
            raise UserError(f"{path}, line {number}: {error}") from None
    if not found:
        raise UserError(f"{path} has no conversations: it should have one a line, as a JSON list of messages")
    return found


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def parse_conversation(line: bytes) -> Conversation:
    """The conversation of one line of JSON, in UTF-8. Raises UserError that says what is wrong with it."""
    try:
        value = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise UserError(f"not UTF-8 ({error.reason} at byte {error.start})") from None
    except json.JSONDecodeError as error:
        raise UserError(f"not JSON ({error.msg} at character {error.pos + 1}); each line is one conversation") from None
    except (ValueError, RecursionError):  # a number of very many digits; brackets within brackets without end
        raise UserError("not JSON that a conversation needs") from None
    conversation = {"messages": value} if isinstance(value, list) else value
    turns = render_turns(conversation)
    for span in (span for turn in turns for span in turn):
        _check_characters(span.text)
    if not any(span.is_trained for turn in turns for span in turn):
        raise UserError("no assistant's message, so there is nothing to learn from")
    return {"messages": conversation["messages"]}


def _check_characters(text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(f"half a character, \\u{ord(text[error.start]):04x}, which no text may have") from None
