"""Limits on connections: their number, their time and their bytes, before the web server sees them.

uvicorn keeps a connection that sends nothing for ever, and reads a request however slowly it arrives. Here each
connection has a `GuardedConnection` between the socket and uvicorn's HTTP protocol. It goes through these phases:

    HEAD     reading the request line and the headers; uvicorn sees them only when they are complete
    BODY     passing on the body, whose length is known
    REPLY    uvicorn and the application are answering; no limit of time, but the client must read what is sent
    CLOSING  the last bytes are on their way

A connection carries one request: `Connection: close` is added to it, and what follows the request is thrown away. So a
phase never has to be found out from the inside of uvicorn. A body must have a Content-Length (411 without): the cost
of tiny chunks would have no bound.

If there are too many connections, one that is in HEAD, BODY or CLOSING is dropped for a new one: of the client address
with most of them, the one that has been so for longest. So clients that hold connections and say nothing lock nobody
out, least of all those of other addresses. A refusal is a short JSON reply (refusals.py), and
nothing is logged.
"""

from __future__ import annotations

import asyncio
import http
import json
import re
import resource
import socket
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import Any

import uvicorn

from nanochat.serving.access import client_of
from nanochat.serving.refusals import OPENAI_PREFIX, Refusal, error_body

MAX_HEADERS = 100
BACKLOG = 32  # connections that asyncio accepts at once
ACCEPTED_FILES = 8 * BACKLOG  # open files of connections that were accepted, and are refused and closed a moment later
OTHER_FILES = 128  # open files besides connections: modules, checkpoints, devices, standard streams
SEND_BUFFER_BYTES = 32_768  # in the kernel and here, each: what a client that does not read can occupy
CLOSING_SECONDS = 0.7  # for the last bytes of a connection, once the server stops

_END_OF_HEAD = re.compile(rb"\n\r?\n")
_REQUEST_LINE = re.compile(rb"[A-Za-z]{1,20} [\x21-\x7e]+ HTTP/1\.[01]\r?")
_OPENAI_PATH = re.compile(rb"[A-Za-z]+ [^ ?]*/v1/")
_FRAMING = re.compile(rb"\n(content-length|transfer-encoding)[ \t]*:[ \t]*([^\r\n]*)", re.IGNORECASE)


@dataclass(frozen=True)
class ConnectionLimits:
    """The limits of all connections together and of each."""

    connections: int = 256
    header_seconds: float = 10.0  # from the connection to the end of the headers
    body_seconds: float = 30.0  # from there to the end of the body
    send_seconds: float = 30.0  # that a client may leave what was sent to it unread
    header_bytes: int = 16_384
    body_bytes: int = 1_000_000
    shutdown_seconds: float = 0.0  # for replies in progress to end, once the server stops


class Phase(Enum):
    """The phases of a connection, see above."""

    HEAD = 1
    BODY = 2
    REPLY = 3
    CLOSING = 4


