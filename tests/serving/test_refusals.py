"""Refusals: their shape on each kind of route, and the headers that go with a status."""

from __future__ import annotations

import json
from typing import Any

import pytest

from nanochat.common import UserError
from nanochat.serving.chat_request import MAX_ERROR_CHARACTERS
from nanochat.serving.refusals import Refusal, error_body, error_response, route_path


@pytest.mark.parametrize(
    ("path", "error", "expected"),
    [
        ("/chat/completions", UserError("no"), {"error": "no"}),
        ("/v1/x", UserError("no"), {"message": "no", "type": "invalid_request_error", "param": None, "code": None}),
        ("/v1/x", Refusal(400, "no", "n", "c"), {"message": "no", "type": "invalid_request_error", "param": "n",
                                                 "code": "c"}),
        ("/v1/x", Refusal(401, "no"), {"message": "no", "type": "authentication_error", "param": None,
                                       "code": "invalid_api_key"}),
        ("/v1/x", Refusal(429, "no"), {"message": "no", "type": "rate_limit_error", "param": None,
                                       "code": "rate_limit_exceeded"}),
        ("/v1/x", Refusal(503, "no"), {"message": "no", "type": "server_error", "param": None, "code": None}),
    ],
)  # fmt: skip
def test_the_shape_depends_on_the_route(path: str, error: UserError, expected: dict[str, Any]) -> None:
    body = error_body(path, error)
    assert body == (expected if "error" in expected else {"error": expected})


@pytest.mark.parametrize(
    ("status", "header"), [(429, "retry-after"), (503, "retry-after"), (401, "www-authenticate"), (400, None)]
)
def test_headers(status: int, header: str | None) -> None:
    response = error_response("/", Refusal(status, "x" * 1000))
    assert response.status_code == status
    names = set(response.headers) & {"retry-after", "www-authenticate"}
    assert names == ({header} if header else set())
    assert len(json.loads(response.body)["error"]) <= MAX_ERROR_CHARACTERS + 10


@pytest.mark.parametrize(
    ("scope", "path"),
    [
        ({"path": "/v1/models"}, "/v1/models"),
        ({"path": "/a/v1/models", "root_path": "/a"}, "/v1/models"),
        ({"path": "/v1/models", "root_path": "/a"}, "/v1/models"),  # the proxy has taken the prefix off
        ({"path": "/ab", "root_path": "/a"}, "/ab"),
    ],
)
def test_route_path(scope: dict[str, Any], path: str) -> None:
    assert route_path(scope) == path
