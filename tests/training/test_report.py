"""The report of a pretraining run and the curves of its history."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nanochat.checkpoint_manager import build_model
from nanochat.train import LoopState
from nanochat.training.report import CURVES, MANY_EPOCHS, curves, report_pretraining
from tests.support.training import CPU, SHAPE, Config


def test_report(base_dir: Path) -> None:
    """The last measurements of the history, and the speed over the whole run."""
    history = [
        {"step": 1, "loss": 3.0, "lr_multiplier": 1.0, "tokens_per_second": 5.0},
        {"step": 1, "val_bpb": 2.0},
        {"step": 2, "loss": 2.5, "lr_multiplier": 0.5, "tokens_per_second": 5.0},
        {"step": 2, "val_bpb": 1.5},
    ]
    model = build_model(SHAPE, CPU)
    report_pretraining(Config(), model, CPU, LoopState(seconds=4.0, history=history, cursor={"tokens": 1000}))
    section = json.loads((base_dir / "report" / "base_train.json").read_text(encoding="utf-8"))
    metrics = section["metrics"]
    assert metrics["training loss (nats per token)"] == 2.5
    assert metrics["validation bits per byte"] == 1.5
    assert metrics["tokens per second"] == 250
    assert metrics["training FLOPs"] == 1000 * model.estimate_flops()
    assert section["settings"]["depth"] == 4
    assert {(curve["x"][-1], curve["y"][-1]) for curve in section["curves"].values()} >= {(2, 2.5), (2, 1.5), (2, 0.5)}


def test_many_epochs_are_noted(base_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run that reads its text 8 times or more gets a note, printed and in the report."""
    model = build_model(SHAPE, CPU)
    history = [{"step": 1, "loss": 1.0, "val_bpb": 2.0}]
    assert MANY_EPOCHS == 8
    for num_epochs, is_noted in ((7, False), (8, True)):
        state = LoopState(seconds=1.0, history=history, cursor={"epoch": num_epochs, "tokens": 1000})
        report_pretraining(Config(), model, CPU, state)
        section = json.loads((base_dir / "report" / "base_train.json").read_text(encoding="utf-8"))
        assert bool(section.get("notes")) is is_noted
        assert ("8 times" in capsys.readouterr().out) is is_noted


def test_curves() -> None:
    history = [
        {"step": 1, "loss": 3.0, "lr_multiplier": 1.0, "tokens_per_second": 2000.0},
        {"step": 1, "val_bpb": 1.5},
        {"step": 2, "loss": 2.0, "lr_multiplier": 1.0, "tokens_per_second": 2000.0},
        {"step": 3, "loss": 1.0, "lr_multiplier": 1.0, "tokens_per_second": 2000.0},
        {"step": 3, "val_bpb": 0.5},
    ]
    result = curves(history, CURVES)
    assert result["training loss"] == {"x": [1, 2, 3], "y": [3, 2, 1], "xlabel": "step", "ylabel": "nats per token"}
    assert result["validation"] == {"x": [1, 3], "y": [1.5, 0.5], "xlabel": "step", "ylabel": "bits per byte"}
    assert result["speed"]["y"] == [2000.0] * 3
    assert curves([], CURVES) == {}
