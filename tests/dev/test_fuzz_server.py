"""The fuzzer of the server finds faults. tests/openai_api/test_description.py runs it on our own server."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.responses import JSONResponse

from dev import fuzz_server
from nanochat.common import UserError
from tests.support.chat_server import serving_app

BODY = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
OPERATION = {
    "requestBody": {"required": True, "content": {"application/json": {"schema": BODY}}},
    "responses": {
        "200": {"description": "", "content": {"application/json": {"schema": {"type": "object"}}}},
        "default": {"description": ""},
    },
}
DESCRIPTION = {"openapi": "3.1.0", "info": {"title": "", "version": ""}, "paths": {"/n": {"post": OPERATION}}}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("status", "content", "fault"),
    [(500, {}, "ServerError"), (200, [], "JsonSchemaError"), (200, {}, "AcceptedNegativeData"), (400, {}, "")],
)
def test_faults_are_found(status: int, content: Any, fault: str) -> None:
    pytest.importorskip("schemathesis", reason="schemathesis is not installed: uv pip install -e '.[dev]'")
    app = FastAPI(openapi_url=None)
    app.add_api_route("/openapi.json", lambda: DESCRIPTION)
    app.add_api_route("/n", lambda: JSONResponse(content, status), methods=["POST"])
    with serving_app(app) as address:
        result = fuzz_server.fuzz(address, num_requests=20, seed=1)
        assert result.num_requests >= 20
        assert set(result.statuses) == {status}
        assert (fault in "".join(result.failures), bool(result.failures)) == (True, bool(fault))
        config = fuzz_server.Config(url=address, num_requests=5)
        if fault:
            with pytest.raises(UserError, match="contradict the description or are faults"):
                fuzz_server.main(config)
        else:
            fuzz_server.main(config)


def test_without_schemathesis_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "schemathesis", None)
    with pytest.raises(UserError, match="fuzzing needs schemathesis"):
        fuzz_server.fuzz("http://localhost:1", 1, 1)
