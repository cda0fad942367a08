"""One line for each request that was answered, and its count for Prometheus: `--log=json|text|off`.

A line has the route under its own name, status, seconds and numbers of tokens; never a path, a header or a word that a
client has sent.

    {"time": "2026-11-27T08:15:30.123Z", "route": "POST /v1/chat/completions", "status": 200, "seconds": 0.412,
     "prompt_tokens": 31, "completion_tokens": 64, "first_token_seconds": 0.023}
"""

from __future__ import annotations

import json
import time
from datetime import datetime, timezone
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nanochat.common import print0

LOG_CHOICES = ("off", "text", "json")
CLOSED = 499  # the status in the log of a request whose client had left before the response began
FAILED = 500
NO_ROUTE = "other"  # for every path that is no route
METHODS = ("GET", "POST", "HEAD", "OPTIONS", "PUT", "PATCH", "DELETE")


def log_facts(scope: Scope, **facts: Any) -> None:
    """Add facts to the line of a request."""
    scope.setdefault("state", {}).setdefault("nanochat_log", {}).update(facts)


class RequestLog:
    """ASGI middleware, around all others."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, as ASGI defines it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
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
                print0(log_line(service.log, route, status, time.monotonic() - start, facts))


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
    time_text = datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    if form == "json":
        return json.dumps({"time": time_text, "route": route, "status": status, "seconds": round(seconds, 4), **facts})
    rest = " ".join(f"{name}={value}" for name, value in facts.items())
    return f"{time_text} {route} {status} {seconds:.3f}s {rest}".rstrip()
