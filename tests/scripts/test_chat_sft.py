"""What is chat_sft's own: whose model it takes, and its small steps. The rest is in test_mid_train.py."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from nanochat.checkpoint_manager import open_checkpoint
from nanochat.configurator import parse
from nanochat.report import render
from nanochat.train import LoopState
from scripts import chat_sft, mid_train

FAST = ("--device=cpu", "--compile=off", "--total_batch_size=256")


def test_defaults() -> None:
    """The two scripts have the same settings, and these of them differ."""
    mid, sft = dataclasses.asdict(mid_train.Config()), dataclasses.asdict(chat_sft.Config())
    assert mid.keys() == sft.keys()
    differ = {name: (mid[name], sft[name]) for name in mid if mid[name] != sft[name]}
    assert differ == {
        "source": ("base", "mid"),
        "total_batch_size": (-1, 32768),
        "lr_scale": (1.0, 0.02),
        "warmdown": (0.2, 1.0),
    }


def test_rates() -> None:
    """A fiftieth of the rates of pretraining, falling to 0 in a straight line from the first step on."""
    config = chat_sft.Config()
    rates = config.optim_settings()
    assert (rates.matrix_lr, rates.embedding_lr, rates.unembedding_lr) == pytest.approx((0.0004, 0.004, 0.00008))
    assert [config.rates(p, 100).lr_scale for p in (0, 0.25, 0.5, 1)] == pytest.approx([1, 0.75, 0.5, 0])
    config = chat_sft.Config(warmup=0.5, warmdown=0.25, final_lr=0.1)
    assert [config.rates(p, 100).lr_scale for p in (0, 0.25, 0.5, 0.875, 1)] == pytest.approx([0, 0.5, 1, 0.55, 0.1])
    assert mid_train.Config().rates(0, 100).lr_scale == 1


def test_from_mid(run_here: Path, mixture: str) -> None:
    """Base, mid, SFT: the tag is kept, each begins with the weights of the one before, and the report shows both."""

    def weights(folder: str) -> dict[str, torch.Tensor]:
        return open_checkpoint(run_here / folder / "d1").load_weights()

    mid_train.main(parse(mid_train.Config, [mixture, *FAST, "--num_epochs=2"]))
    state: LoopState = chat_sft.main(parse(chat_sft.Config, [mixture, *FAST]))
    base, mid, sft = (weights(f"{name}_checkpoints") for name in ("base", "mid", "chatsft"))
    moved = {name: ((mid[name] - base[name]).norm(), (sft[name] - mid[name]).norm()) for name in base}
    assert all(0 < gently < 0.1 * far for far, gently in moved.values())
    losses = [row["loss"] for row in state.history if "loss" in row]
    assert losses[0] < 3.5  # it goes on where midtraining ended, in another order
    assert losses[-1] < 3.5
    metric = "held-out loss (nats per trained token)"
    found = [
        json.loads((run_here / "report" / f"{name}.json").read_text(encoding="utf-8"))
        for name in ("mid_train", "chat_sft")
    ]
    assert found[1]["metrics"][metric] < found[0]["metrics"][metric] + 0.1
    assert [section["model"] for section in found] == ["mid", "sft"]
    table = render().read_text(encoding="utf-8").partition("## Summary")[2]
    assert "| metric | mid | sft |" in " ".join(table.split())


def test_from_base(run_here: Path, mixture: str) -> None:
    """Without midtraining; and once more, from what SFT has made, into the same folder."""
    first = chat_sft.main(parse(chat_sft.Config, [mixture, *FAST, "--source=base", "--num_iterations=2"]))
    assert first.step == 2
    checkpoint = open_checkpoint(run_here / "chatsft_checkpoints" / "d1")
    assert checkpoint.meta["settings"]["source"] == "base"
    assert int(checkpoint.load_optimizer_state()["step"]) == 2, "the optimizer is a new one"
    again = chat_sft.main(parse(chat_sft.Config, [mixture, *FAST, "--source=sft", "--num_iterations=3"]))
    assert again.step == 3
