"""Names of files and folders: what is read, and what is left out."""

from __future__ import annotations

from pathlib import PurePath

import pytest

from nanochat.documents.formats import (
    GENERATED,
    HIDDEN,
    LOCK,
    LOG,
    MINIFIED,
    OTHER_KIND,
    ReadFailure,
    format_of,
    reason_to_leave_folder_out,
    reason_to_leave_out,
)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("notes.md", None),
        ("README", None),
        ("a.b/c.HTML", None),
        ("package-lock.json", LOCK),
        ("uv.lock", LOCK),
        ("server.log", LOG),
        ("jquery.min.js", MINIFIED),
        ("cat.jpg", OTHER_KIND),
        ("a.zip", OTHER_KIND),
    ],
)
def test_files(name: str, reason: str | None) -> None:
    assert reason_to_leave_out(PurePath(name)) == reason


@pytest.mark.parametrize(
    ("name", "reason"),
    [("docs", None), (".git", HIDDEN), ("node_modules", GENERATED), ("x.egg-info", GENERATED), ("builds", None)],
)
def test_folders(name: str, reason: str | None) -> None:
    assert reason_to_leave_folder_out(name) == reason


def test_every_format_that_was_promised() -> None:
    suffixes = "md txt rst html org tex csv json jsonl ipynb docx pdf epub odt py rs".split()
    assert all(format_of(PurePath(f"a.{suffix}")) for suffix in suffixes)


def test_a_failure_says_why() -> None:
    failure = ReadFailure(LOCK, "detail")
    assert (failure.reason, failure.detail) == (LOCK, "detail")
