"""Exceptions that a command shows as one line."""

from __future__ import annotations

import signal

import pytest

from nanochat.system.errors import StoppedBySignal, UserError, as_user_error


def test_the_exit_code_of_a_signal() -> None:
    assert StoppedBySignal(signal.SIGTERM, "Stopped").exit_code == 143
    assert StoppedBySignal(signal.SIGINT, "Stopped").exit_code == 130
    assert str(StoppedBySignal(signal.SIGINT, "To resume: python")) == "To resume: python"


def test_any_exception_becomes_one_line() -> None:
    message = r"^x\.zip cannot be read: bad magic number$"
    with pytest.raises(UserError, match=message) as caught, as_user_error("x.zip cannot be read"):
        raise OSError("\n  bad magic number\nat offset 7")
    assert isinstance(caught.value.__cause__, OSError)


def test_an_exception_without_a_message_is_named() -> None:
    with pytest.raises(UserError, match=r"^x: KeyboardError$"), as_user_error("x"):
        raise type("KeyboardError", (Exception,), {})()


def test_what_is_no_exception_of_the_work_goes_through() -> None:
    with pytest.raises(KeyboardInterrupt), as_user_error("x"):
        raise KeyboardInterrupt
