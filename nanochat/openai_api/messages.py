"""Messages of OpenAI's API to a conversation that nanochat's model knows (tokenization/chat_format.py).

Clients send more than user and assistant in turn:

- Consecutive messages of one side are one turn, joined by a blank line. System and developer messages, except at the
  beginning, and results of tools and functions are on the user's side.
- A conversation that begins with the assistant gets an empty message of the user before it.
- Calls of tools, which another model has made, are written into the assistant's text: `name(arguments)`.
- `calculator_calls` of an earlier reply stand again where they were, so that the model reads what it has written.
- If the last message is the assistant's, the reply continues it: the response has only what is new.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any, NamedTuple

from nanochat.openai_api.requests import ChatMessage
from nanochat.serving.chat_request import LIMITS
from nanochat.serving.chat_session import Content
from nanochat.serving.refusals import Refusal
from nanochat.system.json_text import short_repr

SYSTEM_ROLES = ("system", "developer")
TEXT_PARTS = ("text", "input_text", "output_text")


class Conversation(NamedTuple):
    """Messages that end with the user's, and the beginning of the reply, empty unless a reply is to be continued."""

    messages: list[dict[str, Any]]
    beginning: Content


def to_conversation(messages: Sequence[ChatMessage]) -> Conversation:
    """Return the conversation. Raises `Refusal` for content that is no text, and beyond the limits of a request."""
    texts = [message_text(message, number) for number, message in enumerate(messages)]
    _check_lengths(texts, messages)
    pairs = list(zip(messages, texts, strict=True))
    num_system = next((i for i, (message, _) in enumerate(pairs) if message.role not in SYSTEM_ROLES), len(pairs))
    result: list[dict[str, Any]] = []
    if num_system:
        result.append({"role": "system", "content": "\n\n".join(texts[:num_system])})
    for is_assistant, group in groupby(pairs[num_system:], lambda pair: pair[0].role == "assistant"):
        turn = list(group)
        if not is_assistant:
            result.append({"role": "user", "content": "\n\n".join(text for _, text in turn)})
            continue
        if not result or result[-1]["role"] == "system":
            result.append({"role": "user", "content": ""})
        parts: list[dict[str, str]] = []
        for number, (message, text) in enumerate(turn):
            parts += [{"type": "text", "text": "\n\n"}] if number else []
            parts += _with_calls(message, text)
        is_plain = all(part["type"] == "text" for part in parts)
        content: Content = "".join(part["text"] for part in parts) if is_plain else parts
        result.append({"role": "assistant", "content": content})
    if not result or result[-1]["role"] == "system":
        raise Refusal(400, "messages has no message of the user: send at least one", "messages", "invalid_value")
    beginning: Content = result.pop()["content"] if result[-1]["role"] == "assistant" else ""
    return Conversation(result, beginning)


def message_text(message: ChatMessage, number: int) -> str:
    """Return the text of a message. `number`: its index, for the error. Raises `Refusal` for what is no text."""
    param = f"messages.{number}.content"
    content = message.content
    if content is None:
        if message.role != "assistant":
            raise Refusal(400, f"{param} is missing: must be a text, or a list of text parts", param, "invalid_value")
        text = message.refusal or ""
    elif isinstance(content, str):
        text = content
    else:
        text = ""
        for part in content:
            value = part.text if part.type in TEXT_PARTS else part.refusal if part.type == "refusal" else None
            if value is None:
                reason = (
                    f"{param} has a part of type {short_repr(part.type)}: must be text parts, this model reads text"
                )
                raise Refusal(400, reason, param, "unsupported_value")
            text += value
    calls = [call.function for call in message.tool_calls or []] + [message.function_call]
    lines = [f"{call.name or ''}({call.arguments or ''})" for call in calls if call is not None]
    return "\n".join([*([text] if text or not lines else []), *lines])


def _with_calls(message: ChatMessage, text: str) -> list[dict[str, str]]:
    """Return the parts of an assistant's message: its text, with calls of the calculator where they were."""
    parts = []
    start = 0
    for call in sorted(message.calculator_calls or [], key=lambda call: call.offset):
        end = min(max(call.offset, start), len(text))
        parts += [{"type": "text", "text": text[start:end]}, {"type": "python", "text": call.expression}]
        if call.result is not None:
            parts.append({"type": "python_output", "text": call.result})
        start = end
    return [part for part in [*parts, {"type": "text", "text": text[start:]}] if part["text"]]


def _check_lengths(texts: Sequence[str], messages: Sequence[ChatMessage]) -> None:
    total = num_parts = 0
    for number, (text, message) in enumerate(zip(texts, messages, strict=True)):
        calls = message.calculator_calls or []
        length = len(text) + sum(len(call.expression) + len(call.result or "") for call in calls)
        num_parts += 1 + len(calls)
        total += length
        if length > LIMITS.message_characters:
            param = f"messages.{number}.content"
            reason = f"{param} has {length} characters: at most {LIMITS.message_characters} are allowed"
            raise Refusal(400, reason, param, "string_above_max_length")
    if total > LIMITS.characters:
        reason = f"the messages have {total} characters in all: at most {LIMITS.characters} are allowed"
        raise Refusal(400, reason, "messages", "string_above_max_length")
    if num_parts > LIMITS.parts:
        reason = f"the messages have {num_parts} parts in all: at most {LIMITS.parts} are allowed"
        raise Refusal(400, reason, "messages", "array_above_max_length")
