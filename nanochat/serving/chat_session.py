"""A conversation with a model: what of it fits into the context, and the answer as it is written.

The command line and the web server stand on this. They keep the history, a list of messages as in `conversation.py`;
an answer comes as pieces, and `join` makes of them what goes into the history.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nanochat.checkpoint_manager import list_tags
from nanochat.common import UserError, base_dir
from nanochat.engine import Engine
from nanochat.layers.sampling_params import SamplingParams
from nanochat.tokenization.chat_format import render_turns
from nanochat.tokenizer import StreamDecoder, Tokenizer

Message = Mapping[str, Any]
Content = str | list[dict[str, str]]

STAGES = ("rl", "sft", "mid")  # with whose models one can talk, the last one first
OPENING = {"<|python_start|>": "python", "<|output_start|>": "python_output"}


@dataclass(frozen=True)
class Piece:
    """Some characters of an answer. `kind`: text, python (a call of the tool) or python_output (its result).

    A call or a result begins with a piece whose text is empty, so that two of one kind stay apart.
    """

    kind: str
    text: str


def last_stage(model_tag: str | None = None) -> str:
    """The last stage that has a model to talk to (with this tag). Raises `UserError` if none has."""
    for stage in STAGES:
        tags = list_tags(stage)
        if model_tag in tags or (model_tag is None and tags):
            return stage
    called = "" if model_tag is None else f" called {model_tag}"
    raise UserError(
        f"no model{called} to talk to in {base_dir()}: train one with scripts.mid_train and scripts.chat_sft"
    )


def fit_messages(
    tokenizer: Tokenizer, messages: Sequence[Message], context: int, reserve: int
) -> tuple[list[int], int]:
    """The prompt that asks for an answer to the last message, and how many messages had to be left out for it.

    The prompt has at most `context - reserve` tokens, so that `reserve` are left for the answer. A question is left out
    together with its answer, the oldest first; a system message stays. Raises `UserError` for what is no conversation
    or does not end with a question, and if the last message alone is too long.
    """
    turns = render_turns({"messages": list(messages)})
    if len(turns) % 2 == 0:
        raise UserError(f"message {len(messages)}: role 'assistant', but the last message must be the user's")
    head, tail = list(messages[: len(messages) - len(turns)]), list(messages[len(messages) - len(turns) :])

    def prompt(dropped: int) -> list[int]:
        return tokenizer.render_for_completion({"messages": head + tail[2 * dropped :]})

    count = len(tail) // 2 + 1  # questions
    room = context - reserve
    first = bisect.bisect_left(range(count), True, key=lambda dropped: len(prompt(dropped)) <= room)
    if first == count:
        together = " with the system message" if head else ""
        raise UserError(
            f"the message is too long: it takes {len(prompt(count - 1))} tokens{together}, "
            f"and {room} fit (the context is {context}, of which {reserve} are kept for the answer); shorten it"
        )
    return prompt(first), 2 * first


def reply(engine: Engine, messages: Sequence[Message], params: SamplingParams) -> Iterator[Piece]:
    """Write the answer to the last message, piece by piece; to close the iterator stops the model.

    Old messages that do not fit are left out. Raises `UserError`, before the first piece, as `fit_messages` and
    `Engine.stream` do.
    """
    context = engine.model.config.sequence_len
    prompt, _ = fit_messages(engine.tokenizer, messages, context, params.reserved_tokens(context))
    columns = engine.stream(prompt, params)
    return pieces(engine.tokenizer, (column[0] for column, _ in columns))


def pieces(tokenizer: Tokenizer, tokens: Iterable[int]) -> Iterator[Piece]:
    """The pieces of one answer from its tokens, as these come in: each as soon as it is whole characters.

    Bytes that are no UTF-8 become U+FFFD. Special tokens are not shown, not even those that do not belong here.
    """
    names = {i: name for name, i in tokenizer.special_tokens.items()}
    kind = "text"
    decoder = StreamDecoder(tokenizer)
    for token in tokens:
        name = names.get(token)
        text = decoder.flush() if name else decoder.decode(token)
        if text:
            yield Piece(kind, text)
        if name:
            kind = OPENING.get(name, "text")
            if kind != "text":
                yield Piece(kind, "")
    if rest := decoder.flush():
        yield Piece(kind, rest)


def has_ended(tokenizer: Tokenizer, tokens: Sequence[int]) -> bool:
    """Whether the model ended the answer that has these tokens; if not, there was no more room."""
    ends = (tokenizer.encode_special("<|assistant_end|>"), tokenizer.get_bos_token_id())
    return bool(tokens) and tokens[-1] in ends


def join(pieces: Iterable[Piece]) -> Content:
    """The content of the assistant's message that these pieces make: text, or parts where the tool was called."""
    parts: list[dict[str, str]] = []
    for piece in pieces:
        opens = not piece.text and piece.kind != "text"
        if opens or not parts or parts[-1]["type"] != piece.kind:
            parts.append({"type": piece.kind, "text": ""})
        parts[-1]["text"] += piece.text
    if any(part["type"] != "text" for part in parts):
        return parts
    return "".join(part["text"] for part in parts)
