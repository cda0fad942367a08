"""Small models for tests."""

from __future__ import annotations

from typing import Any

import torch

from nanochat.gpt import GPT, GPTConfig


def random_model(sequence_len: int, vocab_size: int = 265, *, scale: float = 0.3, seed: int = 3, **shape: Any) -> GPT:
    """Return a small model with random weights in every matrix: a newly initialized model finds all tokens alike."""
    sizes = {"n_layer": 1, "n_head": 1, "n_kv_head": 1, "n_embd": 16, **shape}
    model = GPT(GPTConfig(sequence_len=sequence_len, vocab_size=vocab_size, **sizes))
    model.init_weights()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for param in model.parameters():
            param.copy_(torch.randn(param.shape, generator=generator) * scale)
    return model


def constant_model(sequence_len: int, token: int, vocab_size: int = 265, **shape: int) -> GPT:
    """A model for which one token is the most likely at every position."""
    model = random_model(sequence_len, vocab_size, **shape)
    with torch.no_grad():
        for name, param in model.named_parameters():  # the hidden state is the same at every position
            param.fill_(1.0 if name == "embed.weight" else 0.0)
        model.head.weight[token] = 1.0  # the only logit above 0
    return model
