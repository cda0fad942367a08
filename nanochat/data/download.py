"""Downloads over HTTP: resumed after an interruption, retried after a failure, and verified by size and SHA-256.

A file grows as `<name>.part` and is renamed when it is complete. The Hugging Face hub redirects a large file to its
storage; the header X-Linked-ETag of that redirect is the file's SHA-256, and X-Linked-Size its size. Other ETags are
not checksums. The partial file of an earlier process is continued only if a SHA-256 can verify the complete file.

A server is not trusted: no more bytes are written than it has announced, nor than `MAX_FILE_BYTES`, and links or pipes
in the places of the partial file and of the lock are removed.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import TypeVar
from urllib.parse import urljoin, urlsplit

import requests
from requests.auth import AuthBase, HTTPBasicAuth
from requests.utils import get_auth_from_url
from tqdm import tqdm

from nanochat.common import UserError, print0
from nanochat.data.shards import file_sha256
from nanochat.system.credentials import has_password, hub_address, hub_token, is_on_hub
from nanochat.system.files import flush_to_disk
from nanochat.system.locks import file_lock

T = TypeVar("T")

MAX_ATTEMPTS = 6  # in a row without a new byte
TIMEOUT_SECONDS = 30.0  # without a response, or without a byte of it
FIRST_WAIT_SECONDS = 1.0  # before the second attempt; doubles with each attempt, up to MAX_WAIT_SECONDS
MAX_WAIT_SECONDS = 60.0
MAX_FILE_BYTES = 4 << 30  # a shard has 100 MB; a server that announces or sends more than this is not the right one
_BLOCK_BYTES = 1 << 16
_TEMPORARY_STATUSES = (408, 425, 429, 500, 502, 503, 504)


class _Auth(AuthBase):
    """The credentials of a request: the hub's token for the hub, else user and password of its own address.

    requests would otherwise take those of ~/.netrc, and send them over plain http too.
    """

    def __init__(self, url: str) -> None:
        self.user, self.password = get_auth_from_url(url)

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if token := hub_token(str(request.url)):
            request.headers["Authorization"] = f"Bearer {token}"
        elif self.user or self.password:
            HTTPBasicAuth(self.user, self.password)(request)
        return request


class _Session(requests.Session):
    """A session that sends no credentials where it is redirected to, except from the hub to the hub."""

    def rebuild_auth(self, prepared_request: requests.PreparedRequest, response: requests.Response) -> None:
        """Replace the credentials for a redirect."""
        prepared_request.headers.pop("Authorization", None)
        if is_on_hub(str(response.url)) and (token := hub_token(str(prepared_request.url))):
            prepared_request.headers["Authorization"] = f"Bearer {token}"

    def get_redirect_target(self, resp: requests.Response) -> str | None:
        """Return where a response redirects to. Raises UserError, and closes the response, unless it is on the web."""
        try:
            target = super().get_redirect_target(resp)
            if target is None or urlsplit(urljoin(str(resp.url), target)).scheme in ("http", "https"):
                return target
            reason = "a scheme other than http and https"
        except ValueError as error:  # no URL, or no UTF-8
            reason = str(error)
        resp.close()
        raise UserError(f"{resp.url} cannot be downloaded: its server redirects elsewhere: {reason}")


class _Retry(Exception):
    """A failure after which another attempt may succeed. `wait_seconds`: the server's Retry-After, if it sent one."""

    def __init__(self, reason: str, wait_seconds: float | None = None) -> None:
        super().__init__(reason)
        self.wait_seconds = wait_seconds


class DownloadCancelled(Exception):
    """Raised when the `cancel` event of a download is set. The part is kept and continued by the next call."""


def download(
    url: str, path: Path, cancel: threading.Event | None = None, on_bytes: Callable[[int], object] | None = None
) -> None:
    """Download `url` to `path` unless the file exists. `on_bytes` is called with the number of bytes of each block.

    A lock lets one process at a time download the same file. Raises UserError if the server does not have the file or
    fails MAX_ATTEMPTS times in a row, and DownloadCancelled if `cancel` is set.
    """
    if has_password(url) and not url.lower().startswith("https://"):
        raise UserError(f"{url} names a user or a password, which are sent over https only")
    cancel = cancel or threading.Event()
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_name(path.name + ".lock")
    _remove_unless_file(lock)
    with file_lock(lock, f"{path} is downloaded by", notice=print0):
        if not path.exists():
            _Download(url, path, cancel, on_bytes or (lambda _: None)).run()


