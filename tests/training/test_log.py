"""The log of a run: lines of text, a bar on a terminal, Weights & Biases, and the history."""

from __future__ import annotations

import itertools
import sys
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import pytest
import torch

from nanochat.common import UserError
from nanochat.configurator import Settings, setting
from nanochat.gpt import GPT, GPTConfig
from nanochat.runtime import Runtime
from nanochat.train import LoopState
from nanochat.training import log as train_log
from nanochat.training.log import MAX_HISTORY_POINTS, NO_RUN, TrainLog, peak_flops
from nanochat.training.report import CURVES, curves

TOKENS = 1000


@dataclass(frozen=True)
class Config(Settings):
    depth: int = setting(3, "layers")


def make_runtime(rank: int = 0, world_size: int = 1, device: str = "cpu") -> Runtime:
    return Runtime(rank, rank, world_size, torch.device(device), torch.float32, 0)


def make_log(num_steps: int, runtime: Runtime | None = None, state: LoopState | None = None) -> TrainLog:
    with torch.device("meta"):
        model = GPT(GPTConfig(sequence_len=8, vocab_size=300, n_layer=1, n_head=1, n_kv_head=1, n_embd=16))
    return TrainLog(runtime or make_runtime(), state or LoopState(), num_steps, TOKENS, model)


def log_step(log: TrainLog, state: LoopState, loss: float = 2.0, seconds: float = 0.5) -> None:
    state.step += 1
    state.seconds += seconds
    state.progress = state.step / log.output.num_steps
    log(state, {"loss": loss, "grad_norm": 0.25, "lr_multiplier": 0.75, "step_seconds": seconds})


