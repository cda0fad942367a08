"""What a client of the web server may ask for: a request's body is read here, and refused with a reason.

{"messages": [...], "temperature": 0.6, "top_k": 50, "max_tokens": 512, "seed": 1}     all but messages may be missing
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from nanochat.common import UserError
from nanochat.layers.sampling_params import SamplingParams
from nanochat.tokenization.chat_format import render_turns


@dataclass(frozen=True)
class Limits:
    """What a request may hold; ranges are inclusive."""

    messages: int = 500
    message_characters: int = 8_000
    characters: int = 32_000
    temperature: tuple[float, float] = (0, 2)
    top_k: tuple[int, int] = (1, 200)
    max_tokens: tuple[int, int] = (1, 4096)
    seed: tuple[int, int] = (0, 2**32 - 1)


LIMITS = Limits()
DEFAULTS = SamplingParams(temperature=0.6, top_k=50, max_tokens=512, seed=None)
PARAMS = ("temperature", "top_k", "max_tokens", "seed")  # those of SamplingParams that a request may set


def read_request(body: bytes, defaults: SamplingParams) -> tuple[list[Mapping[str, Any]], SamplingParams]:
    """The messages and the sampling of a request; what is missing or null is as in `defaults`.

    Raises `UserError` that names the value and the limit or the rule that it breaks.
    """
    try:
        request = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise UserError(f"the body is not JSON: {error}") from None
    if not isinstance(request, dict):
        raise UserError(f'the body must be {{"messages": [...]}}, not {_short(request)}')
    known = ("messages", *PARAMS)
    if unknown := [name for name in request if name not in known]:
        raise UserError(f"unknown field {_short(unknown[0])}: known are {', '.join(known)}")
    messages = request.pop("messages", None)
    check_messages(messages)
    given = {name: value for name, value in request.items() if value is not None}
    for name, value in given.items():
        check_number(name, value)
    return messages, replace(defaults, **given)


def check_number(name: str, value: Any) -> None:
    """Raise `UserError` unless `value` is a number within the limits of the setting of this name."""
    low, high = getattr(LIMITS, name)
    kinds, called = ((int, float), "a number") if name == "temperature" else (int, "a whole number")
    if isinstance(value, bool) or not isinstance(value, kinds) or not low <= value <= high:
        raise UserError(f"{name} is {_short(value)}: it must be {called} from {low} to {high}")


def check_messages(messages: Any) -> None:
    """Raise `UserError` unless this is a conversation, and within the limits."""
    if not isinstance(messages, list) or not messages:
        raise UserError("messages is missing, empty or no list: send at least one message")
    if len(messages) > LIMITS.messages:
        raise UserError(f"there are {len(messages)} messages: at most {LIMITS.messages} are allowed")
    total = 0
    for number, message in enumerate(messages, 1):
        text = "".join(_texts(message))
        if len(text) > LIMITS.message_characters:
            raise UserError(
                f"message {number} has {len(text)} characters: at most {LIMITS.message_characters} are allowed"
            )
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            raise UserError(f"message {number} has half a character in it (a surrogate without its pair)") from None
        total += len(text)
    if total > LIMITS.characters:
        raise UserError(f"the messages have {total} characters in all: at most {LIMITS.characters} are allowed")
    render_turns({"messages": messages})


def _texts(message: Any) -> Iterator[str]:
    """The texts of a message; what has the wrong type is left for `render_turns` to name."""
    content = message.get("content") if isinstance(message, dict) else None
    parts = content if isinstance(content, list) else [{"text": content}]
    return (part["text"] for part in parts if isinstance(part, dict) and isinstance(part.get("text"), str))


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 50 else f"{text[:50]}..."
