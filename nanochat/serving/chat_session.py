"""The steps of a reply, for the terminal, the web server and the evaluation: fit the conversation, generate, stream.

The caller keeps the history, a list of messages as in `tokenization/chat_format.py`. A `Reply` yields chunks of text as
they are generated, and `to_content` turns its chunks into the content of the assistant's message in the history.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from nanochat.checkpoint_manager import list_tags
from nanochat.common import UserError, base_dir
from nanochat.engine import Column
from nanochat.layers.sampling_params import SamplingParams
from nanochat.tokenization.chat_format import render_turns
from nanochat.tokenizer import StreamDecoder, Tokenizer

Message = Mapping[str, Any]
Content = str | list[dict[str, str]]

CHAT_SOURCES = ("rl", "sft", "mid")  # the checkpoints of chat models, the last stage first
KIND_AFTER = {"<|python_start|>": "python", "<|output_start|>": "python_output"}  # any other special token: "text"


class PromptModel(Protocol):
    """The part of a model that the prompt of a reply depends on."""

    @property
    def tokenizer(self) -> Tokenizer:
        """Tokenizer of the model."""
        ...

    @property
    def context_len(self) -> int:
        """Number of tokens that a prompt and its completion may have."""
        ...


class ReplyEngine(PromptModel, Protocol):
    """The part of an engine that a reply needs: nanochat's own, or llama.cpp's (`inference/llama_cpp.py`)."""

    def stream(self, tokens: list[int], params: SamplingParams) -> Generator[Column, None, None]:
        """Continue a prompt, as `Engine.stream` does."""
        ...


def latest_source(model_tag: str | None = None) -> str:
    """Return the last stage that has a chat model (with this tag). Raises `UserError` if there is none."""
    for source in CHAT_SOURCES:
        tags = list_tags(source)
        if model_tag in tags or (model_tag is None and tags):
            return source
    with_tag = "" if model_tag is None else f" with the tag {model_tag}"
    raise UserError(f"no chat model{with_tag} in {base_dir()}: train one with scripts.mid_train and scripts.chat_sft")


# Fit the conversation into the context


class ChatPrompt(NamedTuple):
    """The prompt for the next reply: its token ids, and the number of old messages that did not fit."""

    tokens: list[int]
    num_dropped: int


def fit_messages(tokenizer: Tokenizer, messages: Sequence[Message], context: int, reserved: int) -> ChatPrompt:
    """Render the prompt for a reply to the last message, in at most `context - reserved` tokens.

    Messages that do not fit are dropped, the oldest first, each user message together with its reply; the system
    message stays. Raises `UserError` if this is not a conversation that ends with a user message, or if the last
    message alone is too long.
    """
    turns = render_turns({"messages": list(messages)})
    if len(turns) % 2 == 0:
        raise UserError(f"message {len(messages)}: role 'assistant', but the last message must be the user's")
    num_system = len(messages) - len(turns)
    system = list(messages[:num_system])
    history = list(messages[num_system:])

    def render(num_exchanges_dropped: int) -> list[int]:
        return tokenizer.render_for_completion({"messages": system + history[2 * num_exchanges_dropped :]})

    num_user_messages = len(history) // 2 + 1
    available = context - reserved
    # The prompt shrinks with every exchange that is dropped: bisect for the smallest number that fits.
    num_dropped = bisect.bisect_left(
        range(num_user_messages), True, key=lambda num_dropped: len(render(num_dropped)) <= available
    )
    if num_dropped == num_user_messages:
        with_system = " with the system message" if system else ""
        raise UserError(
            f"the message is too long: it has {len(render(num_user_messages - 1))} tokens{with_system}, and "
            f"{available} fit (the context is {context}, of which {reserved} are reserved for the reply); shorten it"
        )
    return ChatPrompt(render(num_dropped), 2 * num_dropped)


def fit_prompt(model: PromptModel, messages: Sequence[Message], params: SamplingParams) -> ChatPrompt:
    """Render the prompt for a reply in the model's context, with room for the reply. Raises as `fit_messages` does."""
    context = model.context_len
    return fit_messages(model.tokenizer, messages, context, params.reserved_tokens(context))


# Continue a reply


def beginning_ids(tokenizer: Tokenizer, beginning: Content) -> list[int]:
    """Return the token ids of the beginning of a reply, which follow `<|assistant_start|>`."""
    if not beginning:
        return []
    messages = [{"role": "user", "content": ""}, {"role": "assistant", "content": beginning}]
    ids, _ = tokenizer.render_conversation({"messages": messages})
    start = ids.index(tokenizer.encode_special("<|assistant_start|>"))
    return ids[start + 1 : -1]  # without the end of the turn


# Generate the reply


