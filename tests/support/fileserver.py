"""An HTTP server on 127.0.0.1 that serves bytes, supports ranges, and fails as a test configures it."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Fault = Callable[["_Handler"], None]
"""Changes the response to one request for stored bytes."""


@dataclass
class FileServer:
    """Files and faults of the server.

    As on the Hugging Face hub, a path under /resolve/ redirects to /store/, with SHA-256 and size of the file in the
    headers.
    """

    files: dict[str, bytes] = field(default_factory=dict)  # by name
    faults: dict[str, list[Fault]] = field(default_factory=dict)  # one for each request to /store/, in order
    stuck: bool = False  # True: the last fault repeats
    checksums: bool = True  # False: no SHA-256 and no size in the headers of the redirect
    ranges: bool = True  # False: Range headers are ignored
    linked: dict[str, str] = field(default_factory=dict)  # headers that replace those of the redirect
    log: list[tuple[str, str, int]] = field(
        default_factory=list
    )  # requests to /store/: (name, Range or "", bytes sent)
    authorizations: list[str | None] = field(default_factory=list)  # that header of every request
    url: str = ""
    closing: threading.Event = field(default_factory=threading.Event)

    def address(self, name: str) -> str:
        return f"{self.url}/resolve/{name}"


@contextmanager
def running(server: FileServer) -> Iterator[FileServer]:
    """Run a server for the duration of a `with` block."""
    http = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"server_state": server}))
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
    """Answer with a status code and headers instead of the file."""

    def fault(handler: _Handler) -> None:
        handler.error = code, {name.replace("_", "-"): value for name, value in headers.items()}

    return fault


def die_after(count: int) -> Fault:
    """Close the connection after `count` bytes of the file."""

    def fault(handler: _Handler) -> None:
        handler.limit = count

    return fault


def stall_after(count: int) -> Fault:
    """Send `count` bytes of the file, then nothing more, and keep the connection open."""

    def fault(handler: _Handler) -> None:
        handler.limit = count
        handler.stalls = True

    return fault


def endless(handler: _Handler) -> None:
    """Send the file again and again in chunks, without a length, until the client leaves."""
    handler.is_endless = True


class _Handler(BaseHTTPRequestHandler):
    server_state: FileServer
    protocol_version = "HTTP/1.1"
    limit: int | None = None
    stalls = False
    is_endless = False
    error: tuple[int, dict[str, str]] | None = None

    def do_GET(self) -> None:
        self.close_connection = True
        self.server_state.authorizations.append(self.headers.get("Authorization"))
        _, folder, name = self.path.split("/", 2)
        name = name.rpartition("/")[2]
        content = self.server_state.files.get(name)
        if content is None:
            self.answer(404, {"Content-Length": "0"})
        elif folder == "store":
            self._store(name, content)
        else:
            digest = hashlib.sha256(content).hexdigest()
            linked = (
                {"X-Linked-ETag": f'"{digest}"', "X-Linked-Size": str(len(content))}
                if self.server_state.checksums
                else {}
            )
            self.answer(
                302, {"Location": f"/store/{name}", "Content-Length": "0", **linked, **self.server_state.linked}
            )

    def _store(self, name: str, content: bytes) -> None:
        range_header = self.headers.get("Range", "")
        has_range = bool(range_header) and self.server_state.ranges
        start = int(re.fullmatch(r"bytes=(\d+)-", range_header)[1]) if has_range else 0
        requested = content[start:]
        faults = self.server_state.faults.get(name, [])
        if faults:
            fault = faults[0] if self.server_state.stuck and len(faults) == 1 else faults.pop(0)
            fault(self)
        if self.error:
            self.server_state.log.append((name, range_header, 0))
            self.answer(self.error[0], {**self.error[1], "Content-Length": "0"})
            return
        if self.is_endless:
            self._send_without_end(content)
            return
        sent = requested if self.limit is None else requested[: self.limit]
        self.server_state.log.append((name, range_header, len(sent)))
        if has_range and start >= len(content):
            self.answer(416, {"Content-Range": f"bytes */{len(content)}", "Content-Length": "0"})
            return
        headers = {"Content-Length": str(len(requested)), "ETag": f'"plain-{name}"'}
        if has_range:
            self.answer(206, headers | {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"})
        else:
            self.answer(200, headers)
        with suppress(ConnectionError):  # a client that refuses the file by its headers
            self.wfile.write(sent)
            self.wfile.flush()
        if self.stalls:
            self.server_state.closing.wait(20)

    def _send_without_end(self, content: bytes) -> None:
        self.answer(200, {"Transfer-Encoding": "chunked"})
        with suppress(OSError):
            while not self.server_state.closing.is_set():
                self.wfile.write(f"{len(content):x}\r\n".encode() + content + b"\r\n")

    def answer(self, code: int, headers: dict[str, str]) -> None:
        self.send_response(code)
        for name, value in {**headers, "Connection": "close"}.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Print nothing; `FileServer.log` has the requests."""
