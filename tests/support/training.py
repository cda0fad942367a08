"""A tiny shape, a tokenizer and a config for tests of what surrounds the training loop."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from nanochat.configurator import Settings, setting
from nanochat.gpt import GPTConfig
from nanochat.runtime import Runtime
from nanochat.tokenizer import RustBPETokenizer, Tokenizer

CPU = Runtime(0, 0, 1, torch.device("cpu"), torch.float32, 42)
SHAPE = GPTConfig(sequence_len=16, vocab_size=270, n_layer=1, n_head=2, n_kv_head=2, n_embd=16)
META: Any = {  # of a checkpoint
    "settings": {},
    "model_config": asdict(SHAPE),
    "compute_dtype": "float32",
    "tokenizer_hash": "",
}


@dataclass(frozen=True)
class Config(Settings):
    """The settings of a training script."""

    depth: int = setting(4, "layers")
    lr: float = setting(0.5, "learning rate")
    name: str | None = setting(None, "name")
    quiet: bool = setting(False, "print less")
    device_batch_size: str = setting("auto", "rows")
    resume: bool = setting(False, "resume")
    resume_from_step: int = setting(-1, "resume from this step")


def train_tokenizer(base_dir: Path) -> Tokenizer:
    """Train a tokenizer of 270 tokens and save it in a base folder."""
    tokenizer = RustBPETokenizer.train_from_iterator(iter(["some words, and some more words"]), 270)
    tokenizer.save(base_dir / "tokenizer")
    return tokenizer
