"""An HTTP server on 127.0.0.1 that serves bytes, understands ranges, and fails in the ways that a test writes down."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Fault = Callable[["_Handler"], None]  # spoils the answer to one request for stored bytes


@dataclass
class FileServer:
    """`files[name]` is what is served as name. `faults[name]` come first, one a request; the last for ever if `stuck`.

    As on the hub, a path under /resolve/ redirects to /store/ with the SHA-256 and size of the whole in its headers
    (`checksums`), or without them. `log` has an entry for each request to /store/: (name, its Range or "", bytes sent).
    """

    files: dict[str, bytes] = field(default_factory=dict)
    faults: dict[str, list[Fault]] = field(default_factory=dict)
    stuck: bool = False
    checksums: bool = True
    ranges: bool = True
    linked: dict[str, str] = field(default_factory=dict)  # headers in place of the true ones
    log: list[tuple[str, str, int]] = field(default_factory=list)
    url: str = ""
    closing: threading.Event = field(default_factory=threading.Event)

    def address(self, name: str) -> str:
        return f"{self.url}/resolve/{name}"


@contextmanager
def running(server: FileServer) -> Iterator[FileServer]:
    """Serve until the block is left."""
    http = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"shop": server}))
    server.url = f"http://127.0.0.1:{http.server_port}"
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.closing.set()
        http.shutdown()
        thread.join()
        http.server_close()


def status(code: int, **headers: str) -> Fault:
    def fault(handler: _Handler) -> None:
        handler.refusal = code, {name.replace("_", "-"): value for name, value in headers.items()}

    return fault


def die_after(count: int) -> Fault:
    """The connection breaks after so many bytes of the answer."""

    def fault(handler: _Handler) -> None:
        handler.limit = count

    return fault


def stall_after(count: int) -> Fault:
    """Nothing more comes after so many bytes, and the connection stays open."""

    def fault(handler: _Handler) -> None:
        handler.limit = count
        handler.stalls = True

    return fault


class _Handler(BaseHTTPRequestHandler):
    shop: FileServer
    protocol_version = "HTTP/1.1"
    limit: int | None = None
    stalls = False
    refusal: tuple[int, dict[str, str]] | None = None

    def do_GET(self) -> None:
        self.close_connection = True
        _, kind, name = self.path.split("/", 2)
        name = name.rpartition("/")[2]
        content = self.shop.files.get(name)
        if content is None:
            self.answer(404, {"Content-Length": "0"})
        elif kind == "store":
            self._store(name, content)
        else:
            digest = hashlib.sha256(content).hexdigest()
            linked = {"X-Linked-ETag": f'"{digest}"', "X-Linked-Size": str(len(content))} if self.shop.checksums else {}
            self.answer(302, {"Location": f"/store/{name}", "Content-Length": "0", **linked, **self.shop.linked})

    def _store(self, name: str, content: bytes) -> None:
        wanted = self.headers.get("Range", "")
        start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) if wanted and self.shop.ranges else 0
        rest = content[start:]
        faults = self.shop.faults.get(name, [])
        fault = (faults[0] if self.shop.stuck and len(faults) == 1 else faults.pop(0)) if faults else None
        if fault:
            fault(self)
        if self.refusal:
            self.shop.log.append((name, wanted, 0))
            self.answer(self.refusal[0], {**self.refusal[1], "Content-Length": "0"})
            return
        sent = rest if self.limit is None else rest[: self.limit]
        self.shop.log.append((name, wanted, len(sent)))
        if wanted and self.shop.ranges and start >= len(content):
            self.answer(416, {"Content-Range": f"bytes */{len(content)}", "Content-Length": "0"})
            return
        headers = {"Content-Length": str(len(rest)), "ETag": f'"plain-{name}"'}
        if wanted and self.shop.ranges:
            self.answer(206, headers | {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"})
        else:
            self.answer(200, headers)
        self.wfile.write(sent)
        self.wfile.flush()
        if self.stalls:
            self.shop.closing.wait(20)

    def answer(self, code: int, headers: dict[str, str]) -> None:
        self.send_response(code)
        for name, value in {**headers, "Connection": "close"}.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Says nothing: the log is `shop.log`."""
