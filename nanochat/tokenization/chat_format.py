"""Chat format: the structure of a conversation, and the order and loss mask of its parts.

`nanochat/tokenizer.py` turns the spans of `render_turns` into token ids. A conversation is

    {"messages": [{"role": "system", "content": str},                       # optional
                  {"role": "user", "content": str},
                  {"role": "assistant", "content": str | [{"type": "text" | "python" | "python_output", "text": str}]},
                  ...]}

User and assistant alternate; the user begins. The system message is put before the first user message, separated by a
blank line. Consecutive text parts of an answer are joined before they are encoded, so that the borders between them do
not change the tokens. A part of type "python" is a tool call; only calculator expressions are run.

A mixture may also contain documents, `{"text": str}`, which are trained on as in pretraining.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from nanochat.common import UserError

Conversation = Mapping[str, Any]


@dataclass(frozen=True)
class Span:
    """A special token or a stretch of text. `is_trained`: True if the loss covers it."""

    text: str  # the name of the special token, or ordinary text, which may contain such a name
    is_special: bool
    is_trained: bool


@dataclass(frozen=True)
class _PartFormat:
    """The special tokens around a part of an answer, if any. `is_trained`: True if the loss covers all three."""

    start: str | None
    end: str | None
    is_trained: bool


_PARTS = {
    "text": _PartFormat(start=None, end=None, is_trained=True),
    "python": _PartFormat(start="<|python_start|>", end="<|python_end|>", is_trained=True),
    "python_output": _PartFormat(start="<|output_start|>", end="<|output_end|>", is_trained=False),
}


def document_text(conversation: Conversation) -> str | None:
    """Return the text of a document, or None for a conversation.

    Raises UserError if it has messages as well, or if its text is not a string.
    """
    if not isinstance(conversation, Mapping) or "text" not in conversation:
        return None
    if "messages" in conversation or not isinstance(conversation["text"], str):
        raise UserError('a document must be {"text": str}, without messages')
    return conversation["text"]


def render_turns(conversation: Conversation) -> list[list[Span]]:
    """Return the spans of each turn (user, assistant, user, ...), without `<|bos|>`.

    Raises UserError with the number of the message if a role is out of turn, content has the wrong type, or the type
    of a part is unknown.

    >>> messages = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]
    >>> for turn in render_turns({"messages": messages}):
    ...     print([(span.text, span.is_trained) for span in turn])
    [('<|user_start|>', False), ('2+2?', False), ('<|user_end|>', False)]
    [('<|assistant_start|>', False), ('4', True), ('<|assistant_end|>', True)]
    """
    system_text, numbered_messages = _checked_messages(conversation)
    turns = []
    for index, (number, message) in enumerate(numbered_messages):
        is_assistant = index % 2 == 1
        role = "assistant" if is_assistant else "user"
        if message["role"] != role:
            raise UserError(
                f"message {number}: role {message['role']!r} where {role!r} is due (they alternate, the user first)"
            )
        content = message["content"]
        if is_assistant:
            content_spans = list(_assistant_spans(content, number))
        elif isinstance(content, str):
            text = f"{system_text}\n\n{content}" if system_text is not None and index == 0 else content
            content_spans = [Span(text, is_special=False, is_trained=False)]
        else:
            raise UserError(f"message {number}: a user's content must be text, not {type(content).__name__}")
        start = Span(f"<|{role}_start|>", is_special=True, is_trained=False)
        end = Span(f"<|{role}_end|>", is_special=True, is_trained=is_assistant)
        turns.append([start, *content_spans, end])
    return turns


def _checked_messages(conversation: Conversation) -> tuple[str | None, list[tuple[int, Mapping[str, Any]]]]:
    """Return the system text, if any, and the other messages with their numbers, counted from 1."""
    messages = conversation.get("messages") if isinstance(conversation, Mapping) else None
    if not isinstance(messages, list) or not messages:
        raise UserError('a conversation must be {"messages": [...]} with at least one message')
    for number, message in enumerate(messages, 1):
        if not isinstance(message, Mapping) or "role" not in message or "content" not in message:
            raise UserError(f"message {number}: must have a role and a content")

    numbered = list(enumerate(messages, 1))
    if messages[0]["role"] != "system":
        return None, numbered
    if not isinstance(messages[0]["content"], str):
        raise UserError(f"message 1: a system message must be text, not {type(messages[0]['content']).__name__}")
    if len(messages) == 1:
        raise UserError("message 1: a system message must be followed by a user message")
    return messages[0]["content"], numbered[1:]


def _assistant_spans(content: object, number: int) -> Iterator[Span]:
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(parts, list):
        raise UserError(
            f"message {number}: an assistant's content must be text or a list of parts, not {type(content).__name__}"
        )
    for part in parts:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if not isinstance(kind, str) or kind not in _PARTS or not isinstance(part.get("text"), str):
            raise UserError(
                f'message {number}: a part must be {{"type": {" | ".join(_PARTS)}, "text": str}}, not {part!r}'
            )

    for kind, group in groupby(parts, key=lambda part: str(part["type"])):
        texts = [part["text"] for part in group]
        if kind == "text":
            texts = ["".join(texts)]
        part_format = _PARTS[kind]
        for text in texts:
            if part_format.start:
                yield Span(part_format.start, is_special=True, is_trained=part_format.is_trained)
            yield Span(text, is_special=False, is_trained=part_format.is_trained)
            if part_format.end:
                yield Span(part_format.end, is_special=True, is_trained=part_format.is_trained)
