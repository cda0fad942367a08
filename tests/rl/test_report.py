"""The report's section of a reinforcement learning run."""

from __future__ import annotations

import json
from pathlib import Path

from nanochat.rl.report import report_rl
from nanochat.train import LoopState
from scripts.chat_rl import Config
from tests.support.rl import ONE_PROCESS


def test_report(base_dir: Path) -> None:
    """The last evaluation as metrics, the first one in a note, and a curve for each metric of the history."""
    history = [
        {"step": 0, "A pass@1": 0.25, "A pass@4": 0.5, "A tool": 0.0},
        {"step": 1, "reward": 0.5, "A reward": 0.5, "signal": 0.75, "length": 12.0},
        {"step": 2, "reward": 0.7, "A reward": 0.7, "signal": 0.25, "length": 10.0},
        {"step": 2, "A pass@1": 0.75, "A pass@4": 1.0, "A tool": 0.5},
    ]
    state = LoopState(step=2, seconds=6.0, history=history)
    report_rl(Config(), ONE_PROCESS, state, {"A": 8})
    section = json.loads((base_dir / "report" / "chat_rl.json").read_text(encoding="utf-8"))
    metrics = section["metrics"]
    assert (metrics["steps"], metrics["seconds per step"]) == (2, 3.0)
    assert (metrics["A pass@1"]["value"], metrics["A pass@1"]["n"]) == (0.75, 8)
    assert metrics["A pass@4"]["value"] == 1.0
    assert metrics["A, answers that use the tool"] == 0.5
    assert section["notes"] == ["A: pass@1 0.250 after step 0, 0.750 after step 2."]
    assert section["curves"]["A"]["y"] == [0.5, 0.7]
    assert section["curves"]["A, held out"]["y"] == [0.25, 0.75]
    assert section["curves"]["answers"]["y"] == [12.0, 10.0]


def test_report_of_one_evaluation(base_dir: Path) -> None:
    """Without an evaluation before training there is nothing to compare in a note."""
    state = LoopState(step=1, seconds=1.0, history=[{"step": 1, "A pass@1": 0.5, "A tool": 0.0}])
    report_rl(Config(), ONE_PROCESS, state, {"A": 8})
    section = json.loads((base_dir / "report" / "chat_rl.json").read_text(encoding="utf-8"))
    assert not section.get("notes")
