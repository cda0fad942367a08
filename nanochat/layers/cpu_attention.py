"""Causal attention for training in bfloat16 on a CPU: PyTorch's flash forward pass, and a faster backward pass.

PyTorch's backward pass on a CPU multiplies small blocks, at a fraction of the speed of a matrix product in bfloat16
(in float32 it is as fast as this one). Here a block
is `BLOCK` queries of all heads with all keys up to the last of these queries, and each product runs on all rows and
heads at once. As in FlashAttention (arXiv 2205.14135, algorithm 4) the probabilities are computed again from the
scores and the logarithms of their sums L. Where AMX works, the same is done in Rust (`layers/cpu_kernels.py`), in
smaller blocks that stay in the cache.

    P = exp(Q K^T / sqrt(D) - L)        dP = dO V^T        dS = P (dP - rowsum(dO O))
    dQ = dS K / sqrt(D)        dK = dS^T Q / sqrt(D)        dV = P^T dO

Letters in shape comments: B rows, H heads, T positions, D head size, G = B * H, n queries and S keys of a block.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from nanochat.layers import cpu_kernels

BLOCK = 256  # queries of a block


def cpu_causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Compute causal attention of q, k and v, (B, H, T, D) each, on the CPU: (B, H, T, D)."""
    out: Tensor = CPUCausalAttention.apply(q, k, v)
    return out


class CPUCausalAttention(torch.autograd.Function):
    """`cpu_causal_attention` with its gradient."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        # The function that F.scaled_dot_product_attention calls on a CPU. It also returns L, (B, H, T).
        out: Tensor
        out, log_sums = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, True)
        ctx.save_for_backward(q, k, v, out, log_sums)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gradients by q, k and v, (B, H, T, D) each, from that of the result."""
        q, k, v, out, log_sums = ctx.saved_tensors
        num_positions, head_dim = q.shape[2:]
        if q.dtype == torch.bfloat16 and head_dim % 32 == 0 and cpu_kernels.uses_amx():
            return cpu_kernels.bf16_attention_grads(q, k, v, out, log_sums, d_out)
        dtype = q.dtype
        scale = 1 / math.sqrt(head_dim)
        # (B, H, T, D) -> (G, T, D)
        q3, k3, v3, d3 = (x.reshape(-1, num_positions, head_dim) for x in (q * scale, k, v, d_out))
        means = (d_out.float() * out.float()).sum(-1).reshape(-1, num_positions, 1)  # (G, T, 1)
        log_sums = log_sums.reshape(-1, num_positions, 1)
        d_q = []
        d_k = torch.zeros(k3.shape, dtype=torch.float32, device=k.device)
        d_v = torch.zeros(v3.shape, dtype=torch.float32, device=v.device)
        for start in range(0, num_positions, BLOCK):
            end = min(start + BLOCK, num_positions)
            queries, keys = slice(start, end), slice(end)
            scores = torch.bmm(q3[:, queries], k3[:, keys].transpose(1, 2)).float()  # (G, n, S)
            is_visible = torch.ones(end - start, end, dtype=torch.bool, device=q.device).tril(start)
            probs = torch.where(is_visible, torch.exp(scores - log_sums[:, queries]), 0.0)
            d_probs = torch.bmm(d3[:, queries], v3[:, keys].transpose(1, 2)).float()  # (G, n, S)
            d_scores = (probs * (d_probs - means[:, queries])).to(dtype)
            d_q.append(torch.bmm(d_scores, k3[:, keys]))  # (G, n, D)
            d_k[:, keys] += torch.bmm(d_scores.transpose(1, 2), q3[:, queries])  # (G, S, D)
            d_v[:, keys] += torch.bmm(probs.to(dtype).transpose(1, 2), d3[:, queries])  # (G, S, D)
        return (
            (torch.cat(d_q, 1) * scale).view(q.shape),
            d_k.to(dtype).view(q.shape),
            d_v.to(dtype).view(q.shape),
        )
