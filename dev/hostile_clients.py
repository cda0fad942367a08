"""Clients that mean no good, beside those of dev/load_server.py: they vanish, stall, dribble, or say nothing.

    with hostile_clients("http://127.0.0.1:8000", count=64, idle=2000):
        ...                                       # meanwhile, others should notice nothing

Of `count` clients a third each ask and are gone at the first bytes of the reply, ask and read nothing for a while, and
send a request byte by byte, one a second. `idle` connections are held open and say nothing, or a part of a request; one
that the server closes is opened again. On Linux all come from another address of this machine (127.0.0.2), since the
server tells clients apart by that.
"""

from __future__ import annotations

import asyncio
import json
import random
import socket
import sys
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit

from nanochat.common import UserError
from nanochat.serving.connections import reserve_files

ADDRESS = "127.0.0.2"
PATIENCE = 20.0  # seconds that a stalling client holds its connection
PAUSE = 0.5  # seconds until a connection is opened again

Kind = Callable[[socket.socket, random.Random], Awaitable[None]]


@contextmanager
def hostile_clients(url: str, count: int, idle: int) -> Iterator[Counter[str]]:
    """Context in which such clients keep a server busy. Yields how often each kind has connected.

    Raises `UserError` if this process may not open so many files. An error of a client's own is raised at the end.
    """
    connected: Counter[str] = Counter()
    if not count and not idle:
        yield connected
        return
    if (fits := reserve_files(count + idle)) < count + idle:
        raise UserError(f"{count + idle} connections need more open files than are allowed: at most {fits}; ulimit -n")
    loop = asyncio.new_event_loop()
    done = asyncio.Event()
    faults: list[BaseException] = []
    thread = threading.Thread(target=loop.run_until_complete, args=(_run(url, count, idle, connected, done, faults),))
    thread.start()
    try:
        yield connected
    finally:
        loop.call_soon_threadsafe(done.set)
        thread.join()
        loop.close()
    if faults:
        raise faults[0]


async def _run(
    url: str, count: int, idle: int, connected: Counter[str], done: asyncio.Event, faults: list[BaseException]
) -> None:
    asking: list[tuple[str, Kind]] = [("vanished", _vanish), ("stalled", _stall), ("dribbled", _dribble)]
    clients = [asking[number % 3] for number in range(count)] + [("idle", _be_idle)] * idle
    tasks = [
        asyncio.ensure_future(_repeat(kind, name, url, number, connected))
        for number, (name, kind) in enumerate(clients)
    ]
    await done.wait()
    for task in tasks:
        task.cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    faults += [result for result in results if result is not None and not isinstance(result, asyncio.CancelledError)]


async def _repeat(kind: Kind, name: str, url: str, number: int, connected: Counter[str]) -> None:
    parts = urlsplit(url)
    local = (ADDRESS, 0) if sys.platform == "linux" else None
    rng = random.Random(number)
    while True:
        with suppress(OSError):  # the server may refuse, close or reset it
            connection = socket.socket()
            connection.setblocking(False)
            try:
                if local:
                    connection.bind(local)
                await asyncio.get_running_loop().sock_connect(connection, (parts.hostname, parts.port))
                connected[name] += 1
                await kind(connection, rng)
            finally:
                connection.close()
        await asyncio.sleep(PAUSE * (1 + rng.random()))


def request_bytes(rng: random.Random) -> bytes:
    """Return a request for a long stream."""
    question = {"role": "user", "content": f"Tell me a story about the number {rng.randrange(1000)}."}
    body = json.dumps({"messages": [question], "max_tokens": 200, "stream": True}).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


async def _vanish(connection: socket.socket, rng: random.Random) -> None:
    """Ask, and reset the connection at the first bytes of the reply."""
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(connection, request_bytes(rng))
    await loop.sock_recv(connection, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")


async def _stall(connection: socket.socket, rng: random.Random) -> None:
    """Ask, and do not read."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    await asyncio.get_running_loop().sock_sendall(connection, request_bytes(rng))
    await asyncio.sleep(PATIENCE)


async def _dribble(connection: socket.socket, rng: random.Random) -> None:
    """Send a byte a second."""
    for byte in request_bytes(rng):
        await asyncio.get_running_loop().sock_sendall(connection, bytes([byte]))
        await asyncio.sleep(1.0)


async def _be_idle(connection: socket.socket, rng: random.Random) -> None:
    """Send nothing or a part of a request, and wait until the server closes the connection."""
    loop = asyncio.get_running_loop()
    request = request_bytes(rng)
    await loop.sock_sendall(connection, request[: rng.choice((0, 60, len(request) - 3))])
    while await loop.sock_recv(connection, 4096):
        pass
