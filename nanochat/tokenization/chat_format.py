"""Chat format: the conversations that nanochat accepts, and the order and loss mask of their parts.

`nanochat/tokenizer.py` turns the spans of `render_turns` into token ids. A conversation is

    {"messages": [{"role": "system", "content": str},                       # optional
                  {"role": "user", "content": str},
                  {"role": "assistant", "content": str | [{"type": "text" | "python" | "python_output", "text": str}]},
                  ...]}

User and assistant alternate; the user begins. The system message is put before the first user message, separated by a
blank line. Consecutive text parts of an answer are joined before they are encoded, so that the borders between them do
not change the tokens. A part of type "python" is a tool call; only calculator expressions are run.

As other programs write them, these are accepted too:

- the role "developer" for "system";
- a user's or a system message's content as a list of text parts, `[{"type": "text", "text": str}]`, which are joined;
- `"weight": 0` on a message: the loss covers none of its tokens. 1, the default of an assistant's message, cannot be
  given to the others, which are never trained on;
- further keys of a message or part, which are ignored, unless their name says that they change what is trained on or
  what the model reads (`steering_key`). Those are refused; with the value null, "", [] or {} they count as absent.

Refused are other roles ("tool", "function"), parts that are not text, and calls as "tool_calls" or "function_call".
`check_conversation` is the one validation of conversation files (tasks/customjson.py) and of requests to the web
server (serving/chat_request.py). The chat template of an exported model (export/hf_tokenizer.py) accepts and refuses
the same. tests/support/conversation_cases.py lists examples, which are tried in all three.

A mixture may also contain documents, `{"text": str}`, which are trained on as in pretraining.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import groupby
from typing import Any, NamedTuple

from nanochat.common import UserError
from nanochat.system.json_text import short_repr

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

_SYSTEM_ROLES = ("system", "developer")

# The roles in turn, each with the special tokens around its message.
_TURNS = [
    ("user", Span("<|user_start|>", True, False), Span("<|user_end|>", True, False)),
    ("assistant", Span("<|assistant_start|>", True, False), Span("<|assistant_end|>", True, True)),
]

_MESSAGE_KEYS = frozenset(("role", "content", "weight"))
_PART_KEYS = frozenset(("type", "text"))

_USE_WEIGHT = 'a message has "weight", 0 (not trained on) or 1, and nothing else that steers the loss; remove it'
_USE_PARTS = (
    'tools are not called by name here: a call of the calculator is a part of the assistant\'s content, {"type": '
    '"python", "text": "6*7"}, and its result another, {"type": "python_output", "text": "42"}'
)
_ONLY_TEXT = "messages are plain text here; remove it, or write it into the content"

# Words in the name of a key, and what to do instead.
_STEERING_WORDS = {
    **dict.fromkeys(("weight", "weights", "loss", "losses", "mask", "masks", "masked", "ignore", "skip"), _USE_WEIGHT),
    **dict.fromkeys(("train", "trains", "trained", "trainable", "training", "learn", "learned"), _USE_WEIGHT),
    **dict.fromkeys(("tool", "tools", "function", "functions", "call", "calls"), _USE_PARTS),
    **dict.fromkeys(("image", "images", "audio", "audios", "video", "videos", "refusal"), _ONLY_TEXT),
    **dict.fromkeys(("reasoning", "thinking", "prefix"), _ONLY_TEXT),
}
_STEERING_NAMES = {"name": _ONLY_TEXT}  # whole names only: a `source_name` is harmless
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")


def document_text(conversation: Conversation) -> str | None:
    """Return the text of a document, or None for a conversation.

    Raises UserError if it has messages as well, or if its text is not a string.
    """
    if not isinstance(conversation, Mapping) or "text" not in conversation:
        return None
    if "messages" in conversation or not isinstance(conversation["text"], str):
        raise UserError('a document must be {"text": str}, without messages')
    return conversation["text"]


def check_conversation(conversation: Conversation) -> list[list[Span]]:
    """Return `render_turns` of a conversation from outside. Raises UserError for an invalid one, also for its text.

    A text with half a surrogate pair is no Unicode and cannot be encoded.
    """
    turns = render_turns(conversation)
    for turn in turns:
        for span in turn:
            try:
                span.text.encode("utf-8")
            except UnicodeEncodeError as error:
                code = ord(span.text[error.start])
                raise UserError(f"half a surrogate pair, \\u{code:04x}: text must be valid Unicode") from None
    return turns


def plain_messages(conversation: Conversation) -> list[dict[str, Any]]:
    """Return the messages of a valid conversation in one form: without further keys, user and system content as text.

    The role "developer" becomes "system". `weight` remains where it is 0 on an assistant's message.

    >>> parts = [{"type": "text", "text": "2+2?"}]
    >>> plain_messages({"messages": [{"role": "user", "content": parts, "id": 7}]})
    [{'role': 'user', 'content': '2+2?'}]
    """
    messages = []
    for message in conversation["messages"]:
        role = "system" if message["role"] in _SYSTEM_ROLES else message["role"]
        content = message["content"]
        if role != "assistant" and not isinstance(content, str):
            content = "".join(part["text"] for part in content)
        elif not isinstance(content, str):
            content = [{"type": part["type"], "text": part["text"]} for part in content]
        plain: dict[str, Any] = {"role": role, "content": content}
        if role == "assistant" and message.get("weight") == 0:
            plain["weight"] = 0
        messages.append(plain)
    return messages


def steering_key(fields: Mapping[str, Any], known: frozenset[str] = frozenset()) -> str | None:
    """Return why the first key that changes training or the prompt is refused, with what to do instead; else None.

    `known`: keys that are accepted. A key counts by the words of its name, in snake or camel case. A null and an empty
    text, list or object are no values.

    >>> steering_key({"id": 7, "source_name": "a", "tool_calls": None, "constraints": "b"})
    >>> str(steering_key({"lossMask": 0}))[:21]
    'lossMask is 0: a mess'
    """
    for key, value in fields.items():
        if key in known or value is None or (isinstance(value, (str, list, dict)) and not value):
            continue
        words = [word.lower() for word in _WORD.findall(str(key))]
        advice = _STEERING_NAMES.get(str(key).lower()) or next(filter(None, map(_STEERING_WORDS.get, words)), None)
        if advice:
            return f"{short_repr(key)[1:-1]} is {short_repr(value)}: {advice}"
    return None


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
            raise UserError(f"message {number}: {_role_fault(message['role'], role)}")
        content = message["content"]
        is_trained = _is_trained(message, number)
        if role == "user":
            text = _joined_text(content, number, "a user's content")
            text = f"{system_text}\n\n{text}" if system_text is not None and index == 0 else text
            turns.append([start, Span(text, False, False), end])
        elif is_trained:
            turns.append([start, *_assistant_spans(content, number), end])
        else:
            spans = [*_assistant_spans(content, number), end]
            turns.append([start, *(span._replace(is_trained=False) for span in spans)])
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
        if not message.keys() <= _MESSAGE_KEYS and (fault := steering_key(message, _MESSAGE_KEYS)):
            raise UserError(f"message {number}: {fault}")

    if messages[0]["role"] not in _SYSTEM_ROLES:
        return None, messages
    text = _joined_text(messages[0]["content"], 1, "a system message")
    _is_trained(messages[0], 1)
    if len(messages) == 1:
        raise UserError("message 1: a system message must be followed by a user message")
    return text, messages[1:]


def _role_fault(role: object, due: str) -> str:
    if role in ("tool", "function"):
        return f"role {role!r}: {_USE_PARTS}"
    return f"role {short_repr(role)} where {due!r} is due (they alternate, the user first)"


def _is_trained(message: Mapping[str, Any], number: int) -> bool:
    """Return True if the loss covers an assistant's message: its weight, by default 1. Raises UserError for others."""
    weight = message.get("weight")
    if weight is None:
        return True
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or weight not in (0, 1):
        raise UserError(
            f"message {number}: weight is {short_repr(weight)}: must be 0 (not trained on) or 1 (trained on)"
        )
    if weight == 1 and message["role"] != "assistant":
        raise UserError(f"message {number}: weight is 1, but only the assistant's messages are trained on; remove it")
    return weight == 1