class _Refusal(Exception):
    """A request that is answered without uvicorn, with a status and a reason."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class ConnectionGuard:
    """The connections of a server, and their limits."""

    def __init__(self, limits: ConnectionLimits, on_refusal: Callable[[], object]) -> None:
        self.limits = limits
        self.on_refusal = on_refusal
        self.droppable: dict[str, dict[GuardedConnection, None]] = {}  # by client address, the oldest first
        self.replying: set[GuardedConnection] = set()
        self._num_droppable = 0

    def add(self, connection: GuardedConnection) -> bool:
        """Add a connection, in place of another one if there are too many. False: it must be refused."""
        while self._num_droppable and self._num_droppable + len(self.replying) >= self.limits.connections:
            of_address = max(self.droppable.values(), key=len)
            oldest = next(iter(of_address))
            self.remove(oldest)
            oldest.abort()
        self._add_droppable(connection)
        return len(self.replying) < self.limits.connections

    def remove(self, connection: GuardedConnection) -> None:
        """Forget a connection."""
        self._remove_droppable(connection)
        self.replying.discard(connection)

    def set_replying(self, connection: GuardedConnection, is_replying: bool) -> None:
        """Protect a connection whose request is complete from being dropped, or make it droppable again."""
        if is_replying and self._remove_droppable(connection):
            self.replying.add(connection)
        elif not is_replying and connection in self.replying:
            self.replying.discard(connection)
            self._add_droppable(connection)

    def _add_droppable(self, connection: GuardedConnection) -> None:
        self.droppable.setdefault(connection.address, {})[connection] = None
        self._num_droppable += 1

    def _remove_droppable(self, connection: GuardedConnection) -> bool:
        of_address = self.droppable.get(connection.address, {})
        if connection not in of_address:
            return False
        del of_address[connection]
        if not of_address:
            del self.droppable[connection.address]
        self._num_droppable -= 1
        return True


class GuardedConnection(asyncio.Protocol):
    """A connection. `make_http` makes uvicorn's protocol for it, `registry` has all connections that uvicorn knows."""

    def __init__(self, guard: ConnectionGuard, registry: set[Any], make_http: Callable[[], Any]) -> None:
        self._guard = guard
        self._limits = guard.limits
        self._registry = registry
        self._make_http = make_http
        self._loop = asyncio.get_running_loop()
        self._http: Any = None  # uvicorn's protocol, once the headers are complete
        self._transport: Any = None
        self.address = ""  # of the client
        self._phase = Phase.HEAD
        self._timer: asyncio.TimerHandle | None = None  # of the phase
        self._stall_timer: asyncio.TimerHandle | None = None  # of a client that does not read
        self._head = b""
        self._body_left = 0
        self._num_discarded = 0
        self._is_stopping = False  # the whole server is

    # Called by the event loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to read the headers."""
        self._transport = transport
        self.address = client_of({"client": transport.get_extra_info("peername")})
        self._registry.add(self)
        self._transport.set_write_buffer_limits(SEND_BUFFER_BYTES)
        self._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        self._begin(Phase.HEAD, self._limits.header_seconds)
        if not self._guard.add(self):
            self._refuse(503, "the server has too many connections: try again later")

    def data_received(self, data: bytes) -> None:
        """Pass a request on to uvicorn as far as it is within the limits."""
        try:
            if self._phase is Phase.HEAD:
                data = self._read_head(data)
            if self._phase is Phase.BODY and data:
                data = self._read_body(data)
        except _Refusal as refusal:
            self._refuse(refusal.status, str(refusal))
            return
        if self._phase in (Phase.REPLY, Phase.CLOSING):
            self._num_discarded += len(data)
            if self._num_discarded > self._limits.body_bytes:
                self.abort()

    def eof_received(self) -> None:
        """The client sends no more: asyncio closes the connection when what was written to it is sent."""
        self._set_stall_timer(self._limits.send_seconds)

    def connection_lost(self, error: Exception | None) -> None:
        """Forget the connection."""
        for timer in (self._timer, self._stall_timer):
            if timer is not None:
                timer.cancel()
        self._guard.remove(self)
        self._registry.discard(self)
        self._phase = Phase.CLOSING
        if self._http is not None:
            self._http.connection_lost(error)

    def pause_writing(self) -> None:
        """The client reads more slowly than is written."""
        self._set_stall_timer(self._limits.send_seconds)
        if self._http is not None:
            self._http.pause_writing()

    def resume_writing(self) -> None:
        """The client has read most of what was written."""
        self._set_stall_timer(None)
        if self._http is not None:
            self._http.resume_writing()

    # Called by uvicorn

    def shutdown(self) -> None:
        """End soon, since the server stops."""
        self._is_stopping = True
        if self._http is None:
            self.abort()
        else:
            self._begin(self._phase, CLOSING_SECONDS)

    @property
    def is_closing(self) -> bool:
        """True after the last write."""
        return self._phase is Phase.CLOSING or self._transport.is_closing()

    def finish(self) -> None:
        """Close the connection when what was written is sent.

        A client that is still sending would get a reset, and might lose the reply: its data are read first.
        """
        if self._phase is Phase.CLOSING:
            return
        is_whole = self._phase is Phase.REPLY and not self._num_discarded
        self._begin(Phase.CLOSING, self._limits.send_seconds if is_whole else min(2.0, self._limits.send_seconds))
        if is_whole or not self._transport.can_write_eof():
            self._transport.close()
        else:
            self._transport.resume_reading()
            self._transport.write_eof()

    def abort(self) -> None:
        """Close the connection at once."""
        self._phase = Phase.CLOSING
        self._transport.abort()

    # Phases

    def _begin(self, phase: Phase, seconds: float | None) -> None:
        self._phase = phase
        self._guard.set_replying(self, phase is Phase.REPLY)
        if self._timer is not None:
            self._timer.cancel()
        if self._is_stopping:
            seconds = CLOSING_SECONDS + (self._limits.shutdown_seconds if phase is Phase.REPLY else 0)
        self._timer = None if seconds is None else self._loop.call_later(seconds, self._expire)

    def _expire(self) -> None:
        if self._is_stopping or self._phase is Phase.CLOSING or not (self._head or self._http):
            self.abort()
        else:
            part = "headers" if self._phase is Phase.HEAD else "body"
            self._refuse(408, f"the request's {part} took too long to arrive")

    def _set_stall_timer(self, seconds: float | None) -> None:
        if self._stall_timer is not None:
            self._stall_timer.cancel()
        self._stall_timer = None if seconds is None else self._loop.call_later(seconds, self.abort)

    def _read_head(self, data: bytes) -> bytes:
        """Read the headers. Returns what follows them."""
        searched = max(0, len(self._head) - 2)
        head = self._head = self._head + data
        end = _END_OF_HEAD.search(head, searched, self._limits.header_bytes)
        check_head(head[: end.end() if end else self._limits.header_bytes + 1], self._limits)
        if end is None:
            return b""
        self._head = head[: end.end()]
        self._body_left = body_length(self._head, self._limits)
        blank = b"\r\n" if self._head.endswith(b"\r\n") else b"\n"
        request = self._head.removesuffix(blank) + b"Connection: close\r\n" + blank  # the last one counts
        if self._body_left:
            self._begin(Phase.BODY, self._limits.body_seconds)
        else:
            self._begin(Phase.REPLY, None)
        self._http = self._make_http()
        self._http.connection_made(_Transport(self, self._transport))
        self._http.data_received(request)
        return head[end.end() :]

    def _read_body(self, data: bytes) -> bytes:
        """Pass the body on. Returns what follows it."""
        body = data[: self._body_left]
        self._body_left -= len(body)
        if not self._body_left:
            self._begin(Phase.REPLY, None)
        self._http.data_received(body)
        return data[len(body) :]

    def _refuse(self, status: int, reason: str) -> None:
        self._guard.on_refusal()
        self._transport.write(refusal_bytes(status, reason, is_openai=_OPENAI_PATH.match(self._head) is not None))
        self.finish()
        if self._http is not None:
            self._http.connection_lost(None)
            self._http = None


