"""Limits on connections: silent, slow, endless and malformed requests, readers that do not read, floods."""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import resource
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from nanochat.serving import connections
from nanochat.serving.connections import (
    ACCEPTED_FILES,
    MAX_HEADERS,
    OTHER_FILES,
    ConnectionGuard,
    ConnectionLimits,
    reserve_files,
)
from nanochat.serving.service import ChatService, ServiceLimits
from tests.support.chat_server import (
    HELLO,
    EventConnection,
    chat_events,
    chat_request,
    exchange,
    get,
    get_stats,
    open_socket,
    read_response,
    serving,
    wait_for,
)
from tests.support.scripted_engine import GatedEngine, ScriptedEngine, reply_ids

SHORT = ConnectionLimits(connections=8, header_seconds=0.4, body_seconds=0.4, send_seconds=0.4)
GET = "GET /health HTTP/1.1\r\nHost: localhost\r\n"

Server = tuple[str, ChatService]


def new_engine() -> ScriptedEngine:
    return ScriptedEngine(lambda _: reply_ids("hello"))


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A server with the limits SHORT."""
    with serving(new_engine(), limits=SHORT) as server:
        yield server


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """No test makes the server log anything, neither through the root logger nor through uvicorn's own."""
    logger = logging.getLogger("uvicorn.error")
    logger.addHandler(caplog.handler)
    yield
    logger.removeHandler(caplog.handler)
    assert [record for record in caplog.records if "Invalid HTTP request" not in record.getMessage()] == []


def answers(address: str) -> bool:
    """True if the server answers an ordinary request."""
    return chat_events(address)[-1]["kind"] == "done"


@pytest.fixture
def connect() -> Iterator[Callable[[str], EventConnection]]:
    """Open connections that are closed at the end of the test."""
    with contextlib.ExitStack() as stack:

        def open_connection(address: str) -> EventConnection:
            connection = EventConnection(address)
            stack.callback(connection.close)
            return connection

        yield open_connection


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"", 0),
        (b"G", 408),
        (b"GET /health HTTP/1.1\r\nHost: loc", 408),
        (GET.encode(), 408),  # without the blank line
        (chat_request()[:-5], 408),
        (chat_request(b"", "Content-Length: 1000"), 408),
    ],
)
def test_half_a_request_is_ended_after_a_while(server: Server, sent: bytes, status: int) -> None:
    """The client neither sends the rest nor closes the connection."""
    assert exchange(server[0], sent)[0] == status
    assert answers(server[0])


