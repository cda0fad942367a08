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
from itertools import groupby
from typing import Any, NamedTuple

from nanochat.common import UserError

Conversation = Mapping[str, Any]


class Span(NamedTuple):
    """A special token or a stretch of text. `is_trained`: True if the loss covers it."""

    text: str  # the name of the special token, or ordinary text, which may contain such a name
    is_special: bool
    is_trained: bool


class _PartFormat(NamedTuple):
    """The special tokens around a part of an answer, if any. `is_trained`: True if the loss covers all three."""

    start: str | None
    end: str | None
    is_trained: bool


_PARTS = {
    "text": _PartFormat(start=None, end=None, is_trained=True),
    "python": _PartFormat(start="<|python_start|>", end="<|python_end|>", is_trained=True),
    "python_output": _PartFormat(start="<|output_start|>", end="<|output_end|>", is_trained=False),
}

# The roles in turn, each with the special tokens around its message.
_TURNS = [
    ("user", Span("<|user_start|>", True, False), Span("<|user_end|>", True, False)),
    ("assistant", Span("<|assistant_start|>", True, False), Span("<|assistant_end|>", True, True)),
]


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
    system_text, messages = _checked_messages(conversation)
    first_number = 1 if system_text is None else 2
    turns = []
    for index, message in enumerate(messages):
        role, start, end = _TURNS[index % 2]
        number = first_number + index
        if message["role"] != role:
            raise UserError(
                f"message {number}: role {message['role']!r} where {role!r} is due (they alternate, the user first)"
            )
        content = message["content"]
        if role == "assistant":
            turns.append([start, *_assistant_spans(content, number), end])
        elif isinstance(content, str):
            text = f"{system_text}\n\n{content}" if system_text is not None and index == 0 else content
            turns.append([start, Span(text, False, False), end])
        else:
            raise UserError(f"message {number}: a user's content must be text, not {type(content).__name__}")
    return turns


def _checked_messages(conversation: Conversation) -> tuple[str | None, list[Mapping[str, Any]]]:
    """Return the system text, if any, and the messages after it."""
    messages = conversation.get("messages") if isinstance(conversation, Mapping) else None
    if not isinstance(messages, list) or not messages:
        raise UserError('a conversation must be {"messages": [...]} with at least one message')
    for number, message in enumerate(messages, 1):
        # dict is named because it is many times faster to check than Mapping, an abstract class.
        if not isinstance(message, (dict, Mapping)) or "role" not in message or "content" not in message:
            raise UserError(f"message {number}: must have a role and a content")

    if messages[0]["role"] != "system":
        return None, messages
    if not isinstance(messages[0]["content"], str):
        raise UserError(f"message 1: a system message must be text, not {type(messages[0]['content']).__name__}")
    if len(messages) == 1:
        raise UserError("message 1: a system message must be followed by a user message")
    return messages[0]["content"], messages[1:]


def _assistant_spans(content: object, number: int) -> list[Span]:
    if isinstance(content, str):
        return [Span(content, False, True)]
    if not isinstance(content, list):
        raise UserError(
            f"message {number}: an assistant's content must be text or a list of parts, not {type(content).__name__}"
        )
    for part in content:
        kind = part.get("type") if isinstance(part, (dict, Mapping)) else None
        if not isinstance(kind, str) or kind not in _PARTS or not isinstance(part.get("text"), str):
            raise UserError(
                f'message {number}: a part must be {{"type": {" | ".join(_PARTS)}, "text": str}}, not {part!r}'
            )
    return list(_part_spans(content))


def _part_spans(parts: list[Mapping[str, str]]) -> Iterator[Span]:
    for kind, group in groupby(parts, key=lambda part: part["type"]):
        start, end, is_trained = _PARTS[kind]
        texts = [part["text"] for part in group]
        for text in ["".join(texts)] if kind == "text" else texts:
            if start:
                yield Span(start, True, is_trained)
            yield Span(text, False, is_trained)
            if end:
                yield Span(end, True, is_trained)