def download_all(files: Sequence[tuple[str, Path]], num_workers: int, check: Callable[[Path], T]) -> list[T]:
    """Download (url, path) pairs in `num_workers` threads; return `check(path)` of each, in order.

    The first error cancels the other downloads; their parts are kept and continued by the next call.
    """
    cancel = threading.Event()
    with ThreadPoolExecutor(num_workers) as pool, tqdm(unit="B", unit_scale=True, disable=None) as bar:

        def download_and_check(url: str, path: Path) -> T:
            download(url, path, cancel, bar.update)
            return check(path)

        futures = {pool.submit(download_and_check, url, path): path.name for url, path in files}
        try:
            for count, future in enumerate(as_completed(futures), 1):
                future.result()
                bar.set_description(f"{count} of {len(files)} files")
                if bar.disable:
                    print0(f"{futures[future]} is complete ({count} of {len(files)})")
        except BaseException:
            cancel.set()
            for future in futures:
                future.cancel()
            raise
    return [future.result() for future in futures]


class _Download:
    """One download in progress. `etag` and `size` (-1 = unknown) of the complete file come from the last response."""

    def __init__(self, url: str, path: Path, cancel: threading.Event, on_bytes: Callable[[int], object]) -> None:
        self.url = url
        self.path = path
        self.cancel = cancel
        self.on_bytes = on_bytes
        self.part = path.with_name(path.name + ".part")
        self.etag: str | None = None
        self.size = -1
        self.has_written = False  # True once this process has written to the part

    def run(self) -> None:
        _remove_unless_file(self.part)
        num_failures = 0
        max_part_bytes = self._part_bytes()
        while True:
            try:
                self._attempt()
                break
            except _Retry as error:
                part_bytes = self._part_bytes()
                num_failures = 1 if part_bytes > max_part_bytes else num_failures + 1
                max_part_bytes = max(max_part_bytes, part_bytes)
                if num_failures >= MAX_ATTEMPTS:
                    hint = "run the same command again to continue"
                    raise UserError(f"{self.url} failed {num_failures} times in a row: {error}; {hint}") from error
                wait_seconds = error.wait_seconds
                if wait_seconds is None:
                    wait_seconds = FIRST_WAIT_SECONDS * 2 ** (num_failures - 1)
                if self.cancel.wait(min(wait_seconds, MAX_WAIT_SECONDS)):
                    raise DownloadCancelled from error
        os.replace(self.part, self.path)

    def _part_bytes(self) -> int:
        return self.part.stat().st_size if self.part.exists() else 0

    def _attempt(self) -> None:
        """Request the missing bytes and verify the file. Raises _Retry, UserError or DownloadCancelled."""
        part_bytes = self._part_bytes()
        headers = {"Accept-Encoding": "identity"}  # uncompressed, as offsets and hashes are those of the file
        if part_bytes:
            headers["Range"] = f"bytes={part_bytes}-"
        try:
            with (
                _Session() as session,
                session.get(
                    self.url, headers=headers, auth=_Auth(self.url), stream=True, timeout=TIMEOUT_SECONDS
                ) as response,
            ):
                self._check_headers(response, part_bytes)
                if response.status_code != 416:  # 416: the file has no bytes after those of the part
                    self._receive(response, part_bytes)
        except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError) as error:
            raise _Retry(_reason(error)) from error
        except requests.RequestException as error:
            raise UserError(f"{self.url} cannot be downloaded: {error}") from error
        except (_Retry, UserError, DownloadCancelled, OSError):
            raise
        except Exception as error:  # of urllib3: requests lets some through, as for headers that contradict each other
            raise UserError(f"{self.url} cannot be downloaded: {error}") from error
        self._verify()

    def _check_headers(self, response: requests.Response, part_bytes: int) -> None:
        """Check status and headers before the body is read, and record the ETag and the size of the file."""
        status = response.status_code
        if status in _TEMPORARY_STATUSES:
            retry_after = response.headers.get("Retry-After", "")
            raise _Retry(f"the server answered {status}", float(retry_after) if _is_number(retry_after) else None)
        if status not in (200, 206, 416):
            answer = f"{status} {response.reason}{self._token_hint(status)}"
            raise UserError(f"{self.url} cannot be downloaded: the server answered {answer}")

        redirects = [answer for answer in [*response.history, response] if "X-Linked-ETag" in answer.headers]
        if redirects:
            etag = redirects[-1].headers["X-Linked-ETag"] or None
            announced_size = redirects[-1].headers.get("X-Linked-Size")
        else:
            etag = response.headers.get("ETag") or None
            announced_size = None
        content_range = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+)", response.headers.get("Content-Range", ""))
        size = content_range[2] if content_range else None
        if size is None and status == 200:
            size = response.headers.get("Content-Length")
        for text in (announced_size, size):
            if text and not _is_number(text):
                raise UserError(f"{self.url} cannot be downloaded: the server announces {text[:40]!r} bytes")
            if text and int(text) > MAX_FILE_BYTES:
                raise UserError(self._too_large(f"the server announces {int(text):,} bytes"))
        if announced_size and size and int(announced_size) != int(size):
            raise _Retry(f"{announced_size} bytes were announced, and {size} are offered")

        is_unchanged = self.has_written and etag is not None and etag == self.etag
        self.etag = etag
        self.size = int(announced_size or size or -1)
        is_verifiable = self.sha256 is not None or is_unchanged
        continues_part = status != 206 or (content_range is not None and content_range[1] == str(part_bytes))
        is_complete = status != 416 or part_bytes == self.size
        if part_bytes and status != 200 and not (is_verifiable and continues_part and is_complete):
            self._delete_part()
            raise _Retry("the existing part belongs to another file")

    @property
    def sha256(self) -> str | None:
        """SHA-256 of the complete file according to the server, or None."""
        digest = (self.etag or "").removeprefix("W/").strip('"')
        return digest if re.fullmatch(r"[0-9a-f]{64}", digest) else None

    def _receive(self, response: requests.Response, part_bytes: int) -> None:
        with open(self.part, "ab" if response.status_code == 206 and part_bytes else "wb") as file:
            self.has_written = True
            num_bytes = file.tell()
            for block in response.iter_content(_BLOCK_BYTES):
                if self.cancel.is_set():
                    raise DownloadCancelled
                num_bytes += len(block)
                if num_bytes > MAX_FILE_BYTES:
                    self._delete_part()
                    raise UserError(self._too_large("the server sends more and more"))
                if num_bytes > self.size >= 0:
                    self._delete_part()
                    raise _Retry(f"more than the {self.size:,} bytes that were announced were received")
                file.write(block)
                self.on_bytes(len(block))
            file.flush()
            flush_to_disk(file.fileno())

    def _verify(self) -> None:
        part_bytes = self._part_bytes()
        if part_bytes < self.size:
            raise _Retry(f"only {part_bytes:,} of {self.size:,} bytes were received")
        if part_bytes > self.size >= 0:
            self._delete_part()
            raise _Retry(f"more than the {self.size:,} bytes that were announced were received")
        if self.sha256 is None:
            return
        sha256 = file_sha256(self.part)
        if sha256 != self.sha256:
            self._delete_part()
            raise _Retry(f"its SHA-256 is {sha256[:12]}..., the server announced {self.sha256[:12]}...")

    def _token_hint(self, status: int) -> str:
        is_hub = self.url.startswith(hub_address().rstrip("/") + "/")
        if status not in (401, 403) or not os.environ.get("HF_TOKEN") or not is_hub or is_on_hub(self.url):
            return ""
        return " (HF_TOKEN was not sent, because HF_ENDPOINT is not https)"

    def _delete_part(self) -> None:
        self.part.unlink(missing_ok=True)

    def _too_large(self, reason: str) -> str:
        return f"{self.url} cannot be downloaded: {reason}; a file of at most {MAX_FILE_BYTES:,} was expected"


def _is_number(text: str) -> bool:
    return re.fullmatch("[0-9]{1,18}", text) is not None


def _remove_unless_file(path: Path) -> None:
    """Remove a link, a pipe or a device: in a folder from someone else, writing to it would write elsewhere."""
    if path.is_symlink() or (path.exists() and not path.is_file()):
        path.unlink()


def _reason(error: Exception) -> str:
    """Return a short description of the exception that requests has wrapped several times."""
    if isinstance(error, requests.Timeout):
        return f"no response in {TIMEOUT_SECONDS:g} seconds"
    text = str(error)
    if "timed out" in text:
        return f"no data for {TIMEOUT_SECONDS:g} seconds"
    system_error = re.search(r"\[Errno -?\d+\] ([^'\")]+)", text)
    return system_error[1] if system_error else "the connection broke"
