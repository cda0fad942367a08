"""A client of servers with OpenAI's protocol: one prompt, one reply, asked again while the server is busy.

The key goes to the address that the user named and nowhere else: over https or to this machine, without following
redirects, and never from ~/.netrc.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from nanochat.system.errors import UserError
from nanochat.system.json_text import parse_json

if TYPE_CHECKING:
    import requests

T = TypeVar("T")
INITIAL_DELAY = 1.0  # seconds before the second attempt at a busy or unreachable server; doubles with each attempt
MAX_DELAY = 30.0
MAX_REPLY_BYTES = 4_000_000
_RETRYABLE_STATUS_CODES = (408, 409, 425, 429, 500, 502, 503, 504)


@dataclass(frozen=True)
class ChatServer:
    """A server, the model to ask, and how patiently. Raises UserError for an address that the key may not be sent to.

    With `only_https`, an address that is neither https nor this machine is refused without a key as well.
    """

    endpoint: str  # up to /v1
    model: str
    key_env: str = "OPENAI_API_KEY"  # environment variable of the key, which may be unset
    timeout: float = 60.0  # seconds
    attempts: int = 4
    only_https: bool = True

    def __post_init__(self) -> None:
        if not is_safe_address(self.endpoint):
            if self.key:
                raise UserError(
                    f"endpoint is {self.endpoint}: the key in {self.key_env} is sent over https only, or to this "
                    "machine; use https, or --key_env=NONE to send no key"
                )
            if self.only_https:
                raise UserError(
                    f"endpoint is {self.endpoint}: must be https, or http on this machine, because your documents are "
                    "sent there"
                )
        if self.key and not re.fullmatch(r"[!-~]+", self.key):
            raise UserError(
                f"{self.key_env} has a space, a line break or a letter beyond ASCII in it: set it to the key alone"
            )

    @property
    def key(self) -> str:
        """The key for the server, or an empty text."""
        return os.environ.get(self.key_env, "").strip()

    def ask(self, prompt: str, parse: Callable[[str], T]) -> T:
        """Return what `parse` makes of the reply to a prompt.

        It is asked again after an invalid reply, for which `parse` raises UserError, and while it is busy or cannot be
        reached. Raises UserError with the last fault.
        """
        import requests

        for attempt in range(1, self.attempts + 1):
            try:
                return parse(self._request(prompt))
            except (requests.RequestException, UserError) as error:
                status = getattr(getattr(error, "response", None), "status_code", None)
                if attempt == self.attempts or (status and status not in _RETRYABLE_STATUS_CODES):
                    raise UserError(f"{type(error).__name__}: {error}") from error
                if not isinstance(error, UserError):  # after an invalid reply, the server need not recover
                    time.sleep(min(MAX_DELAY, INITIAL_DELAY * 2 ** (attempt - 1)))
        raise AssertionError("the last attempt returns or raises")

    def _request(self, prompt: str) -> str:
        import requests

        with requests.post(
            self.endpoint.rstrip("/") + "/chat/completions",
            json={"model": self.model, "messages": [{"role": "user", "content": prompt}], "temperature": 1.0},
            headers={"Authorization": f"Bearer {self.key}"} if self.key else {},
            auth=_no_credentials,
            allow_redirects=False,  # the key is for this address alone
            timeout=self.timeout,
            stream=True,
        ) as response:
            response.raise_for_status()
            if response.is_redirect:
                raise UserError(f"the server redirects to {response.headers['Location'][:200]!r}: name the new address")
            body = b""
            for chunk in response.iter_content(1 << 16):
                body += chunk
                if len(body) > MAX_REPLY_BYTES:
                    raise UserError(f"the reply has more than {MAX_REPLY_BYTES:,} bytes")
        return _content(body)


def optional_server(endpoint: str | None, model: str | None, **options: Any) -> ChatServer | None:
    """Return the server that two settings name, or None if neither is set. `options`: more fields of `ChatServer`.

    Raises UserError if only one of the two is set, and for an address that the key may not be sent to.
    """
    if (endpoint is None) != (model is None):
        raise UserError(f"endpoint is {endpoint}, model is {model}: set both or neither")
    return None if endpoint is None or model is None else ChatServer(endpoint, model, **options)


def _content(body: bytes) -> str:
    try:
        content: Any = parse_json(body)["choices"][0]["message"]["content"]
    except (UserError, LookupError, TypeError) as error:
        raise UserError("the reply does not follow OpenAI's protocol") from error
    return str(content)


def is_safe_address(url: str) -> bool:
    """Return True if a key may be sent to an address: over https, or to this machine."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return False
    is_local = parts.scheme == "http" and parts.hostname in ("localhost", "127.0.0.1", "::1")
    return bool(parts.hostname) and (parts.scheme == "https" or is_local)


def _no_credentials(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """Add none: without this, requests takes those of ~/.netrc in place of the key."""
    return request
