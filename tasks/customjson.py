"""The user's own conversations: a JSONL file with one conversation per line, in UTF-8.

A line is one of these (nanochat/tokenization/conversation_records.py has the exact mapping):

    {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}     # or the list alone
    {"conversations": [{"from": "human", "value": "..."}, {"from": "gpt", "value": "..."}]}         # ShareGPT
    {"instruction": "...", "input": "...", "output": "..."}                                         # Alpaca

Each may have a `"system"` text. Messages are those of nanochat/tokenization/chat_format.py: the content is text or a
list of parts, and `"weight": 0` on an answer excludes it from training. Other keys, such as an
`id`, are ignored; those that would change what is trained on are refused. Blank lines are skipped. The whole file is
read and checked before any training; an error names the file and the line.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from nanochat.common import UserError, expand_path
from nanochat.system.json_text import MAX_JSON_BYTES, parse_json
from nanochat.tokenization.chat_format import Conversation, check_conversation, plain_messages
from nanochat.tokenization.conversation_records import ONE_PER_LINE, to_conversation
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
        super().__init__(read_conversations(expand_path(file)), split, **kwargs)


def read_conversations(path: Path) -> list[Conversation]:
    """Read and check the conversations of a JSONL file. Raises UserError for the first invalid line, or without any."""
    conversations = []
    for number, line in _read_lines(path):
        try:
            conversations.append(parse_conversation(line))
        except UserError as error:
            is_spread = line.strip() in (b"[", b"{", b"[{", b"[[")  # the first line of a value on several lines
            raise UserError(f"{path}, line {number}: {error}{f'; {ONE_PER_LINE}' if is_spread else ''}") from None
    if not conversations:
        raise UserError(f"{path} has no conversations: it must have one per line, as a JSON list of messages")
    return conversations


def _read_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield the lines that are not blank, with their numbers, and of a line that is too long only the beginning."""
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            raise UserError(f"{path} is a pipe or a device: it must be a file, because it is read more than once")
        with open(path, "rb") as file:
            lines = iter(lambda: file.readline(MAX_JSON_BYTES + 1), b"")
            for number, line in enumerate(lines, 1):
                if line.strip(b"\xef\xbb\xbf \t\r\n"):
                    yield number, line
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def parse_conversation(line: bytes) -> Conversation:
    """Parse one line of JSON in UTF-8 as a conversation. Raises UserError that names the first fault."""
    conversation = to_conversation(parse_json(line))
    turns = check_conversation(conversation)
    if not any(span.is_trained for turn in turns for span in turn):
        has_answer = len(turns) > 1
        reason = "every assistant message has weight 0" if has_answer else "no assistant message"
        raise UserError(f"{reason}, so there is nothing to learn from")
    return {"messages": plain_messages(conversation)}
