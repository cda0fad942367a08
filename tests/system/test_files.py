"""The base folder, and files that appear completely or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from nanochat.system.files import base_dir, write_json_atomic, write_text_atomic


def test_the_base_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "base"))
    assert base_dir() == tmp_path / "base"
    monkeypatch.setenv("NANOCHAT_BASE_DIR", "")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert base_dir() == tmp_path / "home" / ".cache" / "nanochat"
    assert not list(tmp_path.iterdir())


def test_a_text_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "notes.txt"
    write_text_atomic(path, "old")
    write_text_atomic(path, "naïve\n")
    assert path.read_bytes() == "naïve\n".encode()
    assert [file.name for file in path.parent.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    path = tmp_path / "notes.txt"
    write_text_atomic(path, "old")
    monkeypatch.setattr(os, function, fail)
    with pytest.raises(OSError, match="No space left"):
        write_text_atomic(path, "new")
    assert path.read_text(encoding="utf-8") == "old"


def test_json(tmp_path: Path) -> None:
    value = {"name": "d4", "losses": [1.5, None], "text": "größer"}
    write_json_atomic(tmp_path / "value.json", value)
    text = (tmp_path / "value.json").read_text(encoding="utf-8")
    assert json.loads(text) == value
    assert "größer" in text
    assert text.endswith("}\n")
    assert "\n  " in text
