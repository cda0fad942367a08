"""check_settings: the first mistake among the settings of several commands, and the files that they name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dev import check_settings
from nanochat.common import UserError

TALK = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


def mixture(folder: Path, options: str) -> str:
    """Write a mixture file of one entry; return its flag."""
    path = folder / "my.toml"
    path.write_text(f"[[entry]]\ntask = 'CustomJSON'\noptions = {{{options}}}\n", encoding="utf-8")
    return f"--mixture={path}"


def test_settings_that_are_right(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps(TALK), encoding="utf-8")
    mid = ["scripts.mid_train", mixture(tmp_path, f"path='{tmp_path}/a.jsonl'"), f"--conversations={tmp_path}/a.jsonl"]
    check_settings.main(["scripts.base_train", "--", "--depth=4", "+", *mid])
    check_settings.main([])


def test_mistakes(tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text("[]", encoding="utf-8")
    for words, message in (
        (["scripts.base_train", "+", "scripts.chat_sft", "--x"], "scripts.chat_sft: unknown argument --x"),
        (["scripts.chat_sft", mixture(tmp_path, "path='nowhere.jsonl'")], "'nowhere.jsonl': no such file in"),
        (["scripts.mid_train", f"--conversations={tmp_path}/bad.jsonl"], "bad.jsonl, line 1"),
        (["scripts.mid_train", f"--conversations={tmp_path}"], "Is a directory"),
    ):
        with pytest.raises(UserError, match=message):
            check_settings.main(words)
