"""What a conversation may look like, and the order of its tokens. `tokenizer.py` turns this into ids.

    {"messages": [{"role": "system", "content": str},                       # may be missing
                  {"role": "user", "content": str},
                  {"role": "assistant", "content": str | [{"type": "text" | "python" | "python_output", "text": str}]},
                  ...]}

User and assistant alternate, the user first. A system message goes before the first user message, with a blank line.
Parts of an answer that are text and stand in a row are one text: where it was cut does not show in its tokens.
In a mixture, `{"text": str}` may stand among conversations: a document as in pretraining, of which all is learnt.
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
    """A special token, or text (no special token, whatever it says), and whether the model learns to say it."""

    text: str
    is_special: bool
    is_trained: bool


# What stands around each kind of part, and whether the opening token, the text and the closing token are trained on.
_PARTS: dict[str, tuple[str | None, str | None, tuple[bool, bool, bool]]] = {
    "text": (None, None, (True, True, True)),
    "python": ("<|python_start|>", "<|python_end|>", (True, True, True)),
    "python_output": ("<|output_start|>", "<|output_end|>", (False, False, False)),
}


def document_text(conversation: Conversation) -> str | None:
    """The text of a document; None for a conversation. Raises UserError for what is both, or no text."""
    if not isinstance(conversation, Mapping) or "text" not in conversation:
        return None
    if "messages" in conversation or not isinstance(conversation["text"], str):
        raise UserError('a document must be {"text": str}, without messages')
    return conversation["text"]


def render_turns(conversation: Conversation) -> list[list[Span]]:
    """The spans of each turn: user, assistant, user, ... without `<|bos|>`.

    Raises UserError that names the message for a role out of turn, content of the wrong type, or an unknown part.

    >>> messages = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]
    >>> for turn in render_turns({"messages": messages}):
    ...     print([(span.text, span.is_trained) for span in turn])
    [('<|user_start|>', False), ('2+2?', False), ('<|user_end|>', False)]
    [('<|assistant_start|>', False), ('4', True), ('<|assistant_end|>', True)]
    """
    system, messages = _checked(conversation)
    turns = []
    for index, (number, message) in enumerate(messages):
        role = ("user", "assistant")[index % 2]
        if message["role"] != role:
            raise UserError(
                f"message {number}: role {message['role']!r} where {role!r} is due (they alternate, the user first)"
            )
        content = message["content"]
        if role == "user":
            if not isinstance(content, str):
                raise UserError(f"message {number}: a user's content must be text, not {type(content).__name__}")
            inner = [Span(f"{system}\n\n{content}" if system is not None and index == 0 else content, False, False)]
        else:
            inner = list(_assistant_spans(content, number))
        is_assistant = role == "assistant"
        turns.append([Span(f"<|{role}_start|>", True, False), *inner, Span(f"<|{role}_end|>", True, is_assistant)])
    return turns


def _checked(conversation: Conversation) -> tuple[str | None, list[tuple[int, Mapping[str, Any]]]]:
    """The system text, if any, and the other messages with their numbers, counted from 1."""
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
        before, after, trained = _PARTS[kind]
        for text in ["".join(texts)] if kind == "text" else texts:
            if before:
                yield Span(before, True, trained[0])
            yield Span(text, False, trained[1])
            if after:
                yield Span(after, True, trained[2])
