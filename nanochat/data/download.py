"""Files over HTTP: resumed after an interruption, tried again after a failure, checked, whole under their final name.

A file grows as `<name>.part` and is renamed at the end. The Hugging Face hub tells the SHA-256 of a large file in the
header X-Linked-ETag, and its size in X-Linked-Size, of the redirect to where it is stored; an ETag of another form than
a SHA-256 says nothing about the contents. A part that an earlier process left is continued only where a SHA-256 can
prove the whole.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, TypeVar

import requests
from filelock import FileLock
from tqdm import tqdm

from nanochat.common import UserError, print0
from nanochat.data.shards import file_sha256

T = TypeVar("T")

MAX_ATTEMPTS = 6  # in a row without a new byte
TIMEOUT_SECONDS = 30.0  # seconds without an answer, or without a byte
FIRST_WAIT_SECONDS = 1.0  # seconds before the second attempt; doubles, up to MAX_WAIT_SECONDS
MAX_WAIT_SECONDS = 60.0
_BLOCK = 1 << 16
_TEMPORARY = (408, 425, 429, 500, 502, 503, 504)


class _Retry(Exception):
    """This attempt failed in a way that another may not. `wait` is the server's own wish in seconds, if it has one."""

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.wait = wait


class DownloadCancelled(Exception):
    """The download was told to stop; its part stays for the next time."""


def download(
    url: str, path: Path, stop: threading.Event | None = None, on_bytes: Callable[[int], Any] | None = None
) -> None:
    """Bring `url` to `path`, unless it is there already. `on_bytes` is called with the number of bytes of each block.

    Processes that want the same file take turns. UserError when the server has no such file, or fails
    MAX_ATTEMPTS times in a row; DownloadCancelled when `stop` is set.
    """
    stop = stop or threading.Event()
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_name(path.name + ".lock")
    with FileLock(lock):
        if not path.exists():
            _Download(url, path, stop, on_bytes or (lambda _: None)).run()
        lock.unlink(missing_ok=True)  # safe: whoever waits for it, or makes a new one, finds the file in place


def download_all(files: Sequence[tuple[str, Path]], workers: int, check: Callable[[Path], T]) -> list[T]:
    """Download (url, path) pairs, several at a time, and return `check(path)` of each, in order.

    The first error ends the others; what they have so far stays for the next time.
    """
    stop = threading.Event()
    with ThreadPoolExecutor(workers) as pool, tqdm(unit="B", unit_scale=True, disable=None) as bar:

        def bring(url: str, path: Path) -> T:
            download(url, path, stop, bar.update)
            return check(path)

        futures = {pool.submit(bring, url, path): path.name for url, path in files}
        try:
            for count, future in enumerate(as_completed(futures), 1):
                future.result()
                bar.set_description(f"{count} of {len(files)} files")
                if bar.disable:
                    print0(f"{futures[future]} is there ({count} of {len(files)})")
        except BaseException:
            stop.set()
            for future in futures:
                future.cancel()
            raise
    return [future.result() for future in futures]


