"""The functions of steps/launch.py in plain torch: what the kernels compute, to compare and to stand in for them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nanochat.gpt import apply_rotary, rms_norm


def use_torch_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a `TritonStep` compute in torch."""
    from nanochat.steps import launch

    for function in (embed, linear, rotate, attend):
        monkeypatch.setattr(launch, function.__name__, function)


def embed(ids: Tensor, table: Tensor) -> Tensor:
    return rms_norm(table[ids.long()].float()).to(table.dtype)


def linear(
    x: Tensor,
    weight: Tensor,
    *,
    is_normalized: bool = False,
    is_relu_squared: bool = False,
    residual: Tensor | None = None,
    softcap: float = 0.0,
    num_out: int | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    values = rms_norm(x.float()) if is_normalized else x.float()
    y = values @ weight[:num_out].float().T
    if is_relu_squared:
        y = F.relu(y).square()
    if residual is not None:
        y = y + residual.float()
    if softcap:
        y = softcap * torch.tanh(y / softcap)
    return y.to(dtype or x.dtype)


def rotate(
    qkv: Tensor, cos: Tensor, sin: Tensor, inputs: object, keys: Tensor, values: Tensor, num_heads: int
) -> Tensor:
    _, num_kv_heads, block_len, head_dim = keys.shape
    where = inputs.positions.long()  # type: ignore[attr-defined]
    heads = qkv.unflatten(1, (-1, head_dim)).float()  # (N, H + 2K, D)
    q, k, v = heads.split([num_heads, num_kv_heads, num_kv_heads], dim=1)
    c, s = (table[where][:, None].float() for table in (cos, sin))  # (N, 1, D/2)
    blocks = inputs.tables[inputs.rows.long(), where // block_len].long()  # type: ignore[attr-defined]
    keys[blocks, :, where % block_len] = rms_norm(apply_rotary(k, c, s)).to(keys.dtype)
    values[blocks, :, where % block_len] = v.to(values.dtype)
    return rms_norm(apply_rotary(q, c, s)).to(qkv.dtype)


def attend(queries: Tensor, inputs: object, keys: Tensor, values: Tensor, context_len: int) -> Tensor:
    assert context_len <= inputs.tables.size(1) * keys.size(2)  # type: ignore[attr-defined]
    tables = inputs.tables[inputs.rows.long()].long()  # type: ignore[attr-defined]  # (N, M)
    # (N, M, K, L, D) -> (N, K, M * L, D)
    k, v = (part[tables].transpose(1, 2).flatten(2, 3).float() for part in (keys, values))
    columns = torch.arange(k.size(2), device=k.device)
    mask = columns <= inputs.positions[:, None, None, None]  # type: ignore[attr-defined]  # (N, 1, 1, S)
    y = F.scaled_dot_product_attention(queries.float()[:, :, None], k, v, attn_mask=mask, enable_gqa=True)
    return y.flatten(1).to(queries.dtype)  # (N, H, 1, D) -> (N, H * D)
