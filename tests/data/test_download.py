"""Downloads from a local server that disconnects, stalls, sends wrong data and refuses."""

from __future__ import annotations

import hashlib
import io
import itertools
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from requests.adapters import BaseAdapter

from nanochat.common import UserError
from nanochat.data import download as module
from nanochat.data.download import DownloadCancelled, download, download_all
from tests.support.fileserver import FileServer, die_after, endless, running, stall_after, status

CONTENT = b"".join(hashlib.sha256(str(number).encode()).digest() for number in range(20_000))  # 640,000 bytes

PROGRAM = """
import sys
from pathlib import Path
from nanochat.data.download import download
download(sys.argv[1], Path(sys.argv[2]))
"""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(module, "FIRST_WAIT_SECONDS", 0.01)
    monkeypatch.setattr(module, "TIMEOUT_SECONDS", 0.5)
    with running(FileServer({"a": CONTENT})) as server:
        yield server


def _assert_nothing_else(folder: Path, *names: str) -> None:
    assert sorted(path.name for path in folder.iterdir()) == sorted(names)


def test_downloads_a_file_once(server: FileServer, tmp_path: Path) -> None:
    counted: list[int] = []
    for _ in range(2):
        download(server.address("a"), tmp_path / "sub" / "a", on_bytes=counted.append)
    assert (tmp_path / "sub" / "a").read_bytes() == CONTENT
    assert server.log == [("a", "", len(CONTENT))]
    assert sum(counted) == len(CONTENT)
    _assert_nothing_else(tmp_path / "sub", "a")


class RecordingAdapter(BaseAdapter):
    """Answers requests without a network: with a redirect, if the address has one, else with the text "a"."""

    def __init__(self, redirects: dict[str, str]) -> None:
        super().__init__()
        self.redirects = redirects
        self.authorizations: list[tuple[str, str | None]] = []  # (URL, header) of each request

    def send(self, request: requests.PreparedRequest, *_: object, **__: object) -> requests.Response:  # type: ignore[override]
        url = str(request.url)
        self.authorizations.append((url, request.headers.get("Authorization")))
        response = requests.Response()
        response.url, response.request = url, request
        response.status_code = 302 if url in self.redirects else 200
        response.headers.update({"Location": self.redirects[url]} if url in self.redirects else {"Content-Length": "1"})
        response.raw = io.BytesIO(b"a")
        return response

    def close(self) -> None:
        pass


HUB = "https://huggingface.co"
SECRET = "hf_secret_of_the_user"


@pytest.mark.parametrize(
    ("urls", "is_sent"),
    [
        ([f"{HUB}/a"], [True]),
        ([f"{HUB}/a", f"{HUB}/renamed"], [True, True]),
        ([f"{HUB}/a", "https://cdn.example.org/a"], [True, False]),
        ([f"{HUB}/a", "http://huggingface.co/a"], [True, False]),
        ([f"{HUB}/a", "https://huggingface.co:8443/a"], [True, False]),
        ([f"{HUB}/a", "https://me@huggingface.co/a"], [True, False]),
        ([f"{HUB}/a", "https://cdn.example.org/a", f"{HUB}/b"], [True, False, False]),
        (["http://huggingface.co/a"], [False]),
        (["http://huggingface.co/a", f"{HUB}/a"], [False, False]),
        (["https://example.org/a"], [False]),
        (["https://example.org/a", f"{HUB}/a"], [False, False]),
        (["https://huggingface.co.example.org/a"], [False]),
    ],
)
@pytest.mark.parametrize("has_netrc", [False, True])
def test_the_token_goes_to_the_hub_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, urls: list[str], is_sent: list[bool], has_netrc: bool
) -> None:
    """Not to other hosts, not over http, not after a redirect to either; nor does anything of ~/.netrc leave."""
    netrc = tmp_path / "netrc"
    netrc.write_text("default login me password of_netrc" if has_netrc else "", encoding="utf-8")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.setenv("HF_TOKEN", SECRET + "\n")  # as from a file
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    adapter = RecordingAdapter(dict(itertools.pairwise(urls)))
    monkeypatch.setattr(requests.Session, "get_adapter", lambda *_, **__: adapter)
    download(urls[0], tmp_path / "a")
    expected = [f"Bearer {SECRET}" if sent else None for sent in is_sent]
    assert adapter.authorizations == list(zip(urls, expected, strict=True))


def test_a_password_in_an_address_is_neither_printed_nor_sent_without_encryption(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=r"http://\*\*\*@host/a names a user or a password") as caught:
        download("http://me:my_password@host/a", tmp_path / "a")
    assert "my_password" not in str(caught.value)
    adapter = RecordingAdapter({"https://me:my_password@host/a": server.address("absent")})
    monkeypatch.setattr(requests.Session, "get_adapter", lambda *_, **__: adapter)
    download("https://me:my_password@host/a", tmp_path / "b")
    assert [header and header[:6] for _, header in adapter.authorizations] == ["Basic ", None]


