"""Interface of a forward pass in generation: the tokens of one step, and a model that keeps its KV cache in blocks.

The cache is a fixed number of blocks of `block_len` positions each. The block table of a sequence lists its blocks in
order, so position p of a sequence is position p % block_len of block `table[p // block_len]`. Sequences can share
blocks, such as those of a common prompt. Who owns which block is decided by the caller (`block_cache.py`).

Letters in shape comments: N tokens of a step, R sequences of a step, M blocks of the longest of them, L wanted logits,
V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from nanochat.gpt import GPTConfig

Int32s = npt.NDArray[np.int32]


@dataclass(frozen=True)
class StepTokens:
    """The tokens of one forward pass. A sequence has one of them (decoding) or several (a chunk of its prompt)."""

    tokens: Int32s  # (N,), ids; the tokens of a sequence stand together, in order of position
    positions: Int32s  # (N,), position of each token in its sequence
    rows: Int32s  # (N,), ascending: index of each token's sequence in `block_tables`
    block_tables: Int32s  # (R, M), the cache blocks of each sequence in order; unused entries are -1
    wanted: Int32s  # (L,), ascending: indices into the N tokens, those whose logits are wanted

    def check(self, config: GPTConfig, block_len: int, num_blocks: int) -> None:
        """Assert that the step can be computed: for tests and for a caller that is not trusted."""
        num_tokens = len(self.tokens)
        num_rows = len(self.block_tables)
        arrays = (self.tokens, self.positions, self.rows, self.block_tables, self.wanted)
        assert all(array.dtype == np.int32 for array in arrays), f"dtypes {[array.dtype for array in arrays]}"
        assert num_tokens == len(self.positions) == len(self.rows), "the arrays of the tokens differ in length"
        assert _all_within(self.tokens, config.vocab_size), f"token ids outside 0 to {config.vocab_size - 1}"
        assert _all_within(self.positions, config.sequence_len), f"positions outside 0 to {config.sequence_len - 1}"
        assert _all_within(self.rows, num_rows), f"rows outside 0 to {num_rows - 1}"
        assert _all_within(self.wanted, num_tokens), f"wanted tokens outside 0 to {num_tokens - 1}"
        assert (np.diff(self.wanted) > 0).all(), "the wanted tokens are not ascending"
        same_row = np.diff(self.rows) == 0
        assert (np.diff(self.rows) >= 0).all(), "the rows are not ascending"
        assert (np.diff(self.positions)[same_row] == 1).all(), "the positions of a sequence do not follow each other"
        last = np.append(~same_row, True)[:num_tokens]
        for row, position in zip(self.rows[last], self.positions[last], strict=True):
            blocks = self.block_tables[row, : position // block_len + 1]
            assert len(blocks) == position // block_len + 1, f"the block table of row {row} is too short"
            assert _all_within(blocks, num_blocks), f"blocks of row {row} are outside 0 to {num_blocks - 1}"
            assert len(set(blocks.tolist())) == len(blocks), f"a block stands twice in row {row}"


class ModelStep(Protocol):
    """A copy of the model with its cache in blocks. Not thread-safe: one thread calls it."""

    @property
    def config(self) -> GPTConfig:
        """Shape of the model."""
        ...

    @property
    def device(self) -> torch.device:
        """Device of the logits."""
        ...

    @property
    def block_len(self) -> int:
        """Number of positions in a block."""
        ...

    @property
    def num_blocks(self) -> int:
        """Number of blocks, numbered from 0."""
        ...

    def forward(self, step: StepTokens) -> Tensor:
        """Write keys and values of the N tokens into their blocks; return float32 logits (L, V), soft-capped.

        A token attends to all positions of its sequence up to its own, those of this step included. The block tables
        must reach up to the last position of each sequence. A block that several sequences share is only read: the
        positions of the step's tokens lie in blocks of one sequence.
        """
        ...

    def copy_block(self, source: int, target: int) -> None:
        """Copy keys and values of one block to another, in all layers."""
        ...


def to_device(values: npt.NDArray[Any], device: torch.device) -> Tensor:
    """Return a tensor of the values on the device, in their dtype. The host does not wait for a GPU."""
    host = torch.from_numpy(values)
    if device.type == "cuda":
        host = host.pin_memory()
    return host.to(device, non_blocking=True)


def _all_within(values: Int32s, end: int) -> bool:
    return bool(((values >= 0) & (values < end)).all())
