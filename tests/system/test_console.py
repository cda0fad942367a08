"""Printing on rank 0."""

from __future__ import annotations

import sys

import pytest

from nanochat.system.console import print0


@pytest.mark.parametrize(("rank", "output"), [(None, "a b\n"), ("0", "a b\n"), ("1", "")])
def test_print0(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], rank: str | None, output: str
) -> None:
    monkeypatch.delenv("RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("RANK", rank)
    print0("a", "b")
    assert capsys.readouterr().out == output
    print0("a", "b", file=sys.stderr)
    assert capsys.readouterr() == ("", output)
