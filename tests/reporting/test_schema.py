"""Sections: written as plain JSON, checked in both directions, read in order; and Wilson's interval."""

from __future__ import annotations

import json
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nanochat.reporting.schema import is_accuracy, log_section, proportion, read_sections, stage_of

CURVE = {"x": [0, 1, 2], "y": [3.0, math.nan, 1.0], "xlabel": "step", "ylabel": "loss (nats per token)"}


@dataclass(frozen=True)
class Settings:
    depth: int = 4
    lr: float = 0.0
    target_flops: float | None = None
    folder: Path = Path("a|b")


def test_a_section_is_plain_json_with_time_and_environment(base_dir: Path) -> None:
    metrics = {
        "bpb": torch.tensor(1.5),
        "steps": np.int64(7),
        "loss": float("nan"),
        "rate": np.float32("inf"),
        "MFU": None,
    }
    environment = {"compute dtype": torch.float32, "device": torch.device("cpu")}
    path = log_section(
        "base_train", {"settings": Settings(), "metrics": metrics, "environment": environment, "seconds": None}
    )
    assert path == base_dir / "report" / "base_train.json"
    assert os.listdir(path.parent) == ["base_train.json"]

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    section = json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
    assert section["metrics"] == {"bpb": 1.5, "steps": 7, "loss": None, "rate": None}
    assert section["settings"] == {"depth": 4, "lr": 0.0, "target_flops": None, "folder": "a|b"}
    assert section["environment"]["compute dtype"] == "float32"
    assert section["environment"]["torch"] == torch.__version__.split("+")[0]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC", section["time"])
    assert "seconds" not in section


def test_only_the_first_process_writes(base_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    assert log_section("base_train", {}) == base_dir / "report" / "base_train.json"
    assert not list(base_dir.iterdir())


@pytest.mark.parametrize(
    ("section", "rule"),
    [
        ({"metric": {}}, "unknown key metric"),
        ({"metrics": [1]}, "metrics has a wrong type"),
        ({"metrics": {"a": "1"}}, "metric a is neither"),
        ({"metrics": {"a": {"value": 1, "interval": [1]}}}, "metric a is neither"),
        ({"curves": {"loss": {**CURVE, "y": [1.0]}}}, "curve loss needs"),
        ({"curves": {"loss": {"x": [1], "y": [1.0]}}}, "curve loss needs"),
        ({"metrics": {"a": {"value": 1, "chance": "none"}}}, "metric a is neither"),
        ({"answers": {"a": {"problems": "x", "correct": "012"}}}, "answers a need problems"),
        ({"answers": {"a": {"correct": "01"}}}, "answers a need problems"),
        ({"samples": [{"text": "no prompt"}]}, "a sample has"),
        ({"samples": [{"messages": [{"role": "assistant", "content": "I begin."}]}]}, "a sample has"),
        ({"notes": [1]}, "notes is a list of texts"),
        ({"format": 2}, "format 2; this version reads 1"),
    ],
)
def test_a_section_must_follow_the_schema(section: dict[str, Any], rule: str, base_dir: Path) -> None:
    with pytest.raises(ValueError, match=re.escape(rule)):
        log_section("base_train", section)
    assert not list(base_dir.iterdir())
    (base_dir / "report").mkdir()
    (base_dir / "report" / "hand_made.json").write_text(json.dumps(section), encoding="utf-8")
    sections, problems = read_sections(base_dir / "report")
    assert not sections
    assert len(problems) == 1
    assert "hand_made.json" in problems[0]
    assert rule in problems[0]


def test_a_name_must_fit_a_file(base_dir: Path) -> None:
    with pytest.raises(ValueError, match="lower-case letters"):
        log_section("../base_train", {})
    assert not list(base_dir.iterdir())


@pytest.mark.usefixtures("base_dir")
def test_sections_are_read_in_the_order_of_a_run(base_dir: Path) -> None:
    for name in ("zoo", "chat_sft", "base_train", "another", "dataset"):
        log_section(name, {})
    sections, problems = read_sections(base_dir / "report")
    assert list(sections) == ["dataset", "base_train", "chat_sft", "another", "zoo"]
    assert not problems


@pytest.mark.parametrize(
    ("name", "section", "stage"),
    [
        ("base_train", {}, "base"),
        ("chat_eval_sft", {}, "sft"),
        ("my_eval", {"model": "rl"}, "rl"),
        ("base_eval", {"model": "mid"}, "mid"),
        ("my_eval", {"model": "other"}, None),
        ("dataset", {}, None),
    ],
)
def test_stage_of(name: str, section: Any, stage: str | None) -> None:
    assert stage_of(name, section) == stage


def test_is_accuracy() -> None:
    accuracy = {**proportion(1, 2), "chance": 0.25}
    assert is_accuracy(accuracy)
    assert not is_accuracy(0.5)
    assert not any(is_accuracy({**accuracy, key: None}) for key in ("value", "interval", "chance"))
    assert not is_accuracy({**accuracy, "value": 1.5})


@pytest.mark.parametrize(("count", "total"), [(8, 10), (0, 20), (20, 20), (412, 1000)])
def test_wilsons_interval(count: int, total: int) -> None:
    """The ends p of the interval solve (share - p)^2 = z^2 p (1 - p) / n, which is Wilson's definition."""
    metric = proportion(count, total)
    assert (metric["value"], metric["n"]) == (count / total, total)
    low, high = metric["interval"]
    assert 0 <= low <= count / total <= high <= 1
    assert low < high
    for p in (low, high):
        assert (count / total - p) ** 2 == pytest.approx(1.959964**2 * p * (1 - p) / total, abs=1e-12)


def test_proportion_of_nothing() -> None:
    assert proportion(0, 0) == {"value": 0.0, "n": 0, "interval": [0.0, 1.0]}
