"""Packing of conversations for fine-tuning: whole conversations share rows, and rows make batches.

Conversations are taken in order (from the second epoch on in a shuffled one), CHUNK_SIZE at a time. Each is rendered to
ids and a loss mask; one that is longer than a row is cut at the end of a turn. The conversations of a chunk are packed
into rows by best fit, and rows are padded: no conversation is split, and every row has a token to train on. The rows of
a chunk, and the conversations of a row, are shuffled, so that neither are sorted by length. As with documents
(`nanochat/dataloader.py`), process r of N takes rows r * B to (r + 1) * B of every batch of N * B rows, and a run
continues from its cursor.

    conversations         A (5 tokens)  B (9)  C (3)  D (2)         T + 1 = 10
    rows before shuffle   [B .]  [A C D]                            . = padding

Letters in shape comments: B rows of a micro-batch on one process, T tokens of a row.
"""

from __future__ import annotations

import itertools
import math
import os
from bisect import bisect_left, insort
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from nanochat.common import UserError
from nanochat.data.batch_process import batches_in_process
from nanochat.dataloader import MicroBatch, prefetch
from nanochat.runtime import Runtime
from nanochat.tokenization.chat_format import Conversation
from nanochat.tokenization.render_batch import RenderedArrays
from nanochat.tokenizer import Tokenizer

CHUNK_SIZE = 2048  # conversations packed together; larger chunks reduce the padding only slightly
MAX_EXACT_COUNT = 1 << 15  # up to this number of conversations, `count_rows` renders all of them
COUNT_SAMPLE_SIZE = 1 << 12  # beyond it, `count_rows` renders a sample of this size


class ConversationSource(Protocol):
    """Conversations in a fixed order, as the packer reads them; a task of `tasks/` is one."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Conversation: ...


@runtime_checkable
class ChangingSource(ConversationSource, Protocol):
    """Conversations of which each pass may have others, always as many."""

    def for_pass(self, number: int, /) -> ConversationSource: ...


@dataclass(frozen=True)
class PackingCursor:
    """Position in a run, and totals since its start. The fields are keys of a checkpoint's meta.json."""

    epoch: int = 0
    chunk: int = 0  # number of the chunk within the epoch
    row: int = 0  # rows consumed of this chunk
    rows: int = 0  # rows consumed since the start of the run, over all epochs
    tokens: int = 0  # tokens in these rows, without padding
    trained: int = 0  # targets in these rows
    left_out: int = 0  # conversations passed since the start of the run that had no token to train on


@dataclass(frozen=True)
class PackedRow:
    """One row of packed conversations, and its position in the run."""

    tokens: np.ndarray  # (T + 1,) int64, padded with <|bos|>
    targets: np.ndarray  # (T,) int64, -1 = not trained on
    progress: float  # share of the epochs before this row, in [0, 1)
    cursor: PackingCursor  # position of the next row


