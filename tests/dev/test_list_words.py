"""dev/list_words.py: the most frequent words of the base data."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

from nanochat.common import UserError
from nanochat.data.shards import Manifest, write_shard
from tasks.words import load_words

list_words: Any = importlib.import_module("dev.list_words")  # a command, not a package


def test_a_list_of_the_base_data(base_dir: Path, tmp_path: Path) -> None:
    text = "Anna saw lanterns and a red-hot lantern; the lantern isn't hers. " * 3 + "once Upon"
    folder = base_dir / "base_data"
    folder.mkdir()
    files = {name: write_shard([text] * 20, folder / name) for name in ("a.parquet", "b.parquet")}
    Manifest("my/folder", ("a.parquet",), "b.parquet", files, {}).save(folder)
    path = list_words.main(list_words.Config(min_count=40))
    assert path == base_dir / "words.txt"
    words = path.read_text(encoding="utf-8").split()
    assert words == ["lantern", *"saw lanterns and the hers".split()]
    assert set(load_words("train")) | set(load_words("test")) == set(words)
    two_words = list_words.main(list_words.Config(num=2, out=tmp_path / "w"))
    assert len(two_words.read_text(encoding="utf-8").split()) == 2
    with pytest.raises(UserError, match="no word occurs 999 times"):
        list_words.main(list_words.Config(min_count=999))
    with pytest.raises(UserError, match="at least 1"):
        list_words.Config(num=0)
