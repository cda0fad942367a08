"""The limit on a server's log: records a minute, their length, control characters."""

from __future__ import annotations

import logging

import pytest

from nanochat.serving.log_limit import LOGGERS, MAX_CHARACTERS, LogLimit, limited_log


def record(text: str, *args: object) -> logging.LogRecord:
    return logging.LogRecord("x", logging.ERROR, "x.py", 1, text, args, None)


def test_so_many_records_a_minute_pass_and_the_rest_are_counted() -> None:
    now = 0.0
    limit = LogLimit(3, clock=lambda: now)
    assert [limit.filter(record("bad")) for _ in range(100)] == [True] * 3 + [False] * 97
    now = 59.0
    assert not limit.filter(record("bad"))
    now = 60.0
    first, second = record("bad %s", 7), record("bad")
    assert limit.filter(first)
    assert limit.filter(second)
    assert first.getMessage() == "bad 7 (98 further records before this one were left out of the log)"
    assert second.getMessage() == "bad"


def test_lines_of_tracebacks_count() -> None:
    """Each record, as it is written, and all together: however deep the stack and long the message are."""

    def fail(depth: int) -> None:
        if depth:
            fail(depth - 1)
        raise ValueError("the reason")

    limit = LogLimit(20, clock=lambda: 0.0)
    passed = []
    for depth in (0, 9, 0, 0, 50):
        each = record("bad\nnews\n")
        try:
            fail(depth)
        except ValueError as error:
            each.exc_info = (type(error), error, error.__traceback__)
        if limit.filter(each):
            passed.append(logging.Formatter().format(each))
    assert len("\n".join(passed).split("\n")) == 20
    assert all(text.endswith("ValueError: the reason") for text in passed)
    assert passed[0].startswith("bad\nnews\nTraceback")


def test_records_are_short_and_without_control_characters() -> None:
    limit = LogLimit()
    long = record("%s", "a" * 1_000_000 + "\x1b]52;c;x\x07\r\u202e")
    try:
        raise ValueError("b\x1b" * 1_000_000)
    except ValueError as error:
        long.exc_info = (type(error), error, error.__traceback__)
    assert limit.filter(long)
    text = logging.Formatter().format(long)
    assert 2 * MAX_CHARACTERS < len(text) < 5 * MAX_CHARACTERS
    assert "\\x1b]52;c;x\\x07\\r\\u202e" in text
    assert not [character for character in text if not character.isprintable() and character != "\n"]


@pytest.mark.parametrize("name", LOGGERS)
def test_the_log_of_a_server_is_limited_while_it_runs(name: str, caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger(name)
    logger.addHandler(caplog.handler)
    try:
        with limited_log():
            for _ in range(1000):
                logger.error("the same again")
        assert 0 < len(caplog.records) <= 40  # of this logger, and of the root if it passes records on
        assert not [limit for limit in logger.filters if isinstance(limit, LogLimit)]
    finally:
        logger.removeHandler(caplog.handler)
