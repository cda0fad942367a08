"""Text -> batches: one endless stream of tokens, cut into rows, the same rows for every number of processes.

All documents stand in one global order; each starts with `<|bos|>`. Row i of the run is T + 1 tokens of that stream
from position i x T, so that each token is a target once. Process r of N takes its share of the rows of every batch.
What a step trains on is therefore the same for every number of processes and every device batch size, and one cursor
(epoch, document, tokens of it already used) says where the run stands, wherever it is continued. The price: every
process tokenises all the text.

Letters in shape comments: B rows of a micro-batch on one process, T tokens of a row.
"""

from __future__ import annotations

import os
import queue
import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import pyarrow.compute as pc
import torch
from torch import Tensor

from nanochat.data.shards import Split, open_split
from nanochat.layers.padding import pad_right
from nanochat.runtime import Runtime
from nanochat.tokenizer import Tokenizer, get_tokenizer

TOKENIZE_CHUNK_BYTES = 1 << 20  # tokenised at a time: enough for the threads to share
PREFETCH_BATCHES = 4
NUM_TOKENIZER_THREADS = min(8, os.cpu_count() or 1)


@dataclass(frozen=True)
class StreamCursor:
    """A place in the stream: `skip` tokens of `document` are used up; `tokens` have been trained on in all."""

    epoch: int = 0
    document: int = 0
    skip: int = 0
    tokens: int = 0


@dataclass(frozen=True)
class MicroBatch:
    """A micro-batch of one process. `progress` of the run before it; `cursor` where the stream stands after it."""

    inputs: Tensor  # (B, T) int64
    targets: Tensor  # (B, T) int64, -1 = not trained on
    progress: float
    cursor: dict[str, int]


class DocumentSource(Protocol):
    """What the loader needs of a data set."""

    def __len__(self) -> int: ...

    def iter_arrays(self, start: int = 0) -> Iterator[Any]:
        """The documents from this one to the last, in Arrow arrays of strings without nulls."""
        ...


def tokenize_documents(arrays: Iterable[Any], tokenizer: Tokenizer) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The tokens of some documents after the other, each with `<|bos|>` before it: (ids, bounds).

    Document i of them is `ids[bounds[i]:bounds[i + 1]]`. No Python object is made for a text or an id.
    """
    bos = tokenizer.get_bos_token_id()
    for array in arrays:
        sizes = np.cumsum(np.asarray(pc.binary_length(array)) + 1, dtype=np.int64)  # (N,), with the documents before
        start = 0
        while start < len(array):
            limit = TOKENIZE_CHUNK_BYTES + (sizes[start - 1] if start else 0)
            stop = int(np.searchsorted(sizes, limit)) + 1
            ids, offsets = tokenizer.encode_arrays(array[start:stop], NUM_TOKENIZER_THREADS)
            yield np.insert(ids, offsets[:-1], bos), offsets + np.arange(len(offsets))
            start = stop


class TokenStream:
    """The tokens of all documents, epoch after epoch, from a cursor on."""

    def __init__(self, documents: DocumentSource, tokenizer: Tokenizer, cursor: StreamCursor) -> None:
        assert len(documents), "a stream needs at least one document"
        self.documents = documents
        self.cursor = cursor
        self._held: deque[np.ndarray] = deque()  # the tokens of cursor.document and of those that follow it
        self._num_held = -cursor.skip
        self._tokenised = tokenize_documents(self._endless_arrays(cursor.document), tokenizer)

    def _endless_arrays(self, start: int) -> Iterator[Any]:
        while True:
            yield from self.documents.iter_arrays(start)
            start = 0

    def _refill(self) -> None:
        tokens, bounds = next(self._tokenised)
        self._held.extend(tokens[start:end] for start, end in pairwise(bounds.tolist()))
        self._num_held += len(tokens)

    def take(self, count: int) -> np.ndarray:
        """The next `count` tokens and the one after them, which stays the first of the next call."""
        while self._num_held < count + 1:
            self._refill()
        pieces, missing = [], count + 1
        skip = self.cursor.skip
        for tokens in self._held:
            pieces.append(tokens[skip : skip + missing])
            missing -= len(pieces[-1])
            if not missing:
                break
            skip = 0
        self._advance(count)
        return np.concatenate(pieces)

    def _advance(self, count: int) -> None:
        epoch, document, skip = self.cursor.epoch, self.cursor.document, self.cursor.skip + count
        while skip >= len(self._held[0]):
            skip -= len(self._held.popleft())
            document += 1
            if document == len(self.documents):
                epoch, document = epoch + 1, 0
        self._num_held -= count
        self.cursor = StreamCursor(epoch, document, skip, self.cursor.tokens + count)


def token_batches(
    stream: TokenStream, runtime: Runtime, batch_size: int, sequence_len: int, horizon: int
) -> Iterator[MicroBatch]:
    """This process's rows of one micro-batch after the other, for ever; `horizon` tokens are the whole run."""
    rows = batch_size * runtime.world_size
    first = batch_size * runtime.rank
    while True:
        progress = stream.cursor.tokens / horizon
        tokens = torch.from_numpy(stream.take(rows * sequence_len).astype(np.int64))
        mine = tokens[first * sequence_len : (first + batch_size) * sequence_len + 1]  # (B * T + 1,)
        inputs, targets = mine[:-1].view(batch_size, sequence_len), mine[1:].view(batch_size, sequence_len)
        yield MicroBatch(inputs, targets, progress, asdict(stream.cursor))


