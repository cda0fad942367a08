"""The user's own conversations: a JSONL file with one conversation per line.

A line is a list of messages, or `{"messages": [...]}`, in the format of nanochat/tokenization/chat_format.py. Blank
lines are skipped. The whole file is read and checked before any training; an error names the file and the line.
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

TEST_INTERVAL = 20  # one conversation in twenty is held out for testing
SPLITS = ("train", "test", "all")


class ConversationListTask(Task):
    """A list of conversations. Split "test" is every 20th (rows 19, 39, ...), "train" the others, "all" both."""

    def __init__(self, conversations: Sequence[Conversation], split: str = "train", **kwargs: Any) -> None:
        """Select a split. Raises UserError for a split other than "train", "test" and "all"."""
        super().__init__(**kwargs)
        if split not in SPLITS:
            raise UserError(f"{self.name} has no split {split!r}: must be one of {', '.join(SPLITS)}")
        if split == "all":
            self._conversations = list(conversations)
        else:
            self._conversations = [
                conversation
                for row, conversation in enumerate(conversations)
                if (row % TEST_INTERVAL == TEST_INTERVAL - 1) == (split == "test")
            ]

    def num_examples(self) -> int:
        return len(self._conversations)

    def get_example(self, index: int) -> Conversation:
        return self._conversations[index]


class CustomJSON(ConversationListTask):
    """The conversations of a JSONL file."""

    name = "CustomJSON"

    def __init__(
        self, split: str = "train", *, filepath: str | Path | None = None, path: str | Path | None = None, **kwargs: Any
    ) -> None:
        """Read `filepath`, which mixture files also call `path`.

        Raises UserError, with file and line, for a line that is no conversation with an assistant message.
        """
        file = filepath if filepath is not None else path
        if file is None:
            raise UserError(f"{self.name} has no file: set filepath to a JSONL file of conversations")
        super().__init__(read_conversations(Path(file)), split, **kwargs)


def read_conversations(path: Path) -> list[Conversation]:
    """Read and check the conversations of a JSONL file. Raises UserError for the first invalid line, or without any."""
    try:
        with open(path, "rb") as file:
            lines = [(number, line) for number, line in enumerate(file, 1) if line.strip(b"\xef\xbb\xbf \t\r\n")]
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    conversations = []
    for number, line in lines:
        try:
            conversations.append(parse_conversation(line))
        except UserError as error:
            raise UserError(f"{path}, line {number}: {error}") from None
    if not conversations:
        raise UserError(f"{path} has no conversations: it must have one per line, as a JSON list of messages")
    return conversations


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def parse_conversation(line: bytes) -> Conversation:
    """Parse one line of JSON in UTF-8 as a conversation. Raises UserError that names the first fault."""
    try:
        value = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise UserError(f"not UTF-8 ({error.reason} at byte {error.start})") from None
    except json.JSONDecodeError as error:
        raise UserError(f"not JSON ({error.msg} at character {error.pos + 1}); each line is one conversation") from None
    except (ValueError, RecursionError):  # a number with thousands of digits; deeply nested brackets
        raise UserError("not JSON that a conversation may contain (a number too long, or brackets too deep)") from None
    conversation = {"messages": value} if isinstance(value, list) else value
    spans = [span for turn in render_turns(conversation) for span in turn]
    for span in spans:
        _check_characters(span.text)
    if not any(span.is_trained for span in spans):
        raise UserError("no assistant message, so there is nothing to learn from")
    return {"messages": conversation["messages"]}


def _check_characters(text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(f"half a surrogate pair, \\u{ord(text[error.start]):04x}: text must be valid Unicode") from None
