"""base_loss from end to end on a tiny checkpoint, and the check of its samples."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from nanochat.checkpoint_manager import load_model
from nanochat.configurator import cli
from nanochat.data import storyworld
from nanochat.data.shards import open_split, write_dataset
from nanochat.dataloader import document_eval_rows
from nanochat.loss_eval import bits_per_byte
from nanochat.report import render
from nanochat.reporting.schema import proportion
from nanochat.runtime import Runtime
from scripts import base_loss, base_train
from scripts.base_loss import Config, main
from tests.support.talks import TOKENIZER


def train_tiny(folder: Path, source: str, texts: Sequence[str]) -> None:
    """Make a base folder with a checkpoint of three steps."""
    TOKENIZER.save(folder / "tokenizer")
    write_dataset(texts[1:], texts[:1], source=source)
    base_train.main(
        base_train.Config(
            depth=1,
            head_dim=32,
            max_seq_len=64,
            total_batch_size=256,
            num_iterations=3,
            eval_tokens=256,
            sample_every=-1,
            device="cpu",
        )
    )


def replace_samples(monkeypatch: pytest.MonkeyPatch, texts: Sequence[str], whole: bool = False) -> None:
    """Replace the model's samples: `texts` continue the prompts."""

    def write(_model: Any, _tokenizer: Any, prompts: Sequence[str], *_: Any) -> list[dict[str, Any]]:
        return [{"prompt": p, "text": t, "whole": whole} for p, t in zip(prompts, texts, strict=True)]

    monkeypatch.setattr(base_loss, "generate_samples", write)


def test_end_to_end(run_here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Bits per byte of both splits, to the last bit; samples; and the report's section."""
    texts = list(islice(storyworld.generate_stories("train", 1), 12))
    train_tiny(run_here, "storyworld", texts)
    config = Config(device="cpu", eval_tokens=1000, num_samples=3, max_sample_tokens=20, device_batch_size=2)
    metrics = main(config)
    runtime = Runtime.start(0, "cpu")
    model, tokenizer, _ = load_model("base", runtime)
    token_bytes = torch.tensor(tokenizer.token_bytes())
    for split, name in (("train", "training"), ("val", "validation")):
        rows, _ = document_eval_rows(open_split(split), tokenizer, 64, 1000)
        assert metrics[f"{name} bits per byte"] == bits_per_byte(model, rows, token_bytes, 2, runtime)
    section = json.loads((run_here / "report" / "base_loss.json").read_text(encoding="utf-8"))
    assert section["metrics"] == metrics
    assert [sample["prompt"] for sample in section["samples"]] == [
        tokenizer.decode(tokenizer.encode(prompt)[:31]) for prompt in storyworld.generate_prompts(3, 42)
    ]
    assert all(
        len(tokenizer.encode(sample["text"])) <= 20 or "\ufffd" in sample["text"] for sample in section["samples"]
    )
    assert section["notes"] == ["Checkpoint d1 of step 3, computing in float32."]
    assert section["checkpoint"] == "d1:3"
    assert "validation bits per byte" in render().read_text(encoding="utf-8")
    assert f"validation bits per byte: {metrics['validation bits per byte']:.4f}" in capsys.readouterr().out


def test_sound_sentences(run_here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Every complete generated sentence counts once; those of the prompt and an incomplete one do not."""
    train_tiny(run_here, "storyworld", ["Some text.", "Some more text."])
    prompts = ["Rusty the fox lives in the old", "Rusty lives in the old barn. Rusty", "Rusty the fox"]
    monkeypatch.setattr(storyworld, "generate_prompts", lambda count, _: prompts[:count])
    replace_samples(monkeypatch, [" barn. Rusty lives in the mill. Rus", " lives in the old barn. He", " xyzzy plugh."])
    metrics = main(Config(device="cpu", eval_tokens=64, num_samples=3))
    samples = json.loads((run_here / "report" / "base_loss.json").read_text(encoding="utf-8"))["samples"]
    assert [[v["sound"] for v in sample["verdicts"]] for sample in samples] == [[True, False], [True], [False]]
    assert [sample["share_sound"] for sample in samples] == [0.5, 1.0, 0.0]
    assert metrics["sound sentences in samples"] == proportion(2, 4)
    assert "sound sentences in samples: 50.0% of 4 (95% interval 15.0% to 85.0%)" in capsys.readouterr().out


def test_other_text_is_not_checked(run_here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train_tiny(run_here, "folder", ["Some text.", "Some more text."])
    replace_samples(monkeypatch, [" barn."] * 7)
    metrics = main(Config(device="cpu", eval_tokens=64, num_samples=7))
    assert metrics.keys() == {"training bits per byte", "validation bits per byte"}
    samples = json.loads((run_here / "report" / "base_loss.json").read_text(encoding="utf-8"))["samples"]
    assert len(samples) == 7
    assert not any("verdicts" in sample for sample in samples)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--device_batch_size=0"], "device_batch_size is 0"),
        (["--temperature=-1"], "temperature is -1.0: it must be at least 0"),
        (["--hf-path=x", "--step=3"], "choose either --model_tag and --step, or --hf_path"),
        (["--model_tag=d9"], "no checkpoint in"),
        ([], "no base checkpoint in"),
        (["-s", "first"], "step"),
    ],
)
@pytest.mark.usefixtures("run_here")
def test_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["base_loss", *flags, "--device=cpu"])
    with pytest.raises(SystemExit) as caught:
        cli(Config, main, base_loss.__doc__)
    error = capsys.readouterr().err
    assert caught.value.code == 2
    assert message in error
    assert error.count("\n") == 1
