"""Events: bits per byte and samples are those of the model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nanochat.checkpoint_manager import build_model
from nanochat.data.shards import write_dataset
from nanochat.train import LoopState
from nanochat.training.events import bpb_evaluator, sample_printer
from tests.support.training import CPU, SHAPE, train_tokenizer


def test_bpb_evaluator(base_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An untrained model gives all tokens the same probability. A validation shard that is too small is reported."""
    write_dataset(["unused"], ["some words", "more words"], base_dir / "base_data", source="test")
    model = build_model(SHAPE, CPU)
    tokenizer = train_tokenizer(base_dir)
    measure = bpb_evaluator(model, tokenizer, CPU, max_tokens=1000, batch_size=3, sequence_len=SHAPE.sequence_len)
    metrics = measure(LoopState())
    documents = [tokenizer.encode(text) for text in ("some words", "more words")]
    num_predicted = sum(map(len, documents))  # all but the first bos; the second has no bytes and is not counted
    expected = num_predicted * torch.tensor(270.0).log2().item() / len("some wordsmore words")
    assert metrics["val_bpb"] == pytest.approx(expected, rel=1e-5)
    output = capsys.readouterr().out
    assert f"The validation shard has only {num_predicted + 1} of the --eval_tokens=1,000 tokens" in output


def test_sample_printer(base_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The main process prints a line for each prompt, and the others nothing."""
    tokenizer = train_tokenizer(base_dir)
    model = build_model(replace(SHAPE, sequence_len=128), CPU)
    prompts = ["some words", "and"]
    assert sample_printer(model, tokenizer, CPU, prompts)(LoopState()) == {}
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[0] for line in lines] == ["  some words", "  and"]
    assert sample_printer(model, tokenizer, replace(CPU, rank=1), prompts)(LoopState()) == {}
    assert capsys.readouterr().out == ""
