"""The base folder and atomic writes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from nanochat.system.files import base_dir, write_json_atomic, write_text_atomic


def test_base_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "runs"))
    assert base_dir() == tmp_path / "runs"
    for unset in ("", None):
        monkeypatch.delenv("NANOCHAT_BASE_DIR")
        if unset is not None:
            monkeypatch.setenv("NANOCHAT_BASE_DIR", unset)
        monkeypatch.setenv("HOME", str(tmp_path))
        assert base_dir() == tmp_path / ".cache" / "nanochat"
        monkeypatch.setenv("NANOCHAT_BASE_DIR", "")
    assert not list(tmp_path.iterdir()), "nothing is created"


def test_writes(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.txt"
    for text in ("ä\n", "shorter", ""):
        write_text_atomic(path, text)
        assert path.read_text(encoding="utf-8") == text
    write_json_atomic(path, {"name": "ä", "values": [1, None]})
    text = path.read_text(encoding="utf-8")
    assert json.loads(text) == {"name": "ä", "values": [1, None]}
    assert "ä" in text
    assert text.endswith("}\n")
    assert os.listdir(path.parent) == ["a.txt"]


def test_a_failed_write_leaves_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At every call that can fail, in the order of the calls; the file appears under its name only when complete."""
    path = tmp_path / "a.txt"
    write_text_atomic(path, "old")

    def fail(*_: object) -> None:
        assert path.read_text(encoding="utf-8") == "old"
        raise OSError("no space left on device")

    for name in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, fail)
            with pytest.raises(OSError, match="no space left"):
                write_text_atomic(path, "new")
        assert path.read_text(encoding="utf-8") == "old"
