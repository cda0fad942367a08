"""One line for each request that was answered, and its count for Prometheus: `--log=json|text|off`.

A line has the route under its own name, status, seconds and numbers of tokens; never a path, a header or a word that a
client has sent.

    {"time": "2026-11-27T08:15:30.123Z", "route": "POST /v1/chat/completions", "status": 200, "seconds": 0.412,
     "prompt_tokens": 31, "completion_tokens": 64, "first_token_seconds": 0.023}

Lines are written by a thread: a reader of the output that has stopped reading, such as a full pipe, holds up no reply.
What it leaves unread beyond MAX_LINES is counted, and a line says so when it reads again.
"""

from __future__ import annotations

import asyncio
import json
import queue
import threading
import time
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nanochat.common import print0

LOG_CHOICES = ("off", "text", "json")
CLOSED = 499  # the status in the log of a request whose client had left before the response began
FAILED = 500
NO_ROUTE = "other"  # for every path that is no route
MAX_LINES = 1000  # that wait to be written
FLUSH_SECONDS = 1.0  # at the end of the server
METHODS = ("GET", "POST", "HEAD", "OPTIONS", "PUT", "PATCH", "DELETE")


def log_facts(scope: Scope, **facts: Any) -> None:
    """Add facts to the line of a request."""
    scope.setdefault("state", {}).setdefault("nanochat_log", {}).update(facts)


class RequestLog:
    """ASGI middleware, around all others."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self._writer: LineWriter | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, as ASGI defines it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            if self._writer is not None:  # the server has ended
                service = scope["app"].state.service
                service.is_output_stuck = not await asyncio.to_thread(self._writer.flush, FLUSH_SECONDS)
            return
        start = time.monotonic()
        status = CLOSED
        facts: dict[str, Any] = {}
        scope.setdefault("state", {})["nanochat_log"] = facts

        async def send_and_note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, send_and_note)
        except Exception:  # Starlette answers it outside of all middlewares
            status = FAILED if status == CLOSED else status
            raise
        finally:
            service = scope["app"].state.service
            route = route_name(scope)
            service.stats.count_request(route, status)
            if service.log != "off":
                self._writer = self._writer or LineWriter(service.log)
                self._writer.put(log_line(service.log, route, status, time.monotonic() - start, facts))


class LineWriter:
    """Writes lines in a thread of its own, in order. `form`: json or text."""

    def __init__(self, form: str, write: Callable[[str], object] = print0, max_lines: int = MAX_LINES) -> None:
        self._form = form
        self._write = write
        self._lines: queue.Queue[str] = queue.Queue(max_lines)
        self._num_left_out = 0
        threading.Thread(target=self._run, name="request log", daemon=True).start()

    def put(self, line: str) -> None:
        """Add a line, or count it if too many wait. Called by one thread."""
        try:
            self._lines.put_nowait(line)
        except queue.Full:
            self._num_left_out += 1

    def flush(self, seconds: float) -> bool:
        """Wait until all lines are written. Returns False if they are not within so many seconds."""
        deadline = time.monotonic() + seconds
        while self._lines.unfinished_tasks:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.005)
        return True

    def _run(self) -> None:
        while True:
            line = self._lines.get()
            if num_left_out := self._num_left_out:
                self._num_left_out -= num_left_out
                self._write(left_out_line(self._form, num_left_out))
            self._write(line)
            self._lines.task_done()


def route_name(scope: Scope) -> str:
    """Return method and path of the route that answers a request, the same for all unknown ones."""
    route = getattr(scope.get("route"), "path", None)
    method = scope["method"] if scope["method"] in METHODS else NO_ROUTE
    return f"{method} {route or NO_ROUTE}"


def log_line(form: str, route: str, status: int, seconds: float, facts: dict[str, Any]) -> str:
    """Return the line of a request.

    >>> log_line("text", "GET /health", 200, 0.0012, {})[-22:]
    'GET /health 200 0.001s'
    """
    time_text = _time_text()
    if form == "json":
        return json.dumps({"time": time_text, "route": route, "status": status, "seconds": round(seconds, 4), **facts})
    rest = " ".join(f"{name}={value}" for name, value in facts.items())
    return f"{time_text} {route} {status} {seconds:.3f}s {rest}".rstrip()


def left_out_line(form: str, count: int) -> str:
    """Return the line that tells of lines which were not written."""
    if form == "json":
        return json.dumps({"time": _time_text(), "left_out": count})
    return f"{_time_text()} {count} lines were left out here: the output was not read"


def _time_text() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")
