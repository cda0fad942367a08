"""A choice of a response: from the tokens of a completion to text, tool calls and log probabilities.

A choice's text is that of the reply without the calls of the calculator, which clients would show as noise. They are
given beside it, in the order of the reply:

    {"index": 0, "offset": 12, "expression": "6*7", "result": "42"}

`offset`: the number of characters of the text before the call; `result`: null for a call that has none. They are not
called `tool_calls`, since that asks the client to run a tool and to answer with its result; these have run already.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from nanochat.inference.generation_request import TokenEvent
from nanochat.openai_api.stop_strings import StopMatcher
from nanochat.serving.chat_session import Chunk, ChunkDecoder
from nanochat.tokenizer import Tokenizer


@dataclass(frozen=True)
class TokenLogprob:
    """A token of the text with its log probability, and those of the most likely tokens at its place."""

    token: int
    logprob: float
    top: Sequence[tuple[int, float]]
    offset: int  # number of characters of the text before this token


@dataclass
class CalculatorCall:
    """A call of the calculator. `offset`: the number of characters of the text before it."""

    index: int
    offset: int
    expression: str = ""
    result: str | None = None

    def as_json(self) -> dict[str, Any]:
        """Return the call as an entry of `calculator_calls`."""
        return asdict(self)


@dataclass
class Delta:
    """The part of a choice that has become final."""

    text: str = ""
    calls: list[CalculatorCall] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.text or self.calls or self.logprobs)

    def add(self, other: Delta) -> None:
        """Append what follows."""
        self.text += other.text
        self.calls += other.calls
        self.logprobs += other.logprobs


class ChoiceBuilder:
    """Turns the tokens of a completion, as they arrive, into deltas. A character is never cut.

    `has_stopped`: a stop string was found; further tokens are ignored.
    """

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str] = ()) -> None:
        self.num_tokens = 0
        self._special = frozenset(tokenizer.special_tokens.values())
        self._decoder = ChunkDecoder(tokenizer)
        self._matcher = StopMatcher(stops)
        self._num_decoded = 0  # characters of the text, shown or held back
        self._num_shown = 0
        self._pending: list[tuple[int, TokenLogprob]] = []  # with the number of decoded characters after the token
        self._call: CalculatorCall | None = None  # open
        self._held_calls: list[CalculatorCall] = []  # complete, after text that is held back
        self._num_calls = 0

    @property
    def has_stopped(self) -> bool:
        """True once a stop string was found."""
        return self._matcher.found is not None

    def push(self, event: TokenEvent) -> Delta:
        """Return what a further token makes final."""
        if self.has_stopped:
            return Delta()
        self.num_tokens += 1
        delta = Delta()
        kind, offset = self._decoder.kind, self._num_decoded
        for chunk in self._decoder.push(event.token):
            self._add(chunk, delta)
        if kind == "python_output" and self._decoder.kind == "text":
            self._close_call()
        if event.logprob is not None and kind == "text" and event.token not in self._special and not event.is_forced:
            entry = TokenLogprob(event.token, event.logprob, event.top_logprobs or [], offset)
            self._pending.append((self._num_decoded, entry))
        self._release(delta)
        return delta

    def finish(self, is_cut: bool) -> Delta:
        """Return the rest. `is_cut`: by the length limit; then an incomplete character at the end is left out."""
        delta = Delta()
        if self.has_stopped:
            return delta
        for chunk in self._decoder.flush():
            if not is_cut:
                self._add(chunk, delta)
        if not self.has_stopped:
            text = self._matcher.flush()
            delta.text += text
            self._num_shown += len(text)
        self._close_call()
        self._release(delta)
        return delta

    def _add(self, chunk: Chunk, delta: Delta) -> None:
        """Add a chunk to the text or to the open call."""
        if chunk.kind == "text":
            self._close_call()
            self._num_decoded += len(chunk.text)
            text = self._matcher.push(chunk.text)
            delta.text += text
            self._num_shown += len(text)
        elif chunk.kind == "python":
            if not chunk.text:
                self._open_call()
            elif self._call is not None:
                self._call.expression += chunk.text
        else:
            if self._call is None or (not chunk.text and self._call.result is not None):
                self._open_call()
            assert self._call is not None, "a call was opened"
            self._call.result = (self._call.result or "") + chunk.text

    def _open_call(self) -> None:
        self._close_call()
        self._call = CalculatorCall(self._num_calls, self._num_decoded)
        self._num_calls += 1

    def _close_call(self) -> None:
        if self._call is not None:
            self._held_calls.append(self._call)
            self._call = None

    def _release(self, delta: Delta) -> None:
        """Move the calls and log probabilities of the text that is shown to a delta."""
        is_final = self.has_stopped
        while self._held_calls and self._held_calls[0].offset <= self._num_shown:
            delta.calls.append(self._held_calls.pop(0))
        while self._pending and (
            self._pending[0][0] <= self._num_shown or (is_final and self._pending[0][1].offset < self._num_shown)
        ):
            delta.logprobs.append(self._pending.pop(0)[1])


def token_text(tokenizer: Tokenizer, token: int) -> str:
    """Return the text of a token; bytes that are not UTF-8 become U+FFFD."""
    return tokenizer.decode([token])


def chat_logprobs(tokenizer: Tokenizer, entries: Sequence[TokenLogprob]) -> dict[str, Any]:
    """Return `logprobs` of a choice of a chat completion."""

    def fields(token: int, logprob: float) -> dict[str, Any]:
        content = tokenizer.decode_bytes([token])
        return {"token": content.decode("utf-8", "replace"), "logprob": logprob, "bytes": list(content)}

    content = [
        {
            **fields(entry.token, entry.logprob),
            "top_logprobs": [fields(token, logprob) for token, logprob in entry.top],
        }
        for entry in entries
    ]
    return {"content": content, "refusal": None}


def completion_logprobs(tokenizer: Tokenizer, entries: Sequence[TokenLogprob], start: int = 0) -> dict[str, Any]:
    """Return `logprobs` of a choice of a completion. `start`: number of characters of an echoed prompt.

    Two tokens with the same text, such as parts of characters, share an entry of `top_logprobs`, the more likely one's.
    """
    top = []
    for entry in entries:
        values: dict[str, float] = {}
        for token, logprob in sorted([*entry.top, (entry.token, entry.logprob)], key=lambda pair: -pair[1]):
            values.setdefault(token_text(tokenizer, token), logprob)
        top.append(values)
    return {
        "tokens": [token_text(tokenizer, entry.token) for entry in entries],
        "token_logprobs": [entry.logprob for entry in entries],
        "top_logprobs": top if any(entry.top for entry in entries) else None,
        "text_offset": [start + entry.offset for entry in entries],
    }
