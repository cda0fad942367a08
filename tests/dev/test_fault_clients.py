"""Hostile clients of the fault harness: cases repeat with their seed, wrong answers are found, a small share holds."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from dev.fault_kinds import client_cases, clients
from dev.fault_kinds.client_cases import Case, choose

REPLY = (
    b"HTTP/1.1 200 OK\r\n\r\n"
    b'data: {"kind": "text", "text": "a"}\n\ndata: {"kind": "text", "text": "a"}\n\n'
    b'data: {"kind": "done", "text": "", "finish": "length", "tokens": 2, "dropped": 0}\n\n'
)
REFUSAL = b'HTTP/1.1 400 Bad Request\r\n\r\n{"error": "no"}'


def test_cases_repeat_with_their_seed_and_are_of_every_kind() -> None:
    first, second = random.Random(1), random.Random(1)
    cases = [choose(first) for _ in range(3000)]
    assert cases == [choose(second) for _ in range(3000)]
    assert len({case.kind for case in cases}) == 8
    assert len({case.sent for case in cases}) > 1500


def test_requests_have_the_length_that_they_announce() -> None:
    head, _, body = client_cases.chat(b'{"a": 1}').partition(b"\r\n\r\n")
    assert f"Content-Length: {len(body)}".encode() in head
    assert json.loads(client_cases.encoded(client_cases.question("x")))["messages"][0]["content"] == "x"


@pytest.mark.parametrize(
    ("statuses", "tokens", "received", "words"),
    [
        ({200}, 2, REPLY, ""),
        ({200}, None, b"HTTP/1.1 200 OK\r\n\r\n<html>", ""),
        ({400}, None, REFUSAL, ""),
        ({0}, None, b"", ""),
        ({200}, 3, REPLY, "a wrong reply: 'aa'"),
        ({200}, 2, REPLY[:-80], "a wrong reply: 'aa'"),
        ({200}, 2, REPLY.replace(b'"a"', b'"b"', 1), "a wrong reply: 'ba'"),
        ({200}, 2, b"", "status 0, not 200"),
        ({200}, 2, REFUSAL, "status 400, not 200"),
        ({400, 413}, None, b"HTTP/1.1 500 Internal Server Error\r\n\r\n", "status 500, not 400 or 413"),
        ({400}, None, b"HTTP/1.1 400 Bad Request\r\n\r\nno", "without a short reason"),
        ({400}, None, REFUSAL.replace(b"no", b"no" * 1000), "without a short reason"),
        ({503}, None, b'HTTP/1.1 503 Service Unavailable\r\n\r\n{"error": "no"}', "busy, without Retry-After"),
        ({503}, None, b'HTTP/1.1 503 Service Unavailable\r\nRetry-After: 5\r\n\r\n{"error": "no"}', ""),
    ],
)
def test_an_answer_is_judged(statuses: set[int], tokens: int | None, received: bytes, words: str) -> None:
    found = clients.judge(Case("x", "x", b"", frozenset(statuses), tokens=tokens), received)
    assert found.startswith(words) if words.startswith(("a wrong", "status", "busy")) else words in found
    assert bool(found) == bool(words)


@pytest.mark.slow
def test_a_server_among_hostile_clients(tmp_path: Path) -> None:
    outcomes = [*clients.run(300, 1, tmp_path)]
    assert [f"{o.verdict}: {o.kind}: {o.case}\n{o.detail}" for o in outcomes if o.verdict != "ok"] == []
    assert len(outcomes) == 302
    assert [outcome.kind for outcome in outcomes[-2:]] == ["flood of connections", "server after a batch"]


@pytest.mark.slow
def test_defects_of_a_server_are_found(tmp_path: Path) -> None:
    with clients.serving(tmp_path) as server:
        assert server.problem() is None
        with open(server.log, "a", encoding="utf-8") as log:
            log.write("Traceback (most recent call last):\n")
        problem = server.problem()
        assert problem is not None
        assert problem[0] == "traceback"
        server.log.write_text("x" * 200_000, encoding="utf-8")
        problem = server.problem()
        assert problem is not None
        assert problem[0] == "leftover"
        server.log.write_text("", encoding="utf-8")
        server.memory = 1 << 20
        problem = server.problem()
        assert problem is not None
        assert problem[1].startswith("memory has grown from 1 to ")
        server.process.kill()
        server.process.wait()
        problem = server.problem()
        assert problem is not None
        assert problem[0] == "lost"
