"""The chat server on a port of its own, and a client for it."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import httpx
import torch
import uvicorn
from fastapi import APIRouter, FastAPI

from nanochat.gpt import GPT
from nanochat.inference.generation_loop import GenerationLoop
from nanochat.inference.tool_use import Tool
from nanochat.layers.sampling_params import SamplingParams
from nanochat.openai_api.routes import router
from nanochat.serving.chat_request import DEFAULT_PARAMS
from nanochat.serving.connections import ConnectionLimits, guard_connections
from nanochat.serving.server import create_app
from nanochat.serving.service import ChatService, ServedModel, ServiceLimits
from nanochat.steps.make_step import BLOCK_LEN, make_step
from tests.support.scripted_engine import TOKENIZER, user
from tests.support.scripted_loop import ScriptedLoop

HELLO = {"messages": [user("Hello")]}
DEFAULT_LIMITS = ConnectionLimits()
ONE_ROW = ServiceLimits(max_rows=1, shutdown_seconds=0.2)
TIMEOUT = 60  # seconds


@contextmanager
def serving(
    *engines: Any,
    defaults: SamplingParams = DEFAULT_PARAMS,
    limits: ConnectionLimits = DEFAULT_LIMITS,
    service_limits: ServiceLimits = ONE_ROW,
    routers: Sequence[APIRouter] = (),
    **options: Any,
) -> Iterator[tuple[str, ChatService]]:
    """Serve with these engines until the block is left. Yields the address and the service.

    An engine is a `ScriptedEngine`, each of which is run by a `ScriptedLoop`. `options` are those of `ChatService`.
    """
    model = ServedModel("scripted", "nanochat-scripted", engines[0].tokenizer, engines[0].context_len)
    loops = [ScriptedLoop(engine, service_limits.max_rows) for engine in engines]
    service = ChatService(loops, model, defaults, service_limits, **options)
    with serving_app(create_app(lambda: service, *routers), limits, service.count_refusal) as address:
        try:
            yield address, service
        finally:
            for engine in engines:
                engine.is_free = True


@contextmanager
def serving_model(model: GPT, max_rows: int = 8, **options: Any) -> Iterator[tuple[str, ChatService]]:
    """Serve a model with the real loop and OpenAI's API until the block is left. Yields the address and the service."""
    step = make_step(model, torch.float32, num_blocks=max_rows * -(-model.config.sequence_len // BLOCK_LEN))
    loop = GenerationLoop(step, Tool(TOKENIZER), max_running=max_rows)
    served = ServedModel("real", "nanochat-real", TOKENIZER, loop.context_len)
    service = ChatService([loop], served, DEFAULT_PARAMS, ServiceLimits(max_rows, shutdown_seconds=0.2), **options)
    with serving_app(create_app(lambda: service, router), on_refusal=service.count_refusal) as address:
        yield address, service


@contextmanager
def serving_app(
    app: FastAPI, limits: ConnectionLimits = DEFAULT_LIMITS, on_refusal: Callable[[], object] = lambda: None
) -> Iterator[str]:
    """Serve an application in a thread until the block is left. Yields its address."""
    config = uvicorn.Config(app, port=0, http="h11", ws="none", log_level="warning", timeout_graceful_shutdown=1)
    guard_connections(config, limits, on_refusal)
    server = uvicorn.Server(config)
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


def new_client() -> httpx.Client:
    """A client that uses no proxy."""
    return httpx.Client(verify=False, trust_env=False, timeout=TIMEOUT)


def get(address: str, path: str = "/", **options: Any) -> httpx.Response:
    """Send a GET request."""
    with new_client() as client:
        return client.get(address + path, **options)


def post_chat(address: str, **options: Any) -> httpx.Response:
    """Send a POST request to the chat route, with the options of httpx."""
    with new_client() as client:
        return client.post(f"{address}/chat/completions", **options)


def chat_events(address: str, *, headers: dict[str, str] | None = None, **fields: Any) -> list[dict[str, Any]]:
    """Send the message HELLO, or other fields of a request. Returns the events of the reply."""
    return parse_events(post_chat(address, json={**HELLO, **fields}, headers=headers).content.decode("utf-8"))


def parse_events(text: str) -> list[dict[str, Any]]:
    """Return the events of a whole stream, and check that it has nothing else."""
    blocks = text.split("\n\n")
    assert blocks.pop() == ""
    assert all(block.startswith("data: ") and "\n" not in block for block in blocks)
    return [json.loads(block.removeprefix("data: ")) for block in blocks]


def get_stats(address: str, *names: str) -> tuple[float, ...]:
    """Return some of the server's counters."""
    stats = get(address, "/stats").json()
    return tuple(stats[name] for name in names)


def open_socket(address: str, data: bytes = b"") -> socket.socket:
    """Connect to the server and send bytes that need not be a request."""
    host, port = address.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), TIMEOUT)
    connection.sendall(data)
    return connection


def read_response(connection: socket.socket) -> tuple[int, str]:
    """Read until the server closes the connection. Returns the status (0 without a response) and the response."""
    received = b""
    try:
        while data := connection.recv(65536):
            received += data
    except ConnectionResetError:
        pass
    connection.close()
    return (int(received.split()[1]), received.decode("utf-8")) if received else (0, "")


def exchange(address: str, data: bytes) -> tuple[int, str]:
    """Send bytes to the server, and read its response, see `read_response`."""
    return read_response(open_socket(address, data))


def chat_request(body: bytes | None = None, *headers: str, host: str = "localhost") -> bytes:
    """The bytes of a request to the chat route, by default with the message HELLO and with the length of its body."""
    body = json.dumps(HELLO).encode() if body is None else body
    lines = ["POST /chat/completions HTTP/1.1", f"Host: {host}", "Content-Type: application/json", *headers]
    if not any(header.lower().startswith(("content-length", "transfer-encoding")) for header in headers):
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


class EventConnection:
    """An open connection to the chat route, read event by event."""

    def __init__(self, address: str, text: str = "Hello", max_tokens: int = 4096) -> None:
        self._client = new_client()
        body = {"messages": [user(text)], "max_tokens": max_tokens}
        request = self._client.build_request("POST", f"{address}/chat/completions", json=body)
        self._response = self._client.send(request, stream=True)
        self._lines = self._response.iter_lines()

    def next_event(self) -> dict[str, Any]:
        line = next(line for line in self._lines if line)
        event: dict[str, Any] = json.loads(line.removeprefix("data: "))
        return event

    def close(self) -> None:
        self._response.close()
        self._client.close()


def wait_for(condition: Callable[[], bool]) -> None:
    """Wait until the condition is true; fail after a minute."""
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < deadline, "the condition did not become true"
        time.sleep(0.01)
