"""Exceptions that end a command with one line and an exit code instead of a traceback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """An error that the user can fix: shown as one line, without a traceback, with exit code 2."""


class StoppedBySignal(Exception):
    """Raised when a signal has ended a run early. The message explains how to resume it.

    `exit_code` is 128 + the signal's number, as shells report it.
    """

    def __init__(self, signal_number: int, message: str) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


@contextmanager
def as_user_error(prefix: str) -> Iterator[None]:
    """Context that turns any exception into a one-line UserError `prefix: message`, as for a damaged file."""
    try:
        yield
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise UserError(f"{prefix}: {lines[0] if lines else type(error).__name__}") from error
