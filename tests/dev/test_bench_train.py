"""The training benchmark runs, and its numbers are consistent with each other."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

from nanochat.common import UserError

bench_train: Any = importlib.import_module("dev.bench_train")  # dev is not a package


@pytest.mark.usefixtures("run_here")
@pytest.mark.slow
def test_bench_train(capsys: pytest.CaptureFixture[str]) -> None:
    config = bench_train.Config(
        device="cpu",
        depth=1,
        head_dim=32,
        vocab_size=300,
        max_seq_len=16,
        device_batch_size=2,
        total_batch_size=64,
        compile="off",
        steps=3,
        products=64,
        copied=1000,
    )
    results = bench_train.main(config)
    flops_per_token = 6 * (12 * 64 * 64 + 320 * 64) + 12 * 64 * 16
    assert results["flops_per_second"] == pytest.approx(results["tokens_per_second"] * flops_per_token)
    assert all(value > 0 for value in results.values())
    assert max(results[name] for name in ("forward_backward", "optimizer", "rest")) < 1
    assert results["forward_backward_fraction"] > results["fraction"]
    assert results["plain_peak_memory"] > 2 * 16 * 300 * 4  # the plain twin's logits, float32 (B, T, V)
    assert results["plain_flops_per_second"] == pytest.approx(results["plain_tokens_per_second"] * flops_per_token)
    out = capsys.readouterr().out
    parts = ("forward + backward", "optimizer", "rest", "peak memory", "plain twin", "float32")
    for words in ("tokens/s", "GFLOP/s", "GB/s", "training / products", *parts):
        assert words in out


def test_impossible_settings() -> None:
    with pytest.raises(UserError, match="choose 8192"):
        bench_train.Config(total_batch_size=5000)
    with pytest.raises(UserError, match="steps is 0"):
        bench_train.Config(steps=0)


def test_command_line() -> None:
    """The module runs under the name in its docstring."""
    assert Path(bench_train.__file__).parent.name == "dev"
    assert "python -m dev.bench_train" in (bench_train.__doc__ or "")
