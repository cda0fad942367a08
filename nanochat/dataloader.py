"""Data loader of pretraining: documents to one endless stream of tokens, and the stream to batches of rows.

All documents have one global order, and each begins with `<|bos|>`. Row i of a run is the T + 1 tokens of the stream
from position i * T on: T inputs, and as targets the token after each. Process r of N takes rows r * B to (r + 1) * B of
every batch of N * B rows. For the documents "ab", "cde" and "f", with ^ for `<|bos|>`, T = 3, B = 2 and one process:

    document      0       1           2     0       1
    stream        ^  a  b  ^  c  d  e  ^  f  ^  a  b  ^ ...
    position      0  1  2  3  4  5  6  7  8  9 10 11 12

    batch 0       inputs  ^ a b     targets  a b ^      cursor after it
                          ^ c d              c d e      epoch 0, document 1, skip 3, tokens 6
    batch 1       inputs  e ^ f     targets  ^ f ^
                          ^ a b              a b ^      epoch 1, document 1, skip 0, tokens 12

Every token is a target exactly once in an epoch. The tokens of a step depend neither on the number of processes nor on
the device batch size, and a run continues from its cursor with any number of them. The price is that every process
tokenizes all documents.

Letters in shape comments: B rows of a micro-batch on one process, T tokens of a row.
"""

from __future__ import annotations

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

from nanochat.common import UserError
from nanochat.data.prefetch_queue import PrefetchQueue
from nanochat.data.shards import Documents, Split, open_split
from nanochat.layers.padding import pad_right
from nanochat.runtime import Runtime
from nanochat.system.environment import num_usable_cores
from nanochat.tokenizer import Tokenizer, get_tokenizer

TOKENIZE_CHUNK_BYTES = 1 << 20  # bytes of text encoded in one call, enough for several threads
NUM_TOKENIZER_THREADS = min(8, num_usable_cores())


@dataclass(frozen=True)
class StreamCursor:
    """Position in the stream: the next token is number `skip` of `document` in `epoch`, all counted from 0."""

    epoch: int = 0
    document: int = 0
    skip: int = 0  # tokens of this document that were consumed, <|bos|> included
    tokens: int = 0  # tokens consumed since the start of the run, over all epochs


@dataclass(frozen=True)
class MicroBatch:
    """Rows of one process for one forward and backward pass."""

    inputs: Tensor  # (B, T) int64
    targets: Tensor  # (B, T) int64, -1 = not trained on
    progress: float  # share of the run before this batch, in [0, 1)
    cursor: dict[str, int]  # position of the next batch, from which a run continues; saved in checkpoints


class DocumentSource(Protocol):
    """Documents in a global order, as the loader reads them."""

    def __len__(self) -> int: ...

    def iter_arrays(self, start: int = 0) -> Iterator[Any]:
        """Yield the documents from number `start` to the last in Arrow arrays of strings without nulls."""
        ...