def test_plain_lines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Lines for the first and the last step and for each event, but not for each step of a fast run."""
    monkeypatch.setattr(train_log, "SECONDS_BETWEEN_LINES", 1e9)
    state = LoopState()
    log = make_log(200)
    for _ in range(100):
        log_step(log, state)
    log(state, {"val_bpb": 1.23456})
    log(state, {})
    for _ in range(100):
        log_step(log, state, loss=1.5)
    log.close()
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[1] == "1 process(es) on cpu, computing in float32"
    assert lines[2] == "step   1/200  loss 2.0000  2,000 tok/s  lr x0.75  norm 0.250  1m 40s left"
    assert "step 100: val_bpb 1.2346" in lines
    assert lines[-1].startswith("step 200/200  loss 1.5000  2,000 tok/s")
    assert len(lines) == 5
    assert err == ""


def test_every_step_of_a_slow_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(train_log, "SECONDS_BETWEEN_LINES", -1.0)
    state = LoopState()
    log = make_log(7)
    for _ in range(7):
        log_step(log, state)
    assert [line[:8] for line in capsys.readouterr().out.splitlines()[2:]] == [f"step {i}/7" for i in range(1, 8)]


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    state = LoopState(step=3)
    log = make_log(10, state=state)
    assert log.output.bar is not None
    log_step(log, state)
    log(state, {"val_bpb": 1.5})
    assert log.output.bar.n == 4
    log.close()
    out, err = capsys.readouterr()
    assert "4/10" in err
    assert "loss 2.0000" in err
    assert "step 4: val_bpb 1.5000" in out
    assert "loss" not in out


def test_only_the_main_process_prints(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """All processes keep the same history."""
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    state = LoopState()
    log = make_log(1, make_runtime(rank=1, world_size=2))
    log.output.start_wandb("some-run", Config())
    log_step(log, state)
    log(state, {"val_bpb": 1.5})
    log.close()
    assert capsys.readouterr() == ("", "")
    assert [sorted(row) for row in state.history] == [
        ["loss", "lr_multiplier", "step", "tokens_per_second"],
        ["step", "val_bpb"],
    ]


@pytest.mark.parametrize(
    ("name", "teraflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H200", 989),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA L40S", 362),
        ("NVIDIA L4", 121),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("NVIDIA L40", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA GeForce RTX 4090 D", None),
        ("Tesla T4", None),
    ],
)
def test_mfu_needs_a_known_device(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, teraflops: float | None
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: name)
    monkeypatch.setattr("nanochat.training.log.describe_kernels", lambda *_: "training cuDNN")
    runtime = make_runtime(world_size=2, device="cuda")
    assert peak_flops(runtime) == (teraflops and 2e12 * teraflops)
    log = make_log(1, runtime)
    log_step(log, LoopState(), seconds=1e-6)
    lines = capsys.readouterr().out.splitlines()
    assert lines[2] == "Attention kernels: training cuDNN"
    line = lines[-1]
    if teraflops:
        expected = TOKENS / 1e-6 * log.flops_per_token / (2e12 * teraflops)
        assert f"MFU {expected:.1%}" in line
    else:
        assert "MFU" not in line


def test_no_peak_without_cuda() -> None:
    assert peak_flops(make_runtime()) is None


@pytest.mark.parametrize("num_steps", [1, 499, 500, 501, 999, 1000, 1203])
def test_history_is_thinned(num_steps: int) -> None:
    """At most MAX_HISTORY_POINTS points, each the mean of the steps since the one before it; every step counts."""
    state = LoopState()
    log = make_log(num_steps)
    losses = [float(i * i % 7) for i in range(num_steps)]
    for loss in losses:
        log_step(log, state, loss)
    points = [0, *(int(row["step"]) for row in state.history)]
    assert len(state.history) <= MAX_HISTORY_POINTS
    assert len(state.history) > MAX_HISTORY_POINTS / 3 or len(state.history) == num_steps
    assert points[-1] == num_steps
    for row, (start, end) in zip(state.history, itertools.pairwise(points), strict=True):
        assert row["loss"] == pytest.approx(sum(losses[start:end]) / (end - start))


def test_the_history_gives_curves() -> None:
    state = LoopState()
    log = make_log(3)
    for loss in (3.0, 2.0, 1.0):
        log_step(log, state, loss)
        if loss != 2:
            log(state, {"val_bpb": loss / 2})
    drawn = curves(state.history, CURVES)
    assert drawn["training loss"] == {"x": [1, 2, 3], "y": [3, 2, 1], "xlabel": "step", "ylabel": "nats per token"}
    assert drawn["validation"] == {"x": [1, 3], "y": [1.5, 0.5], "xlabel": "step", "ylabel": "bits per byte"}
    assert drawn["speed"]["y"] == [2000.0] * 3
    assert curves([], CURVES) == {}


def test_wandb_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"--run=mine needs wandb: pip install wandb"):
        make_log(1).output.start_wandb("mine", Config())
    make_log(1).output.start_wandb(NO_RUN, Config())


def test_wandb_receives_all_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    """Name and settings of the run, the metrics of every step, and those of every event at its step."""
    calls: list[Any] = []

    class Run:
        def log(self, metrics: dict[str, float], step: int) -> None:
            calls.append((step, metrics))

        def finish(self) -> None:
            calls.append("finished")

    def init(**arguments: Any) -> Run:
        calls.append(arguments)
        return Run()

    fake = ModuleType("wandb")
    fake.init = init  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", fake)
    log, state = make_log(2), LoopState()
    log.output.start_wandb("mine", Config())
    log_step(log, state)
    log(state, {"val_bpb": 1.5})
    log_step(log, state)
    log.close()
    step_metrics = {
        "loss": 2.0,
        "grad_norm": 0.25,
        "lr_multiplier": 0.75,
        "step_seconds": 0.5,
        "tokens_per_second": 2000.0,
    }
    assert calls == [
        {"project": "nanochat", "name": "mine", "config": {"depth": 3}},
        (1, step_metrics),
        (1, {"val_bpb": 1.5}),
        (2, step_metrics),
        "finished",
    ]


def test_a_step_that_was_skipped() -> None:
    """Its loss, which is no number, is in no point of the history; a point is the mean of the other steps."""
    state = LoopState()
    log = make_log(2 * MAX_HISTORY_POINTS)
    for loss in (1.0, float("nan"), 2.0, 4.0, float("nan"), float("inf")):
        state.skipped_in_a_row = 0 if loss < 10 else state.skipped_in_a_row + 1
        log_step(log, state, loss)
    assert [(row["step"], row["loss"]) for row in state.history] == [(2, 1.0), (4, 3.0)]
    assert state.recent == []
