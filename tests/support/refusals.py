"""The error of a call that may be refused, for tests with random inputs."""

from __future__ import annotations

from collections.abc import Callable

from nanochat.common import UserError

MAX_ERROR_LEN = 800


def refusal(function: Callable[..., object], *arguments: object) -> str | None:
    """Call a function and return the text of its UserError, which must be one short line, or None without an error."""
    try:
        function(*arguments)
    except UserError as error:
        text = str(error)
    else:
        return None
    assert text
    assert "\n" not in text
    assert len(text) < MAX_ERROR_LEN
    return text
