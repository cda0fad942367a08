"""Data sets from a mirror and from the hub, and the messages if neither has them."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest

from nanochat.common import UserError
from tasks.common import make_conversation, text_part
from tasks.gsm8k import GSM8K
from tasks.hub import DatasetUnavailableError, load_table


def fail_to_load(*_: Any, **__: Any) -> None:
    raise ConnectionError("no way\nand more")


def test_an_unavailable_data_set_is_named_with_the_ways_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.hub._is_hub_reachable", lambda: False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")  # the task sets it to 1; restored afterwards
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=fail_to_load))
    monkeypatch.delenv("NANOCHAT_HUB_DIR", raising=False)
    message = r"openai/gsm8k.*NANOCHAT_HUB_DIR is not set.*no way.*main/test-\*\.parquet"
    with pytest.raises(DatasetUnavailableError, match=message):
        GSM8K()
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    monkeypatch.setenv("NANOCHAT_HUB_DIR", str(tmp_path))
    with pytest.raises(DatasetUnavailableError, match=re.escape(f"not under $NANOCHAT_HUB_DIR ({tmp_path})")):
        GSM8K()


def test_without_a_mirror_the_hub_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets  # builds the table; only the download is replaced

    calls = []

    def load_dataset(*arguments: Any, **options: Any) -> datasets.Dataset:
        calls.append((*arguments, options))
        return datasets.Dataset.from_list([{"question": "Q", "answer": "#### 1", "more": 1}])

    monkeypatch.setattr("tasks.hub._is_hub_reachable", lambda: True)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.delenv("NANOCHAT_HUB_DIR", raising=False)
    assert GSM8K("train")[0] == make_conversation("Q", [text_part("#### 1")])
    load_table("a/b", "data", "test", ["question"])
    assert calls == [("openai/gsm8k", "main", {"split": "train"}), ("a/b", None, {"split": "test"})]


def test_a_fault_of_a_mirror_is_named(write_to_mirror: Callable[..., Path]) -> None:
    first = write_to_mirror("a/b/main/test-00000-of-00002.parquet", pa.table({"x": [1]}))
    with pytest.raises(UserError, match=re.escape(f"{first.parent}: 1 files of test")):
        load_table("a/b", "main", "test", ["x"])
    second = write_to_mirror("a/b/main/test-00001-of-00002.parquet", pa.table({"x": [2]}))
    assert load_table("a/b", "main", "test", ["x"])["x"].to_pylist() == [1, 2]
    with pytest.raises(UserError, match="no column 'y', but x"):
        load_table("a/b", "main", "test", ["y"])
    second.write_bytes(b"PAR1 and no more")
    with pytest.raises(UserError, match=re.escape(str(first.parent))):
        load_table("a/b", "main", "test", ["x"])
