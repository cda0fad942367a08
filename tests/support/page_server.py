"""A stand-in for the server of the chat page, which misbehaves as the last message tells it to.

It has the page, `/health`, and the event stream of `/chat/completions` (serving/server.py describes it), but no model.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

PAGE = Path(__file__).resolve().parents[2] / "nanochat/ui.html"
POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; connect-src 'self'"
KEY = "the right key"
RETRY_AFTER = 7


@dataclass
class PageServer:
    """Behaviour of the server. A reply is by default the text of the last message again."""

    health: dict[str, Any] = field(default_factory=dict)  # fields that replace those of HEALTH
    key: str | None = None  # replies need it
    faults: list[str] = field(default_factory=list)  # of the next requests, in order: see `_Handler._fail`
    requests: list[dict[str, Any]] = field(default_factory=list)  # the bodies
    gate: threading.Event = field(default_factory=threading.Event)  # replies with "slow" wait for it
    address: str = ""


HEALTH = {
    "ready": True,
    "model": "scripted",
    "device": "cpu",
    "defaults": {"temperature": 0.6, "top_k": 50, "top_p": None, "max_tokens": 512, "seed": None},
    "limits": {
        "messages": 500,
        "parts": 2000,
        "message_characters": 8000,
        "characters": 32000,
        "temperature": [0, 2],
        "top_k": [1, 200],
        "top_p": [0, 1],
        "max_tokens": [1, 4096],
        "seed": [0, 2**32 - 1],
    },
    "examples": ["Where does Mia live?"],
}


class _Handler(BaseHTTPRequestHandler):
    state: PageServer

    def log_message(self, *_: Any) -> None:
        pass

    def _send(self, status: int, kind: str, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def _send_json(self, status: int, content: Any, **headers: str) -> None:
        self._send(status, "application/json", json.dumps(content).encode(), **headers)

    def do_GET(self) -> None:
        if self.path == "/":
            self._send(200, "text/html; charset=utf-8", PAGE.read_bytes(), Content_Security_Policy=POLICY)
        elif self.path == "/health":
            self._send_json(200, {**HEALTH, **self.state.health})
        else:
            self._send_json(404, {"error": "no such path"})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.state.requests.append(body)
        fault = self.state.faults.pop(0) if self.state.faults else ""
        with suppress(OSError):  # the page has closed the connection
            if self.state.key and self.headers["Authorization"] != f"Bearer {self.state.key}":
                self._send_json(401, {"error": {"message": "the API key is missing or wrong"}})
            elif fault in ("429", "503"):
                self._send_json(int(fault), {"error": "the server is busy"}, Retry_After=str(RETRY_AFTER))
            elif fault == "500":
                self._send(500, "text/html", b"<h1>Internal error</h1>")
            else:
                self._reply(body["messages"][-1]["content"], fault)

    def _reply(self, content: Any, fault: str) -> None:
        text = content if isinstance(content, str) else content[-1]["text"]
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        if fault == "queue":
            for place in (2, 1):
                self._event(kind="waiting", text="", place=place)
                self.state.gate.wait(30)
                self.state.gate.clear()
        half = len(text) // 2
        self._event(kind="text", text=text[:half])
        if "slow" in text and not self.state.gate.wait(30):
            return
        if fault == "lost":
            return  # which closes the connection
        if fault == "nonsense":
            self.wfile.write(b"data: {half\n\n")
            return
        self._event(kind="text", text=text[half:])
        self._event(kind="done", text="", finish="length" if fault == "length" else "stop", tokens=7, dropped=0)

    def _event(self, **fields: Any) -> None:
        self.wfile.write(f"data: {json.dumps(fields)}\n\n".encode())
        self.wfile.flush()


@contextmanager
def page_server(**options: Any) -> Iterator[PageServer]:
    """Serve until the block is left. `options` are fields of `PageServer`."""
    state = PageServer(**options)
    handler = type("Handler", (_Handler,), {"state": state})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    state.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield state
    finally:
        state.gate.set()
        server.shutdown()
        server.server_close()
        thread.join()