def best_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Pack items of these lengths into rows of `capacity`; return the indices of each row's items.

    Best fit decreasing: the items are taken longest first. Each goes into the row with the least free space among those
    that have enough, or into a new row.

    >>> best_fit([5, 3, 2], capacity=8)  # 5 opens row 0, 3 fills it, 2 opens row 1
    [[0, 1], [2]]
    >>> best_fit([3, 9, 1, 5, 5, 2], capacity=10)  # lengths of the rows: 9 + 1, 5 + 5, 3 + 2
    [[1, 2], [3, 4], [0, 5]]
    """
    assert not lengths or max(lengths) <= capacity, "a conversation is longer than a row"
    rows: list[list[int]] = []
    free_space: list[tuple[int, int]] = []  # (free tokens, row), sorted
    longest_first = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    for index in longest_first:
        position = bisect_left(free_space, (lengths[index], 0))
        if position == len(free_space):
            row = len(rows)
            free = capacity
            rows.append([])
        else:
            free, row = free_space.pop(position)
        rows[row].append(index)
        insort(free_space, (free - lengths[index], row))
    return rows


def render_conversations(
    conversations: ConversationSource, indices: Iterable[int], tokenizer: Tokenizer, sequence_len: int
) -> list[RenderedArrays]:
    """Return ids and masks of these conversations, at most T + 1 tokens each.

    Conversations without a token to train on are left out. Raises `UserError` with the index of a malformed one.
    """
    index = -1  # of the conversation that is being read or rendered

    def read() -> Iterator[Conversation]:
        nonlocal index
        for index in indices:
            yield conversations[index]

    try:
        rendered = tokenizer.render_conversations(read(), max_tokens=sequence_len + 1)
    except UserError as error:
        raise UserError(f"conversation {index}: {error}") from error
    return [(ids, mask) for ids, mask in rendered if len(ids)]


def pack_rows(
    rendered: Sequence[RenderedArrays], sequence_len: int, rng: np.random.Generator
) -> list[list[RenderedArrays]]:
    """Pack conversations into rows of T + 1 tokens; return the conversations of each row, both in random order."""
    rows = best_fit([len(ids) for ids, _ in rendered], sequence_len + 1)
    shuffled_rows = [rows[index] for index in rng.permutation(len(rows))]
    return [[rendered[row[index]] for index in rng.permutation(len(row))] for row in shuffled_rows]


def collate_row(row: Sequence[RenderedArrays], sequence_len: int, bos: int) -> tuple[np.ndarray, np.ndarray]:
    """Join the conversations of a row into tokens (T + 1,), padded with `bos`, and targets (T,).

    The target of a position is the token after it where the mask of that token is 1, else -1:

    >>> row = [(np.array([0, 5, 6, 7]), np.array([0, 0, 1, 1])), (np.array([0, 8]), np.array([0, 1]))]  # 0 is <|bos|>
    >>> tokens, targets = collate_row(row, sequence_len=7, bos=0)
    >>> tokens.tolist()  # the inputs are all but the last
    [0, 5, 6, 7, 0, 8, 0, 0]
    >>> targets.tolist()
    [-1, 6, 7, -1, 8, -1, -1]
    """
    ids = np.concatenate([ids for ids, _ in row])
    mask = np.concatenate([mask for _, mask in row])
    assert not mask[0], "a row begins with <|bos|>, which is not trained on"
    assert mask.any(), "a row has a token to train on"
    tokens = np.full(sequence_len + 1, bos)
    tokens[: len(ids)] = ids
    targets = np.full(sequence_len, -1)
    targets[: len(ids) - 1] = np.where(mask, ids, -1)[1:]
    return tokens, targets


def packed_rows(
    conversations: ConversationSource,
    tokenizer: Tokenizer,
    sequence_len: int,
    seed: int,
    num_epochs: int | None = None,
    cursor: PackingCursor | None = None,
) -> Iterator[PackedRow]:
    """Yield the rows of a run from a cursor to the end of the last epoch.

    Without `num_epochs` the rows never end, and their progress is 0. Raises `UserError` if no conversation of an epoch
    has a token to train on.
    """
    cursor = cursor or PackingCursor()
    bos = tokenizer.get_bos_token_id()
    num_conversations = len(conversations)
    first_chunk = cursor.chunk
    skip_rows = cursor.row  # of the first chunk
    num_left_out = 0  # since the last row
    epochs = itertools.count(cursor.epoch) if num_epochs is None else range(cursor.epoch, num_epochs)
    for epoch in epochs:
        of_epoch = conversations.for_pass(epoch) if isinstance(conversations, ChangingSource) else conversations
        order = _order_of_epoch(num_conversations, seed, epoch)
        is_empty = first_chunk == 0
        for chunk in range(first_chunk, math.ceil(num_conversations / CHUNK_SIZE)):
            indices = order[chunk * CHUNK_SIZE : (chunk + 1) * CHUNK_SIZE]
            rendered = render_conversations(of_epoch, indices, tokenizer, sequence_len)
            rows = pack_rows(rendered, sequence_len, np.random.default_rng((seed, epoch, chunk)))
            if skip_rows == 0:  # otherwise the cursor already counts this chunk's
                num_left_out += len(indices) - len(rendered)
            is_empty = is_empty and not rows
            for number, row in enumerate(rows[skip_rows:], skip_rows):
                tokens, targets = collate_row(row, sequence_len, bos)
                num_before = epoch * num_conversations + chunk * CHUNK_SIZE + len(indices) * number / len(rows)
                cursor = PackingCursor(
                    epoch,
                    chunk,
                    number + 1,
                    rows=cursor.rows + 1,
                    tokens=cursor.tokens + sum(len(ids) for ids, _ in row),
                    trained=cursor.trained + int((targets != -1).sum()),
                    left_out=cursor.left_out + num_left_out,
                )
                num_left_out = 0
                progress = num_before / (num_conversations * num_epochs) if num_epochs else 0.0
                yield PackedRow(tokens, targets, progress, cursor)
            skip_rows = 0
        if is_empty:
            raise UserError(
                f"none of {num_conversations:,} conversations has an answer that fits into {sequence_len:,} tokens"
            )
        first_chunk = 0


def _order_of_epoch(num_conversations: int, seed: int, epoch: int) -> Sequence[int]:
    """Return the order of the conversations: their own in the first epoch, a random one in the others."""
    if epoch == 0:
        return range(num_conversations)
    order: list[int] = np.random.default_rng((seed, epoch)).permutation(num_conversations).tolist()
    return order


def count_rows(conversations: ConversationSource, tokenizer: Tokenizer, sequence_len: int) -> int:
    """Count the rows of the first epoch; for more than MAX_EXACT_COUNT conversations, estimate it from a sample."""
    num_conversations = len(conversations)
    indices: Sequence[int] = range(num_conversations)
    if num_conversations > MAX_EXACT_COUNT:
        indices = np.random.default_rng(0).choice(num_conversations, COUNT_SAMPLE_SIZE).tolist()
    num_rows = 0
    for start in range(0, len(indices), CHUNK_SIZE):
        rendered = render_conversations(conversations, indices[start : start + CHUNK_SIZE], tokenizer, sequence_len)
        num_rows += len(best_fit([len(ids) for ids, _ in rendered], sequence_len + 1))
    return round(num_rows * num_conversations / max(1, len(indices)))


def packed_batches(
    rows: Iterator[PackedRow], runtime: Runtime, batch_size: int, num_rows: int | None
) -> Iterator[MicroBatch]:
    """Yield this process's rows of each micro-batch.

    `num_rows`: rows after which the run ends, over all processes; `progress` is the share of them. If it is None, the
    run ends with `rows`, and each row has its own `progress`. The last batch is filled up with rows of padding.
    """
    first = batch_size * runtime.rank
    while global_rows := list(itertools.islice(rows, batch_size * runtime.world_size)):
        first_row = global_rows[0]
        progress = (first_row.cursor.rows - 1) / num_rows if num_rows else first_row.progress
        if progress >= 1:
            return
        inputs = np.full((batch_size, len(first_row.targets)), first_row.tokens[0])  # (B, T)
        targets = np.full_like(inputs, -1)  # (B, T)
        for index, row in enumerate(global_rows[first : first + batch_size]):
            inputs[index] = row.tokens[:-1]
            targets[index] = row.targets
        cursor = asdict(global_rows[-1].cursor)
        yield MicroBatch(torch.from_numpy(inputs), torch.from_numpy(targets), progress, cursor)


def conversation_batches(
    conversations: ConversationSource,
    tokenizer: Tokenizer,
    runtime: Runtime,
    batch_size: int,
    sequence_len: int,
    *,
    num_epochs: int = 1,
    num_rows: int | None = None,
    cursor: dict[str, int] | None = None,
) -> Generator[MicroBatch, None, None]:
    """Yield micro-batches (B, T) of packed conversations from a cursor on, prefetched to the runtime's device.

    The run has `num_rows` rows over all processes if that is given, else `num_epochs` epochs.
    """
    rows = packed_rows(
        conversations,
        tokenizer,
        sequence_len,
        runtime.seed,
        num_epochs=None if num_rows else num_epochs,
        cursor=PackingCursor(**(cursor or {})),
    )
    batches = packed_batches(rows, runtime, batch_size, num_rows)
    if runtime.device.type == "cuda" and hasattr(os, "fork"):
        batches = batches_in_process(batches)
    return prefetch(batches, runtime.device)


def conversation_eval_rows(
    conversations: ConversationSource, tokenizer: Tokenizer, sequence_len: int, max_tokens: int
) -> tuple[Tensor, Tensor]:
    """Return inputs and targets, (R, T) each, of the first rows: at most `max_tokens` positions, but at least one row.

    Every process gets the same rows; there are none if no conversation has a token to train on.
    """
    bos = tokenizer.get_bos_token_id()
    max_rows = max(1, max_tokens // sequence_len)
    rows: list[tuple[np.ndarray, np.ndarray]] = []
    for start in range(0, len(conversations), CHUNK_SIZE):
        if len(rows) >= max_rows:
            break
        indices = range(start, min(start + CHUNK_SIZE, len(conversations)))
        rendered = render_conversations(conversations, indices, tokenizer, sequence_len)
        packed = pack_rows(rendered, sequence_len, np.random.default_rng(start))
        rows += [collate_row(row, sequence_len, bos) for row in packed]
    rows = rows[:max_rows]
    tokens = np.array([tokens for tokens, _ in rows], dtype=np.int64).reshape(-1, sequence_len + 1)
    targets = np.array([targets for _, targets in rows], dtype=np.int64).reshape(-1, sequence_len)
    return torch.from_numpy(tokens[:, :-1].copy()), torch.from_numpy(targets)
