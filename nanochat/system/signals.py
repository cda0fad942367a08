"""Signals that ask a run to stop: it takes its step to the end, saves a checkpoint, and ends."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

StopSignal = Callable[[], int]  # returns the number of the signal that asked this process to stop, or 0
# Ctrl-C; `kill` and launchers; a terminal or ssh connection that is closed; Slurm's warning before the time limit.
STOP_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name)
)
NOTICE = b"\nStopping after this step, with a checkpoint. Ctrl-C again stops at once, without one.\n"


@contextmanager
def stop_requests() -> Iterator[StopSignal]:
    """Context manager in which the `STOP_SIGNALS` only set the return value of the yielded function.

    The function returns 0 before any signal, then the number of the first one. A second SIGINT raises
    KeyboardInterrupt; other signals after the first change nothing. A signal that this process ignores, as SIGHUP
    under `nohup`, stays ignored; only Ctrl-C always stops.
    """
    received: list[int] = []

    def handle(signal_number: int, _frame: object) -> None:
        if signal.SIGINT in received and signal_number == signal.SIGINT:
            raise KeyboardInterrupt
        if not received and os.environ.get("RANK", "0") == "0":
            with suppress(OSError):  # nobody may be there to read it
                os.write(2, NOTICE)  # not print, which the handler may have interrupted
        received.append(signal_number)

    previous = {
        number: signal.signal(number, handle)
        for number in STOP_SIGNALS
        if number == signal.SIGINT or signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        yield lambda: received[0] if received else 0
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def agreed_stop(signal_number: int, is_requested: bool) -> int:
    """Return the signal to stop for, 0 if no process was asked to stop (`is_requested`, equal on all processes).

    A process that received no signal itself stops for SIGTERM, the signal that launchers send.
    """
    return (signal_number or signal.SIGTERM) if is_requested else 0
