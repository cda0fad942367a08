"""The OpenAPI description: all routes are in it, and what it says is true (fuzzed by schemathesis)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from nanochat.openai_api.description import describe
from nanochat.openai_api.routes import router
from nanochat.serving.service import ServiceLimits
from tests.support.chat_server import get, serving
from tests.support.scripted_engine import ScriptedEngine, reply_ids


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    limits = ServiceLimits(max_rows=8, max_waiting=500, shutdown_seconds=0.2)
    with serving(ScriptedEngine(lambda _: reply_ids("hello")), routers=[router], service_limits=limits) as (address, _):
        yield address


def test_all_routes_are_described(address: str) -> None:
    from nanochat.serving.server import create_app

    described = {(method.upper(), path) for path, operations in describe()["paths"].items() for method in operations}
    app = create_app(lambda: pytest.fail("not started"), router)
    routes = {
        (method, route.path.replace(":path", ""))
        for route in _routes(app.routes)
        for method in route.methods - {"HEAD"}
    }
    assert described == routes
    assert get(address, "/openapi.json").json() == describe()


def _routes(routes: Any) -> Iterator[Any]:
    for route in routes:
        if hasattr(route, "methods"):
            yield route
        else:
            yield from _routes(getattr(route, "routes", None) or route.original_router.routes)


def test_references_lead_somewhere() -> None:
    description = describe(needs_key=True, root_path="/a")
    assert description["servers"] == [{"url": "/a"}]
    assert description["security"] == [{"key": []}]
    schemas = description["components"]["schemas"]

    def check(value: Any) -> None:
        if isinstance(value, dict):
            if "$ref" in value:
                assert value["$ref"].removeprefix("#/components/schemas/") in schemas
            for inner in value.values():
                check(inner)
        elif isinstance(value, list):
            for inner in value:
                check(inner)

    check(description)


@pytest.mark.slow
def test_fuzzed_requests_get_no_5xx(address: str) -> None:
    """A small run of dev/fuzz_server.py."""
    pytest.importorskip("schemathesis", reason="schemathesis is not installed: uv pip install -e '.[dev]'")
    from dev.fuzz_server import fuzz

    result = fuzz(address, num_requests=200, seed=1)
    assert result.num_requests >= 200
    assert result.failures == []
