"""Conversations that are accepted, with their plain form, and that are refused: alike in files, requests and exports.

tests/tokenization/test_chat_format.py tries them in a conversation file, a request to the web server and the chat
template of an exported model.
"""

from __future__ import annotations

from typing import Any

Messages = list[Any]

USER = {"role": "user", "content": "2*3?"}
ANSWER = {"role": "assistant", "content": "6"}
SYSTEM = {"role": "system", "content": "Be brief."}
TEXT = {"type": "text", "text": "6"}
CALL = {"type": "python", "text": "2*3"}
RESULT = {"type": "python_output", "text": "6"}
IMAGE = {"type": "image_url", "image_url": {"url": "data:,"}}
WITH_CALL = {"role": "assistant", "content": [CALL, RESULT, TEXT]}
OPENAI_CALL = [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]


def question(*texts: str) -> dict[str, Any]:
    """A user's message whose content is a list of text parts."""
    return {"role": "user", "content": [{"type": "text", "text": text} for text in texts]}


# name -> (messages, the same in plain form)
ACCEPTED: dict[str, tuple[Messages, Messages]] = {
    "plain": ([USER, ANSWER], [USER, ANSWER]),
    "system message": ([SYSTEM, USER, ANSWER], [SYSTEM, USER, ANSWER]),
    "developer": ([{**SYSTEM, "role": "developer"}, USER, ANSWER], [SYSTEM, USER, ANSWER]),
    "text parts of a user": ([question("2*", "3?"), ANSWER], [USER, ANSWER]),
    "text parts of the system": (
        [{"role": "system", "content": [{"type": "text", "text": "Be brief."}]}, USER, ANSWER],
        [SYSTEM, USER, ANSWER],
    ),
    "text parts of an answer": ([USER, {**ANSWER, "content": [TEXT]}], [USER, {**ANSWER, "content": [TEXT]}]),
    "a call of the calculator": ([USER, WITH_CALL], [USER, WITH_CALL]),
    "weights": (
        [{**USER, "weight": 0}, {**ANSWER, "weight": 0}, USER, {**ANSWER, "weight": 1}],
        [USER, {**ANSWER, "weight": 0}, USER, ANSWER],
    ),
    "absent values": (
        [{**USER, "name": None, "weight": None}, {**ANSWER, "tool_calls": [], "function_call": None, "refusal": None}],
        [USER, ANSWER],
    ),
    "other keys": ([{**USER, "id": 7, "source_name": "a"}, {**ANSWER, "created": 1.5}], [USER, ANSWER]),
}

# name -> (messages, words of the error)
REFUSED: dict[str, tuple[Messages, str]] = {
    "no message": ([], "at least one message"),
    "no object": (["2*3?"], "message 1: must have a role and a content"),
    "no role": ([{"content": "2*3?"}], "message 1: must have a role and a content"),
    "no content": ([{"role": "user"}], "message 1: must have a role and a content"),
    "null": ([{**USER, "content": None}, ANSWER], "message 1: a user's content must be text or a list of text parts"),
    "a number": ([USER, {**ANSWER, "content": 6}], "message 2: an assistant's content must be text or a list"),
    "no parts": ([{**USER, "content": []}, ANSWER], "message 1: a user's content must be text or a list of text parts"),
    "a picture": ([{**USER, "content": [IMAGE]}, ANSWER], 'message 1: a part must be {"type": text, "text": str}'),
    "a picture of the assistant": ([USER, {**ANSWER, "content": [IMAGE]}], "message 2: a part must be"),
    "a call by the user": ([{**USER, "content": [CALL]}, ANSWER], "message 1: a part must be"),
    "a part without text": ([USER, {**ANSWER, "content": [{"type": "text"}]}], "message 2: a part must be"),
    "a text as part": ([{**USER, "content": ["2*3?"]}, ANSWER], "message 1: a part must be"),
    "the assistant first": ([ANSWER], "message 1: role 'assistant' where 'user' is due"),
    "two users": ([USER, USER, ANSWER], "message 2: role 'user' where 'assistant' is due"),
    "system later": ([USER, ANSWER, SYSTEM], "message 3: role 'system' where 'user' is due"),
    "only a system message": ([SYSTEM], "message 1: a system message must be followed by a user message"),
    "unknown role": ([{**USER, "role": "human"}, ANSWER], "message 1: role 'human' where 'user' is due"),
    "tool": ([USER, ANSWER, {"role": "tool", "content": "6"}], "message 3: role 'tool': tools are not called by name"),
    "function": ([USER, {"role": "function", "content": "6"}], "message 2: role 'function': tools are not called"),
    "tool calls": ([USER, {**ANSWER, "tool_calls": OPENAI_CALL}], "message 2: tool_calls is"),
    "function call": ([USER, {**ANSWER, "function_call": OPENAI_CALL[0]}], "message 2: function_call is"),
    "name": ([{**USER, "name": "Ann"}, ANSWER], "message 1: name is 'Ann': messages are plain text"),
    "weight of 2": ([USER, {**ANSWER, "weight": 2}], "message 2: weight is 2: must be 0"),
    "weight of a half": ([USER, {**ANSWER, "weight": 0.5}], "message 2: weight is 0.5: must be 0"),
    "weight as text": ([USER, {**ANSWER, "weight": "0"}], "message 2: weight is '0': must be 0"),
    "weight as truth": ([USER, {**ANSWER, "weight": True}], "message 2: weight is True: must be 0"),
    "weight of a user": ([{**USER, "weight": 1}, ANSWER], "message 1: weight is 1, but only the assistant's"),
    "train": ([USER, {**ANSWER, "train": False}], 'message 2: train is False: a message has "weight"'),
    "mask": ([USER, {**ANSWER, "mask": 0}], 'message 2: mask is 0: a message has "weight"'),
    "loss": ([USER, {**ANSWER, "loss": False}], 'message 2: loss is False: a message has "weight"'),
}

# Refused in files and requests only: a template does not take names of keys apart.
REFUSED_BY_WORD: dict[str, tuple[Messages, str]] = {
    "loss_mask": ([USER, {**ANSWER, "loss_mask": 0}], "message 2: loss_mask is 0"),
    "toolCalls": ([USER, {**ANSWER, "toolCalls": OPENAI_CALL}], "message 2: toolCalls is"),
    "weight of a part": ([USER, {**ANSWER, "content": [{**TEXT, "weight": 0}]}], "message 2: weight is 0: a message"),
}
