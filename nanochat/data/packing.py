"""Conversations -> batches: whole conversations packed into rows, the same rows for every number of processes.

Conversations are taken in their order (from the second epoch on in a shuffled one), a chunk at a time. Each is
rendered; one that is longer than a row ends at a turn. A chunk is packed by best fit and padded: no conversation is
split, none reaches into the next chunk, and no row is without a token to learn. The conversations of a row, and the
rows of a chunk, stand in a random order, so that neither long nor short ones have a place of their own. As with text
(dataloader.py), process r of N takes its share of the rows of every batch, and one cursor says where the run stands.

Letters in shape comments: B rows of a micro-batch on one process, T tokens of a row.
"""

from __future__ import annotations

import itertools
import math
from bisect import bisect_left, insort
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from nanochat.common import UserError
from nanochat.dataloader import MicroBatch, prefetch
from nanochat.layers.padding import pad_rows
from nanochat.runtime import Runtime
from nanochat.tokenization.chat_format import Conversation
from nanochat.tokenizer import Tokenizer

CHUNK_SIZE = 2048  # conversations packed together: more would hardly waste less
MAX_EXACT_COUNT = 1 << 15  # conversations up to which the rows of an epoch are counted
COUNT_SAMPLE_SIZE = 1 << 12  # conversations from which they are estimated where there are more

RenderedConversation = tuple[
    list[int], list[int]
]  # ids and mask of a conversation, as `Tokenizer.render_conversation` gives them


class ConversationSource(Protocol):
    """What the packer needs of a data set."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Conversation: ...


@dataclass(frozen=True)
class PackingCursor:
    """A place in the run: `row` rows of this chunk are used up. The rest counts what has been used in all."""

    epoch: int = 0
    chunk: int = 0
    row: int = 0
    rows: int = 0
    tokens: int = 0  # without padding
    trained: int = 0  # of them
    left_out: int = 0  # conversations with nothing to learn from


@dataclass(frozen=True)
class PackedRow:
    """T + 1 tokens, and the place that they have in the run."""

    tokens: np.ndarray  # (T + 1,) int64, padded with <|bos|>
    targets: np.ndarray  # (T,) int64, -1 = not trained on
    progress: float  # share of the epochs before this row
    cursor: PackingCursor  # after it


def best_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Which of these lengths share a row of this capacity: the longest first, each where it leaves the least room.

    >>> best_fit([3, 9, 1, 5, 5, 2], 10)
    [[1, 2], [3, 4], [0, 5]]
    """
    assert not lengths or max(lengths) <= capacity, "a conversation is longer than a row"
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (tokens that are free, row), sorted
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        place = bisect_left(room, (lengths[index], 0))
        if place == len(room):
            rows.append([])
            free, row = capacity, len(rows) - 1
        else:
            free, row = room.pop(place)
        rows[row].append(index)
        insort(room, (free - lengths[index], row))
    return rows


def render_conversations(
    conversations: ConversationSource, chosen: Iterable[int], tokenizer: Tokenizer, sequence_len: int
) -> list[RenderedConversation]:
    """Ids and mask of the chosen ones, at most T + 1 tokens each; those with nothing to learn from are left out.

    Raises `UserError`, with its number, for one that is no conversation.
    """
    rendered = []
    for index in chosen:
        try:
            ids, mask = tokenizer.render_conversation(conversations[index], max_tokens=sequence_len + 1)
        except UserError as error:
            raise UserError(f"conversation {index}: {error}") from error
        if ids:
            rendered.append((ids, mask))
    return rendered


def pack_rows(
    rendered: Sequence[RenderedConversation], sequence_len: int, rng: np.random.Generator
) -> list[list[RenderedConversation]]:
    """The conversations of each row; the rows, and what is in them, in random order."""
    rows = best_fit([len(ids) for ids, _ in rendered], sequence_len + 1)
    shuffled = [rows[index] for index in rng.permutation(len(rows))]
    return [[rendered[row[index]] for index in rng.permutation(len(row))] for row in shuffled]


