"""Refusals of requests: a status and a reason, in the shape that the clients of the route expect.

    /v1/...      {"error": {"message": reason, "type": ..., "param": ..., "code": ...}}    as OpenAI's API has it
    elsewhere    {"error": reason}

A reason is one line of at most `MAX_ERROR_CHARACTERS` characters: it may quote what was sent.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.responses import JSONResponse
from starlette.types import Scope

from nanochat.common import UserError
from nanochat.serving.chat_request import shorten

RETRY_SECONDS = 10  # after which a client should try again if the queue is full
OPENAI_PREFIX = "/v1/"

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_CODES = {401: "invalid_api_key", 429: "rate_limit_exceeded"}


class Refusal(UserError):
    """A request that is refused with a status. `param` and `code` are fields of OpenAI's error object."""

    def __init__(self, status: int, reason: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(reason)
        self.status = status
        self.param = param
        self.code = code


def route_path(scope: Scope) -> str:
    """Return the path of a request as the routes have it, without the prefix of a proxy.

    >>> route_path({"path": "/chat/v1/models", "root_path": "/chat"}), route_path({"path": "/health"})
    ('/v1/models', '/health')
    """
    path, root = str(scope["path"]), str(scope.get("root_path", ""))
    return path[len(root) :] if root and path.startswith(f"{root}/") else path


def error_body(path: str, error: UserError) -> dict[str, Any]:
    """Return the JSON object that tells the client of a route why its request is refused."""
    reason = shorten(str(error))
    if not path.startswith(OPENAI_PREFIX):
        return {"error": reason}
    status = error.status if isinstance(error, Refusal) else 400
    kind = _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    param = getattr(error, "param", None)
    code = getattr(error, "code", None) or _CODES.get(status)
    return {"error": {"message": reason, "type": kind, "param": param, "code": code}}


def error_response(path: str, error: UserError) -> JSONResponse:
    """Return the response to a refused request; status 400 unless the error is a `Refusal` with another."""
    status = error.status if isinstance(error, Refusal) else 400
    headers: Mapping[str, str] = {}
    if status in (429, 503):
        headers = {"Retry-After": str(RETRY_SECONDS)}
    elif status == 401:
        headers = {"WWW-Authenticate": "Bearer"}
    return JSONResponse(error_body(path, error), status, headers)
