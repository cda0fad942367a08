"""Access to the server: the API key, and the web pages of other origins.

With a key, every route but the page itself and `/health` needs the header `Authorization: Bearer KEY`. Without one,
host_check.py alone decides. `origins` are web pages elsewhere that browsers may let use this server (CORS).
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
from dataclasses import dataclass, field

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from nanochat.common import UserError
from nanochat.serving.refusals import Refusal, error_response, route_path

OPEN_PATHS = ("/", "/health", "/health/live", "/health/ready")
KEY_VARIABLE = "NANOCHAT_API_KEY"
EXPOSED_HEADERS = ("Retry-After", "X-Request-ID")
MIN_KEY_CHARACTERS = 8

_KEY = re.compile(r"[\x21-\x7e]+")
_ORIGIN = re.compile(r"https?://(\[[0-9a-f:.]+\]|[a-z0-9_.-]+)(:[0-9]{1,5})?")


@dataclass(frozen=True)
class AccessRules:
    """The key that requests must have, None = none; the origins of other pages that may send some, "*" = all."""

    api_key: str | None = field(default=None, repr=False)
    origins: frozenset[str] = frozenset()

    def has_key(self, scope: Scope) -> bool:
        """True if a request has the key, or needs none. Takes as long for a key that is nearly right."""
        if self.api_key is None:
            return True
        values = [value for name, value in scope["headers"] if name.lower() == b"authorization"]
        if len(values) != 1:
            return False
        kind, _, given = values[0].partition(b" ")
        digests = [hashlib.sha256(key).digest() for key in (given.strip(), self.api_key.encode("ascii"))]
        return hmac.compare_digest(*digests) and kind.lower() == b"bearer"


def check_key(key: str | None) -> str | None:
    """Return a key, None for an empty one. Raises `UserError` for one that cannot be sent in a header."""
    if not key:
        return None
    if len(key) < MIN_KEY_CHARACTERS or not _KEY.fullmatch(key):
        raise UserError(  # which does not quote it
            f"the API key has {len(key)} characters: must be at least {MIN_KEY_CHARACTERS} letters, digits and signs "
            "of ASCII without spaces, such as the output of `openssl rand -hex 24`"
        )
    return key


def parse_origins(text: str | None) -> frozenset[str]:
    """Return the origins in a list separated by commas. Raises `UserError` for what is none.

    >>> sorted(parse_origins("https://chat.example.org, http://localhost:3000"))
    ['http://localhost:3000', 'https://chat.example.org']
    """
    entries = [entry.strip().lower().removesuffix("/") for entry in (text or "").split(",")]
    origins = frozenset(entry for entry in entries if entry)
    for origin in origins - {"*"}:
        if not _ORIGIN.fullmatch(origin):
            raise UserError(
                f"cors_origin has {origin[:100]!r}: each entry must be an origin as browsers send it, such as "
                "https://chat.example.org or http://localhost:3000, or * for all"
            )
    return origins


def client_of(scope: Scope) -> str:
    """Return the address of a client, for limits; of an IPv6 address the network that belongs to one customer (/64).

    >>> client_of({"client": ("2001:db8::5", 4711)}), client_of({"client": ("192.0.2.7", 4711)})
    ('2001:db8::/64', '192.0.2.7')
    """
    host = str((scope.get("client") or ("",))[0])
    try:
        address = ipaddress.ip_address(host)
    except ValueError:  # of a proxy's header, or a socket of another kind
        return host[:64]
    if isinstance(address, ipaddress.IPv6Address):
        mapped = address.ipv4_mapped
        return str(mapped or ipaddress.ip_network((int(address) >> 64 << 64, 64)))
    return str(address)


class AccessCheck:
    """ASGI middleware: CORS by the rules of the application's service, and its API key."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self._cors: tuple[frozenset[str], ASGIApp] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, as ASGI defines it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        origins = scope["app"].state.service.access.origins
        if not origins:
            await self._check_key(scope, receive, send)
            return
        if self._cors is None or self._cors[0] != origins:
            cors = CORSMiddleware(
                self._check_key,
                allow_origins=list(origins),
                allow_methods=["GET", "POST"],
                allow_headers=["*"],
                expose_headers=EXPOSED_HEADERS,
            )
            self._cors = (origins, cors)
        await self._cors[1](scope, receive, send)

    async def _check_key(self, scope: Scope, receive: Receive, send: Send) -> None:
        service = scope["app"].state.service
        path = route_path(scope)
        if path in OPEN_PATHS or service.access.has_key(scope):
            await self.app(scope, receive, send)
            return
        service.count_refusal()
        reason = "the API key is missing or wrong: send it as `Authorization: Bearer KEY`"
        await error_response(path, Refusal(401, reason))(scope, receive, send)
