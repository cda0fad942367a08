"""The keys and values of what a batch of rows has read and written so far.

Rows may have begun with prompts of different lengths: all end in the same column, and a row's first `start` columns are
padding, which no token sees.

Letters in shape comments: B rows, K key-value heads, T new tokens, S columns, D head size.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nanochat.gpt import GPTConfig

CACHE_CHUNK = 256  # columns that the cache grows by, so that a short answer does not pay for the whole context


class KVCache:
    """Keys and values of every position so far, in each layer: allocated ahead, filled in place."""

    def __init__(self, config: GPTConfig, rows: int, dtype: torch.dtype, device: torch.device) -> None:
        empty = torch.empty(2, rows, config.n_kv_head, 0, config.head_dim, dtype=dtype, device=device)
        self.layers = [empty] * config.n_layer  # each (2, B, K, capacity, D): keys, values
        self.limit = config.sequence_len
        self.starts = [0] * rows  # the least is 0: nobody pays for columns that are padding in every row
        self._pos = 0
        self._tables()

    @property
    def pos(self) -> int:
        """Columns filled: moves on when the last layer has inserted."""
        return self._pos

    def positions(self, count: int) -> slice | Tensor:
        """Where the next `count` tokens stand: columns for all rows alike, or int64 (B, 1, T)."""
        end = self._pos + count
        assert end <= self.limit, f"the cache has {self._pos} of {self.limit} positions: {count} more do not fit"
        if self._padding is None:
            return slice(self._pos, end)
        return self._columns[self._pos : end] - self._padding[:, None, None]

    def insert(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Add (B, K, T, D) keys and values of one layer. Returns views of all so far, (B, K, S, D), and who sees whom.

        That is bool, (T, S) or (B, 1, T, S); None where each token sees itself and everything before it.
        """
        end = self._pos + k.size(2)
        if layer == 0:
            self._seen = self._who_sees_whom(end)
        if end > self.layers[layer].size(3):
            self._grow(layer, end)
        keys, values = self.layers[layer]
        keys[:, :, self._pos : end] = k
        values[:, :, self._pos : end] = v
        if layer == len(self.layers) - 1:
            self._pos = end
        return keys[:, :, :end], values[:, :, :end], self._seen

    def _who_sees_whom(self, end: int) -> Tensor | None:
        columns, new = self._columns[:end], self._columns[self._pos : end]
        if self._padding is not None:
            return (columns <= new[:, None]) & (columns >= self._padding[:, None, None, None])
        return None if self._pos == 0 or len(new) == 1 else columns <= new[:, None]

    def _tables(self) -> None:
        """What follows from `starts`, on the device."""
        device = self.layers[0].device
        self._columns = torch.arange(self.limit, device=device)
        self._padding = torch.tensor(self.starts, device=device) if any(self.starts) else None

    def _grow(self, layer: int, needed: int) -> None:
        old = self.layers[layer]
        new = old.new_empty(*old.shape[:3], self._capacity(needed), old.size(4))
        new[:, :, :, : self._pos] = old[:, :, :, : self._pos]
        self.layers[layer] = new

    def _capacity(self, needed: int) -> int:
        return min(self.limit, math.ceil(needed / CACHE_CHUNK) * CACHE_CHUNK)

    def hold(self, lengths: list[int]) -> None:
        """Make room for `load`, in an empty cache: the first `lengths[i]` positions of row i, all ending together."""
        self._pos = max(lengths)
        self.starts = [self._pos - length for length in lengths]
        self._tables()
        for layer, empty in enumerate(self.layers):
            rows = empty.new_empty(*empty.shape[:3], self._capacity(self._pos), empty.size(4))
            if any(self.starts):
                rows[:, :, :, : self._pos] = 0  # what nobody sees must still be finite
            self.layers[layer] = rows

    def load(self, row: int, count: int, source: KVCache, source_row: int) -> None:
        """Fill `count` rows from `row` on, of equal length, with the first columns of a row of another cache."""
        start = self.starts[row]
        for new, old in zip(self.layers, source.layers, strict=True):
            new[:, row : row + count, :, start : self._pos] = old[:, source_row, None, :, : self._pos - start]

    def drop(self, rows: list[int]) -> list[int]:
        """Let these rows go. Returns which of the old rows stands where now: the last ones have moved into the gaps.

        So it costs what these rows hold, and not what the others do.
        """
        gone = set(rows)
        count = len(self.starts) - len(gone)
        order = list(range(count))
        movers = [row for row in range(count, len(self.starts)) if row not in gone]
        gaps = [row for row in range(count) if row in gone]
        for gap, mover in zip(gaps, movers, strict=True):
            order[gap] = mover
        self.starts = [self.starts[row] for row in order]
        first = min(self.starts, default=0)
        for layer, old in enumerate(self.layers):
            if gaps:
                old[:, gaps, :, first : self._pos] = old[:, movers, :, first : self._pos]
            self.layers[layer] = old[:, :count, :, first:]
        self.starts = [start - first for start in self.starts]
        self._pos -= first
        self._tables()
        return order
