"""Signals that ask a run to stop: which are caught, which stay ignored, and what follows the first."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator

import pytest

from nanochat.system.signals import STOP_SIGNALS, agreed_stop, stop_requests


@contextlib.contextmanager
def stderr_without_reader() -> Iterator[None]:
    """Context in which file descriptor 2 is a pipe that nobody reads."""
    reader, writer = os.pipe()
    saved = os.dup(2)
    os.dup2(writer, 2)
    os.close(reader)
    os.close(writer)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)


def test_a_closed_connection_and_a_warning_of_slurm_are_among_them() -> None:
    assert set(STOP_SIGNALS) == {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1}


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_the_first_signal_counts(number: int) -> None:
    """Further ones, of any kind but a second Ctrl-C, change nothing. The handlers are restored."""
    before = [signal.getsignal(other) for other in STOP_SIGNALS]
    with stop_requests() as stop:
        assert stop() == 0
        signal.raise_signal(number)
        for other in STOP_SIGNALS:
            if signal.SIGINT not in (number, other):
                signal.raise_signal(other)
        assert stop() == number
    assert [signal.getsignal(other) for other in STOP_SIGNALS] == before


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1, signal.SIGTERM])
def test_an_ignored_signal_stays_ignored(number: int) -> None:
    """As SIGHUP under nohup."""
    previous = signal.signal(number, signal.SIG_IGN)
    try:
        with stop_requests() as stop:
            signal.raise_signal(number)
            assert stop() == 0
            signal.raise_signal(signal.SIGINT)
            assert stop() == signal.SIGINT
        assert signal.getsignal(number) is signal.SIG_IGN
    finally:
        signal.signal(number, previous)


def test_the_notice_needs_no_reader() -> None:
    """After a closed ssh connection nobody reads it, and the run still stops with a checkpoint."""
    with stderr_without_reader(), stop_requests() as stop:
        signal.raise_signal(signal.SIGHUP)
        assert stop() == signal.SIGHUP


def test_a_second_ctrl_c_interrupts() -> None:
    with stop_requests() as stop:
        assert not stop()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop() == signal.SIGTERM
        os.kill(os.getpid(), signal.SIGINT)  # the first of its kind
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_agreed_stop() -> None:
    """A process that another one has stopped stops for SIGTERM."""
    assert [agreed_stop(0, False), agreed_stop(0, True)] == [0, signal.SIGTERM]
    assert agreed_stop(signal.SIGHUP, True) == signal.SIGHUP
