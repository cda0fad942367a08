"""The log of requests: a line each, with numbers and without anyone's words."""

from __future__ import annotations

import asyncio
import json
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from nanochat.openai_api.routes import router
from nanochat.serving.request_log import LineWriter, RequestLog, log_line, route_name
from tests.support.chat_server import chat_events, get, new_client, serving, wait_for
from tests.support.scripted_engine import ScriptedEngine, reply_ids, user


@pytest.mark.parametrize("form", ["json", "text"])
def test_each_request_is_a_line(form: str, capfd: pytest.CaptureFixture[str]) -> None:
    engine = ScriptedEngine(lambda _: reply_ids("my reply"))
    with serving(engine, routers=[router], log=form) as (address, _):
        chat_events(address, messages=[user("my secret")])
        get(address, "/my/secret/path?my=secret")
        get(address, "/v1/models/my-secret")
        with new_client() as client:
            body = {"messages": [user("my secret")], "stop": "my secret"}
            client.post(f"{address}/v1/chat/completions", json=body)
            client.request("SECRET", f"{address}/health")
        output = ""

        def is_complete() -> bool:
            nonlocal output
            output += capfd.readouterr().out
            return output.count("\n") == 5

        wait_for(is_complete)
    assert "secret" not in output.lower()
    assert "reply" not in output
    if form == "text":
        assert "POST /chat/completions 200" in output
        return
    lines = [json.loads(line) for line in output.splitlines()]
    routes = [(line["route"], line["status"]) for line in lines]
    assert routes == [
        ("POST /chat/completions", 200),
        ("GET other", 404),
        ("GET /v1/models/{model:path}", 404),
        ("POST /v1/chat/completions", 200),
        ("other /health", 405),
    ]
    assert lines[0]["completion_tokens"] == lines[3]["completion_tokens"] == len(reply_ids("my reply"))
    assert lines[0]["prompt_tokens"] > 0
    assert lines[0]["first_token_seconds"] >= 0
    assert set(lines[1]) == {"time", "route", "status", "seconds"}


def test_without_the_setting_there_is_no_line(capfd: pytest.CaptureFixture[str]) -> None:
    with serving(ScriptedEngine(lambda _: reply_ids("."))) as (address, _):
        chat_events(address)
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize(("error", "status"), [(ValueError, 500), (asyncio.CancelledError, 499)])
def test_a_request_that_fails_is_counted_as_one(error: type[BaseException], status: int) -> None:
    counted = []
    stats = SimpleNamespace(count_request=lambda *request: counted.append(request))
    app = SimpleNamespace(state=SimpleNamespace(service=SimpleNamespace(stats=stats, log="off")))

    async def fail(*_: Any) -> None:
        raise error

    with pytest.raises(error):
        asyncio.run(RequestLog(fail)({"type": "http", "method": "GET", "app": app}, fail, fail))
    assert counted == [("GET other", status)]


@pytest.mark.parametrize("form", ["json", "text"])
def test_an_output_that_is_not_read_holds_nothing_up(form: str) -> None:
    may_write = threading.Event()
    written: list[str] = []

    def write(line: str) -> None:
        may_write.wait(60)
        written.append(line)

    writer = LineWriter(form, write, max_lines=3)
    writer.put("first")
    wait_for(lambda: writer._lines.empty())  # the thread waits with it
    for number in range(9):
        writer.put(f"line {number}")
    assert not writer.flush(0.01)
    may_write.set()
    assert writer.flush(60)
    assert written[0] == "first"
    assert "6" in written[1]
    assert "left" in written[1]
    assert written[2:] == ["line 0", "line 1", "line 2"]
    writer.put("later")
    assert writer.flush(60)
    assert written[-1] == "later"


def test_route_name() -> None:
    assert route_name({"method": "GET"}) == "GET other"
    assert route_name({"method": "EVIL\n"}) == "other other"


def test_a_line_is_one_line() -> None:
    for form in ("json", "text"):
        assert "\n" not in log_line(form, "GET /", 200, 0.5, {"prompt_tokens": 3})
