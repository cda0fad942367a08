"""The completions that a step continues by one token each, as arrays that are kept up to date from step to step.

A step at many rows would otherwise spend its time in building them. Letters in shape comments: R rows, M blocks, N
tokens, V vocabulary.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from nanochat.inference.generation_request import GenerationRequest
from nanochat.inference.model_step import StepTokens, to_device
from nanochat.inference.tool_use import RowState
from nanochat.layers.sampler import GREEDY_BELOW, greedy_ids, sample_at, uniforms
from nanochat.layers.sampling_params import SamplingParams


class Generation:
    """A request on its way through the scheduler.

    `tokens`: prompt and completion so far. `blocks`: its cache blocks in order; the first `num_known` of them are full
    and known to the block cache. `num_computed`: tokens whose keys and values are in the blocks. `row`: index among the
    rows that decode, or -1. `arrival`: requests are numbered in the order in which they came.
    `waits_for`: another one that is about to compute `wait_len` tokens that this one begins with.
    """

    __slots__ = (
        *("arrival", "blocks", "is_prefilling", "num_computed", "num_known", "params", "request", "row", "state"),
        *("tokens", "wait_len", "waits_for"),
    )

    def __init__(self, request: GenerationRequest, state: RowState, arrival: int) -> None:
        self.request = request
        self.params = request.params
        self.state = state
        self.arrival = arrival
        self.tokens = list(request.tokens)
        self.row = -1
        self.is_prefilling = False
        self.waits_for: Generation | None = None
        self.wait_len = 0
        self.forget_blocks()

    def forget_blocks(self) -> None:
        """Begin again: nothing is computed. The blocks must have been released."""
        self.blocks: list[int] = []
        self.num_known = 0
        self.num_computed = 0


Chunk = tuple[Generation, int]  # a prompt, and how many of its tokens a step computes


class DecodeRows:
    """The completions that decode, in rows 0 to R - 1. The arrays are longer: only their first R entries count."""

    def __init__(self, max_rows: int, max_blocks: int, block_len: int) -> None:
        self.generations: list[Generation] = []
        self.tokens = np.zeros(max_rows, np.int32)  # the last token of each row
        self.positions = np.zeros(max_rows, np.int32)  # its position
        self.block_tables = np.empty((max_rows, max_blocks), np.int32)  # -1 = none
        self.keys = np.zeros(max_rows, np.uint64)  # of the random numbers
        self.num_generated = np.zeros(max_rows, np.int64)  # tokens of the completion so far
        self.numbers = np.arange(max_rows, dtype=np.int32)
        self._block_len = block_len
        self._sampling_groups: list[tuple[SamplingParams, list[int]]] | None = None

    def __len__(self) -> int:
        return len(self.generations)

    def append(self, generation: Generation) -> None:
        """Add a row for a completion whose tokens are all computed."""
        row = generation.row = len(self.generations)
        self.generations.append(generation)
        self.tokens[row] = generation.tokens[-1]
        self.positions[row] = len(generation.tokens) - 1
        self.block_tables[row] = -1
        self.block_tables[row, : len(generation.blocks)] = generation.blocks
        self.keys[row] = generation.request.rng_key
        self.num_generated[row] = len(generation.state.tokens)
        self._sampling_groups = None

    def remove(self, rows: list[int]) -> None:
        """Remove rows, given in ascending order; the last rows move into the gaps."""
        count = len(self.generations) - len(rows)
        removed = set(rows)
        movers = [row for row in range(count, len(self.generations)) if row not in removed]
        for row in rows:
            self.generations[row].row = -1
        for gap, mover in zip(rows, movers, strict=False):  # rows beyond `count` leave no gap
            for array in (self.tokens, self.positions, self.block_tables, self.keys, self.num_generated):
                array[gap] = array[mover]
            self.generations[gap] = self.generations[mover]
            self.generations[gap].row = gap
        del self.generations[count:]
        self._sampling_groups = None

    def advance(self, tokens: list[int]) -> None:
        """Append a token to each row."""
        count = len(tokens)
        self.tokens[:count] = tokens
        self.positions[:count] += 1
        self.num_generated[:count] += 1

    def at_block_start(self) -> list[Generation]:
        """Return the completions whose last token is the first of a block."""
        rows = np.flatnonzero(self.positions[: len(self)] % self._block_len == 0)
        return [self.generations[row] for row in rows]

    def at_block_end(self) -> list[Generation]:
        """Return the completions whose last token is the last of a block."""
        rows = np.flatnonzero(self.positions[: len(self)] % self._block_len == self._block_len - 1)
        return [self.generations[row] for row in rows]

    def tables(self) -> npt.NDArray[np.int32]:
        """Return the block tables (R, M) up to the longest row's last block."""
        count = len(self)
        if not count:
            return np.empty((0, 0), np.int32)
        num_blocks = int(self.positions[:count].max()) // self._block_len + 1
        return np.ascontiguousarray(self.block_tables[:count, :num_blocks])

    def step_tokens(self, chunks: list[Chunk]) -> StepTokens:
        """Return the last tokens of the rows, then a sequence for each chunk. Wanted: the logits of all ends."""
        count = len(self)
        numbers = self.numbers[:count]
        decoding = StepTokens(self.tokens[:count], self.positions[:count], numbers, self.tables(), numbers)
        return with_chunks(decoding, chunks) if chunks else decoding

    def draw(self, logits: Tensor) -> list[int]:
        """Draw a token for each row of logits (R, V) by the key of its request and the number of its step.

        It is V, which is no token, for a row that is not finite (`sample_at`).
        """
        groups = self.sampling_groups()
        if len(groups) == 1 and groups[0][0].temperature < GREEDY_BELOW:
            return greedy_ids(logits).tolist()
        u = to_device(uniforms(self.keys[: len(self)], self.num_generated[: len(self)]), logits.device)
        if len(groups) == 1:
            drawn = sample_at(logits, groups[0][0], u)
        else:
            drawn = torch.empty(len(self), dtype=torch.int64, device=logits.device)
            for params, members in groups:
                where = to_device(np.array(members), logits.device)
                drawn[where] = sample_at(logits[where], params, u[where])
        return drawn.tolist()

    def sampling_groups(self) -> list[tuple[SamplingParams, list[int]]]:
        """Return the rows that are sampled alike: settings of sampling, and the rows that have them."""
        if self._sampling_groups is None:
            groups: dict[tuple[float, int | None, float | None], tuple[SamplingParams, list[int]]] = {}
            for row, generation in enumerate(self.generations):
                params = generation.params
                key = (params.temperature, params.top_k, params.top_p)
                groups.setdefault(key, (params, []))[1].append(row)
            self._sampling_groups = list(groups.values())
        return self._sampling_groups


def with_chunks(decoding: StepTokens, chunks: list[Chunk]) -> StepTokens:
    """Return the step with a sequence for each chunk after those that decode."""
    count = len(decoding.block_tables)
    num_blocks = max(decoding.block_tables.shape[1], *(len(generation.blocks) for generation, _ in chunks))
    tables = np.full((count + len(chunks), num_blocks), -1, np.int32)
    tables[:count, : decoding.block_tables.shape[1]] = decoding.block_tables
    tokens, positions, rows = [decoding.tokens], [decoding.positions], [decoding.rows]
    wanted = list(decoding.wanted)
    end = len(decoding.tokens)
    for row, (generation, length) in enumerate(chunks, count):
        start = generation.num_computed
        tables[row, : len(generation.blocks)] = generation.blocks
        tokens.append(np.array(generation.tokens[start : start + length], np.int32))
        positions.append(np.arange(start, start + length, dtype=np.int32))
        rows.append(np.full(length, row, np.int32))
        end += length
        if start + length == len(generation.tokens):
            wanted.append(end - 1)
    return StepTokens(
        np.concatenate(tokens), np.concatenate(positions), np.concatenate(rows), tables, np.array(wanted, np.int32)
    )
