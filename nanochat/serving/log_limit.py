"""Limits on a server's log: the number of records a minute, and the length of each.

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

LOGGERS = ("uvicorn.error", "asyncio", "nanochat.serving.server")
MAX_RECORDS = 20  # a minute, of each logger
MAX_CHARACTERS = 10_000


class LogLimit(logging.Filter):
    """A filter that lets `max_records` pass in each minute. The first of the next minute says how many were left out.

    Text is cut to `MAX_CHARACTERS`, and control characters are escaped. `clock` returns seconds.
    """

    def __init__(self, max_records: int = MAX_RECORDS, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self.max_records = max_records
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
            if self._num_passed >= self.max_records:
                self._num_left_out += 1
                return False
            self._num_passed += 1
        text = _cut(record.getMessage())
        if num_left_out:
            text += f" ({num_left_out} further lines before this one were left out of the log)"
        record.msg, record.args = text, ()
        if record.exc_info:
            record.exc_text = _cut("".join(traceback.format_exception(*record.exc_info)).rstrip())
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
