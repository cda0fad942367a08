"""An engine that says what a test wants, and the chat's server around it, on a port of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import uvicorn
from fastapi import FastAPI

from nanochat.engine import Column
from nanochat.layers.sampling_params import SamplingParams
from nanochat.serving.chat_request import DEFAULTS
from nanochat.serving.server import Service, create_app
from nanochat.tokenizer import SPECIAL_TOKENS, SPLIT_PATTERN, Tokenizer

# Bytes, and some merges: a character of several bytes, one that is cut across tokens, words.
MERGES = (b"\xe2\x82", b" t", b" th", b" the", b"an", b"12", b"\xf0\x9f", b"\x99\x82")
TOKENIZER = Tokenizer(
    SPLIT_PATTERN,
    {token: i for i, token in enumerate([*(bytes([i]) for i in range(256)), *MERGES])},
    {name: 256 + len(MERGES) + i for i, name in enumerate(SPECIAL_TOKENS)},
)
SPECIAL = TOKENIZER.special_tokens


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(content: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content}


def answer_ids(content: Any) -> list[int]:
    """The tokens of an assistant's turn as the model would say them: from after its start, with its end."""
    ids, _ = TOKENIZER.render_conversation({"messages": [user("?"), assistant(content)]})
    return ids[ids.index(SPECIAL["<|assistant_start|>"]) + 1 :]


def question(prompt: list[int]) -> str:
    """The last message of a prompt."""
    start = max(i for i, token in enumerate(prompt) if token == SPECIAL["<|user_start|>"])
    return TOKENIZER.decode(prompt[start + 1 : prompt.index(SPECIAL["<|user_end|>"], start)])


class Scripted:
    """An engine whose answers are scripted: `script` makes the tokens from the prompt, a token at a time.

    `asked` holds each call's prompt and settings, `said` counts the tokens that were asked for. `closed`: generators
    that were left before their end.
    """

    def __init__(self, script: Callable[[list[int]], Iterable[int]], context: int = 256) -> None:
        self.tokenizer, self.script = TOKENIZER, script
        self.model = SimpleNamespace(config=SimpleNamespace(sequence_len=context), device="cpu")
        self.asked: list[tuple[list[int], SamplingParams]] = []
        self.said = self.closed = 0

    def stream(self, tokens: list[int], params: SamplingParams) -> Iterator[Column]:
        self.asked.append((tokens, params))
        return self._run(tokens, len(tokens) + 1_000_000 if params.max_tokens is None else params.max_tokens)

    def _run(self, tokens: list[int], room: int) -> Iterator[Column]:
        finished = False
        try:
            for count, token in enumerate(self.script(tokens), 1):
                self.said += 1
                yield [token], [1]
                if count == room:
                    break
            finished = True
        finally:
            self.closed += not finished


class Gated(Scripted):
    """Says "a" for ever: each time a permit is given, or, when it is `free`, by itself."""

    def __init__(self) -> None:
        super().__init__(self._tokens, 4096)
        self.permits, self.free = threading.Semaphore(0), False

    def _tokens(self, _: list[int]) -> Iterator[int]:
        while True:
            while not self.permits.acquire(timeout=0.005) and not self.free:
                pass
            yield 97


@contextmanager
def serving(*engines: Any, defaults: SamplingParams = DEFAULTS) -> Iterator[tuple[str, Service]]:
    """The server with these copies of the model, and its address."""
    service = Service(engines, "scripted", defaults)
    with serving_app(create_app(lambda: service)) as address:
        try:
            yield address, service
        finally:
            for engine in engines:
                engine.free = True


@contextmanager
def serving_app(app: FastAPI) -> Iterator[str]:
    """Serve an application from a thread until the block is left; gives its address."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started and thread.is_alive():
            thread.join(0.01)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive(), "the server does not stop"
