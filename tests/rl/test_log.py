"""The log of reinforcement learning: lines of text and the history."""

from __future__ import annotations

import pytest

from nanochat.rl.log import RLLog
from nanochat.train import LoopState
from nanochat.training import log as training_log
from tests.support.rl import ONE_PROCESS, tiny_model

STEP = {
    "reward": 0.5,
    "signal": 0.75,
    "tool": 0.25,
    "ended": 1.0,
    "length": 12.4,
    "lr_multiplier": 0.5,
    "grad_norm": 0.125,
    "rollout_seconds": 1.5,
    "step_seconds": 2.0,
}


def test_lines_and_history(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A line for each slow step, none for an event; both are added to the history, an event without metrics is not."""
    monkeypatch.setattr(training_log, "SECONDS_BETWEEN_LINES", -1.0)
    model = tiny_model()
    state = LoopState()
    log = RLLog(ONE_PROCESS, state, 10, completions_per_step=64, model=model)
    log(state, {"Bandit pass@1": 0.5})
    state.step, state.progress, state.seconds = 1, 0.1, 2.0
    log(state, STEP)
    log(state, {})
    log.close()
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        f"{model.num_params():,} parameters, 10 steps of 64 completions",
        "1 process(es) on cpu, computing in float32",
        "step  1/10  reward 0.500  signal 0.750  tool 0.250  ended 1.000  length 12  lr x0.5000  norm 0.125  "
        "2.0 s (1.5 for rollouts)  18.0s left",
    ]
    assert state.history == [{"step": 0, "Bandit pass@1": 0.5}, {"step": 1, **STEP}]
