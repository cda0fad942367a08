"""The benchmark of the loaders runs on small data, and its simulated training loop waits when it should."""

from __future__ import annotations

import importlib
import itertools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from nanochat.common import UserError
from nanochat.data.shards import write_dataset
from nanochat.dataloader import MicroBatch
from tests.support.talks import TOKENIZER

bench_loader: Any = importlib.import_module("dev.bench_loader")  # dev is not a package
SMALL = {"world_size": 2, "device_batch_size": 2, "max_seq_len": 256, "demand": 100_000, "kernels": 3, "seconds": 0.01}


@pytest.mark.slow
def test_bench_loader(base_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    TOKENIZER.save(base_dir / "tokenizer")
    write_dataset(["some text"] * 500, ["held out"], base_dir / "base_data", source="storyworld")
    results = bench_loader.main(bench_loader.Config(stages="base,sft", **SMALL))
    assert results["base"]["all cores"] > 0
    assert results["sft"]["all cores"] > 0
    assert {"read", "turns", "encode", "assemble", "pack", "collate"} < set(results["sft"])
    assert all(0 <= results[stage]["thread, wait"] < 1 for stage in ("base", "sft"))
    assert "process, wait" in results["sft"]
    out = capsys.readouterr().out
    for words in ("demand 100,000 tokens/s", "tokens/s", "microseconds for a conversation of", "waiting"):
        assert words in out


def test_the_simulated_loop_counts_its_waits() -> None:
    """A loader that takes longer than a step makes the loop wait for most of the time; one that is ready, for none."""
    config = bench_loader.Config(**{**SMALL, "demand": 1_000_000})  # steps of a millisecond
    zeros = torch.zeros(2, 8, dtype=torch.int64)
    batch = MicroBatch(zeros, zeros, 0.0, {})

    def slow() -> Iterator[MicroBatch]:
        while True:
            time.sleep(0.02)
            yield batch

    waiting = bench_loader.simulate_training(slow(), config)
    assert waiting.total > waiting.wait >= 0.02
    ready = bench_loader.simulate_training(itertools.repeat(batch), config)
    assert ready.total >= config.step_seconds
    assert ready.wait < waiting.wait


def test_unknown_stage() -> None:
    with pytest.raises(UserError, match="stages: 'rl' is not known: choose from base, mid, sft"):
        bench_loader.Config(stages="base,rl")


def test_command_line() -> None:
    """The module runs under the name in its docstring."""
    assert "python -m dev.bench_loader" in (bench_loader.__doc__ or "")
