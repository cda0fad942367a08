"""Exceptions that end a command with one line and an exit code instead of a traceback."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

# From the messages of gloo and NCCL. Their other failures, such as a lack of memory, keep their traceback.
LOST_CONNECTION = re.compile(
    r"/gloo/transport/|Connection (closed|reset) by peer|Application timeout caused pair closure|"
    r"Timed out waiting \d+ms|ncclRemoteError"
)
STORE_ERRORS = ("DistNetworkError", "DistStoreError")  # torch's, while processes look for each other


class UserError(ValueError):
    """An error that the user can fix: shown as one line, without a traceback, with exit code 2."""


class StoppedBySignal(Exception):
    """Raised when a signal has ended a run early. The message explains how to resume it.

    `exit_code` is 128 + the signal's number, as shells report it.
    """

    def __init__(self, signal_number: int, message: str) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


def find_lost_process(error: BaseException) -> str | None:
    """Return one line that says that another process of the run is gone, if this is the cause of an error, else None.

    Recognized by its text: gloo, NCCL and torch's store raise a RuntimeError for every failure.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or not isinstance(error, RuntimeError):
        return None
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines or not (type(error).__name__ in STORE_ERRORS or LOST_CONNECTION.search(str(error))):
        return None
    cause = re.sub(r"\[\S*/gloo/\S*\] ", "", lines[0]).partition(". This is")[0]  # without the place in gloo's source
    return f"process {os.environ.get('RANK', '0')}: another process of this run has ended or cannot be reached: {cause}"


@contextmanager
def as_user_error(prefix: str) -> Iterator[None]:
    """Context that turns any exception into a one-line UserError `prefix: message`, as for a damaged file."""
    try:
        yield
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise UserError(f"{prefix}: {lines[0] if lines else type(error).__name__}") from error
