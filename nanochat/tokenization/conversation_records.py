"""Records of conversation files in the shapes that other programs write, as messages of the chat format.

    OpenAI     {"messages": [{"role", "content"}, ...]}, or the list alone
    ShareGPT   {"conversations": [{"from", "value"}, ...]}, or the list alone
    Alpaca     {"instruction", "input", "output"}

The messages of OpenAI's shape remain as they are. ShareGPT's are from human or user (user), gpt, chatgpt or assistant
(assistant), or system. Alpaca's user message is the instruction and, after a blank line, the input if there is one.

Each may have `"system"`, a text, which becomes the system message. Other keys of a record are ignored, unless they
change what is trained on, such as "tools", "chosen" and "rejected": those are refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nanochat.common import UserError
from nanochat.system.json_text import short_repr
from nanochat.tokenization.chat_format import steering_key

_LISTS = ("messages", "conversations")
_SENDERS = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "chatgpt", "assistant"), "assistant"),
    "system": "system",
}
_PREFERENCES = ("chosen", "rejected", "kto_tag")
_SHAPES = (
    'it must have "messages" (OpenAI\'s shape), "conversations" (ShareGPT\'s) or "instruction" and "output" (Alpaca\'s)'
)
ONE_PER_LINE = (
    'the file must have one conversation per line. To convert a JSON list: python -c "import json, sys; '
    "[print(json.dumps(each)) for each in json.load(open(sys.argv[1], encoding='utf-8'))]\" OLD.json > NEW.jsonl"
)
# Keys by which other shapes are recognized, and what to do with them.
_OTHER_SHAPES = {
    ("prompt", "completion"): 'pairs of a prompt and a completion: write {"instruction": ..., "output": ...}',
    ("prompt", "response"): 'pairs of a prompt and a response: write {"instruction": ..., "output": ...}',
    ("question", "answer"): 'pairs of a question and an answer: write {"instruction": ..., "output": ...}',
    ("text",): "documents without turns: import them for pretraining with `python -m nanochat.dataset --source`",
}


def to_conversation(record: Any) -> dict[str, Any]:
    """Return `{"messages": [...]}` of a record in any of the shapes. The messages themselves are not checked.

    Raises UserError for another shape, which it names, and for keys that change what is trained on.

    >>> to_conversation({"instruction": "Add.", "input": "2 and 3", "output": "5"})["messages"][0]["content"]
    'Add.\\n\\n2 and 3'
    >>> to_conversation([{"from": "human", "value": "Hi"}])
    {'messages': [{'role': 'user', 'content': 'Hi'}]}
    """
    if isinstance(record, list):
        if record and all(isinstance(each, list) or (isinstance(each, dict) and _is_record(each)) for each in record):
            raise UserError(f"a list of conversations: {ONE_PER_LINE}")
        return {"messages": _from_list(record)}
    if not isinstance(record, dict):
        raise UserError(f"a conversation must be an object or a list of messages, not {short_repr(record)}")
    _check_keys(record)
    lists = [name for name in _LISTS if record.get(name) is not None]
    if len(lists) == 2:
        raise UserError('a record has "messages" and "conversations": remove the one that is not meant')
    if lists:
        messages = record[lists[0]]
        if not isinstance(messages, list) or not messages:
            raise UserError(f'a conversation must be {{"{lists[0]}": [...]}} with at least one message')
        messages = _from_list(messages)
    elif "instruction" in record and "output" in record:
        messages = _from_alpaca(record)
    else:
        raise UserError(_describe_other(record))
    return {"messages": _with_system(record.get("system"), messages)}


def _check_keys(record: Mapping[str, Any]) -> None:
    if preferences := [name for name in _PREFERENCES if record.get(name) is not None]:
        raise UserError(
            f"{preferences[0]} is {short_repr(record[preferences[0]])}: answers are trained on, not preferences "
            'between them; write the better answer as {"messages": [...]}'
        )
    if isinstance(record.get("label"), bool):
        raise UserError(
            f"label is {record['label']}: answers are trained on, not judged; keep the good ones, without it"
        )
    if record.get("history"):
        raise UserError('history: earlier turns are messages; write the conversation as {"messages": [...]}')
    if fault := steering_key(record, frozenset(("name",))):
        raise UserError(fault)


def _is_record(value: Mapping[str, Any]) -> bool:
    return any(name in value for name in (*_LISTS, "instruction"))


def _from_list(messages: list[Any]) -> list[Any]:
    return [_from_sender(message, number) for number, message in enumerate(messages, 1)]


def _from_sender(message: Any, number: int) -> Any:
    """Return a message of ShareGPT's shape in the chat format, and any other value as it is."""
    if not isinstance(message, dict) or "role" in message or not {"from", "value"} <= message.keys():
        return message
    sender = message["from"]
    if not isinstance(sender, str) or sender not in _SENDERS:
        raise UserError(
            f"message {number}: it is from {short_repr(sender)}: must be one of {', '.join(_SENDERS)} (a call of the "
            'calculator and its result are parts of an assistant\'s content of types "python" and "python_output")'
        )
    others = {key: value for key, value in message.items() if key not in ("from", "value")}
    return {"role": _SENDERS[sender], "content": message["value"], **others}


def _from_alpaca(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    for name in ("instruction", "input", "output"):
        value = record.get(name)
        if not isinstance(value, str) and not (name == "input" and value is None):
            raise UserError(f"{name} is {short_repr(value)}: must be text")
    parts = [record["instruction"], record.get("input") or ""]
    question = "\n\n".join(part for part in parts if part)
    return [{"role": "user", "content": question}, {"role": "assistant", "content": record["output"]}]


def _with_system(system: Any, messages: list[Any]) -> list[Any]:
    if system is None or system == "":
        return messages
    if not isinstance(system, str):
        raise UserError(f"system is {short_repr(system)}: must be text")
    if messages and isinstance(messages[0], dict) and messages[0].get("role") in ("system", "developer"):
        raise UserError('a record has "system" and a system message: remove one of them')
    return [{"role": "system", "content": system}, *messages]


def _describe_other(record: Mapping[str, Any]) -> str:
    for keys, name in _OTHER_SHAPES.items():
        if all(key in record for key in keys):
            return f"these are {name}"
    names = ", ".join(short_repr(key)[1:-1] for key in list(record)[:8]) or "none"
    return f"a conversation must be a list of messages or an object of a known shape; its keys are {names}: {_SHAPES}"