class _Transport:
    """The connection's transport as uvicorn's protocol sees it: it is closed by way of the guard."""

    def __init__(self, connection: GuardedConnection, transport: Any) -> None:
        self._connection = connection
        self._transport = transport

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if not self._connection.is_closing:
            self._transport.write(data)

    def close(self) -> None:
        self._connection.finish()

    def is_closing(self) -> bool:
        return self._connection.is_closing


def check_head(head: bytes, limits: ConnectionLimits) -> None:
    """Raise `_Refusal` if this is not the beginning of an HTTP request within the limits."""
    if head and not head[:1].isalpha():
        raise _Refusal(400, "this is not an HTTP request: this port speaks http, not https")
    line, newline, _ = head.partition(b"\n")
    if newline and not _REQUEST_LINE.fullmatch(line):
        raise _Refusal(400, "the first line is not that of an HTTP/1.1 request")
    if len(head) > limits.header_bytes or head.count(b"\n") > MAX_HEADERS + 2:
        raise _Refusal(431, f"the headers have more than {limits.header_bytes} bytes or {MAX_HEADERS} lines")


def body_length(head: bytes, limits: ConnectionLimits) -> int:
    """Return the length of the body that the headers announce. Raises `_Refusal` if it is too long or not given."""
    fields = [(match[1].lower(), match[2].strip()) for match in _FRAMING.finditer(head)]
    if any(name == b"transfer-encoding" for name, _ in fields):
        raise _Refusal(411, "the body has no Content-Length: send it whole, not in chunks")
    if not fields:
        return 0
    value = fields[0][1]
    if len(fields) > 1 or not value.isdigit():
        raise _Refusal(400, "the Content-Length is not one whole number")
    if len(value) > 18 or int(value) > limits.body_bytes:
        raise _Refusal(413, f"the body has more than {limits.body_bytes} bytes: send fewer or shorter messages")
    return int(value)


def refusal_bytes(status: int, reason: str, is_openai: bool = False) -> bytes:
    """Return a whole HTTP response `{"error": reason}`, or OpenAI's error object."""
    path = OPENAI_PREFIX if is_openai else ""
    body = json.dumps(error_body(path, Refusal(status, reason))).encode("utf-8")
    lines = [
        f"HTTP/1.1 {status} {http.HTTPStatus(status).phrase}",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        "Connection: close",
        *(["Retry-After: 5"] if status == 503 else []),
    ]
    return "\r\n".join([*lines, "", ""]).encode("ascii") + body


def guard_connections(
    config: uvicorn.Config, limits: ConnectionLimits, on_refusal: Callable[[], object] = lambda: None
) -> ConnectionGuard:
    """Put a guard in front of the HTTP protocol of a uvicorn server. It calls `on_refusal` for each refused request."""
    config.load()
    http_protocol: Any = config.http_protocol_class
    guard = ConnectionGuard(limits, on_refusal)

    def make_connection(*, server_state: Any, **arguments: Any) -> GuardedConnection:
        make_http = partial(http_protocol, server_state=server_state, **arguments)
        return GuardedConnection(guard, server_state.connections, make_http)

    config.http_protocol_class = make_connection  # type: ignore[assignment]
    return guard


def reserve_files(num_connections: int) -> int:
    """Raise this process's limit on open files for so many connections. Returns the number that fits."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = num_connections + ACCEPTED_FILES + OTHER_FILES
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return num_connections
    allowed = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    except (ValueError, OSError):  # macOS allows fewer than it says
        allowed = soft
    return max(1, num_connections - (needed - allowed))
