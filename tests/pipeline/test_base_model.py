"""A start from a base model: the copy is complete, is made once, and the run has the time of one from nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from nanochat.checkpoint_manager import build_model, model_meta, save_checkpoint
from nanochat.common import UserError
from nanochat.gpt import GPT, GPTConfig
from nanochat.pipeline import base_model, sizing
from nanochat.tokenizer import get_tokenizer
from tests.support.talks import TOKENIZER
from tests.support.training import CPU, train_tokenizer

SHAPE = GPTConfig(sequence_len=16, vocab_size=TOKENIZER.get_vocab_size(), n_layer=1, n_head=2, n_kv_head=2, n_embd=16)


@pytest.fixture
def origin(tmp_path: Path) -> Path:
    """A base folder with a model and its tokenizer."""
    folder = tmp_path / "origin"
    TOKENIZER.save(folder / "tokenizer")
    model = build_model(SHAPE, CPU)
    meta = model_meta(model, CPU, TOKENIZER)
    save_checkpoint(folder / "base_checkpoints" / "d1", 7, model.state_dict(), {}, meta)
    return folder


def test_the_copy(origin: Path, base_dir: Path) -> None:
    copy = base_model.copy_base_model(origin, base_dir, "d1")
    assert copy.path == base_dir / "base_checkpoints" / "d1" / "step_000007"
    assert copy.load_weights().keys() == GPT(SHAPE).state_dict().keys()
    assert get_tokenizer().hash() == TOKENIZER.hash()
    marker = copy.path / "marker"
    marker.touch()
    assert base_model.copy_base_model(origin, base_dir, "d1").path == copy.path
    assert marker.exists()


def test_refused(origin: Path, base_dir: Path) -> None:
    with pytest.raises(UserError, match="no checkpoint in"):
        base_model.copy_base_model(origin, base_dir, "d9")
    train_tokenizer(base_dir)
    with pytest.raises(UserError, match="another tokenizer"):
        base_model.copy_base_model(origin, base_dir, "d1")


def test_a_larger_model_takes_fewer_steps() -> None:
    own = sizing.size_run(10_000_000, 15, 1e11)
    shape = GPTConfig(sequence_len=512, vocab_size=own.vocab_size, n_layer=12, n_head=12, n_kv_head=12, n_embd=768)
    size = base_model.size_further_run(own, shape, 10_000_000)
    with torch.device("meta"):
        cost = GPT(shape).estimate_flops()
    budget = own.num_tokens * sizing.flops_per_token(own.depth, own.vocab_size)
    faster = 1 / sizing.speed_of_depth(own.depth)  # 12 layers use the processor better than so few
    assert faster > 1
    assert size.num_tokens * cost == pytest.approx(budget * faster, rel=0.1)
    assert size.depth == 12
    little = base_model.size_further_run(own, shape, 100_000)
    assert little.passes <= base_model.FURTHER_PASSES + 0.5
