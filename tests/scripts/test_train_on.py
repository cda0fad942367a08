"""scripts.train_on: refused command lines, and a run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from scripts import train_on


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], "name the folder of your documents"),
        (["absent"], "absent: no such folder or file"),
        ([".", "--minutes=0"], "minutes is 0"),
        ([".", "--endpoint=http://localhost:1/v1"], "give both or neither"),
        ([".", "--base=../x"], "../x"),
        ([".", "--chat=perhaps"], "chat is 'perhaps'"),
    ],
)
def test_refused(refusal: Callable[..., str], base_dir: Path, flags: list[str], words: str) -> None:
    assert words in refusal(train_on, *flags)
    assert not list(base_dir.iterdir())