@dataclass(frozen=True)
class Chunk:
    """Some characters of a reply. `kind`: "text", "python" (a tool call) or "python_output" (its result).

    A call or a result begins with a chunk of empty text, which separates two in succession.
    """

    kind: str
    text: str


class Reply:
    """The assistant's next message, generated while it is iterated over. Yields its chunks; closing stops the model."""

    def __init__(
        self,
        engine: ReplyEngine,
        prompt: ChatPrompt,
        params: SamplingParams,
        on_token: Callable[[], bool] | None = None,
    ) -> None:
        """`on_token` is called for each token, and returns False to discard it and stop the reply."""
        self.num_dropped = prompt.num_dropped
        self.tokens: list[int] = []  # generated so far
        self._engine = engine
        self._on_token = on_token
        self._columns = engine.stream(prompt.tokens, params)

    def __iter__(self) -> Iterator[Chunk]:
        return stream_chunks(self._engine.tokenizer, self._generate())

    def _generate(self) -> Iterator[int]:
        with closing(self._columns):
            for (token,), _ in self._columns:
                if self._on_token is not None and not self._on_token():
                    return
                self.tokens.append(token)
                yield token

    @property
    def has_ended(self) -> bool:
        """True if the model ended the reply itself; False if it was cut off, by a length limit or the caller."""
        return has_ended(self._engine.tokenizer, self.tokens)


class GivenReply:
    """A reply whose text is known: a quotation of the documents, or that they do not answer."""

    has_ended = True

    def __init__(self, text: str, num_dropped: int) -> None:
        self.num_dropped = num_dropped
        self._text = text

    def __iter__(self) -> Iterator[Chunk]:
        yield Chunk("text", self._text)


def generate_reply(engine: ReplyEngine, messages: Sequence[Message], params: SamplingParams) -> Reply:
    """Fit the conversation into the context and begin the reply to its last message.

    Raises `UserError`, before the first token, as `fit_messages` does.
    """
    return Reply(engine, fit_prompt(engine, messages, params), params)


def has_ended(tokenizer: Tokenizer, tokens: Sequence[int]) -> bool:
    """Return True if the last of these tokens is one that ends a reply."""
    end_ids = (tokenizer.encode_special("<|assistant_end|>"), tokenizer.get_bos_token_id())
    return bool(tokens) and tokens[-1] in end_ids


# Stream the tokens as text


class ChunkDecoder:
    """Decoder of the tokens of a reply to chunks, as they arrive. A character is never cut.

    Bytes that are not UTF-8 become U+FFFD. Special tokens only change the `kind` of what follows; unexpected ones are
    not shown either.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.kind = "text"
        self._special_names = {token: name for name, token in tokenizer.special_tokens.items()}
        self._decoder = StreamDecoder(tokenizer)

    def push(self, token: int) -> list[Chunk]:
        """Return the chunks that a token completes: none within a character, two at the start of a tool call."""
        name = self._special_names.get(token)
        text = self._decoder.flush() if name else self._decoder.decode(token)
        chunks = [Chunk(self.kind, text)] if text else []
        if name:
            self.kind = KIND_AFTER.get(name, "text")
            if self.kind != "text":
                chunks.append(Chunk(self.kind, ""))
        return chunks

    def flush(self) -> list[Chunk]:
        """Return the rest at the end: U+FFFD if the tokens end within a character."""
        text = self._decoder.flush()
        return [Chunk(self.kind, text)] if text else []


def stream_chunks(tokenizer: Tokenizer, tokens: Iterable[int]) -> Iterator[Chunk]:
    """Decode the tokens of a reply as they arrive (`ChunkDecoder`). Yields a chunk as soon as a token completes one.

    "6*7 is " <|python_start|> "6*7" <|python_end|> <|output_start|> "42" <|output_end|>
    -> text "6*7 is ", python "", python "6*7", python_output "", python_output "42"
    """
    decoder = ChunkDecoder(tokenizer)
    for token in tokens:
        yield from decoder.push(token)
    yield from decoder.flush()


def to_content(chunks: Iterable[Chunk]) -> Content:
    """Join chunks to the content of an assistant's message: a text, or a list of parts if there are tool calls.

    >>> to_content([Chunk("text", "He"), Chunk("text", "llo")])
    'Hello'
    >>> to_content([Chunk("python", ""), Chunk("python", "1+"), Chunk("python", "1")])
    [{'type': 'python', 'text': '1+1'}]
    """
    parts: list[dict[str, str]] = []
    for chunk in chunks:
        is_opening = not chunk.text and chunk.kind != "text"
        if is_opening or not parts or parts[-1]["type"] != chunk.kind:
            parts.append({"type": chunk.kind, "text": ""})
        parts[-1]["text"] += chunk.text
    if any(part["type"] != "text" for part in parts):
        return parts
    return "".join(part["text"] for part in parts)
