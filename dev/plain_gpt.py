"""The model in its plainest form: the slow twin that tests and benchmarks compare the trained model with.

It computes what `GPT.forward` computes with targets, from the same weights, in the formulas as they are written: no
chunks, no compiled regions, no backward pass of its own. All logits and their gradient are in memory at once.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from nanochat.gpt import GPT, NORM_EPS, Block


class PlainGPT:
    """A function of a model's weights. Letters in shape comments are those of nanochat/gpt.py."""

    def __init__(self, model: GPT) -> None:
        self.model = model

    def __call__(self, idx: Tensor, targets: Tensor, loss_reduction: str = "mean") -> Tensor:
        """Return the cross-entropy of `targets` (B, T), reduced as in `GPT.forward`."""
        model = self.model
        config = model.config
        cos = model.rope_cos[: idx.size(1)].to(model.compute_dtype)  # (T, D/2)
        sin = model.rope_sin[: idx.size(1)].to(model.compute_dtype)

        def heads(y: Tensor) -> Tensor:
            return y.view(*y.shape[:2], -1, config.head_dim).transpose(1, 2)  # (B, T, H * D) -> (B, H, T, D)

        def linear(y: Tensor, weight: Tensor) -> Tensor:
            return y @ weight.to(y.dtype).t()

        x = _norm(F.embedding(idx, model.embed.weight).to(model.compute_dtype))  # (B, T) -> (B, T, C)
        for block in model.blocks:
            assert isinstance(block, Block)
            attn, mlp = block.attn, block.mlp
            y = _norm(x)
            q = _norm(_rotate(heads(linear(y, attn.q_proj.weight)), cos, sin))
            k = _norm(_rotate(heads(linear(y, attn.k_proj.weight)), cos, sin))
            v = heads(linear(y, attn.v_proj.weight))
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=config.n_kv_head < config.n_head)
            x = x + linear(y.transpose(1, 2).flatten(2), attn.o_proj.weight)  # (B, H, T, D) -> (B, T, C)
            x = x + linear(linear(_norm(x), mlp.up_proj.weight).relu().square(), mlp.down_proj.weight)
        raw = linear(_norm(x), model.head.weight)[..., : config.vocab_size]  # (B, T, V)
        logits = raw.float()
        if config.softcap:
            logits = config.softcap * torch.tanh(logits / config.softcap)
        losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1, reduction="none")
        if loss_reduction == "none":
            return losses.view(targets.shape)
        return losses.sum() if loss_reduction == "sum" else losses.sum() / (targets != -1).sum().clamp(min=1)


def _norm(x: Tensor) -> Tensor:
    return F.rms_norm(x, (x.size(-1),), eps=NORM_EPS)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    x1, x2 = x.chunk(2, dim=-1)
    return torch.cat((x1 * cos + x2 * sin, x2 * cos - x1 * sin), dim=-1)
