"""Hostile HTTP clients of `python -m scripts.chat_web`, among ordinary ones that must be served.

Each case is a request of dev/fault_kinds/client_cases.py. After each batch of them, and during a flood of silent
connections, an ordinary request must be answered correctly; the server must have no connection left, no traceback in
its log, and neither a long log nor much more memory than after its first batch.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import torch

from dev.fault_kinds.client_cases import BUSY, CUT, DEAF, DRIP, FULL, NO_ANSWER, RESET, Case, choose, ordinary
from dev.fault_kinds.outcome import Outcome, last_lines

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 60  # seconds: what takes longer hangs
BATCH = 500
AT_ONCE = 48  # clients at a time
FLOOD = 300  # silent connections, more than the server keeps
FLAGS = [
    *("-i", "sft", "-p", "0", "--device=cpu", "-t", "0", "--max_connections=96", "--max_rows=8", "--max_waiting=16"),
    *("--header_timeout=2", "--body_timeout=2", "--send_timeout=2"),
]
MAX_GROWTH = 100 << 20  # bytes of memory, after the first batch
MAX_LOG = 100_000  # bytes
MAX_REFUSAL = 1500  # bytes of the body of a refusal
READ_NOTHING = 4  # seconds in which a deaf client reads nothing


@dataclass
class Server:
    """The server under test: its process, its port, the file with its output, its memory after the first batch."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path
    memory: int | None = None

    def problem(self) -> tuple[str, str] | None:
        """Return verdict and detail of a defect that is seen from outside: of the process, its log and its memory."""
        text = self.log.read_text(encoding="utf-8", errors="replace")
        if self.process.poll() is not None:
            return "lost", f"the server has ended with code {self.process.returncode}: {last_lines(text)}"
        if "Traceback (most recent call last)" in text:
            return "traceback", last_lines(text)
        if len(text) > MAX_LOG:
            return "leftover", f"the log has {len(text)} bytes: {last_lines(text[-1000:])}"
        process = psutil.Process(self.process.pid)
        deadline = time.monotonic() + LIMIT
        while num_open := sum(item.status != psutil.CONN_LISTEN for item in process.net_connections("tcp")):
            if time.monotonic() > deadline:
                return "leftover", f"{num_open} connections are still open"
            time.sleep(0.1)
        memory = process.memory_info().rss
        self.memory = self.memory or memory
        if memory - self.memory > MAX_GROWTH:
            return "leftover", f"memory has grown from {self.memory >> 20} to {memory >> 20} MiB"
        return None


def run(count: int, seed: int, folder: Path) -> Iterator[Outcome]:
    """Yield the outcomes of `count` requests, of a flood after each batch, and of the state of the server then."""
    rng = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    with serving(folder) as server:
        for start in range(0, count, BATCH):
            cases = [choose(rng) for _ in range(min(BATCH, count - start))]
            yield from asyncio.run(send_all(server.port, cases))
            name = f"after {start + len(cases)} requests (seed {seed})"
            yield asyncio.run(flood(server.port, rng, name))
            check = replace(ordinary(rng), statuses=frozenset((200,)))
            outcome = asyncio.run(send(server.port, check))
            problem = server.problem() or (outcome.verdict, outcome.detail)
            yield Outcome("server after a batch", name, *problem)
            if server.process.poll() is not None:
                return


def make_model(base: Path) -> None:
    """Write a tokenizer and a model of one layer to a base folder. Its greedy replies are "a" without end."""
    from nanochat.checkpoint_manager import CHECKPOINT_DIRS, build_model, model_meta, save_checkpoint
    from nanochat.gpt import GPTConfig
    from nanochat.runtime import Runtime
    from nanochat.tokenizer import SPECIAL_TOKENS, SPLIT_PATTERN, Tokenizer

    special = {name: 256 + index for index, name in enumerate(SPECIAL_TOKENS)}
    tokenizer = Tokenizer(SPLIT_PATTERN, {bytes([byte]): byte for byte in range(256)}, special)
    runtime = Runtime(0, 0, 1, torch.device("cpu"), torch.float32, 42)
    shape = {"vocab_size": tokenizer.get_vocab_size(), "n_layer": 1, "n_head": 1, "n_kv_head": 1, "n_embd": 16}
    model = build_model(GPTConfig(sequence_len=4096, **shape), runtime)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.fill_(1.0 if name == "embed.weight" else 0.0)
        model.head.weight[ord("a")] = 1.0  # the logits of all other tokens are 0
    tokenizer.save(base / "tokenizer")
    folder = base / CHECKPOINT_DIRS["sft"] / "d1"
    save_checkpoint(folder, 1, model.state_dict(), {}, model_meta(model, runtime, tokenizer))


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    """Context of a server with a small model, in a process of its own."""
    make_model(folder / "base")
    environment = {**os.environ, "NANOCHAT_BASE_DIR": str(folder / "base"), "OMP_NUM_THREADS": "1"}
    log = folder / "server.log"
    with open(log, "wb") as output:
        command = [sys.executable, "-u", "-m", "scripts.chat_web", *FLAGS]
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + 3 * LIMIT
        while "Chat with" not in (text := log.read_text(encoding="utf-8", errors="replace")):
            is_starting = process.poll() is None and time.monotonic() < deadline
            assert is_starting, f"the server does not start: {text}"
            time.sleep(0.1)
        yield Server(process, int(text.split("http://127.0.0.1:")[1].split()[0]), log)
    finally:
        process.kill()
        process.wait()


