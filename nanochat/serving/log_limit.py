"""Limits on a server's log: the number of lines a minute, tracebacks included, and the length of each record.

A fault that strangers can cause at will, such as a malformed request, must not fill the disk.
"""

from __future__ import annotations

import logging
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from nanochat.system.console import visible

LOGGERS = (
    *("uvicorn.error", "asyncio", "nanochat.serving.generation", "nanochat.serving.service"),
    *("nanochat.inference.generation_loop", "nanochat.replicas.process_loop", "nanochat.steps.triton_step"),
)
MAX_LINES = 20  # a minute, of each logger
MAX_CHARACTERS = 10_000


class LogLimit(logging.Filter):
    """A filter that lets `max_lines` pass in each minute.

    The first record of the next minute says how many were left out. Of a traceback that is longer than what the minute
    has left, only the end is kept. Text is cut to `MAX_CHARACTERS`, and control characters are escaped. `clock` returns
    seconds.
    """

    def __init__(self, max_lines: int = MAX_LINES, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self.max_lines = max_lines
        self._clock = clock
        self._lock = threading.Lock()
        self._minute_start = -60.0
        self._num_passed = 0
        self._num_left_out = 0

    def filter(self, record: logging.LogRecord) -> bool:
        """Return False to leave a record out. Called by the logger."""
        with self._lock:
            now = self._clock()
            num_left_out = 0
            if now - self._minute_start >= 60:
                num_left_out = self._num_left_out
                self._minute_start, self._num_passed, self._num_left_out = now, 0, 0
            room = self.max_lines - self._num_passed
            if room <= 0:
                self._num_left_out += 1
                return False
            lines = _cut(record.getMessage().rstrip()).split("\n")[:room]
            trace = []
            text = record.exc_text or ""  # of the filter of another server in this process, or a formatter
            if record.exc_info and not text:
                text = "".join(traceback.format_exception(*record.exc_info))
            if text and room > len(lines):
                trace = _cut(text.rstrip()).split("\n")[len(lines) - room :]
            self._num_passed += len(lines) + len(trace)
        if num_left_out:
            lines[-1] += f" ({num_left_out} further records before this one were left out of the log)"
        record.msg, record.args = "\n".join(lines), ()
        record.exc_info, record.exc_text = None, "\n".join(trace) or None
        return True


def _cut(text: str) -> str:
    """Return the beginning and the end of a long text, with control characters escaped."""
    if len(text) > MAX_CHARACTERS:
        text = f"{text[: MAX_CHARACTERS // 2]} ... {text[-MAX_CHARACTERS // 2 :]}"
    return visible(text)


@contextmanager
def limited_log() -> Iterator[None]:
    """Context in which the log of a server is limited."""
    filters = [(logging.getLogger(name), LogLimit()) for name in LOGGERS]
    for logger, limit in filters:
        logger.addFilter(limit)
    try:
        yield
    finally:
        for logger, limit in filters:
            logger.removeFilter(limit)
