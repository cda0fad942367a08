"""The Triton kernels of generation. `launch.py` calls them with tensors; this module needs Triton.

Every kernel gives a token the same bits whatever tokens stand beside it. Each has tiles of one size for any number of
rows, so that the same instructions run; each sums over columns or positions in one order, which depends on the model
and on the token's own position alone. What a tile has beyond its tokens are zeros, which are masked where it is stored.

Sums are in float32. Products of bfloat16 run on tensor cores, those of float32 in float32 (`ieee`, no TF32).

Letters: N tokens of the step, C columns that are summed, H query heads, K key-value heads, D head size. In a kernel,
names in capitals are constants of the model, for which it is compiled.
"""

from __future__ import annotations

import os

import triton
import triton.language as tl

# Triton's interpreter computes products of bfloat16 wrongly. There they are converted first, which changes no product.
IS_INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")


@triton.jit
def product(a, b, total):
    """Return total + a @ b, (R, C) @ (C, S) -> (R, S) in float32."""
    if IS_INTERPRETED:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, total, input_precision="ieee")


@triton.jit
def embed_kernel(ids, table, out, WIDTH: tl.constexpr, EPS: tl.constexpr, BLOCK: tl.constexpr):
    """Write the normalized embedding of a token: ids (N,), table (V, WIDTH) -> out (N, WIDTH). Grid: N."""
    token = tl.program_id(0)
    columns = tl.arange(0, BLOCK)
    is_column = columns < WIDTH
    row = tl.load(ids + token).to(tl.int64)
    x = tl.load(table + row * WIDTH + columns, mask=is_column, other=0.0).to(tl.float32)
    x *= tl.rsqrt(tl.sum(x * x, axis=0) / WIDTH + EPS)
    tl.store(out + token * WIDTH + columns, x.to(out.dtype.element_ty), mask=is_column)


@triton.jit(do_not_specialize=["num_rows"])
def linear_kernel(
    x,
    weight,
    residual,
    out,
    num_rows,
    NUM_OUT: tl.constexpr,
    NUM_IN: tl.constexpr,
    EPS: tl.constexpr,
    IS_NORMALIZED: tl.constexpr,
    IS_RELU_SQUARED: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    SOFTCAP: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    BLOCK_IN: tl.constexpr,
):
    """Write a tile of the product x W^T: x (N, NUM_IN), weight (NUM_OUT, NUM_IN) -> out (N, NUM_OUT).

    IS_NORMALIZED: of RMSNorm(x), which divides a row by one number and can do so after the product. IS_RELU_SQUARED:
    max(y, 0)^2 of the result. HAS_RESIDUAL: `residual` (N, NUM_OUT) is added. SOFTCAP: the cap, 0 = none.

    Grid: tiles of rows, tiles of outputs. The programs of one tile of weights run together, so that it is read from
    memory once.
    """
    rows = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    outs = (tl.program_id(1) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)).to(tl.int64)
    is_row = rows[:, None] < num_rows
    is_out = outs < NUM_OUT
    y = tl.zeros((BLOCK_ROWS, BLOCK_OUT), tl.float32)
    squares = tl.zeros((BLOCK_ROWS,), tl.float32)
    for start in range(0, NUM_IN, BLOCK_IN):
        columns = start + tl.arange(0, BLOCK_IN)
        if NUM_IN % BLOCK_IN == 0:
            x_mask = is_row
            weight_mask = is_out[:, None]
        else:
            x_mask = is_row & (columns[None, :] < NUM_IN)
            weight_mask = is_out[:, None] & (columns[None, :] < NUM_IN)
        x_tile = tl.load(x + rows[:, None] * NUM_IN + columns[None, :], mask=x_mask, other=0.0)
        weight_tile = tl.load(weight + outs[:, None] * NUM_IN + columns[None, :], mask=weight_mask, other=0.0)
        y = product(x_tile, tl.trans(weight_tile), y)
        if IS_NORMALIZED:
            values = x_tile.to(tl.float32)
            squares += tl.sum(values * values, axis=1)
    if IS_NORMALIZED:
        y *= tl.rsqrt(squares / NUM_IN + EPS)[:, None]
    if IS_RELU_SQUARED:
        y = tl.maximum(y, 0.0)
        y *= y
    where = rows[:, None] * NUM_OUT + outs[None, :]
    mask = is_row & is_out[None, :]
    if HAS_RESIDUAL:
        y += tl.load(residual + where, mask=mask, other=0.0).to(tl.float32)
    if SOFTCAP > 0:  # SOFTCAP * tanh(y / SOFTCAP)
        y = SOFTCAP * (1.0 - 2.0 / (tl.exp(2.0 * y / SOFTCAP) + 1.0))
    tl.store(out + where, y.to(out.dtype.element_ty), mask=mask)


