"""Request validation of the web server: a JSON body becomes a `ChatRequest`, or is refused with a reason.

{"messages": [...], "temperature": 0.6, "top_k": 50, "top_p": 0.9, "max_tokens": 512, "seed": 1}

Only `messages` is required. If its last message is the assistant's, the reply continues it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from nanochat.common import UserError
from nanochat.layers.sampling_params import SamplingParams
from nanochat.system.json_text import parse_json, short_repr
from nanochat.tokenization.chat_format import check_conversation, plain_messages


@dataclass(frozen=True)
class RequestLimits:
    """The limits of a request; ranges include both ends."""

    messages: int = 500
    parts: int = 2_000  # of all messages together
    message_characters: int = 8_000
    characters: int = 32_000  # of all messages together
    temperature: tuple[float, float] = (0, 2)
    top_k: tuple[int, int] = (1, 200)
    top_p: tuple[float, float] = (0.01, 1)
    max_tokens: tuple[int, int] = (1, 4096)
    seed: tuple[int, int] = (0, 2**32 - 1)


LIMITS = RequestLimits()
# In the largest request: text of these characters only, and the structure around its messages and parts.
MAX_STRUCTURE = LIMITS.characters + 4 * LIMITS.messages + 4 * LIMITS.parts
MAX_ERROR_CHARACTERS = 300  # of a reason: it may quote what was sent
SAMPLING_FIELDS = ("temperature", "top_k", "top_p", "max_tokens", "seed")  # of SamplingParams, that a request may set
DEFAULT_PARAMS = SamplingParams(temperature=0.6, top_k=50, max_tokens=512, seed=None)


@dataclass(frozen=True)
class ChatRequest:
    """A validated request: the conversation, whose last message is to be answered, and the sampling settings.

    `beginning`: of the reply, if that is to be continued.
    """

    messages: list[dict[str, Any]]  # in plain form; the last one is the user's
    params: SamplingParams
    beginning: str | list[dict[str, str]] = ""


def parse_request(body: bytes, defaults: SamplingParams) -> ChatRequest:
    """Parse and validate the body of a request. A setting that is missing or null takes its value from `defaults`.

    Raises a `UserError` that names the value and the limit or rule that it violates.
    """
    check_structure(body)
    try:
        request = parse_json(body)
    except UserError as error:
        raise UserError(f"the body {'is' if str(error).startswith('not ') else 'has'} {error}") from None
    if not isinstance(request, dict):
        raise UserError(f'the body is {short_repr(request)}: must be an object, {{"messages": [...]}}')
    known = ("messages", *SAMPLING_FIELDS)
    if unknown := [name for name in request if name not in known]:
        raise UserError(f"unknown field {short_repr(unknown[0])}: must be one of {', '.join(known)}")
    messages = request.pop("messages", None)
    check_messages(messages)
    settings = {name: value for name, value in request.items() if value is not None}
    for name, value in settings.items():
        check_sampling_field(name, value)
    plain = plain_messages({"messages": messages})
    beginning = plain.pop()["content"] if plain[-1]["role"] == "assistant" else ""
    return ChatRequest(plain, replace(defaults, **settings), beginning)


def check_structure(body: bytes) -> None:
    """Raise `UserError` if a body holds more values than any valid request. Far faster than parsing it."""
    if len(body) - len(body.translate(None, b"{[,")) > MAX_STRUCTURE:
        raise UserError(
            f"the body has too many values: at most {LIMITS.messages} messages with {LIMITS.parts} parts and "
            f"{LIMITS.characters} characters in all are allowed"
        )


def check_sampling_field(name: str, value: Any) -> None:
    """Raise `UserError` unless `value` is a number within the limits of the setting `name`."""
    low, high = getattr(LIMITS, name)
    is_real = name in ("temperature", "top_p")
    allowed_types = (int, float) if is_real else (int,)
    type_name = "a number" if is_real else "a whole number"
    if isinstance(value, bool) or not isinstance(value, allowed_types) or not low <= value <= high:
        raise UserError(f"{name} is {short_repr(value)}: must be {type_name} from {low} to {high}")


def check_messages(messages: Any) -> None:
    """Raise `UserError` unless `messages` is a valid conversation within the limits."""
    if not isinstance(messages, list) or not messages:
        raise UserError("messages is missing, empty or not a list: send at least one message")
    if len(messages) > LIMITS.messages:
        raise UserError(f"there are {len(messages)} messages: at most {LIMITS.messages} are allowed")
    total = 0
    num_parts = sum(map(_num_parts, messages))
    if num_parts > LIMITS.parts:
        raise UserError(f"the messages have {num_parts} parts in all: at most {LIMITS.parts} are allowed")
    for number, message in enumerate(messages, 1):
        text = "".join(_texts(message))
        if len(text) > LIMITS.message_characters:
            raise UserError(
                f"message {number} has {len(text)} characters: at most {LIMITS.message_characters} are allowed"
            )
        total += len(text)
    if total > LIMITS.characters:
        raise UserError(f"the messages have {total} characters in all: at most {LIMITS.characters} are allowed")
    check_conversation({"messages": messages})


def shorten(text: str) -> str:
    """Return the beginning and the end of a long reason, without unpaired surrogates."""
    if len(text) > MAX_ERROR_CHARACTERS:
        half = MAX_ERROR_CHARACTERS // 2
        text = f"{text[:half]} ... {text[-half:]}"
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _num_parts(message: Any) -> int:
    content = message.get("content") if isinstance(message, dict) else None
    return len(content) if isinstance(content, list) else 1


def _texts(message: Any) -> Iterator[str]:
    """Yield the texts of a message. Parts of a wrong type are skipped: `check_conversation` reports them."""
    content = message.get("content") if isinstance(message, dict) else None
    parts = content if isinstance(content, list) else [{"text": content}]
    return (part["text"] for part in parts if isinstance(part, dict) and isinstance(part.get("text"), str))
