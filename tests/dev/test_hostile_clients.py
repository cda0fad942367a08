"""Hostile clients at a real server: an ordinary one gets its answers, and nothing is left behind."""

from __future__ import annotations

import threading

import pytest

from dev.hostile_clients import hostile_clients
from nanochat.common import UserError
from nanochat.serving.connections import ConnectionLimits
from nanochat.serving.service import ServiceLimits
from tests.support.chat_server import chat_events, get_stats, serving, wait_for
from tests.support.scripted_engine import ScriptedEngine, reply_ids


@pytest.mark.slow
def test_an_ordinary_client_among_hostile_ones() -> None:
    limits = ConnectionLimits(connections=16, send_seconds=1.0)
    engine = ScriptedEngine(lambda _: reply_ids("hello"))
    with serving(engine, limits=limits, service_limits=ServiceLimits(max_rows=4)) as (address, service):
        with hostile_clients(address, count=6, idle=40) as connected:
            wait_for(lambda: all(connected[kind] for kind in ("vanished", "stalled", "dribbled", "idle")))
            for _ in range(10):
                assert chat_events(address)[-1]["kind"] == "done"
        wait_for(lambda: get_stats(address, "waiting", "in_flight") == (0, 0))
        assert service.stats.snapshot()["failed"] == 0


def test_no_client_is_none() -> None:
    with hostile_clients("http://127.0.0.1:1", 0, 0) as connected:
        assert not connected


def test_an_error_of_a_client_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    has_begun = threading.Event()

    async def fail(*_: object) -> None:
        has_begun.set()
        raise ArithmeticError

    monkeypatch.setattr("dev.hostile_clients._repeat", fail)
    with pytest.raises(ArithmeticError), hostile_clients("http://127.0.0.1:1", count=1, idle=0):
        assert has_begun.wait(30)


def test_more_connections_than_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dev.hostile_clients.reserve_files", lambda _count: 7)
    with (
        pytest.raises(UserError, match=r"8 connections need more open files .* at most 7"),
        hostile_clients("http://127.0.0.1:1", count=3, idle=5),
    ):
        pytest.fail("no client may start")
