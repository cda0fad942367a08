"""The speed of this machine: measured, written and read, and refused if the file is damaged."""

from __future__ import annotations

from pathlib import Path

import pytest

from nanochat.common import UserError
from nanochat.configurator import parse
from nanochat.pipeline import speed
from nanochat.pipeline.speed import Config, main, read_speed, speed_path


@pytest.mark.slow
def test_measured(run_here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "DEPTH", 2)
    monkeypatch.setattr(speed, "REPEATS", 1)
    measured = main(parse(Config, ["--device=cpu"]))
    assert measured["flops_per_second"] > 1e6
    assert read_speed() == measured
    assert speed_path() == run_here / "speed.json"


@pytest.mark.parametrize("content", ["[]", "{}", '{"device": "cpu", "flops_per_second": 0}', '{"device": 3}', "x"])
def test_a_damaged_file(base_dir: Path, content: str) -> None:
    (base_dir / "speed.json").write_text(content, encoding="utf-8")
    with pytest.raises(UserError):
        read_speed()