def _joined_text(content: object, number: int, name: str) -> str:
    """Return the text of a content that has no tool calls: a text, or a list of text parts."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not content:
        found = "an empty list" if content == [] else type(content).__name__
        raise UserError(f"message {number}: {name} must be text or a list of text parts, not {found}")
    for part in content:
        _check_part(part, number, ("text",))
    return "".join(part["text"] for part in content)


def _check_part(part: object, number: int, kinds: tuple[str, ...]) -> None:
    kind = part.get("type") if isinstance(part, (dict, Mapping)) else None
    if not isinstance(part, (dict, Mapping)) or kind not in kinds or not isinstance(part.get("text"), str):
        allowed = " | ".join(kinds)
        raise UserError(f'message {number}: a part must be {{"type": {allowed}, "text": str}}, not {short_repr(part)}')
    if not part.keys() <= _PART_KEYS and (fault := steering_key(part, _PART_KEYS)):
        raise UserError(f"message {number}: {fault}")


def _assistant_spans(content: object, number: int) -> list[Span]:
    if isinstance(content, str):
        return [Span(content, False, True)]
    if not isinstance(content, list):
        raise UserError(
            f"message {number}: an assistant's content must be text or a list of parts, not {type(content).__name__}"
        )
    for part in content:
        _check_part(part, number, tuple(_PARTS))
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