@triton.jit
def rotate_kernel(
    qkv,
    cos,
    sin,
    positions,
    rows,
    tables,
    queries,
    cached_keys,
    cached_values,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    TABLE_LEN: tl.constexpr,
    BLOCK_LEN: tl.constexpr,
    EPS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write a head of a token: rotated and normalized queries and keys, and values as they are.

    qkv (N, H + 2K, D) -> queries (N, H, D), and keys and values in their block of the cache (blocks, K, BLOCK_LEN, D).
    Grid: N, H + 2K.
    """
    token = tl.program_id(0)
    head = tl.program_id(1)
    half = HEAD_DIM // 2
    columns = tl.arange(0, BLOCK)
    is_column = columns < half
    source = qkv + (token * (NUM_HEADS + 2 * NUM_KV_HEADS) + head) * HEAD_DIM + columns
    x1 = tl.load(source, mask=is_column, other=0.0).to(tl.float32)
    x2 = tl.load(source + half, mask=is_column, other=0.0).to(tl.float32)
    position = tl.load(positions + token)
    if head < NUM_HEADS + NUM_KV_HEADS:
        c = tl.load(cos + position * half + columns, mask=is_column, other=0.0).to(tl.float32)
        s = tl.load(sin + position * half + columns, mask=is_column, other=0.0).to(tl.float32)
        y1 = x1 * c + x2 * s
        y2 = x2 * c - x1 * s
        scale = tl.rsqrt(tl.sum(y1 * y1 + y2 * y2, axis=0) / HEAD_DIM + EPS)
        x1 = y1 * scale
        x2 = y2 * scale
    if head < NUM_HEADS:
        target = queries + (token * NUM_HEADS + head) * HEAD_DIM + columns
        tl.store(target, x1.to(queries.dtype.element_ty), mask=is_column)
        tl.store(target + half, x2.to(queries.dtype.element_ty), mask=is_column)
    else:
        kv_head = (head - NUM_HEADS) % NUM_KV_HEADS  # the keys stand before the values
        block = tl.load(tables + tl.load(rows + token) * TABLE_LEN + position // BLOCK_LEN).to(tl.int64)
        slot = ((block * NUM_KV_HEADS + kv_head) * BLOCK_LEN + position % BLOCK_LEN) * HEAD_DIM + columns
        if head < NUM_HEADS + NUM_KV_HEADS:
            tl.store(cached_keys + slot, x1.to(cached_keys.dtype.element_ty), mask=is_column)
            tl.store(cached_keys + slot + half, x2.to(cached_keys.dtype.element_ty), mask=is_column)
        else:
            tl.store(cached_values + slot, x1.to(cached_values.dtype.element_ty), mask=is_column)
            tl.store(cached_values + slot + half, x2.to(cached_values.dtype.element_ty), mask=is_column)


@triton.jit(do_not_specialize=["num_tokens"])
def attention_kernel(
    queries,
    cached_keys,
    cached_values,
    positions,
    rows,
    tables,
    tile_starts,
    tile_lengths,
    partials,
    maxima,
    sums,
    num_tokens,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    TABLE_LEN: tl.constexpr,
    BLOCK_LEN: tl.constexpr,
    SCALE: tl.constexpr,
    SPLIT_LEN: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Attention of some tokens of a sequence to SPLIT_LEN of its positions, for the query heads of a key-value head.

    A tile's rows are its tokens times these heads. A row's softmax is computed in one pass: `maximum` and `total` are
    those of the scores so far, in units of log2. Positions after a row's own leave its numbers as they are: they add
    zeros and multiply by 1. `combine_kernel` joins the partial results (splits, N, H, D), with their maxima and sums
    (splits, N, H). Grid: tiles, K, splits.
    """
    tile = tl.program_id(0)
    kv_head = tl.program_id(1)
    split = tl.program_id(2)
    group = NUM_HEADS // NUM_KV_HEADS
    first = tl.load(tile_starts + tile)
    length = tl.load(tile_lengths + tile)
    last_position = tl.load(positions + first + length - 1)
    start = split * SPLIT_LEN
    if start <= last_position:
        table = tables + tl.load(rows + first) * TABLE_LEN
        row = tl.arange(0, BLOCK_ROWS)
        is_row = row < length * group
        token = first + row // group
        head = kv_head * group + row % group
        position = tl.load(positions + token, mask=is_row, other=0)
        columns = tl.arange(0, BLOCK)
        is_column = columns[None, :] < HEAD_DIM
        where = (token * NUM_HEADS + head)[:, None] * HEAD_DIM + columns[None, :]
        q = tl.load(queries + where, mask=is_row[:, None] & is_column, other=0.0)
        maximum = tl.full((BLOCK_ROWS,), float("-inf"), tl.float32)
        total = tl.zeros((BLOCK_ROWS,), tl.float32)
        mixed = tl.zeros((BLOCK_ROWS, BLOCK), tl.float32)
        num_keys = tl.minimum(last_position + 1 - start, SPLIT_LEN)
        # Some versions of the interpreter fail at a bound that is computed. The keys beyond it are masked.
        for offset in range(0, SPLIT_LEN if IS_INTERPRETED else num_keys, BLOCK_KEYS):
            keys = start + offset + tl.arange(0, BLOCK_KEYS)
            is_key = keys <= last_position
            block = tl.load(table + keys // BLOCK_LEN, mask=is_key, other=0).to(tl.int64)
            slot = ((block * NUM_KV_HEADS + kv_head) * BLOCK_LEN + keys % BLOCK_LEN) * HEAD_DIM
            source = slot[:, None] + columns[None, :]
            mask = is_key[:, None] & is_column
            k = tl.load(cached_keys + source, mask=mask, other=0.0)
            scores = product(q, tl.trans(k), tl.zeros((BLOCK_ROWS, BLOCK_KEYS), tl.float32)) * SCALE
            scores = tl.where(keys[None, :] <= position[:, None], scores, float("-inf"))
            new_maximum = tl.maximum(maximum, tl.max(scores, axis=1))
            shift = tl.where(new_maximum == float("-inf"), 0.0, new_maximum)  # a row that sees nothing here
            weights = tl.exp2(scores - shift[:, None])
            shrink = tl.exp2(maximum - shift)
            v = tl.load(cached_values + source, mask=mask, other=0.0)
            total = total * shrink + tl.sum(weights, axis=1)
            mixed = product(weights.to(v.dtype), v, mixed * shrink[:, None])
            maximum = new_maximum
        entry = (split * num_tokens + token) * NUM_HEADS + head
        tl.store(maxima + entry, maximum, mask=is_row)
        tl.store(sums + entry, total, mask=is_row)
        target = partials + entry.to(tl.int64)[:, None] * HEAD_DIM + columns[None, :]
        tl.store(target, mixed, mask=is_row[:, None] & is_column)


@triton.jit(do_not_specialize=["num_tokens"])
def combine_kernel(
    partials,
    maxima,
    sums,
    positions,
    out,
    num_tokens,
    NUM_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    SPLIT_LEN: tl.constexpr,
    MAX_SPLITS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Join the partial results of a token's head, those of all splits in one order: -> out (N, H, D). Grid: N, H."""
    token = tl.program_id(0)
    head = tl.program_id(1)
    splits = tl.arange(0, MAX_SPLITS)
    is_split = splits <= tl.load(positions + token) // SPLIT_LEN
    columns = tl.arange(0, BLOCK)
    is_column = columns < HEAD_DIM
    entry = (splits * num_tokens + token) * NUM_HEADS + head
    maximum = tl.load(maxima + entry, mask=is_split, other=float("-inf"))
    weights = tl.exp2(maximum - tl.max(maximum, axis=0))
    total = tl.sum(weights * tl.load(sums + entry, mask=is_split, other=0.0), axis=0)
    source = partials + entry.to(tl.int64)[:, None] * HEAD_DIM + columns[None, :]
    parts = tl.load(source, mask=is_split[:, None] & is_column[None, :], other=0.0)
    y = tl.sum(weights[:, None] * parts, axis=0) / total
    tl.store(out + (token * NUM_HEADS + head) * HEAD_DIM + columns, y.to(out.dtype.element_ty), mask=is_column)