# --- clients ----------------------------------------------------------------------------------------------------------


async def send_all(port: int, cases: list[Case]) -> list[Outcome]:
    """Send the requests of many clients, some at a time."""
    places = asyncio.Semaphore(AT_ONCE)

    async def send_one(case: Case) -> Outcome:
        async with places:
            return await send(port, case)

    return list(await asyncio.gather(*map(send_one, cases)))


async def flood(port: int, rng: random.Random, name: str) -> Outcome:
    """Hold silent connections, more than the server keeps. An ordinary client must still be served."""
    silent = [await connect(port) for _ in range(FLOOD)]
    try:
        outcome = await send(port, replace(ordinary(rng), statuses=frozenset((200,))))
    finally:
        for connection in silent:
            connection.close()
    return Outcome("flood of connections", name, outcome.verdict, outcome.detail)


async def send(port: int, case: Case) -> Outcome:
    """Send a request in its manner, and judge the answer."""
    name = f"{case.name}: {case.sent[:200]!r}"
    connection = await connect(port)
    try:
        received = await asyncio.wait_for(exchange(connection, case), LIMIT)
    except asyncio.TimeoutError:
        return Outcome(case.kind, name, "hang", f"no end of the answer within {LIMIT} s")
    except ConnectionError:
        received = b""
    finally:
        connection.close()
    detail = judge(case, received)
    return Outcome(case.kind, name, "silent" if detail else "ok", detail)


async def connect(port: int) -> socket.socket:
    """Return a connection to the server."""
    connection = socket.socket()
    connection.setblocking(False)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", port))
    return connection


async def exchange(connection: socket.socket, case: Case) -> bytes:
    """Send a request in its manner. Returns the answer."""
    loop = asyncio.get_running_loop()
    reading = asyncio.ensure_future(read(connection)) if case.manner not in (CUT, RESET, DEAF) else None
    try:
        await loop.sock_sendall(connection, case.sent)
        while case.manner == DRIP and reading is not None and not reading.done():
            await loop.sock_sendall(connection, b"a")
            await asyncio.sleep(0.05)
    except ConnectionError:  # refused before the server had read everything: the answer may have arrived
        pass
    if case.manner == DEAF:
        await asyncio.sleep(READ_NOTHING)
        return await read(connection)
    if case.manner == RESET:
        linger_none = b"\x01\x00\x00\x00\x00\x00\x00\x00"
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger_none)
    return await reading if reading is not None else b""


async def read(connection: socket.socket) -> bytes:
    """Return everything until the server closes the connection, or resets it."""
    received = b""
    try:
        while data := await asyncio.get_running_loop().sock_recv(connection, 65536):
            received += data
    except ConnectionError:
        pass
    return received


def judge(case: Case, received: bytes) -> str:
    """Return an empty text if an answer is right, else what is wrong with it."""
    if case.manner in (CUT, RESET):
        return ""
    head, _, body = received.partition(b"\r\n\r\n")
    words = head.split()
    status = int(words[1]) if len(words) > 1 and words[1].isdigit() else NO_ANSWER
    shown = received[:300].decode("utf-8", "replace")
    if status not in case.statuses:
        return f"status {status}, not {' or '.join(map(str, sorted(case.statuses)))}: {shown}"
    if status not in (NO_ANSWER, 200):
        try:
            is_reason = bool({"error", "detail"} & set(json.loads(body)))
        except ValueError:
            is_reason = b"Invalid HTTP request" in body  # of uvicorn
        if not is_reason or len(body) > MAX_REFUSAL:
            return f"a refusal of {len(body)} bytes without a short reason: {shown}"
        if status in (BUSY, FULL) and b"retry-after" not in head.lower():
            return f"busy, without Retry-After: {shown}"
    if status == 200 and case.tokens is not None:
        lines = [line.removeprefix("data: ") for line in body.decode("utf-8").splitlines() if line.startswith("data: ")]
        events = [json.loads(line) for line in lines]
        text = "".join(event["text"] for event in events if event["kind"] == "text")
        last = events[-1] if events else {}
        if text != "a" * case.tokens or (last.get("kind"), last.get("tokens")) != ("done", case.tokens):
            return f"a wrong reply: {text!r}, {last}"
    return ""