def prefetch(batches: Iterator[MicroBatch], device: torch.device) -> Generator[MicroBatch, None, None]:
    """Run an iterator of batches in a thread, a few batches ahead, and put them on the device.

    An exception in the thread is raised here. The thread ends when this generator is closed or collected.
    """
    ahead: queue.Queue[MicroBatch | BaseException | None] = queue.Queue(PREFETCH_BATCHES)
    stop = threading.Event()

    def put(item: MicroBatch | BaseException | None) -> bool:
        while not stop.is_set():
            try:
                ahead.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        last: BaseException | None = None
        try:
            for batch in batches:
                if device.type == "cuda":
                    batch = replace(batch, inputs=batch.inputs.pin_memory(), targets=batch.targets.pin_memory())
                if not put(batch):
                    return
        except BaseException as error:  # handed over, whatever it is
            last = error
        put(last)

    thread = threading.Thread(target=work, name="dataloader", daemon=True)
    thread.start()
    try:
        while isinstance(item := ahead.get(), MicroBatch):
            yield replace(
                item,
                inputs=item.inputs.to(device, non_blocking=True),
                targets=item.targets.to(device, non_blocking=True),
            )
        if item is not None:
            raise item
    finally:
        stop.set()
        thread.join()


def document_batches(
    documents: DocumentSource,
    tokenizer: Tokenizer,
    runtime: Runtime,
    batch_size: int,
    sequence_len: int,
    horizon: int,
    cursor: dict[str, int] | None = None,
) -> Generator[MicroBatch, None, None]:
    """Micro-batches (B, T) of the training documents, tokenised ahead of the step, from a cursor on, for ever.

    `horizon`: tokens of the whole run, which `progress` is a share of.
    """
    stream = TokenStream(documents, tokenizer, StreamCursor(**(cursor or {})))
    return prefetch(token_batches(stream, runtime, batch_size, sequence_len, horizon), runtime.device)


def tokenizing_distributed_data_loader(
    batch_size: int, sequence_len: int, split: Split, device: torch.device | str = "auto"
) -> Generator[tuple[Tensor, Tensor], None, None]:
    """Yield (inputs, targets), each (B, T), of a split of the base folder's data set, epoch after epoch without end.

    Tokenizes with the base folder's tokenizer. Under torchrun each process gets its own rows of every batch. Raises
    `UserError` if there is no data set, no tokenizer, or nothing in the split.
    """
    runtime = Runtime.current(device)
    tokenizer = get_tokenizer()
    batches = document_batches(open_split(split), tokenizer, runtime, batch_size, sequence_len, horizon=1)

    def pairs() -> Generator[tuple[Tensor, Tensor], None, None]:
        with closing(batches):
            for batch in batches:
                yield batch.inputs, batch.targets

    return pairs()


def document_eval_rows(
    documents: DocumentSource, tokenizer: Tokenizer, sequence_len: int, max_tokens: int
) -> tuple[Tensor, int]:
    """The first rows of a split, (rows, T + 1) int64, at most one pass over it; and how many targets they hold.

    The last row may be padded, with its tail made of -1. Every process gets the same rows.
    """
    pieces: list[np.ndarray] = []
    size = 0
    for ids, _ in tokenize_documents(documents.iter_arrays(), tokenizer):
        pieces.append(ids)
        size += len(ids)
        if size > max_tokens:
            break
    tokens = np.concatenate(pieces)
    count = min(max_tokens, len(tokens) - 1)  # the first token is nobody's target
    return split_into_rows(tokens[: count + 1], sequence_len), count


def split_into_rows(tokens: np.ndarray, sequence_len: int) -> Tensor:
    """A stream of ids as rows (rows, T + 1), each beginning with the last token of the one before; padded with -1."""
    rows = max(1, -(-(len(tokens) - 1) // sequence_len))
    padded = pad_right([tokens.astype(np.int64)], fill=-1, width=rows * sequence_len + 1)[0]
    return padded.unfold(0, sequence_len + 1, sequence_len)
