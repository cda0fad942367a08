"""The KV cache: keys and values of all positions so far, for a batch of rows with prompts of different lengths.

Rows are padded on the left, so that all end in the same column. A row's columns before its first token are padding,
which no token attends to. Example, prompts "abc" and "d", then a token for each:

    column   0 1 2 3
    row 0    a b c x      left_padding 0, x at position 3
    row 1    . . d y      left_padding 2, y at position 1

Letters in shape comments: B rows, K key-value heads, T new tokens, S columns, D head size.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nanochat.gpt import GPTConfig

CACHE_CHUNK = 256  # columns that the cache grows by, so that a short completion does not allocate the whole context


class KVCache:
    """Keys and values of every position so far, in each layer: allocated ahead, filled in place."""

    def __init__(self, config: GPTConfig, num_rows: int, dtype: torch.dtype, device: torch.device) -> None:
        empty = torch.empty(2, num_rows, config.n_kv_head, 0, config.head_dim, dtype=dtype, device=device)
        self.layers = [empty] * config.n_layer  # each (2, B, K, capacity, D): keys, values
        self.max_len = config.sequence_len
        self.left_padding = [0] * num_rows  # the minimum is 0: no column is padding in every row
        self._pos = 0
        self._update_device_tables()

    @property
    def pos(self) -> int:
        """Number of filled columns, increased when the last layer inserts.

        It is the column of the next token. The token's position (`positions`) is smaller by the row's left padding.
        """
        return self._pos

    def positions(self, count: int) -> slice | Tensor:
        """Return the positions of the next `count` tokens: a slice if all rows have the same, else int64 (B, 1, T)."""
        end = self._pos + count
        assert end <= self.max_len, f"the cache has {self._pos} of {self.max_len} positions: {count} more do not fit"
        if self._padding is None:
            return slice(self._pos, end)
        return self._columns[self._pos : end] - self._padding[:, None, None]

    def insert(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Append (B, K, T, D) keys and values of one layer.

        Returns views of all keys and values so far, each (B, K, S, D), and the attention mask: bool, (T, S) or
        (B, 1, T, S), True = visible. None means that no mask is needed: plain causal attention if T = S, and every
        column is visible if T = 1.
        """
        end = self._pos + k.size(2)
        if layer == 0:
            self._mask = self._attention_mask(end)
        if end > self.layers[layer].size(3):
            self._grow(layer, end)
        keys, values = self.layers[layer]
        keys[:, :, self._pos : end] = k
        values[:, :, self._pos : end] = v
        if layer == len(self.layers) - 1:
            self._pos = end
        return keys[:, :, :end], values[:, :, :end], self._mask

    def _attention_mask(self, end: int) -> Tensor | None:
        """Return the mask for queries in columns `pos` to `end`, (T, S) or (B, 1, T, S), or None as in `insert`."""
        columns = self._columns[:end]
        queries = self._columns[self._pos : end]
        if self._padding is not None:
            return (columns <= queries[:, None]) & (columns >= self._padding[:, None, None, None])
        return None if self._pos == 0 or len(queries) == 1 else columns <= queries[:, None]

    def _update_device_tables(self) -> None:
        """Recompute the tensors that follow from `left_padding`."""
        device = self.layers[0].device
        self._columns = torch.arange(self.max_len, device=device)
        self._padding = torch.tensor(self.left_padding, device=device) if any(self.left_padding) else None

    def _grow(self, layer: int, min_capacity: int) -> None:
        old = self.layers[layer]
        new = old.new_empty(*old.shape[:3], self._capacity(min_capacity), old.size(4))
        new[:, :, :, : self._pos] = old[:, :, :, : self._pos]
        self.layers[layer] = new

    def _capacity(self, min_capacity: int) -> int:
        return min(self.max_len, math.ceil(min_capacity / CACHE_CHUNK) * CACHE_CHUNK)

    def reserve(self, lengths: list[int]) -> None:
        """Allocate an empty cache for prefixes of `lengths[i]` tokens in row i, to be filled by `copy_prefix`."""
        self._pos = max(lengths)
        self.left_padding = [self._pos - length for length in lengths]
        self._update_device_tables()
        for layer, empty in enumerate(self.layers):
            reserved = empty.new_empty(*empty.shape[:3], self._capacity(self._pos), empty.size(4))
            if any(self.left_padding):
                reserved[:, :, :, : self._pos] = 0  # masked values must be finite: 0 * inf is NaN
            self.layers[layer] = reserved

    def copy_prefix(self, first_row: int, count: int, source: KVCache, source_row: int) -> None:
        """Fill `count` rows of equal length, from `first_row` on, with the first columns of a row of another cache."""
        padding = self.left_padding[first_row]
        for new, old in zip(self.layers, source.layers, strict=True):
            prefix = old[:, source_row, None, :, : self._pos - padding]  # (2, 1, K, length, D)
            new[:, first_row : first_row + count, :, padding : self._pos] = prefix

    def remove_rows(self, rows: list[int]) -> list[int]:
        """Remove rows. Returns for each remaining row its old index: the last rows have moved into the gaps.

        Only the moved rows are copied, so the cost is that of the removed rows and not of the whole cache.
        Example: of 5 rows, removing [1, 2] returns [0, 3, 4].
        """
        removed = set(rows)
        count = len(self.left_padding) - len(removed)
        order = list(range(count))
        movers = [row for row in range(count, len(self.left_padding)) if row not in removed]
        gaps = [row for row in range(count) if row in removed]
        for gap, mover in zip(gaps, movers, strict=True):
            order[gap] = mover
        self.left_padding = [self.left_padding[row] for row in order]
        trimmed = min(self.left_padding, default=0)  # columns that are now padding in every row
        for layer, old in enumerate(self.layers):
            if gaps:
                old[:, gaps, :, trimmed : self._pos] = old[:, movers, :, trimmed : self._pos]
            self.layers[layer] = old[:, :count, :, trimmed:]
        self.left_padding = [padding - trimmed for padding in self.left_padding]
        self._pos -= trimmed
        self._update_device_tables()
        return order
