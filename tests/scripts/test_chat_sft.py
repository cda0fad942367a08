"""chat_sft's command line, its defaults, and the models it starts from.

What it has in common with mid_train is tested in tests/training/test_finetune.py.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from nanochat.checkpoint_manager import open_checkpoint
from nanochat.configurator import parse
from nanochat.report import render
from nanochat.train import LoopState
from nanochat.training.settings import optim_settings, scheduled_rates
from scripts import chat_sft, mid_train
from tests.support.finetune import REFUSED_FLAGS

FAST = ("--device=cpu", "--compile=off", "--total_batch_size=256")


@pytest.mark.usefixtures("no_device")
@pytest.mark.parametrize(("flag", "words"), REFUSED_FLAGS)
def test_refused(refusal: Callable[..., str], flag: str, words: str) -> None:
    assert words in refusal(chat_sft, flag)


def test_defaults() -> None:
    """chat_sft has the settings of mid_train; only these defaults differ."""
    mid = dataclasses.asdict(mid_train.Config())
    sft = dataclasses.asdict(chat_sft.Config())
    assert mid.keys() == sft.keys()
    different = {name: (mid[name], sft[name]) for name in mid if mid[name] != sft[name]}
    assert different == {
        "source": ("base", "mid"),
        "total_batch_size": (-1, 32768),
        "init_lr_frac": (1.0, 0.02),
        "warmdown_ratio": (0.2, 1.0),
    }


def test_rates() -> None:
    """A fiftieth of the learning rates of pretraining, falling linearly to 0 from the first step on."""
    config = chat_sft.Config()
    settings = optim_settings(config)
    assert (settings.matrix_lr, settings.embedding_lr, settings.unembedding_lr) == pytest.approx(
        (0.0004, 0.004, 0.00008)
    )

    def multipliers(config: chat_sft.Config, *progress: float) -> list[float]:
        return [scheduled_rates(config, value, 100).lr_multiplier for value in progress]

    assert multipliers(config, 0, 0.25, 0.5, 1) == pytest.approx([1, 0.75, 0.5, 0])
    config = chat_sft.Config(warmup_ratio=0.5, warmdown_ratio=0.25, final_lr_frac=0.1)
    assert multipliers(config, 0, 0.25, 0.5, 0.875, 1) == pytest.approx([0, 0.5, 1, 0.55, 0.1])
    assert scheduled_rates(mid_train.Config(), 0, 100).lr_multiplier == 1


@pytest.mark.slow
def test_from_mid(run_here: Path, mixture: str) -> None:
    """Base, mid, SFT: each keeps the tag and starts with the weights of the one before; the report shows both."""

    def weights(folder: str) -> dict[str, torch.Tensor]:
        return open_checkpoint(run_here / folder / "d1").load_weights()

    mid_train.main(parse(mid_train.Config, [mixture, *FAST, "--num_epochs=2"]))
    state: LoopState = chat_sft.main(parse(chat_sft.Config, [mixture, *FAST]))
    base, mid, sft = (weights(f"{name}_checkpoints") for name in ("base", "mid", "chatsft"))
    for name in base:
        mid_update = (mid[name] - base[name]).norm()
        sft_update = (sft[name] - mid[name]).norm()
        assert 0 < sft_update < 0.1 * mid_update
    losses = [row["loss"] for row in state.history if "loss" in row]
    assert losses[0] < 3.5, "SFT continues from the weights of midtraining"
    assert losses[-1] < 3.5
    metric = "held-out loss (nats per trained token)"
    sections = [
        json.loads((run_here / "report" / f"{name}.json").read_text(encoding="utf-8"))
        for name in ("mid_train", "chat_sft")
    ]
    assert sections[1]["metrics"][metric] < sections[0]["metrics"][metric] + 0.1
    assert [section["model"] for section in sections] == ["mid", "sft"]
    table = render().read_text(encoding="utf-8").partition("## Summary")[2]
    assert "| metric | mid | sft |" in " ".join(table.split())


def test_from_base(run_here: Path, mixture: str) -> None:
    """A run without midtraining, and another that starts from its result, in the same folder."""
    state = chat_sft.main(parse(chat_sft.Config, [mixture, *FAST, "--source=base", "--num_iterations=2"]))
    assert state.step == 2
    checkpoint = open_checkpoint(run_here / "chatsft_checkpoints" / "d1")
    assert checkpoint.meta["settings"]["source"] == "base"
    assert int(checkpoint.load_optimizer_state()["step"]) == 2, "the optimizer is a new one"
    second_state = chat_sft.main(parse(chat_sft.Config, [mixture, *FAST, "--source=sft", "--num_iterations=3"]))
    assert second_state.step == 3
