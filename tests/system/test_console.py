"""Printing from one process of many."""

from __future__ import annotations

import pytest

from nanochat.system.console import print0


def test_rank_0_prints(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("RANK", raising=False)
    print0("alone", 1, sep="-")
    monkeypatch.setenv("RANK", "0")
    print0("first")
    monkeypatch.setenv("RANK", "1")
    print0("second")
    assert capsys.readouterr().out == "alone-1\nfirst\n"
