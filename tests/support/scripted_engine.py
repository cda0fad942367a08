"""An engine that generates what a test tells it to, with a small tokenizer that has merges."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from types import SimpleNamespace
from typing import Any

from nanochat.engine import Column
from nanochat.layers.sampling_params import SamplingParams
from nanochat.tokenizer import SPECIAL_TOKENS, SPLIT_PATTERN, Tokenizer

# All bytes, and some merges: a character of several bytes, one that is split across tokens, words.
MERGES = (b"\xe2\x82", b" t", b" th", b" the", b"an", b"12", b"\xf0\x9f", b"\x99\x82")
TOKENIZER = Tokenizer(
    SPLIT_PATTERN,
    {token: i for i, token in enumerate([*(bytes([i]) for i in range(256)), *MERGES])},
    {name: 256 + len(MERGES) + i for i, name in enumerate(SPECIAL_TOKENS)},
)
SPECIAL = TOKENIZER.special_tokens


def user(text: str) -> dict[str, Any]:
    """A message of the user."""
    return {"role": "user", "content": text}


def assistant(content: Any) -> dict[str, Any]:
    """A message of the assistant."""
    return {"role": "assistant", "content": content}


def reply_ids(content: Any) -> list[int]:
    """Return the tokens that a model would generate for this content: without the start of its turn, with the end."""
    ids, _ = TOKENIZER.render_conversation({"messages": [user("?"), assistant(content)]})
    return ids[ids.index(SPECIAL["<|assistant_start|>"]) + 1 :]


def last_user_text(prompt: list[int]) -> str:
    """Return the text of the last message of a prompt."""
    start = max(i for i, token in enumerate(prompt) if token == SPECIAL["<|user_start|>"])
    return TOKENIZER.decode(prompt[start + 1 : prompt.index(SPECIAL["<|user_end|>"], start)])


class ScriptedEngine:
    """An engine whose completions come from `script`, a function of the prompt.

    `calls` has the prompt and the settings of each call of `stream`; `num_generated` counts the tokens that were taken;
    `num_closed_early` counts the completions that were closed before their end.
    """

    def __init__(self, script: Callable[[list[int]], Iterable[int]], context: int = 256) -> None:
        self.tokenizer = TOKENIZER
        self.script = script
        self.context_len = context
        self.model = SimpleNamespace(config=SimpleNamespace(sequence_len=context), device="cpu")
        self.calls: list[tuple[list[int], SamplingParams]] = []
        self.num_generated = 0
        self.num_closed_early = 0

    def stream(self, tokens: list[int], params: SamplingParams) -> Generator[Column, None, None]:
        self.calls.append((tokens, params))
        return self._columns(tokens, params.max_tokens)

    def _columns(self, tokens: list[int], max_tokens: int | None) -> Generator[Column, None, None]:
        is_finished = False
        try:
            for count, token in enumerate(self.script(tokens), 1):
                self.num_generated += 1
                yield [token], [1]
                if count == max_tokens:
                    break
            is_finished = True
        finally:
            self.num_closed_early += not is_finished


class GatedEngine(ScriptedEngine):
    """An engine that generates "a" without end: one for each permit, or at full speed once it `is_free`."""

    def __init__(self) -> None:
        super().__init__(self._tokens, context=4096)
        self.permits = threading.Semaphore(0)
        self.is_free = False

    def _tokens(self, _: list[int]) -> Iterator[int]:
        while True:
            while not self.permits.acquire(timeout=0.005) and not self.is_free:
                pass
            yield ord("a")
