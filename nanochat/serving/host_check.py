"""Host and origin checks: only requests that are meant for this server are answered.

A page of another site cannot read replies of this server, because their origins differ. The owner of that site can get
around this by DNS rebinding: the site's name suddenly resolves to 127.0.0.1 or to an address of the local network, and
its page sends requests to this server under its own name. `Host` then has that name, so a name that is not expected is
refused. An address cannot be rebound; where the server listens on all addresses, every address is accepted.

`Origin` and `Sec-Fetch-Site` are sent by browsers only. They say which page a request comes from.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from starlette.types import ASGIApp, Receive, Scope, Send

from nanochat.common import UserError
from nanochat.serving.refusals import Refusal, error_response, route_path

LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")
DEFAULT_PORTS = {"http": 80, "https": 443}
MAX_SHOWN = 100  # characters of a header in a refusal

_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[^\[\]:/@,\s]+)(?::([0-9]{1,5}))?", re.IGNORECASE)
_ORIGIN = re.compile(r"(https?)://(.+)", re.IGNORECASE)
_NAME = re.compile(r"[a-z0-9_]([a-z0-9_.-]*[a-z0-9_])?")


@dataclass(frozen=True)
class HostRules:
    """The hosts that requests may name: `names` (names and addresses), or every address if `any_address`."""

    names: frozenset[str] = frozenset(LOCAL_NAMES)
    any_address: bool = False

    def allow(self, name: str) -> bool:
        """True if a request may name this host."""
        return name in self.names or (self.any_address and _address(name) is not None)


def host_rules(host: str, allowed_hosts: str | None = None, bound_address: str | None = None) -> HostRules:
    """Return the rules of a server that listens on `host`, which resolves to `bound_address`.

    `allowed_hosts` has further names, separated by commas. Where the server listens on all addresses, the name of this
    machine is accepted too. Raises `UserError` for an entry that is neither a name nor an address.

    >>> rules = host_rules("127.0.0.1", "chat.example.org")
    >>> rules.allow("localhost"), rules.allow("chat.example.org"), rules.allow("10.0.0.5"), rules.allow("evil.example")
    (True, True, False, False)
    >>> host_rules("0.0.0.0").allow("10.0.0.5"), host_rules("0.0.0.0").allow("evil.example")
    (True, False)
    """
    names = {*LOCAL_NAMES, _normalized(host), *parse_allowed_hosts(allowed_hosts)}
    address = _address(_normalized(bound_address or host))
    if address is None or not address.is_unspecified:
        return HostRules(frozenset(names | ({str(address)} if address else set())))
    machine = socket.gethostname().lower().rstrip(".")
    short = machine.partition(".")[0]
    return HostRules(frozenset(names | {machine, short, f"{short}.local"} - {""}), any_address=True)


def parse_allowed_hosts(text: str | None) -> set[str]:
    """Return the names and addresses in a list separated by commas. Raises `UserError` for what is neither."""
    entries = [entry.strip() for entry in (text or "").split(",")]
    names = {_normalized(entry) for entry in entries if entry}
    for name in names:
        if _address(name) is None and not _NAME.fullmatch(name):
            raise UserError(
                f"allowed_hosts has {_shown(name)}: each entry must be a name or an address as in the address line "
                "of a browser, without http:// and without a port, such as chat.example.org"
            )
    return names


def find_refusal(
    headers: Iterable[tuple[bytes, bytes]], rules: HostRules, allowed_origins: frozenset[str] = frozenset()
) -> tuple[int, str] | None:
    """Return the status and the reason with which a request is refused, or None if it is accepted.

    `allowed_origins`: of pages elsewhere that may send requests; "*" = all.
    """
    values: dict[bytes, list[str]] = {}
    for key, value in headers:
        values.setdefault(key.lower(), []).append(value.decode("latin-1"))
    hosts = values.get(b"host", [])
    match = _HOST.fullmatch(hosts[0]) if len(hosts) == 1 else None
    if match is None:
        return 421, "the request must have one Host header, with the name or address of this server"
    name = _normalized(match[1])
    if not rules.allow(name):
        return 421, (
            f"this server does not answer requests to the host {_shown(name)}: open it as localhost or under the name "
            "given with --host, or start it with --allowed_hosts and this name"
        )
    origins = values.get(b"origin", [])
    if len(origins) == 1 and ("*" in allowed_origins or origins[0].lower() in allowed_origins):
        return None
    for origin in origins:
        if not _is_origin_of(origin, name, match[2]):
            return (
                403,
                f"the request comes from a page of {_shown(origin)}: only this server's own page may send requests",
            )
    is_elsewhere = any(site in ("cross-site", "same-site") for site in values.get(b"sec-fetch-site", []))
    if is_elsewhere and values.get(b"sec-fetch-mode") != ["navigate"]:  # a link to this server may be followed
        return 403, "the request comes from a page of another site: only this server's own page may send requests"
    return None


class HostCheck:
    """ASGI middleware that refuses requests by the rules of the application's service, on all routes."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, as ASGI defines it."""
        if scope["type"] == "websocket":  # the server has none
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] == "http":
            service = scope["app"].state.service
            refusal = find_refusal(scope["headers"], service.hosts, service.access.origins)
            if refusal is not None:
                service.count_refusal()
                status, reason = refusal
                await error_response(route_path(scope), Refusal(status, reason))(scope, receive, send)
                return
        await self.app(scope, receive, send)


def _is_origin_of(origin: str, name: str, port: str | None) -> bool:
    """True if an Origin header names the same host and port as the Host header."""
    scheme_and_host = _ORIGIN.fullmatch(origin)
    match = _HOST.fullmatch(scheme_and_host[2]) if scheme_and_host else None
    if scheme_and_host is None or match is None:
        return False  # also "null", the origin of files and sandboxed pages
    default_port = DEFAULT_PORTS[scheme_and_host[1].lower()]
    return (_normalized(match[1]), int(match[2] or default_port)) == (name, int(port or default_port))


@lru_cache(maxsize=64)
def _normalized(host: str) -> str:
    """Return a name in lower case without its last dot, or an address in its usual form."""
    name = host.lower().removesuffix(".")
    if name.startswith("[") and name.endswith("]"):
        name = name[1:-1]
    address = _address(name)
    return name if address is None else str(address)


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None


def _shown(text: str) -> str:
    return repr(text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}...")