class _Download:
    """One file on its way. `etag` and `size` (-1: unknown) are what the server said of the whole, once it has."""

    def __init__(self, url: str, path: Path, stop: threading.Event, on_bytes: Callable[[int], Any]) -> None:
        self.url, self.path, self.stop, self.on_bytes = url, path, stop, on_bytes
        self.part = path.with_name(path.name + ".part")
        self.etag: str | None = None
        self.size = -1
        self.own = False  # is the part from this process?

    def run(self) -> None:
        failures, most = 0, self._have()
        while True:
            try:
                self._attempt()
                break
            except _Retry as error:
                have = self._have()
                failures = 1 if have > most else failures + 1
                most = max(most, have)
                if failures >= MAX_ATTEMPTS:
                    hint = "the same command tries again, and keeps what is there"
                    raise UserError(f"{self.url} failed {failures} times in a row: {error}; {hint}") from error
                wait = FIRST_WAIT_SECONDS * 2 ** (failures - 1) if error.wait is None else error.wait
                if self.stop.wait(min(wait, MAX_WAIT_SECONDS)):
                    raise DownloadCancelled from error
        os.replace(self.part, self.path)

    def _have(self) -> int:
        return self.part.stat().st_size if self.part.exists() else 0

    def _attempt(self) -> None:
        """Ask for what is missing, and check the whole. Raises _Retry, UserError or DownloadCancelled."""
        have = self._have()
        headers = {"Accept-Encoding": "identity"}  # the bytes as they are: offsets and hashes are those of the file
        if have:
            headers["Range"] = f"bytes={have}-"
        if token := os.environ.get("HF_TOKEN"):
            headers["Authorization"] = f"Bearer {token}"  # requests drops it when a redirect leaves the host
        try:
            with requests.get(self.url, headers=headers, stream=True, timeout=TIMEOUT_SECONDS) as response:
                self._note(response, have)
                if response.status_code != 416:  # 416: there is nothing after the bytes that we have
                    self._receive(response, have)
        except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError) as error:
            raise _Retry(_reason(error)) from error
        except requests.RequestException as error:
            raise UserError(f"{self.url} cannot be downloaded: {error}") from error
        self._verify()

    def _note(self, response: requests.Response, have: int) -> None:
        """Judge the answer's status and headers before its body is read."""
        status = response.status_code
        if status in _TEMPORARY:
            after = response.headers.get("Retry-After", "")
            raise _Retry(f"the server answered {status}", float(after) if after.isdigit() else None)
        if status not in (200, 206, 416):
            raise UserError(f"{self.url} cannot be downloaded: the server answered {status} {response.reason}")
        answers = [*response.history, response]
        linked = [answer for answer in answers if "X-Linked-ETag" in answer.headers]
        etag = (linked[-1].headers["X-Linked-ETag"] if linked else response.headers.get("ETag", "")) or None
        announced = linked[-1].headers.get("X-Linked-Size") if linked else None
        total = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+)", response.headers.get("Content-Range", ""))
        size = total[2] if total else response.headers.get("Content-Length") if status == 200 else None
        if announced and size and int(announced) != int(size):
            raise _Retry(f"{announced} bytes were announced, and {size} are offered")
        known, self.etag = self.etag, etag
        self.size = int(announced or size or -1)
        continues = self.sha256 is not None or (self.own and etag is not None and etag == known)
        starts_right = status != 206 or (total is not None and total[1] == str(have))
        fits = continues and starts_right and (status != 416 or have == self.size)
        if have and status != 200 and not fits:
            self._drop()
            raise _Retry("the part that was there belongs to something else")

    @property
    def sha256(self) -> str | None:
        """What the server says is the SHA-256 of the whole."""
        digest = (self.etag or "").removeprefix("W/").strip('"')
        return digest if re.fullmatch(r"[0-9a-f]{64}", digest) else None

    def _receive(self, response: requests.Response, have: int) -> None:
        with open(self.part, "ab" if response.status_code == 206 and have else "wb") as file:
            self.own = True
            for block in response.iter_content(_BLOCK):
                if self.stop.is_set():
                    raise DownloadCancelled
                file.write(block)
                self.on_bytes(len(block))
            file.flush()
            os.fsync(file.fileno())

    def _verify(self) -> None:
        have = self._have()
        if have < self.size:
            raise _Retry(f"only {have:,} of {self.size:,} bytes came")
        if have > self.size >= 0:
            self._drop()
            raise _Retry(f"{have:,} bytes came where {self.size:,} were announced")
        if self.sha256 and (found := file_sha256(self.part)) != self.sha256:
            self._drop()
            raise _Retry(f"its SHA-256 is {found[:12]}..., the server announced {self.sha256[:12]}...")

    def _drop(self) -> None:
        self.part.unlink(missing_ok=True)


def _reason(error: Exception) -> str:
    """The end of a chain of wrapped exceptions, in a few words."""
    if isinstance(error, requests.Timeout):
        return f"no answer in {TIMEOUT_SECONDS:g} seconds"
    text = str(error)
    if "timed out" in text:
        return f"nothing came for {TIMEOUT_SECONDS:g} seconds"
    inner = re.search(r"\[Errno -?\d+\] ([^'\")]+)", text)
    return inner[1] if inner else "the connection broke"