@pytest.mark.parametrize("prefix", [b"GET /health HTTP/1.1\r\nX: ", chat_request(b"", "Content-Length: 1000")])
def test_a_request_that_never_ends_is_ended(server: Server, prefix: bytes) -> None:
    """A byte now and then does not prolong the time of a request."""
    connection = open_socket(server[0], prefix)
    connection.settimeout(0.01)
    received = b""
    while not received:
        try:
            connection.sendall(b"x")
            received = connection.recv(1000)
        except TimeoutError:
            pass
    connection.close()
    assert received.startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize(
    ("sent", "status", "reason"),
    [
        (b"\r\n\r\n", 400, "not an HTTP request"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400, "speaks http, not https"),  # a TLS hello
        (bytes(range(128, 256)) * 100, 400, "not an HTTP request"),
        (b"GET /\r\n", 400, "the first line"),  # HTTP/0.9
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, "the first line"),
        (b"GET / HTTP/9.9\r\n\r\n", 400, "the first line"),
        (b"GET / / HTTP/1.1\r\n\r\n", 400, "the first line"),
        (b"GET /\x00 HTTP/1.1\r\n\r\n", 400, "the first line"),
        (f"{GET}broken\r\n\r\n".encode(), 400, ""),
        (f"{GET}Host: localhost\r\n\r\n".encode(), 400, ""),
        (b"GET / HTTP/1.1\r\n\r\n", 400, ""),  # without a host
        (f"GET /{'x' * 20_000} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode(), 431, "the headers have more than 16384"),
        (f"{GET}X: {'x' * 20_000}\r\n\r\n".encode(), 431, "the headers have more than 16384"),
        (f"{GET}{'a:b' * 100_000}".encode(), 431, "the headers have more than 16384"),
        ((GET + "X: y\r\n" * 200 + "\r\n").encode(), 431, f"more than 16384 bytes or {MAX_HEADERS} lines"),
        (f"{GET}{'X: y' * 3}\r\n\r\n".encode(), 200, ""),
        (chat_request(b"", "Transfer-Encoding: chunked"), 411, "no Content-Length"),
        (chat_request(b"1\r\na\r\n" * 1000, "transfer-encoding : x"), 411, "no Content-Length"),
        (chat_request(b"{}", "Content-Length: 2", "Transfer-Encoding: chunked"), 411, "no Content-Length"),
        (chat_request(b"{}", "Content-Length: 2", "Content-Length: 3"), 400, "not one whole number"),
        (chat_request(b"{}", "Content-Length: -2"), 400, "not one whole number"),
        (chat_request(b"{}", "Content-Length: 0x2"), 400, "not one whole number"),
        (chat_request(b"{}", "Content-Length:"), 400, "not one whole number"),
        (chat_request(b"{}", "Content-Length: 1000001"), 413, "more than 1000000 bytes"),
        (chat_request(b"{}", f"Content-Length: {'9' * 400}"), 413, "more than 1000000 bytes"),
        (chat_request(b"", "Content-Length: 0"), 400, "not JSON"),
        (chat_request(b"{}{}", "Content-Length: 2"), 400, "messages is missing"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_malformed_request_is_refused_at_once(server: Server, sent: bytes, status: int, reason: str) -> None:
    received, response = exchange(server[0], sent)
    assert (received, reason in response) == (status, True)
    if reason and status != 200:
        assert list(json.loads(response.partition("\r\n\r\n")[2])) == ["error"]
    assert len(response) < 1000


def test_a_refusal_arrives_while_the_client_is_still_sending(server: Server) -> None:
    connection = open_socket(server[0], chat_request(b"", "Content-Length: 90000000"))
    connection.sendall(b"x" * 500_000)
    assert read_response(connection)[0] == 413
    connection = open_socket(server[0], chat_request(b"x" * 500_000, "Content-Length: 600000", host="evil.example"))
    assert read_response(connection)[0] == 421


def test_a_client_that_sends_without_end_is_cut_off(server: Server) -> None:
    connection = open_socket(server[0], chat_request())
    wait_for(lambda: _is_cut_off(connection, b"x" * 100_000))
    connection.close()
    assert answers(server[0])


def _is_cut_off(connection: socket.socket, data: bytes = b"x") -> bool:
    """True if the server has ended a connection; otherwise sends it some more. Nothing is read from it."""
    try:
        connection.sendall(data)
    except OSError:
        return True
    return False


def test_a_connection_has_one_request(server: Server) -> None:
    """A second one that follows is not answered; a client that asks to keep the connection is told."""
    status, response = exchange(server[0], f"{GET}Connection: keep-alive\r\n\r\n".encode() * 3)
    assert status == 200
    assert response.count("HTTP/1.1 200 OK") == 1
    assert "connection: close" in response.lower()
    num_requests = get_stats(server[0], "requests")[0]
    assert exchange(server[0], chat_request() * 20)[1].count('"kind": "done"') == 1
    assert get_stats(server[0], "requests") == (num_requests + 1,)


def test_an_upgrade_is_not_made(server: Server) -> None:
    upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\nSec-WebSocket-Version: 13\r\n\r\n"
    status, response = exchange(server[0], (GET + upgrade).encode())
    assert status == 200
    assert "connection: close" in response.lower()
    assert exchange(server[0], (GET + upgrade).encode().replace(b"\r\n", b"\n"))[0] == 200


def test_a_client_may_ask_before_it_sends_its_body(server: Server) -> None:
    body = json.dumps(HELLO).encode()
    connection = open_socket(server[0], chat_request(b"", f"Content-Length: {len(body)}", "Expect: 100-continue"))
    assert connection.recv(1000).startswith(b"HTTP/1.1 100 ")
    connection.sendall(body)
    assert read_response(connection)[0] == 200


def test_a_request_may_arrive_byte_by_byte() -> None:
    with serving(new_engine()) as (address, _):
        connection = open_socket(address)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in chat_request():
            connection.sendall(bytes([byte]))
        assert '"kind": "done"' in read_response(connection)[1]


def test_silent_connections_lock_nobody_out() -> None:
    """The oldest ones make room, though none has used up its time."""
    limits = ConnectionLimits(connections=8)
    with serving(new_engine(), limits=limits) as (address, _), contextlib.ExitStack() as stack:
        sent = [b"", b"GET / HT", chat_request()[:-1]] * 10
        silent = [stack.enter_context(open_socket(address, data)) for data in sent]
        assert answers(address)
        for connection in silent[:20]:
            assert read_response(connection) == (0, "")


def test_a_client_with_many_connections_loses_its_own() -> None:
    """The connection of another address stays, though it is the oldest."""
    guard = ConnectionGuard(ConnectionLimits(connections=4), lambda: None)
    dropped: list[Any] = []

    def connect(address: str) -> Any:
        connection = FakeConnection(address, dropped)
        assert guard.add(connection)  # type: ignore[arg-type]
        return connection

    first = connect("192.0.2.1")
    others = [connect("192.0.2.2") for _ in range(3)]
    later = [connect("192.0.2.2") for _ in range(5)]
    assert dropped == [*others, *later[:2]]
    guard.set_replying(later[4], True)
    newest = [connect(f"192.0.2.{number}") for number in range(5, 8)]
    assert dropped[5:] == [later[2], first, later[3]]
    guard.set_replying(later[4], False)
    assert guard.replying == set()
    for connection in [later[4], *newest, *dropped]:
        guard.remove(connection)
    assert (guard.droppable, guard._num_droppable) == ({}, 0)


class FakeConnection:
    def __init__(self, address: str, dropped: list[Any]) -> None:
        self.address = address
        self._dropped = dropped

    def abort(self) -> None:
        self._dropped.append(self)


def test_connections_that_wait_for_a_reply_are_kept(connect: Callable[[str], EventConnection]) -> None:
    engine = GatedEngine()
    with serving(engine, limits=ConnectionLimits(connections=4)) as (address, service):
        replies = [connect(address) for _ in range(4)]
        wait_for(lambda: service.stats.snapshot()["waiting"] == 3)
        for _ in range(3):
            status, response = exchange(address, f"{GET}\r\n".encode())
            assert (status, "too many connections" in response, "Retry-After: 5" in response) == (503, True, True)
        engine.permits.release()
        assert [reply.next_event()["kind"] for reply in replies] == ["text", "waiting", "waiting", "waiting"]
        replies[3].close()
        wait_for(lambda: exchange(address, f"{GET}\r\n".encode())[0] == 200)


def test_a_client_that_does_not_read_loses_its_connection() -> None:
    engine = ScriptedEngine(lambda _: itertools.repeat(ord("a")), context=8192)
    with serving(engine, limits=SHORT) as (address, service), socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        host, port = address.removeprefix("http://").split(":")
        connection.connect((host, int(port)))
        connection.sendall(chat_request(json.dumps({**HELLO, "max_tokens": 4096}).encode()))
        wait_for(lambda: service.stats.snapshot()["tokens"] > 0)
        wait_for(lambda: _is_cut_off(connection))
        received = b""
        with contextlib.suppress(ConnectionResetError):
            while data := connection.recv(65536):
                received += data
        assert b'"done"' not in received
        wait_for(lambda: get_stats(address, "in_flight", "waiting") == (0, 0))
        assert chat_events(address, max_tokens=2)[-1]["kind"] == "done"


def test_clients_that_close_at_any_moment_leave_nothing_behind() -> None:
    request = chat_request()
    with serving(new_engine(), limits=ConnectionLimits(connections=64)) as (address, service):
        for length in range(0, len(request) + 1, 7):
            open_socket(address, request[:length]).close()
        for _ in range(20):
            connection = open_socket(address, request)
            connection.recv(1)
            linger_none = b"\x01\x00\x00\x00\x00\x00\x00\x00"
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger_none)  # closing resets the connection
            connection.close()
        wait_for(lambda: get_stats(address, "waiting", "in_flight") == (0, 0))
        assert service.stats.snapshot()["failed"] == 0
        assert answers(address)


def test_the_queue_is_bounded(connect: Callable[[str], EventConnection]) -> None:
    with serving(GatedEngine(), service_limits=ServiceLimits(max_rows=1, max_waiting=2)) as (address, service):
        replies = [connect(address) for _ in range(3)]
        wait_for(lambda: service.stats.snapshot()["waiting"] == 2)
        status, response = exchange(address, chat_request())
        assert status == 429
        assert "2 requests are waiting already: try again later" in response
        assert "retry-after: 10" in response
        # Refused before its body is read
        assert exchange(address, chat_request(b"", "Content-Length: 900000"))[0] == 429
        replies[2].close()
        wait_for(lambda: service.stats.snapshot()["waiting"] == 1)
        assert connect(address).next_event()["kind"] == "waiting"


def test_the_server_stops_though_clients_hold_connections() -> None:
    """At the end of the block the server stops; `serving` checks that it does."""
    with contextlib.ExitStack() as stack, serving(GatedEngine()) as (address, service):
        for sent in (b"", GET.encode(), chat_request()[:-1], chat_request()):
            stack.enter_context(open_socket(address, sent))
        wait_for(lambda: service.stats.snapshot()["in_flight"] == 1)
        assert get(address, "/health").json()["ready"]
        service.begin_shutdown()


@pytest.mark.parametrize(
    ("soft", "hard", "expected", "raised"),
    [
        (10_000, 10_000, 256, None),
        (resource.RLIM_INFINITY, resource.RLIM_INFINITY, 256, None),
        (256, resource.RLIM_INFINITY, 256, 256 + ACCEPTED_FILES + OTHER_FILES),
        (256, 100_000, 256, 256 + ACCEPTED_FILES + OTHER_FILES),
        (256, 500, 500 - ACCEPTED_FILES - OTHER_FILES, 500),
        (64, 64, 1, 64),
    ],
)
def test_connections_fit_into_the_limit_of_open_files(
    monkeypatch: pytest.MonkeyPatch, soft: int, hard: int, expected: int, raised: int | None
) -> None:
    calls: list[tuple[int, int]] = []
    monkeypatch.setattr(connections.resource, "getrlimit", lambda _: (soft, hard))
    monkeypatch.setattr(connections.resource, "setrlimit", lambda _, limits: calls.append(limits))
    assert reserve_files(256) == expected
    assert calls == ([] if raised is None else [(raised, hard)])


def test_a_limit_that_may_not_be_raised_means_fewer_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise ValueError("not permitted")

    monkeypatch.setattr(connections.resource, "getrlimit", lambda _: (500, 10_000))
    monkeypatch.setattr(connections.resource, "setrlimit", refuse)
    assert reserve_files(256) == 500 - ACCEPTED_FILES - OTHER_FILES