def collate_row(row: Sequence[RenderedConversation], sequence_len: int, bos: int) -> tuple[np.ndarray, np.ndarray]:
    """A row's tokens (T + 1,) and targets (T,): the token after each where its mask is 1, else -1."""
    ids = np.fromiter(itertools.chain.from_iterable(ids for ids, _ in row), dtype=np.int64)
    mask = np.fromiter(itertools.chain.from_iterable(mask for _, mask in row), dtype=bool)
    assert not mask[0], "a row begins with <|bos|>, which nothing says"
    assert mask.any(), "a row has something to learn"
    tokens, targets = np.full(sequence_len + 1, bos), np.full(sequence_len, -1)
    tokens[: len(ids)] = ids
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
    """The rows of a run from a cursor on, to the end of the last epoch; without `num_epochs` for ever, at progress 0.

    Raises `UserError` if there is nothing to learn in an epoch.
    """
    cursor, bos, count = cursor or PackingCursor(), tokenizer.get_bos_token_id(), len(conversations)
    first, skip, left_out = cursor.chunk, cursor.row, 0
    for epoch in itertools.count(cursor.epoch) if num_epochs is None else range(cursor.epoch, num_epochs):
        order = np.random.default_rng((seed, epoch)).permutation(count).tolist() if epoch else range(count)
        empty = not first
        for chunk in range(first, math.ceil(count / CHUNK_SIZE)):
            chosen = order[chunk * CHUNK_SIZE : (chunk + 1) * CHUNK_SIZE]
            rendered = render_conversations(conversations, chosen, tokenizer, sequence_len)
            rows = pack_rows(rendered, sequence_len, np.random.default_rng((seed, epoch, chunk)))
            left_out += 0 if skip else len(chosen) - len(rendered)
            empty = empty and not rows
            for number, row in enumerate(rows[skip:], skip):
                tokens, targets = collate_row(row, sequence_len, bos)
                done = epoch * count + chunk * CHUNK_SIZE + len(chosen) * number / len(rows)
                used = {
                    "rows": cursor.rows + 1,
                    "tokens": cursor.tokens + sum(len(ids) for ids, _ in row),
                    "trained": cursor.trained + int((targets != -1).sum()),
                    "left_out": cursor.left_out + left_out,
                }
                cursor, left_out = PackingCursor(epoch, chunk, number + 1, **used), 0
                yield PackedRow(tokens, targets, done / (count * num_epochs) if num_epochs else 0.0, cursor)
            skip = 0
        if empty:
            raise UserError(f"none of {count:,} conversations has an answer that fits into {sequence_len:,} tokens")
        first = 0


def count_rows(conversations: ConversationSource, tokenizer: Tokenizer, sequence_len: int) -> int:
    """Rows of the first epoch; of a large data set an estimate from some of its conversations."""
    count = len(conversations)
    chosen = (
        range(count) if count <= MAX_EXACT_COUNT else np.random.default_rng(0).choice(count, COUNT_SAMPLE_SIZE).tolist()
    )
    rows = 0
    for start in range(0, len(chosen), CHUNK_SIZE):
        rendered = render_conversations(conversations, chosen[start : start + CHUNK_SIZE], tokenizer, sequence_len)
        rows += len(best_fit([len(ids) for ids, _ in rendered], sequence_len + 1))
    return round(rows * count / max(1, len(chosen)))


def packed_batches(
    rows: Iterator[PackedRow], runtime: Runtime, batch_size: int, num_rows: int | None
) -> Iterator[MicroBatch]:
    """This process's rows of one micro-batch after the other; `num_rows` are the whole run, if that is not the epochs.

    Where the rows end, the last batch is filled up with rows of padding.
    """
    first = batch_size * runtime.rank
    while group := list(itertools.islice(rows, batch_size * runtime.world_size)):
        progress = (group[0].cursor.rows - 1) / num_rows if num_rows else group[0].progress
        if progress >= 1:
            return
        tokens = torch.from_numpy(np.stack([row.tokens for row in group]))
        targets = torch.from_numpy(np.stack([row.targets for row in group]))
        mine = slice(first, first + batch_size)
        inputs = pad_rows(tokens[mine, :-1], batch_size, fill=int(tokens[0, 0]))
        yield MicroBatch(inputs, pad_rows(targets[mine], batch_size, fill=-1), progress, asdict(group[-1].cursor))


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
    """Micro-batches (B, T) of packed conversations, made ahead of the step, from a cursor on.

    The run is `num_rows` rows over all processes or, without, `num_epochs` epochs.
    """
    epochs, place = None if num_rows else num_epochs, PackingCursor(**(cursor or {}))
    rows = packed_rows(conversations, tokenizer, sequence_len, runtime.seed, epochs, place)
    return prefetch(packed_batches(rows, runtime, batch_size, num_rows), runtime.device)


def conversation_eval_rows(
    conversations: ConversationSource, tokenizer: Tokenizer, sequence_len: int, max_tokens: int
) -> tuple[Tensor, Tensor]:
    """Inputs and targets, (rows, T) each, of the first rows, `max_tokens` positions at most but one row at least.

    The same in every process; no rows if there is nothing to learn.
    """
    bos, count = tokenizer.get_bos_token_id(), max(1, max_tokens // sequence_len)
    rows: list[tuple[np.ndarray, np.ndarray]] = []
    for start in range(0, len(conversations), CHUNK_SIZE):
        if len(rows) < count:
            chosen = range(start, min(start + CHUNK_SIZE, len(conversations)))
            rendered = render_conversations(conversations, chosen, tokenizer, sequence_len)
            packed = pack_rows(rendered, sequence_len, np.random.default_rng(start))
            rows += [collate_row(row, sequence_len, bos) for row in packed]
    tokens = np.array([tokens for tokens, _ in rows[:count]], dtype=np.int64).reshape(-1, sequence_len + 1)
    targets = np.array([targets for _, targets in rows[:count]], dtype=np.int64).reshape(-1, sequence_len)
    return torch.from_numpy(tokens[:, :-1].copy()), torch.from_numpy(targets)
