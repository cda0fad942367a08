"""Steps over a cache in blocks, built by hand: whole sequences cut into chunks, their blocks in random order."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from nanochat.inference.model_step import ModelStep, StepTokens


def make_step(rows: Sequence[tuple[list[int], int, list[int]]], wanted: Sequence[int] | None = None) -> StepTokens:
    """Return the step of (tokens, position of the first, block table) for each row; all logits wanted by default."""
    tokens = [token for row, _, _ in rows for token in row]
    width = max(len(table) for _, _, table in rows)
    return StepTokens(
        np.array(tokens, np.int32),
        np.array([start + i for row, start, _ in rows for i in range(len(row))], np.int32),
        np.array([index for index, (row, _, _) in enumerate(rows) for _ in row], np.int32),
        np.array([table + [-1] * (width - len(table)) for _, _, table in rows], np.int32),
        np.arange(len(tokens), dtype=np.int32) if wanted is None else np.array(wanted, np.int32),
    )


def logits_in_chunks(step: ModelStep, sequences: Sequence[list[int]], seed: int) -> list[Tensor]:
    """Return the logits (T, V) of each sequence, computed in mixed steps of random chunks with random blocks."""
    rng = random.Random(seed)
    free = rng.sample(range(step.num_blocks), step.num_blocks)
    tables = [[free.pop() for _ in range(-(-len(tokens) // step.block_len))] for tokens in sequences]
    done = [0] * len(sequences)
    parts: list[list[Tensor]] = [[] for _ in sequences]
    while any(count < len(tokens) for count, tokens in zip(done, sequences, strict=True)):
        unfinished = [i for i, tokens in enumerate(sequences) if done[i] < len(tokens)]
        chosen = rng.sample(unfinished, rng.randint(1, len(unfinished)))
        counts = [min(rng.choice([1, 1, 2, 3, 7, 30]), len(sequences[i]) - done[i]) for i in chosen]
        rows = [
            (sequences[i][done[i] : done[i] + count], done[i], tables[i][: -(-(done[i] + count) // step.block_len)])
            for i, count in zip(chosen, counts, strict=True)
        ]
        made = make_step(rows)
        made.check(step.config, step.block_len, step.num_blocks)
        for i, count, logits in zip(chosen, counts, step.forward(made).split(counts), strict=True):
            parts[i].append(logits)
            done[i] += count
    return [torch.cat(part) for part in parts]
