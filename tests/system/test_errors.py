"""Errors become one line, and signals exit codes."""

from __future__ import annotations

import signal

import pytest

from nanochat.system.errors import StoppedBySignal, UserError, as_user_error


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError("no such file"), "x.zip cannot be read: no such file"),
        (RuntimeError("\n  first line  \nsecond line"), "x.zip cannot be read: first line"),
        (KeyError(), "x.zip cannot be read: KeyError"),
        (UserError("empty"), "x.zip cannot be read: empty"),
    ],
)
def test_as_user_error(error: Exception, message: str) -> None:
    with pytest.raises(UserError) as caught, as_user_error("x.zip cannot be read"):
        raise error
    assert str(caught.value) == message
    assert caught.value.__cause__ is error


def test_as_user_error_without_an_error() -> None:
    with as_user_error("x"):
        result = 1
    assert result == 1


def test_interrupts_are_not_user_errors() -> None:
    with pytest.raises(KeyboardInterrupt), as_user_error("x"):
        raise KeyboardInterrupt


def test_exit_code_of_a_stopped_run() -> None:
    stopped = StoppedBySignal(signal.SIGTERM, "Stopped at step 3.")
    assert (stopped.exit_code, str(stopped)) == (143, "Stopped at step 3.")
