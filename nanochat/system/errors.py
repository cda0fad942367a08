"""Exceptions that end a command with one line and an exit code instead of a traceback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """Something the user can mend: shown as one line, without a traceback, and exit code 2."""


class StoppedBySignal(Exception):
    """A signal asked the run to stop, and it has. The message says how to go on; the exit code is 128 + the signal."""

    def __init__(self, signal_number: int, message: str) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


@contextmanager
def as_user_error(what: str) -> Iterator[None]:
    """Whatever goes wrong is the user's to mend and said in one line: damaged files, networks may raise anything."""
    try:
        yield
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise UserError(f"{what}: {lines[0] if lines else type(error).__name__}") from error
