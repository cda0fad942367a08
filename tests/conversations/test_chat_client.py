"""nanochat/conversations/chat_client.py: requests, retries, and the places a key may be sent to."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from nanochat.common import UserError
from nanochat.conversations import chat_client
from nanochat.conversations.chat_client import ChatServer, is_safe_address
from tests.support.openai_server import StandInServer, reply_with, stand_in_server


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandInServer]:
    monkeypatch.setattr(chat_client, "INITIAL_DELAY", 0.0)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with stand_in_server(lambda _: (200, reply_with("hello"))) as running:
        yield running


def ask(server: StandInServer, **settings: Any) -> str:
    return ChatServer(server.address, "m", **settings).ask("Say it.", lambda reply: reply)


def test_a_prompt_and_its_reply(server: StandInServer, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ask(server) == "hello"
    monkeypatch.setenv("OPENAI_API_KEY", " secret\n")
    assert ask(server) == "hello"
    [(path, no_key, request), (_, key, _)] = server.requests
    assert (path, no_key, key) == ("/v1/chat/completions", None, "Bearer secret")
    assert request["model"] == "m"
    assert request["messages"] == [{"role": "user", "content": "Say it."}]


def test_a_busy_server_is_asked_again(server: StandInServer) -> None:
    server.respond = lambda _: (503, "") if len(server.requests) < 3 else (200, reply_with("hello"))
    assert ask(server) == "hello"
    server.requests.clear()
    server.respond = lambda _: (401, "no")
    with pytest.raises(UserError, match="401"):
        ask(server)
    assert len(server.requests) == 1


@pytest.mark.parametrize("body", ["", "<html>", "{}", '{"choices": []}', "[1]", '{"choices": [{"message": 3}]}'])
def test_other_protocols_are_refused(server: StandInServer, body: str) -> None:
    server.respond = lambda _: (200, body)
    with pytest.raises(UserError, match="protocol"):
        ask(server, attempts=2)
    assert len(server.requests) == 2


def test_redirects_and_floods_are_refused(server: StandInServer, monkeypatch: pytest.MonkeyPatch) -> None:
    server.headers = {"Location": "http://example.org/"}
    server.respond = lambda _: (307, "")
    with pytest.raises(UserError, match="redirects to"):
        ask(server, attempts=1)
    server.headers = {}
    monkeypatch.setattr(chat_client, "MAX_REPLY_BYTES", 1000)
    server.respond = lambda _: (200, reply_with("x" * 2000))
    with pytest.raises(UserError, match="more than 1,000 bytes"):
        ask(server, attempts=1)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://a.org/v1", True),
        ("http://localhost:8080/v1", True),
        ("http://[::1]:1/v1", True),
        ("http://a.org/v1", False),
        ("http://127.0.0.1.a.org/v1", False),
        ("ftp://localhost", False),
        ("https://", False),
        ("http://[::1", False),
    ],
)
def test_addresses(url: str, expected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert is_safe_address(url) is expected
    if expected:
        ChatServer(url, "m")
    else:
        with pytest.raises(UserError, match="must be https"):
            ChatServer(url, "m")
        ChatServer(url, "m", only_https=False)


def test_keys_that_cannot_be_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "two words")
    with pytest.raises(UserError, match="has a space") as caught:
        ChatServer("https://a.org", "m")
    assert "two words" not in str(caught.value)
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    with pytest.raises(UserError, match="sent over https only"):
        ChatServer("http://a.org", "m", only_https=False)
