"""Host and Origin: what a request may name, on every route, and what a browser says of the page that sends it."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from nanochat.common import UserError
from nanochat.serving.host_check import HostRules, find_refusal, host_rules, parse_allowed_hosts
from tests.support.chat_server import chat_request, exchange, get_stats, serving
from tests.support.scripted_engine import ScriptedEngine, reply_ids

LOCAL = host_rules("127.0.0.1")
PUBLIC = host_rules("0.0.0.0")
BY_NAME = host_rules("box", "Chat.Example.org, 10.1.2.3", bound_address="192.168.7.7")
MACHINE = socket.gethostname().lower()


def refused(rules: HostRules, *headers: tuple[str, str]) -> int:
    """The status of a refusal, 0 if the request is accepted."""
    refusal = find_refusal([(name.encode(), value.encode("latin-1")) for name, value in headers], rules)
    return refusal[0] if refusal else 0


@pytest.mark.parametrize(
    ("rules", "host", "status"),
    [
        *((rules, host, 0) for rules in (LOCAL, PUBLIC, BY_NAME) for host in ("localhost", "127.0.0.1", "[::1]")),
        *((LOCAL, host, 0) for host in ("LOCALHOST:8000", "localhost.", "127.0.0.1:1", "[::1]:80", "[0:0::1]")),
        *((rules, "evil.example", 421) for rules in (LOCAL, PUBLIC, BY_NAME)),
        *((LOCAL, host, 421) for host in ("10.0.0.5", "[fe80::1]", "0.0.0.0", MACHINE + "x", "localhost.evil")),
        *((LOCAL, host, 421) for host in ("", " ", ":", ":80", "localhost:", "localhost:x", "::1", "[::1", "[]")),
        *((LOCAL, host, 421) for host in ("evil@localhost", "localhost/", "localhost,evil", "a b", "localhost\xff")),
        *((PUBLIC, host, 0) for host in ("10.0.0.5:80", "203.0.113.9", "[2001:db8::1]:8000", MACHINE, f"{MACHINE}:80")),
        *((PUBLIC, host, 421) for host in ("10.0.0.5.evil.example", "1.2.3", "2130706433", "0x7f.1", "[1.2.3.4]x")),
        *((BY_NAME, host, 0) for host in ("box", "BOX.", "192.168.7.7", "chat.example.org:443", "10.1.2.3")),
        *((BY_NAME, host, 421) for host in ("chat.example.com", "a.chat.example.org", "10.1.2.4", "192.168.7.8")),
    ],
)  # fmt: skip
def test_the_host_must_be_expected(rules: HostRules, host: str, status: int) -> None:
    assert refused(rules, ("host", host)) == status


def test_there_must_be_one_host() -> None:
    assert refused(LOCAL) == 421
    assert refused(LOCAL, ("Host", "localhost"), ("host", "localhost")) == 421


@pytest.mark.parametrize(
    ("host", "origin", "status"),
    [
        ("localhost:8000", "http://localhost:8000", 0),
        ("localhost:8000", "HTTP://LOCALHOST:8000", 0),
        ("localhost", "http://localhost", 0),
        ("localhost:80", "http://localhost", 0),
        ("localhost", "https://localhost:443", 0),  # behind a proxy with TLS
        ("[::1]:8000", "http://[::1]:8000", 0),
        ("localhost:8000", "http://127.0.0.1:8000", 403),
        ("localhost:8000", "http://localhost:8001", 403),
        ("localhost:8000", "http://localhost", 403),
        ("localhost", "http://localhost:8000", 403),
        ("localhost:8000", "http://evil.example", 403),
        ("localhost:8000", "http://evil.example:8000", 403),
        ("localhost:8000", "null", 403),
        ("localhost:8000", "", 403),
        ("localhost:8000", "file://", 403),
        ("localhost:8000", "chrome-extension://localhost:8000", 403),
        ("localhost:8000", "http://localhost:8000/", 403),
        ("localhost:8000", "http://localhost:8000 http://evil.example", 403),
        ("localhost:8000", "http://localhost:8000@evil.example", 403),
        ("localhost:8000", "x" * 9999, 403),
    ],
)
def test_the_origin_must_be_that_of_the_host(host: str, origin: str, status: int) -> None:
    assert refused(LOCAL, ("host", host), ("origin", origin)) == status


def test_a_page_of_another_site_may_link_here_but_not_load_from_here() -> None:
    for site, mode, status in [
        ("same-origin", "cors", 0),
        ("none", "navigate", 0),  # typed into the address line
        ("cross-site", "navigate", 0),
        ("cross-site", "no-cors", 403),
        ("cross-site", "cors", 403),
        ("same-site", "no-cors", 403),  # another port
    ]:
        assert refused(LOCAL, ("host", "localhost"), ("sec-fetch-site", site), ("sec-fetch-mode", mode)) == status
    assert refused(LOCAL, ("host", "localhost"), ("sec-fetch-site", "cross-site")) == 403


def test_a_reason_is_short_and_names_the_way_out() -> None:
    refusal = find_refusal([(b"host", b"evil.example")], LOCAL)
    assert refusal is not None
    assert "'evil.example'" in refusal[1]
    assert "--allowed_hosts" in refusal[1]
    for headers in ([(b"host", b"x" * 9999)], [(b"host", b"localhost"), (b"origin", b"x" * 9999)]):
        refusal = find_refusal(headers, LOCAL)
        assert refusal is not None
        assert len(refusal[1]) < 400


@pytest.mark.parametrize(
    "entry",
    ["http://a.example", "a.example:80", "*", "*.example", "a b", "a/", "..", "-a", "[::1", "a,b:1", "ä", "x\n"],
)
def test_an_entry_that_is_no_name_is_refused(entry: str) -> None:
    if entry.strip() == "x":  # space around an entry is no part of it
        assert parse_allowed_hosts(entry) == {"x"}
        return
    with pytest.raises(UserError, match=r"allowed_hosts has .*: each entry must be a name or an address"):
        host_rules("127.0.0.1", entry)


def test_entries_are_separated_by_commas() -> None:
    assert parse_allowed_hosts(" A.example., [::1] ,,10.0.0.1, my_box") == {"a.example", "::1", "10.0.0.1", "my_box"}
    assert parse_allowed_hosts(None) == parse_allowed_hosts("") == set()


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with serving(ScriptedEngine(lambda _: reply_ids("hello"))) as (address, _):
        yield address


ROUTES = [
    "GET /",
    "GET /health",
    "GET /stats",
    "POST /chat/completions",
    "GET /nowhere",
    "OPTIONS /stats",
    "HEAD /",
    "PUT /",
]


@pytest.mark.parametrize("route", ROUTES)
def test_every_route_refuses_foreign_requests(address: str, route: str) -> None:
    for headers, status in [
        ("Host: evil.example", 421),
        ("Host: evil.example\r\nOrigin: http://evil.example", 421),  # after DNS rebinding
        ("Host: localhost\r\nOrigin: http://evil.example", 403),
        ("Host: localhost\r\nSec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: no-cors", 403),
        ("Host: evil.example\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13", 421),
    ]:
        refused_before = get_stats(address, "refused")[0]
        received, response = exchange(address, f"{route} HTTP/1.1\r\n{headers}\r\n\r\n".encode())
        assert received == status
        assert "access-control" not in response.lower()
        assert "requests" not in response or "error" in response
        assert get_stats(address, "refused") == (refused_before + 1,)


def test_a_request_of_its_own_page_is_answered(address: str) -> None:
    host = address.removeprefix("http://")
    status, response = exchange(
        address, chat_request(None, f"Origin: {address}", "Sec-Fetch-Site: same-origin", host=host)
    )
    assert status == 200
    assert '"kind": "done"' in response
    assert exchange(address, b"GET / HTTP/1.0\r\n\r\n")[0] == 421  # HTTP/1.0 without a Host
    assert exchange(address, b"GET /health HTTP/1.0\r\nHost: localhost\r\n\r\n")[0] == 200
