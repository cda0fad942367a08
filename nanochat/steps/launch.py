"""The kernels as functions of tensors: tile sizes, grids and results. This module needs Triton.

Letters in shape comments: N tokens of the step, A tiles of attention, R sequences, M blocks of a sequence, C width, H
query heads, K key-value heads, D head size, S splits of the positions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from nanochat.gpt import NORM_EPS
from nanochat.steps import kernels

# Rows of a tile, for one token or many: 16 are those of the tensor cores' instruction m16n8k16; from 64 on, Hopper's
# compiler would choose another one. A product of many rows reads its weights once for each tile.
LINEAR_ROWS = 32
ATTENTION_ROWS = 16
MIN_SPLIT_LEN = 128
MAX_SPLITS = 16  # programs that share the positions of a sequence


@dataclass(frozen=True)
class AttentionInputs:
    """Positions and blocks of a step's tokens, and tiles of neighbouring tokens of a sequence; all int32."""

    positions: Tensor  # (N,)
    rows: Tensor  # (N,), the sequence of each token
    tables: Tensor  # (R, M), its blocks in order
    tile_starts: Tensor  # (A,), the first token of each tile
    tile_lengths: Tensor  # (A,), at most `tokens_of_a_tile`


def tokens_of_a_tile(num_heads: int, num_kv_heads: int) -> int:
    """Return how many tokens of a sequence attend together: their query heads fill the rows of a product.

    >>> tokens_of_a_tile(10, 10), tokens_of_a_tile(12, 4), tokens_of_a_tile(64, 2)
    (16, 5, 1)
    """
    return max(1, ATTENTION_ROWS // (num_heads // num_kv_heads))


def split_len(context_len: int) -> int:
    """Return the number of positions that one program of attention reads: the same for every token of a model.

    >>> [split_len(context_len) for context_len in (64, 2048, 2049, 65536)]
    [128, 128, 256, 4096]
    """
    return max(MIN_SPLIT_LEN, int(triton.next_power_of_2(math.ceil(context_len / MAX_SPLITS))))


def embed(ids: Tensor, table: Tensor) -> Tensor:
    """Return the normalized embeddings of token ids, (N,), (V, C) -> (N, C)."""
    width = table.size(1)
    out = table.new_empty(len(ids), width)
    launch(
        kernels.embed_kernel,
        (len(ids),),
        (ids, table, out),
        {"WIDTH": width, "EPS": NORM_EPS, "BLOCK": triton.next_power_of_2(width)},
    )
    return out


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
    """Return x W^T, (N, C), (outputs, C) -> (N, num_out), where `num_out` is the number of outputs or fewer.

    `is_normalized`: of RMSNorm(x). `is_relu_squared`: max(y, 0)^2. `residual` (N, num_out) is added. `softcap`: the
    results are capped. `dtype` of the results: that of x by default.
    """
    num_out = num_out or len(weight)
    out = x.new_empty(len(x), num_out, dtype=dtype or x.dtype)
    block_out, block_in, num_stages = tile_of_weights(num_out, x.dtype)
    launch(
        kernels.linear_kernel,
        (triton.cdiv(len(x), LINEAR_ROWS), triton.cdiv(num_out, block_out)),
        (x, weight, out if residual is None else residual, out, len(x)),
        {
            "NUM_OUT": num_out,
            "NUM_IN": x.size(1),
            "EPS": NORM_EPS,
            "IS_NORMALIZED": is_normalized,
            "IS_RELU_SQUARED": is_relu_squared,
            "HAS_RESIDUAL": residual is not None,
            "SOFTCAP": float(softcap),
            "BLOCK_ROWS": LINEAR_ROWS,
            "BLOCK_OUT": block_out,
            "BLOCK_IN": block_in,
        },
        num_stages=num_stages,
    )
    return out


def tile_of_weights(num_out: int, dtype: torch.dtype) -> tuple[int, int, int]:
    """Return the tile of a product: outputs, inputs, and how many such tiles are on their way at a time.

    It depends on the weights alone. A product of one row is as fast as its weights are read, for which each of some
    hundred processors needs a program that has some 30 kB on their way.
    """
    if dtype == torch.float32:
        return 32, 32, 4
    if num_out < 2048:
        return 16, 128, 7
    return (32, 128, 5) if num_out < 16384 else (64, 128, 4)


def rotate(
    qkv: Tensor, cos: Tensor, sin: Tensor, inputs: AttentionInputs, keys: Tensor, values: Tensor, num_heads: int
) -> Tensor:
    """Rotate and normalize queries and keys, and write keys and values into the cache; return the queries (N, H, D).

    qkv (N, (H + 2K) * D), cos and sin (positions, D/2), keys and values of the layer (blocks, K, block_len, D).
    """
    _, num_kv_heads, block_len, head_dim = keys.shape
    queries = qkv.new_empty(len(qkv), num_heads, head_dim)
    launch(
        kernels.rotate_kernel,
        (len(qkv), num_heads + 2 * num_kv_heads),
        (qkv, cos, sin, inputs.positions, inputs.rows, inputs.tables, queries, keys, values),
        {
            "NUM_HEADS": num_heads,
            "NUM_KV_HEADS": num_kv_heads,
            "HEAD_DIM": head_dim,
            "TABLE_LEN": inputs.tables.size(1),
            "BLOCK_LEN": block_len,
            "EPS": NORM_EPS,
            "BLOCK": triton.next_power_of_2(head_dim // 2),
        },
        num_warps=1,
    )
    return queries


def attend(queries: Tensor, inputs: AttentionInputs, keys: Tensor, values: Tensor, context_len: int) -> Tensor:
    """Return attention of each token to its sequence up to itself: queries (N, H, D) -> (N, H * D).

    Keys and values of the layer: (blocks, K, block_len, D). `context_len`: that of the model.
    """
    num_tokens, num_heads, head_dim = queries.shape
    _, num_kv_heads, block_len, _ = keys.shape
    length = split_len(context_len)
    num_keys = 32 if queries.dtype == torch.float32 else 64  # of a pass
    assert length % num_keys == 0, f"{length} positions are no whole passes of {num_keys}"
    num_splits = triton.cdiv(context_len, length)
    partials = queries.new_empty(num_splits, num_tokens, num_heads, head_dim, dtype=torch.float32)
    maxima = queries.new_empty(num_splits, num_tokens, num_heads, dtype=torch.float32)
    sums = torch.empty_like(maxima)  # apart from the maxima: both begin at a multiple of 16 bytes
    launch(
        kernels.attention_kernel,
        (len(inputs.tile_starts), num_kv_heads, num_splits),
        (
            *(queries, keys, values, inputs.positions, inputs.rows, inputs.tables),
            *(inputs.tile_starts, inputs.tile_lengths, partials, maxima, sums, num_tokens),
        ),
        {
            "NUM_HEADS": num_heads,
            "NUM_KV_HEADS": num_kv_heads,
            "HEAD_DIM": head_dim,
            "TABLE_LEN": inputs.tables.size(1),
            "BLOCK_LEN": block_len,
            "SCALE": math.log2(math.e) / math.sqrt(head_dim),
            "SPLIT_LEN": length,
            "BLOCK_ROWS": max(ATTENTION_ROWS, triton.next_power_of_2(num_heads // num_kv_heads)),
            "BLOCK_KEYS": num_keys,
            "BLOCK": max(16, triton.next_power_of_2(head_dim)),
        },
        num_stages=2,
    )
    out = torch.empty_like(queries)
    launch(
        kernels.combine_kernel,
        (num_tokens, num_heads),
        (partials, maxima, sums, inputs.positions, out, num_tokens),
        {
            "NUM_HEADS": num_heads,
            "HEAD_DIM": head_dim,
            "SPLIT_LEN": length,
            "MAX_SPLITS": triton.next_power_of_2(num_splits),
            "BLOCK": triton.next_power_of_2(head_dim),
        },
        num_warps=2,
    )
    return out.flatten(1)


def launch(
    kernel: Any,
    grid: tuple[int, ...],
    values: tuple[Tensor | int, ...],
    constants: dict[str, Any],
    num_warps: int = 4,
    num_stages: int = 3,
) -> None:
    """Start a kernel: its tensors and numbers in the order of its arguments, then its constants."""
    # Multiplications and additions are fused, said here because the default differs between versions of Triton.
    kernel[grid](*values, **constants, num_warps=num_warps, num_stages=num_stages, enable_fp_fusion=True)
