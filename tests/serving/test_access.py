"""The API key, web pages of other origins, and the limit of each client."""

from __future__ import annotations

from typing import Any

import pytest

from nanochat.common import UserError
from nanochat.openai_api.routes import router
from nanochat.serving.access import AccessRules, check_key, client_of, parse_origins
from nanochat.serving.service import ServiceLimits
from tests.support.chat_server import HELLO, EventConnection, get, new_client, post_chat, serving
from tests.support.scripted_engine import GatedEngine, ScriptedEngine, reply_ids

KEY = "a-good-key-0123"


def scope_with(*values: bytes) -> dict[str, Any]:
    return {"headers": [(b"Authorization", value) for value in values]}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([f"Bearer {KEY}".encode()], True),
        ([f"bearer  {KEY} ".encode()], True),
        ([], False),
        ([b""], False),
        ([KEY.encode()], False),
        ([f"Basic {KEY}".encode()], False),
        ([f"Bearer {KEY}x".encode()], False),
        ([f"Bearer {KEY[:-1]}".encode()], False),
        ([b"Bearer \xff\xfe"], False),
        ([f"Bearer {KEY}".encode()] * 2, False),
    ],
)
def test_the_key_of_a_request(values: list[bytes], expected: bool) -> None:
    assert AccessRules(KEY).has_key(scope_with(*values)) is expected
    assert AccessRules().has_key(scope_with(*values))


def test_the_key_is_not_in_the_representation_of_the_rules() -> None:
    assert KEY not in repr(AccessRules(KEY))


@pytest.mark.parametrize("key", ["short", "with a space", "ümlaut-key", "line\nbreak-key", "x" * 7])
def test_keys_that_cannot_be_sent_are_refused_and_not_quoted(key: str) -> None:
    with pytest.raises(UserError, match=r"the API key has [0-9]+ characters: must be at least 8") as error:
        check_key(key)
    assert key not in str(error.value)


def test_no_key() -> None:
    assert check_key(None) is check_key("") is None
    assert check_key(KEY) == KEY


@pytest.mark.parametrize("text", ["example.org", "https://a.example/path", "ftp://a", "https://*", "null", "a\nb"])
def test_what_is_no_origin_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="cors_origin has"):
        parse_origins(text)


def test_origins() -> None:
    assert parse_origins(" https://A.example/ ,http://[::1]:80,*") == {"https://a.example", "http://[::1]:80", "*"}
    assert parse_origins(None) == parse_origins(" , ") == frozenset()


@pytest.mark.parametrize(
    ("client", "expected"),
    [
        (("192.0.2.7", 1), "192.0.2.7"),
        (("::ffff:192.0.2.7", 1), "192.0.2.7"),
        (("2001:db8:1:2:3::9", 1), "2001:db8:1:2::/64"),
        (("not an address", 1), "not an address"),
        (None, ""),
    ],
)
def test_client_of(client: Any, expected: str) -> None:
    assert client_of({"client": client}) == expected


def test_routes_need_the_key_but_the_page_and_its_health() -> None:
    engine = ScriptedEngine(lambda _: reply_ids("hello"))
    with serving(engine, routers=[router], access=AccessRules(KEY)) as (address, _):
        assert get(address).status_code == get(address, "/health/live").status_code == 200
        assert get(address, "/health/ready").json() == {"ready": True}
        assert get(address, "/health").json() == {"ready": True, "model": "scripted", "needs_key": True}
        key = {"Authorization": f"Bearer {KEY}"}
        assert get(address, "/health", headers=key).json()["context"] == 256
        for path in ("/stats", "/metrics", "/openapi.json", "/v1/models", "/nothing"):
            response = get(address, path)
            assert (response.status_code, response.headers["www-authenticate"]) == (401, "Bearer")
            assert get(address, path, headers=key).status_code in (200, 404)
        reason = "the API key is missing or wrong: send it as `Authorization: Bearer KEY`"
        assert post_chat(address, json=HELLO).json() == {"error": reason}
        assert post_chat(address, json=HELLO, headers=key).status_code == 200


ELSEWHERE = {"Origin": "https://a.example", "Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "cors"}


def test_pages_of_allowed_origins_may_send_requests() -> None:
    engine = ScriptedEngine(lambda _: reply_ids("hello"))
    access = AccessRules(KEY, frozenset(["https://a.example"]))
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization, x-stainless-os"}
    with serving(engine, routers=[router], access=access) as (address, _), new_client() as client:
        preflight = client.options(f"{address}/v1/chat/completions", headers={**ELSEWHERE, **asked})
        assert preflight.status_code == 200
        assert preflight.headers["access-control-allow-origin"] == "https://a.example"
        assert "x-stainless-os" in preflight.headers["access-control-allow-headers"]
        assert "access-control-allow-credentials" not in preflight.headers
        key = {"Authorization": f"Bearer {KEY}"}
        response = client.get(f"{address}/v1/models", headers={**ELSEWHERE, **key})
        assert (response.status_code, response.headers["access-control-allow-origin"]) == (200, "https://a.example")
        # A refusal can be read by the page, too
        assert client.get(f"{address}/v1/models", headers=ELSEWHERE).headers["access-control-allow-origin"]
        other = client.get(f"{address}/v1/models", headers={**ELSEWHERE, **key, "Origin": "https://b.example"})
        assert (other.status_code, "access-control-allow-origin" in other.headers) == (403, False)
        without = client.get(f"{address}/v1/models", headers={**key, "Sec-Fetch-Site": "cross-site"})
        assert without.status_code == 403
        rebound = client.get(f"{address}/v1/models", headers={**ELSEWHERE, **key, "Host": "evil.example"})
        assert rebound.status_code == 421


def test_all_origins() -> None:
    access = AccessRules(None, frozenset("*"))
    with serving(ScriptedEngine(lambda _: reply_ids("hello")), access=access) as (address, _):
        response = get(address, "/health", headers=ELSEWHERE)
        assert (response.status_code, response.headers["access-control-allow-origin"]) == (200, "*")


def test_without_allowed_origins_no_page_elsewhere_may_send_requests() -> None:
    with serving(ScriptedEngine(lambda _: reply_ids("hello"))) as (address, _):
        assert get(address, "/health", headers=ELSEWHERE).status_code == 403


def test_a_client_has_a_limit_of_its_own() -> None:
    limits = ServiceLimits(max_rows=1, max_waiting=10, max_per_client=2, shutdown_seconds=0.2)
    with serving(GatedEngine(), service_limits=limits) as (address, _):
        connections = [EventConnection(address) for _ in range(2)]
        response = post_chat(address, json=HELLO)
        assert response.status_code == 429
        assert response.json() == {"error": "this client has 2 replies in progress: at most 2"}
        connections[1].close()
        connections.append(EventConnection(address))
        for connection in connections:
            connection.close()