@pytest.mark.parametrize("token", ["two words", "two\nlines", "t\u00f6ken", "a\x7fb"])
def test_a_token_that_is_none_is_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, token: str) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    with pytest.raises(UserError, match="HF_TOKEN has a space") as caught:
        download(f"{HUB}/a", tmp_path / "a")
    assert token not in str(caught.value)


def test_a_token_that_is_not_sent_is_mentioned(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRET)
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    server.faults["a"] = [status(401)]
    with pytest.raises(
        UserError, match=r"answered 401 Unauthorized \(HF_TOKEN was not sent, because HF_ENDPOINT is not"
    ):
        download(server.address("a"), tmp_path / "a")
    assert set(server.authorizations) == {None}


@pytest.mark.parametrize("size", ["-1", "many", "\u00b2", "1e9"])
def test_a_size_that_is_no_number(server: FileServer, tmp_path: Path, size: str) -> None:
    server.linked = {"X-Linked-Size": size}
    with pytest.raises(UserError, match=r"the server announces .* bytes"):
        download(server.address("a"), tmp_path / "a")


@pytest.mark.parametrize("checksums", [True, False])
@pytest.mark.parametrize("fault", [die_after, stall_after])
def test_continues_after_a_lost_connection(server: FileServer, tmp_path: Path, fault: type, checksums: bool) -> None:
    server.checksums = checksums
    server.faults["a"] = [fault(300_000), fault(200_000)]
    download(server.address("a"), tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == CONTENT
    starts = [int(header.removeprefix("bytes=").removesuffix("-") or 0) for _, header, _ in server.log]
    assert starts[0] == 0 < starts[1] <= 300_000 < starts[2] <= starts[1] + 200_000
    assert server.log[-1][2] == len(CONTENT) - starts[2]  # only the rest was requested and sent


def test_continues_the_part_of_an_earlier_process(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "a.part").write_bytes(CONTENT[:123_457])
    download(server.address("a"), tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == CONTENT
    assert server.log == [("a", "bytes=123457-", len(CONTENT) - 123_457)]


def test_without_a_checksum_the_part_of_an_earlier_process_is_not_trusted(server: FileServer, tmp_path: Path) -> None:
    server.checksums = False
    (tmp_path / "a.part").write_bytes(b"of an older file")
    download(server.address("a"), tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == CONTENT


@pytest.mark.parametrize("part", [b"x" * 1000, CONTENT, CONTENT + b"x", b"x" * len(CONTENT)])
def test_a_part_that_is_wrong_or_already_complete(server: FileServer, tmp_path: Path, part: bytes) -> None:
    (tmp_path / "a.part").write_bytes(part)
    download(server.address("a"), tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == CONTENT
    _assert_nothing_else(tmp_path, "a")


def test_a_server_without_ranges(server: FileServer, tmp_path: Path) -> None:
    server.ranges = False
    server.faults["a"] = [die_after(300_000)]
    download(server.address("a"), tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == CONTENT


def test_never_gives_up_while_bytes_arrive(server: FileServer, tmp_path: Path) -> None:
    """A connection that breaks every 70,000 bytes fails more than MAX_ATTEMPTS times."""
    server.faults["a"] = [die_after(70_000)]
    server.stuck = True
    download(server.address("a"), tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == CONTENT
    assert len(server.log) > module.MAX_ATTEMPTS


@pytest.mark.parametrize("code", [429, 500, 503])
def test_waits_as_long_as_the_server_asks(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    waits: list[float] = []
    cancel = threading.Event()
    monkeypatch.setattr(cancel, "wait", lambda seconds: bool(waits.append(seconds)))
    server.faults["a"] = [status(code), status(code, Retry_After="7"), status(code, Retry_After="100000"), status(code)]
    download(server.address("a"), tmp_path / "a", cancel)
    assert waits == [0.01, 7.0, module.MAX_WAIT_SECONDS, 0.08]
    assert (tmp_path / "a").read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("linked", "fault", "message"),
    [
        ({"X-Linked-ETag": f'"{"0" * 64}"'}, None, "SHA-256"),
        ({"X-Linked-Size": str(len(CONTENT) + 1)}, None, "640001 bytes were announced, and 640000 are offered"),
        ({"X-Linked-Size": str(len(CONTENT) - 1)}, None, "639999 bytes were announced, and 640000 are offered"),
        ({}, status(503), "503"),
        ({}, die_after(0), "broke"),
        ({}, stall_after(0), "no data for 0.2 seconds"),
    ],
)
def test_gives_up_with_one_message(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, linked: dict, fault: object, message: str
) -> None:
    monkeypatch.setattr(module, "TIMEOUT_SECONDS", 0.2)
    server.linked, server.stuck = linked, True
    server.faults["a"] = [fault] if fault else []
    with pytest.raises(UserError, match=message) as caught:
        download(server.address("a"), tmp_path / "a")
    assert "6 times in a row" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("linked", "message"),
    [
        ({"X-Linked-Size": "abc"}, "the server announces 'abc' bytes"),
        ({"X-Linked-Size": "-5"}, "the server announces '-5' bytes"),
        ({"X-Linked-Size": "9" * 40}, "the server announces '99999"),
        ({"X-Linked-Size": str(10**15)}, "the server announces 1,000,000,000,000,000 bytes; a file of at most"),
        ({"Location": "/store/\xff\xfe"}, "cannot be downloaded: .*codec"),
        ({"Location": "http://[::1"}, "cannot be downloaded"),
        ({"Location": "file:///etc/passwd"}, "cannot be downloaded"),
    ],
)
def test_headers_that_cannot_be_true(server: FileServer, tmp_path: Path, linked: dict[str, str], message: str) -> None:
    server.linked = linked
    with pytest.raises(UserError, match=message) as caught:
        download(server.address("a"), tmp_path / "a")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("a*[!k]"))  # but the lock


@pytest.mark.parametrize("code", [429, 503])
def test_a_wait_that_is_no_number(server: FileServer, tmp_path: Path, code: int) -> None:
    server.faults["a"] = [
        status(code, Retry_After="\xb2"),
        status(code, Retry_After="-1"),
        status(code, Retry_After=""),
    ]
    download(server.address("a"), tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == CONTENT


@pytest.mark.parametrize("announced", [None, 100_000])
def test_a_server_that_sends_without_end_fills_no_disk(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, announced: int | None
) -> None:
    """In chunks, so without a length: the bytes that are written are bounded by what was announced, or by the limit."""
    written: list[int] = []
    monkeypatch.setattr(module, "MAX_FILE_BYTES", 1_000_000)
    monkeypatch.setattr(module, "MAX_ATTEMPTS", 2)
    server.checksums = False
    server.linked = {"X-Linked-ETag": '"x"', "X-Linked-Size": str(announced)} if announced else {}
    server.faults["a"], server.stuck = [endless], True
    with pytest.raises(
        UserError, match="more than the 100,000 bytes" if announced else "sends more and more; a file of"
    ):
        download(server.address("a"), tmp_path / "a", on_bytes=written.append)
    assert sum(written) <= 2 * (announced or 1_000_000)
    assert not list(tmp_path.glob("a*[!k]"))


@pytest.mark.parametrize("code", [401, 403, 404, 410])
def test_no_second_attempt_where_it_cannot_help(server: FileServer, tmp_path: Path, code: int) -> None:
    server.faults["a"] = [status(code)]
    with pytest.raises(UserError, match=str(code)):
        download(server.address("a"), tmp_path / "a")
    assert len(server.log) == 1


@pytest.mark.usefixtures("server")
def test_no_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_ATTEMPTS", 2)
    with pytest.raises(UserError, match="2 times in a row: Connection refused;"):
        download("http://127.0.0.1:9/a", tmp_path / "a")
    with pytest.raises(UserError, match="cannot be downloaded"):
        download("not an address", tmp_path / "a")


def test_several_at_once(server: FileServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    server.files = {str(number): CONTENT[: number * 1000] for number in range(1, 10)}
    files = [(server.address(name), tmp_path / name) for name in server.files]
    sizes = download_all(files, 4, lambda path: path.stat().st_size)
    assert sizes == [number * 1000 for number in range(1, 10)]
    assert capsys.readouterr().out.count(" of 9)") == 9


def test_the_first_error_cancels_the_others(server: FileServer, tmp_path: Path) -> None:
    """The first error cancels the other downloads: they make no further attempt, and their parts are kept."""
    server.faults["a"] = [stall_after(200_000)]
    files = [(server.address("a"), tmp_path / "a"), (server.address("absent"), tmp_path / "absent")]
    with pytest.raises(UserError, match="404"):
        download_all(files, 2, lambda path: path)
    assert (tmp_path / "a.part").stat().st_size <= 200_000
    assert len(server.log) <= 1


def test_cancelling(server: FileServer, tmp_path: Path) -> None:
    cancel = threading.Event()
    with pytest.raises(DownloadCancelled):
        download(server.address("a"), tmp_path / "a", cancel, on_bytes=lambda _: cancel.set())
    download(server.address("a"), tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == CONTENT


@pytest.mark.slow
def test_two_processes_download_it_once(server: FileServer, tmp_path: Path) -> None:
    server.faults["a"] = [die_after(300_000)]
    command = [sys.executable, "-c", PROGRAM, server.address("a"), str(tmp_path / "a")]
    processes = [subprocess.Popen(command) for _ in range(2)]
    assert [process.wait(60) for process in processes] == [0, 0]
    assert (tmp_path / "a").read_bytes() == CONTENT
    assert len(server.log) == 2  # the request that broke, and the one for the rest


def test_killed_and_called_again(server: FileServer, tmp_path: Path) -> None:
    server.faults["a"] = [stall_after(400_000)]
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, server.address("a"), str(tmp_path / "a")])
    part = tmp_path / "a.part"
    while not (part.exists() and part.stat().st_size > 100_000):
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.wait()
    part_bytes = part.stat().st_size
    download(server.address("a"), tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == CONTENT
    assert server.log[-1] == ("a", f"bytes={part_bytes}-", len(CONTENT) - part_bytes)
