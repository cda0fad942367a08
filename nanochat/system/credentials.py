"""Secrets of the user: the one place that the hub's token may be sent to, and texts in which secrets are hidden.

`$HF_TOKEN` is sent over https only, and to the host of `$HF_ENDPOINT` (by default huggingface.co) only: neither to the
server of another file, nor where the hub redirects to. The libraries of the hub read the token themselves;
`protect_hub_token` is called before they are used.

Everything that is printed or written to a report passes through `hide_credentials`.
"""

from __future__ import annotations

import os
import re
import sys
from urllib.parse import SplitResult, urlsplit

from nanochat.system.errors import UserError, hide_credentials

__all__ = ["has_password", "hide_credentials", "hub_address", "hub_token", "is_on_hub", "protect_hub_token"]

PUBLIC_HUB = "https://huggingface.co"
DISABLE_IMPLICIT_TOKEN = "HF_HUB_DISABLE_IMPLICIT_TOKEN"  # read by huggingface_hub


def hub_address() -> str:
    """Return the address of the Hugging Face hub: `$HF_ENDPOINT`, or the public one."""
    return os.environ.get("HF_ENDPOINT") or PUBLIC_HUB


def is_on_hub(url: str) -> bool:
    """Return True if a URL is one of the hub's, over https, which alone may see the user's token."""
    place = _https_place(url)
    return place is not None and place == _https_place(hub_address())


def has_password(url: str) -> bool:
    """Return True if a URL names a user or a password before its host."""
    parts = _split(url)
    return parts is not None and "@" in parts.netloc


def hub_token(url: str) -> str | None:
    """Return `$HF_TOKEN` for a request to `url`, or None if that place may not see it.

    Raises UserError for a token with characters that cannot be in a header. The error does not repeat it.
    """
    token = (os.environ.get("HF_TOKEN") or "").strip()
    if not token or not is_on_hub(url):
        return None
    if not re.fullmatch(r"[!-~]+", token):
        raise UserError("HF_TOKEN has a space, a line break or a letter beyond ASCII in it: set it to the token alone")
    return token


def protect_hub_token() -> None:
    """Keep the hub's libraries from sending a token to an `$HF_ENDPOINT` that is not https. Call it before they run."""
    if _https_place(hub_address()) is not None:
        return
    os.environ[DISABLE_IMPLICIT_TOKEN] = "1"
    if constants := sys.modules.get("huggingface_hub.constants"):  # it has read the variable already
        constants.HF_HUB_DISABLE_IMPLICIT_TOKEN = True  # type: ignore[attr-defined]


def _split(url: str) -> SplitResult | None:
    try:
        return urlsplit(url)
    except ValueError:  # such as an address of IPv6 without its bracket
        return None


def _https_place(url: str) -> tuple[str, int] | None:
    """Return host and port of a URL, or None if it is not https, names a user, or is no URL."""
    parts = _split(url)
    if parts is None or parts.scheme != "https" or "@" in parts.netloc or not parts.hostname:
        return None
    try:
        return parts.hostname, parts.port or 443
    except ValueError:  # a port that is no number
        return None
