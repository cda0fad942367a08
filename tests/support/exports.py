"""Exported models for tests of the export to Hugging Face and of the import."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from nanochat.checkpoint_manager import run_dir, save_checkpoint
from nanochat.common import base_dir
from nanochat.export.hf_model import special_token_ids
from nanochat.gpt import GPT, GPTConfig
from nanochat.runtime import Runtime
from nanochat.tokenizer import RustBPETokenizer, Tokenizer
from scripts import export_hf
from tests.support.hf_models import TEXTS

TOKENIZER = RustBPETokenizer.train_from_iterator(TEXTS[:2] * 3, 400)
VOCAB_SIZE = TOKENIZER.get_vocab_size()
CPU = Runtime(0, 0, 1, torch.device("cpu"), torch.float32, 42)
CONFIGS = {
    "plain": GPTConfig(sequence_len=96, vocab_size=VOCAB_SIZE, n_layer=3, n_head=2, n_kv_head=2, n_embd=64),
    "grouped": GPTConfig(
        sequence_len=96, vocab_size=VOCAB_SIZE, n_layer=2, n_head=6, n_kv_head=2, n_embd=60, softcap=0
    ),
    "one key-value head": GPTConfig(
        sequence_len=2048, vocab_size=VOCAB_SIZE, n_layer=1, n_head=3, n_kv_head=1, n_embd=42, softcap=30
    ),
}
NAMES = [*CONFIGS, "trained"]
Exported = dict[str, tuple[GPT, Path]]  # name -> model, folder of its export


def loud_model(config: GPTConfig) -> GPT:
    """A model whose output matrices are random too, and whose end tokens are never the most likely."""
    model = GPT(config)
    model.init_weights(0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, param in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight", "head.weight")):
                param.copy_(torch.randn(param.shape, generator=generator) * (3 / param.size(1) ** 0.5))
        model.head.weight[special_token_ids(TOKENIZER)["eos_token_id"]] = 0
    return model


def trained_model() -> GPT:
    """A model after a few steps on the texts."""
    model = loud_model(CONFIGS["grouped"])
    ids = torch.tensor([TOKENIZER.encode(text, prepend="<|bos|>")[:32] for text in TEXTS[:2]])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(8):
        optimizer.zero_grad()
        model(ids[:, :-1], ids[:, 1:]).backward()
        optimizer.step()
    return model


def save(model: GPT, source: str = "base", tokenizer: Tokenizer = TOKENIZER, **meta: Any) -> Path:
    """Save a checkpoint d9 of step 7 in the base folder, with its tokenizer."""
    tokenizer.save(base_dir() / "tokenizer")
    whole = {"compute_dtype": "float32", "tokenizer_hash": tokenizer.hash(), "model_config": asdict(model.config)}
    return save_checkpoint(run_dir(source, "d9"), 7, model.state_dict(), {}, {**whole, **meta})


def export_all(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Export a model of each of NAMES, each from a base folder of its own."""
    exported = {}
    with pytest.MonkeyPatch.context() as patch:
        for name in NAMES:
            folder = tmp_path_factory.mktemp("hf")
            patch.setenv("NANOCHAT_BASE_DIR", str(folder / "base"))
            model = trained_model() if name == "trained" else loud_model(CONFIGS[name])
            save(model)
            exported[name] = model, export_hf.main(export_hf.Config(out=folder / "out"))
    return exported


def random_prompt(length: int, seed: int = 0) -> torch.Tensor:
    """Random ids (1, T) after `<|bos|>`."""
    ids = torch.randint(0, VOCAB_SIZE, (1, length), generator=torch.Generator().manual_seed(seed))
    ids[0, 0] = TOKENIZER.get_bos_token_id()
    return ids


def has_special_name(text: str) -> bool:
    """Return True if a text contains the name of a special token."""
    return any(name in text for name in TOKENIZER.special_tokens)