def tokenize_documents(arrays: Iterable[Any], tokenizer: Tokenizer) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Encode Arrow arrays of documents in chunks of about TOKENIZE_CHUNK_BYTES, each document after a `<|bos|>`.

    Yield (ids, bounds) for each chunk: its document i is `ids[bounds[i] : bounds[i + 1]]`. No Python object is created
    for a text or an id.
    """
    bos = tokenizer.get_bos_token_id()
    for array in arrays:
        end_bytes = np.cumsum(np.asarray(pc.binary_length(array)) + 1, dtype=np.int64)  # (N,), cumulative
        start = 0
        while start < len(array):
            max_end_bytes = TOKENIZE_CHUNK_BYTES + (end_bytes[start - 1] if start else 0)
            stop = int(np.searchsorted(end_bytes, max_end_bytes)) + 1
            ids, offsets = tokenizer.encode_arrays(array[start:stop], NUM_TOKENIZER_THREADS)
            yield np.insert(ids, offsets[:-1], bos), offsets + np.arange(len(offsets))
            start = stop


def read_cursor(values: dict[str, Any], num_documents: int) -> StreamCursor:
    """Return the cursor that a checkpoint holds. Raises UserError if its numbers are impossible."""
    for name, value in values.items():
        if name not in StreamCursor.__dataclass_fields__ or type(value) is not int or value < 0:
            raise UserError(f"the checkpoint's cursor has {name} = {value!r}: it is damaged; resume from another one")
    cursor = StreamCursor(**values)
    if cursor.document >= num_documents:
        raise UserError(
            f"the checkpoint's cursor is at document {cursor.document}, of {num_documents}: it is damaged, or of other "
            "data; resume from another one"
        )
    return cursor


class TokenStream:
    """Endless stream of the tokens of all documents, epoch after epoch, from a cursor on."""

    def __init__(self, documents: DocumentSource, tokenizer: Tokenizer, cursor: StreamCursor) -> None:
        assert len(documents), "a stream needs at least one document"
        self.documents = documents
        self.cursor = cursor
        self._buffer: deque[np.ndarray] = deque()  # the tokens of document `cursor.document` and of those after it
        self._num_buffered = -cursor.skip  # tokens from the cursor on
        self._chunks = tokenize_documents(self._endless_arrays(cursor.document), tokenizer)

    def _endless_arrays(self, start: int) -> Iterator[Any]:
        while True:
            yield from self.documents.iter_arrays(start)
            start = 0

    def _fill_buffer(self) -> None:
        ids, bounds = next(self._chunks)
        self._buffer.extend(ids[start:end] for start, end in pairwise(bounds.tolist()))
        self._num_buffered += len(ids)

    def take(self, count: int) -> np.ndarray:
        """Return the next `count` + 1 tokens, and advance the cursor by `count`.

        The last token is returned again as the first of the next call: it is the last target of this call and the first
        input of the next.
        """
        while self._num_buffered < count + 1:
            self._fill_buffer()
        parts = []
        num_missing = count + 1
        skip = self.cursor.skip
        for tokens in self._buffer:
            parts.append(tokens[skip : skip + num_missing])
            num_missing -= len(parts[-1])
            if not num_missing:
                break
            skip = 0
        self._advance(count)
        return np.concatenate(parts)

    def _advance(self, count: int) -> None:
        epoch = self.cursor.epoch
        document = self.cursor.document
        skip = self.cursor.skip + count
        while skip >= len(self._buffer[0]):
            skip -= len(self._buffer.popleft())
            document += 1
            if document == len(self.documents):
                epoch += 1
                document = 0
        self._num_buffered -= count
        self.cursor = StreamCursor(epoch, document, skip, self.cursor.tokens + count)


def token_batches(
    stream: TokenStream, runtime: Runtime, batch_size: int, sequence_len: int, total_tokens: int
) -> Iterator[MicroBatch]:
    """Yield this process's rows of each micro-batch, without end.

    `batch_size`: B, rows of one process. `total_tokens`: tokens of the whole run, the unit of `progress`.
    """
    global_tokens = batch_size * runtime.world_size * sequence_len
    first = batch_size * runtime.rank * sequence_len
    while True:
        progress = stream.cursor.tokens / total_tokens
        tokens = torch.from_numpy(stream.take(global_tokens).astype(np.int64))
        local_tokens = tokens[first : first + batch_size * sequence_len + 1]  # (B * T + 1,)
        inputs = local_tokens[:-1].view(batch_size, sequence_len)
        targets = local_tokens[1:].view(batch_size, sequence_len)
        yield MicroBatch(inputs, targets, progress, asdict(stream.cursor))


def prefetch(batches: Iterator[MicroBatch], device: torch.device) -> Generator[MicroBatch, None, None]:
    """Move batches to the device, while a thread prepares further ones (`PrefetchQueue`).

    On CUDA the copies are queued like kernels, from pinned memory: nothing waits for them. An exception in the thread
    is raised here. The thread ends when this generator is closed or collected, and closes `batches`.
    """
    ready: PrefetchQueue[MicroBatch | BaseException | None] = PrefetchQueue()
    is_cuda = device.type == "cuda"
    if device == torch.device("cuda"):  # without an index: the caller's
        device = torch.device("cuda", torch.cuda.current_device())

    def produce() -> None:
        last_item: BaseException | None = None
        try:
            if is_cuda:
                torch.cuda.set_device(device)  # each thread has its own, at first GPU 0: pinning would use its memory
            for batch in batches:
                if is_cuda:
                    batch = replace(batch, inputs=batch.inputs.pin_memory(), targets=batch.targets.pin_memory())
                if not ready.put(batch, batch.inputs.nbytes + batch.targets.nbytes):
                    return
        except BaseException as error:  # of any kind: the consumer raises it
            last_item = error
        finally:
            if isinstance(batches, Generator):
                batches.close()
        ready.put(last_item)

    thread = threading.Thread(target=produce, name="dataloader", daemon=True)
    thread.start()
    try:
        while isinstance(item := ready.get(), MicroBatch):
            yield replace(
                item,
                inputs=item.inputs.to(device, non_blocking=True),
                targets=item.targets.to(device, non_blocking=True),
            )
        if item is not None:
            raise item
    finally:
        ready.close()
        thread.join()


def document_batches(
    documents: DocumentSource,
    tokenizer: Tokenizer,
    runtime: Runtime,
    batch_size: int,
    sequence_len: int,
    total_tokens: int,
    cursor: dict[str, int] | None = None,
) -> Generator[MicroBatch, None, None]:
    """Yield micro-batches (B, T) of documents without end, from a cursor on, prefetched to the runtime's device.

    `total_tokens`: tokens of the whole run, the unit of `progress`. `cursor`: the cursor of the batch before; None
    starts at the first document.
    """
    start = read_cursor(cursor or {}, len(documents))
    if isinstance(documents, Documents):
        documents.check_ahead(start.document)
    stream = TokenStream(documents, tokenizer, start)
    return prefetch(token_batches(stream, runtime, batch_size, sequence_len, total_tokens), runtime.device)


def tokenizing_distributed_data_loader(
    batch_size: int, sequence_len: int, split: Split, device: torch.device | str = "auto"
) -> Generator[tuple[Tensor, Tensor], None, None]:
    """Yield (inputs, targets), each (B, T), of a split of the data set, epoch after epoch without end.

    Data set and tokenizer are those in `$NANOCHAT_BASE_DIR`. Under torchrun each process gets its own rows of every
    batch. Raises `UserError` if there is no data set, no tokenizer, or nothing in the split.
    """
    runtime = Runtime.without_setup(device)
    tokenizer = get_tokenizer()
    batches = document_batches(open_split(split), tokenizer, runtime, batch_size, sequence_len, total_tokens=1)

    def pairs() -> Generator[tuple[Tensor, Tensor], None, None]:
        with closing(batches):
            for batch in batches:
                yield batch.inputs, batch.targets

    return pairs()


def document_eval_rows(
    documents: DocumentSource, tokenizer: Tokenizer, sequence_len: int, max_tokens: int
) -> tuple[Tensor, int]:
    """Return the first rows of a split, (R, T + 1) int64, and the number of targets in them.

    There are at most `max_tokens` targets, from at most one pass over the split. The last row is padded with -1. Every
    process gets the same rows.
    """
    chunks: list[np.ndarray] = []
    num_tokens = 0
    for ids, _ in tokenize_documents(documents.iter_arrays(), tokenizer):
        chunks.append(ids)
        num_tokens += len(ids)
        if num_tokens > max_tokens:
            break
    tokens = np.concatenate(chunks)
    num_targets = min(max_tokens, len(tokens) - 1)  # the first token is no target
    return split_into_rows(tokens[: num_targets + 1], sequence_len), num_targets


def split_into_rows(tokens: np.ndarray, sequence_len: int) -> Tensor:
    """Cut a stream of ids into rows (R, T + 1); each begins with the last token of the row before, and -1 is padding.

    >>> split_into_rows(np.array([10, 11, 12, 13, 14, 15]), sequence_len=3).tolist()
    [[10, 11, 12, 13], [13, 14, 15, -1]]
    """
    num_rows = max(1, -(-(len(tokens) - 1) // sequence_len))  # rounded up
    padded = pad_right([tokens.astype(np.int64)], fill=-1, width=num_rows * sequence_len + 1)[0]
    return padded.unfold(0, sequence_len + 1, sequence_len)
