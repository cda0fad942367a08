"""The loader, compared with all tokens of all documents in one list, cut into rows."""

from __future__ import annotations

import gc
import itertools
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat import dataloader
from nanochat.common import UserError
from nanochat.data.prefetch_queue import FIRST_DEPTH
from nanochat.data.shards import Manifest, open_split, write_dataset, write_shards
from nanochat.dataloader import (
    MicroBatch,
    StreamCursor,
    TokenStream,
    document_batches,
    document_eval_rows,
    prefetch,
    token_batches,
)
from nanochat.runtime import Runtime
from nanochat.tokenization.encoders import TiktokenEncoder
from nanochat.tokenizer import SPECIAL_TOKENS, SPLIT_PATTERN, HuggingFaceTokenizer, Tokenizer

BOS = 256
CPU = torch.device("cpu")
STRING = pa.string()
# Each byte is a token, so that batches can be compared with the text itself.
TOKENIZER = Tokenizer(
    SPLIT_PATTERN, {bytes([b]): b for b in range(256)}, {name: 256 + i for i, name in enumerate(SPECIAL_TOKENS)}
)
LENGTHS = st.lists(st.one_of(st.integers(0, 3), st.integers(0, 12), st.just(150)), min_size=1, max_size=8)


class Texts:
    """DocumentSource in memory, in Arrow arrays of at most `size` documents."""

    def __init__(self, texts: Sequence[str], size: int = 1024, kind: pa.DataType = STRING) -> None:
        self.texts = list(texts)
        self.size = size
        self.column = pa.array(texts, kind)

    def __len__(self) -> int:
        return len(self.texts)

    def iter_arrays(self, start: int = 0) -> Iterator[pa.Array]:
        return (self.column[i : i + self.size] for i in range(start, len(self), self.size))


def texts_of(lengths: Sequence[int]) -> Texts:
    """Return documents of these lengths, in which neighbouring bytes differ, also across documents."""
    letters = itertools.cycle("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789")
    return Texts(["".join(itertools.islice(letters, length)) for length in lengths])


def expected_stream(texts: Texts, count: int) -> list[int]:
    """Return the first `count` tokens of the stream."""
    epoch = [token for text in texts.texts for token in [BOS, *text.encode()]]
    return (epoch * (count // len(epoch) + 1))[:count]


def runtime(rank: int = 0, world_size: int = 1) -> Runtime:
    return Runtime(rank, rank, world_size, CPU, torch.float32, 0)


def batches_of(
    texts: Texts, rank: int, world_size: int, batch_size: int, sequence_len: int, cursor: dict[str, int] | None = None
) -> Iterator[MicroBatch]:
    """Yield the batches of one process, without the prefetching thread."""
    stream = TokenStream(texts, TOKENIZER, StreamCursor(**(cursor or {})))
    return token_batches(stream, runtime(rank, world_size), batch_size, sequence_len, total_tokens=1000)


@pytest.fixture(params=[1, 64, 1000], ids="refill{}".format)
def refill(request: pytest.FixtureRequest) -> Iterator[None]:
    """Run a test with small and large tokenization chunks, down to single documents."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dataloader, "TOKENIZE_CHUNK_BYTES", request.param)
        yield


# --- the stream -------------------------------------------------------------------------------------------------------


def test_the_example_in_the_docstring() -> None:
    """The batches and cursors that the module's docstring shows."""
    texts = Texts(["ab", "cde", "f"])
    batches = list(itertools.islice(batches_of(texts, 0, 1, batch_size=2, sequence_len=3), 2))

    def shown(rows: torch.Tensor) -> list[str]:
        return ["".join("^" if token == BOS else chr(token) for token in row) for row in rows.tolist()]

    assert [(shown(batch.inputs), shown(batch.targets)) for batch in batches] == [
        (["^ab", "^cd"], ["ab^", "cde"]),
        (["e^f", "^ab"], ["^f^", "ab^"]),
    ]
    assert [batch.cursor for batch in batches] == [
        {"epoch": 0, "document": 1, "skip": 3, "tokens": 6},
        {"epoch": 1, "document": 1, "skip": 0, "tokens": 12},
    ]


@pytest.mark.usefixtures("refill")
@pytest.mark.parametrize("world_size", [1, 2, 3])
@given(lengths=LENGTHS, batch_size=st.integers(1, 3), sequence_len=st.integers(1, 9))
@settings(max_examples=25, deadline=None)
def test_the_rows_are_the_stream(world_size: int, lengths: list[int], batch_size: int, sequence_len: int) -> None:
    """The inputs and targets of all processes join to the stream, over at least three epochs."""
    texts = texts_of(lengths)
    global_tokens = world_size * batch_size * sequence_len
    steps = 3 * (sum(lengths) + len(lengths)) // global_tokens + 2
    expected = torch.tensor(expected_stream(texts, steps * global_tokens + 1))
    ranks = [batches_of(texts, rank, world_size, batch_size, sequence_len) for rank in range(world_size)]
    for step in range(steps):
        step_batches = [next(batches) for batches in ranks]
        start = step * global_tokens
        inputs = torch.cat([batch.inputs for batch in step_batches])
        targets = torch.cat([batch.targets for batch in step_batches])
        assert inputs.shape == targets.shape == (world_size * batch_size, sequence_len)
        assert inputs.flatten().equal(expected[start : start + global_tokens])
        assert targets.flatten().equal(expected[start + 1 : start + global_tokens + 1])
        assert {batch.progress for batch in step_batches} == {start / 1000}
        assert len({tuple(batch.cursor.items()) for batch in step_batches}) == 1


@pytest.mark.usefixtures("refill")
@given(lengths=LENGTHS, world_size=st.integers(1, 3), next_size=st.integers(1, 3), sequence_len=st.integers(1, 9))
@settings(max_examples=25, deadline=None)
@pytest.mark.slow
def test_resumes_at_every_cursor(lengths: list[int], world_size: int, next_size: int, sequence_len: int) -> None:
    """From the cursor of any batch, and with any number of processes, the stream continues with the next token."""
    texts = texts_of(lengths)
    steps = 2 * (sum(lengths) + len(lengths)) // (world_size * sequence_len) + 2
    expected = torch.tensor(expected_stream(texts, (steps * world_size + 2 * next_size) * sequence_len + 1))
    batches = batches_of(texts, 0, world_size, 1, sequence_len)
    for step in range(1, steps + 1):
        cursor = next(batches).cursor
        assert cursor["tokens"] == step * world_size * sequence_len
        for rank in range(next_size):
            resumed = next(batches_of(texts, rank, next_size, 2, sequence_len, cursor))
            start = cursor["tokens"] + rank * 2 * sequence_len
            assert resumed.inputs.flatten().equal(expected[start : start + 2 * sequence_len])
            assert resumed.targets.flatten().equal(expected[start + 1 : start + 2 * sequence_len + 1])


@pytest.mark.usefixtures("refill")
@given(lengths=LENGTHS)
@settings(max_examples=10, deadline=None)
def test_the_cursor_is_the_position(lengths: list[int]) -> None:
    """Epoch, document and token of every position equal those of a list; a cursor is never past a document's end."""
    texts = texts_of(lengths)
    positions = [(document, skip) for document, length in enumerate(lengths) for skip in range(length + 1)]
    stream = TokenStream(texts, TOKENIZER, StreamCursor())
    for count in range(1, 2 * len(positions) + 1):
        stream.take(1)
        epoch, index = divmod(count, len(positions))
        assert stream.cursor == StreamCursor(epoch, *positions[index], count)


@pytest.mark.usefixtures("refill")
def test_each_token_is_a_target_once() -> None:
    """Over two epochs, each token is a target once, except the first of the run."""
    texts = texts_of([20, 0, 3, 55, 1])
    size = sum(len(text) + 1 for text in texts.texts)
    batches = itertools.islice(batches_of(texts, 0, 1, 2, 7), 2 * size // 14 + 1)
    targets = torch.cat([batch.targets.flatten() for batch in batches])
    assert targets[: 2 * size - 1].tolist() == expected_stream(texts, 2 * size)[1:]


def test_the_name_of_a_special_token_is_text() -> None:
    batch = next(batches_of(Texts(["<|bos|>"]), 0, 1, 1, 7))
    assert batch.inputs.tolist() == [[BOS, *b"<|bos|"]]


def test_a_larger_batch_is_the_same_stream() -> None:
    """The rows do not depend on the batch size."""
    texts = texts_of([30, 8, 0, 41])

    def rows(batch_size: int) -> torch.Tensor:
        batches = itertools.islice(batches_of(texts, 0, 1, batch_size, 5), 24 // batch_size)
        return torch.cat([batch.inputs for batch in batches])

    assert all(rows(1).equal(rows(size)) for size in (2, 3, 8, 24))


# --- Arrow arrays, compared with strings ------------------------------------------------------------------------------


class StringStream:
    """A slow TokenStream on Python strings and lists of ids, which takes one token at a time."""

    def __init__(self, texts: Sequence[str], tokenizer: Tokenizer, cursor: StreamCursor) -> None:
        self.rows = [tokenizer.encode(text, prepend="<|bos|>") for text in texts]
        self.cursor = cursor

    def step(self) -> int:
        cursor = self.cursor
        token = self.rows[cursor.document][cursor.skip]
        cursor = replace(cursor, skip=cursor.skip + 1, tokens=cursor.tokens + 1)
        if cursor.skip == len(self.rows[cursor.document]):
            cursor = replace(cursor, document=cursor.document + 1, skip=0)
        if cursor.document == len(self.rows):
            cursor = replace(cursor, document=0, epoch=cursor.epoch + 1)
        self.cursor = cursor
        return token

    def take(self, count: int) -> list[int]:
        tokens = [self.step() for _ in range(count)]
        return [*tokens, self.rows[self.cursor.document][self.cursor.skip]]


WITH_MERGES = HuggingFaceTokenizer.train_from_iterator(["the cat's mat, été 123 été\n\n  你好你好 "] * 3, 300)
BY_TIKTOKEN = HuggingFaceTokenizer(SPLIT_PATTERN, WITH_MERGES.ranks, WITH_MERGES.special_tokens)
BY_TIKTOKEN._encoder = TiktokenEncoder(SPLIT_PATTERN, list(WITH_MERGES.ranks), SPECIAL_TOKENS)


@pytest.mark.slow
@pytest.mark.parametrize("tokenizer", [WITH_MERGES, BY_TIKTOKEN], ids=["default", "tiktoken"])
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_arrow_arrays_and_strings_give_the_same_stream(tokenizer: Tokenizer, data: st.DataObject) -> None:
    """Tokens, cursors and resumed streams are equal for any documents, also empty ones, in arrays of any size."""
    texts = data.draw(st.lists(st.text(st.sampled_from("the cat's é你\n "), max_size=12) | st.text(), min_size=1))
    documents = Texts(texts, data.draw(st.integers(1, 5)), data.draw(st.sampled_from([STRING, pa.large_string()])))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dataloader, "TOKENIZE_CHUNK_BYTES", data.draw(st.sampled_from([1, 7, 50, 1 << 18])))
        stream = TokenStream(documents, tokenizer, StreamCursor())
        string_stream = StringStream(texts, tokenizer, StreamCursor())
        for count in data.draw(st.lists(st.integers(1, 80), min_size=1, max_size=8)):
            assert stream.take(count).tolist() == string_stream.take(count)
            assert stream.cursor == string_stream.cursor
            resumed = TokenStream(documents, tokenizer, stream.cursor)
            assert resumed.take(count).tolist() == StringStream(texts, tokenizer, stream.cursor).take(count)


# --- prefetching ------------------------------------------------------------------------------------------------------


def loader_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "dataloader"]


def test_prefetching_changes_nothing() -> None:
    texts = texts_of([40, 2, 9])
    unprefetched = list(itertools.islice(batches_of(texts, 1, 2, 2, 5), 30))
    loader = document_batches(texts, TOKENIZER, runtime(1, 2), 2, 5, total_tokens=1000)
    for expected, batch in zip(unprefetched, loader, strict=False):
        assert batch.inputs.equal(expected.inputs)
        assert batch.targets.equal(expected.targets)
        assert (batch.progress, batch.cursor) == (expected.progress, expected.cursor)
    loader.close()
    resumed = document_batches(texts, TOKENIZER, runtime(1, 2), 2, 5, 1000, cursor=unprefetched[9].cursor)
    assert next(resumed).inputs.equal(unprefetched[10].inputs)
    resumed.close()


@pytest.mark.parametrize("num_good", [0, 1, FIRST_DEPTH + 3])
def test_an_exception_reaches_the_caller(num_good: int) -> None:
    """The batches before the exception are yielded first, and the thread ends."""

    def failing() -> Iterator[MicroBatch]:
        yield from itertools.islice(batches_of(texts_of([30]), 0, 1, 1, 4), num_good)
        raise ArithmeticError("this text cannot be read")

    loader = prefetch(failing(), CPU)
    for _ in range(num_good):
        next(loader)
    with pytest.raises(ArithmeticError, match="this text cannot be read"):
        next(loader)
    with pytest.raises(StopIteration):
        next(loader)
    assert not loader_threads()


def test_an_exception_of_the_tokenizer_reaches_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    def encode(*_: object, **__: object) -> None:
        raise RuntimeError("no such word")

    monkeypatch.setattr(TOKENIZER, "encode_arrays", encode)
    with pytest.raises(RuntimeError, match="no such word"):
        next(document_batches(texts_of([30]), TOKENIZER, runtime(), 1, 4, 100))


@pytest.mark.parametrize("name", ["cuda:1", "cuda"])
def test_the_thread_pins_memory_on_the_device_of_the_run(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The thread sets its device before it pins memory; the copies are queued by the caller and wait for nothing."""
    calls: list[tuple[Any, ...]] = []

    def record(kind: str, *details: Any) -> None:
        calls.append((kind, threading.current_thread().name == "dataloader", *details))

    def pin_memory(tensor: torch.Tensor) -> torch.Tensor:
        record("pin")
        return tensor

    def to(tensor: torch.Tensor, device: torch.device, non_blocking: bool) -> torch.Tensor:
        record("copy", device, non_blocking)
        return tensor

    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: record("set", device))
    monkeypatch.setattr(torch.Tensor, "pin_memory", pin_memory)
    monkeypatch.setattr(torch.Tensor, "to", to)
    batches = itertools.islice(batches_of(texts_of([30]), 0, 1, 1, 4), 3)
    assert len(list(prefetch(batches, torch.device(name)))) == 3
    device = torch.device("cuda", 1)
    assert calls[0] == ("set", True, device)
    assert calls.count(("pin", True)) == calls.count(("copy", False, device, True)) == 6
    assert len(calls) == 13


def test_a_finite_iterator_ends() -> None:
    loader = prefetch(itertools.islice(batches_of(texts_of([30]), 0, 1, 1, 4), 6), CPU)
    assert len(list(loader)) == 6
    assert not loader_threads()


@pytest.mark.parametrize("way", ["close", "collect"])
def test_the_thread_ends(way: str) -> None:
    """The thread ends when the loader is closed or collected, even if its queue is full."""
    loader = document_batches(texts_of([30]), TOKENIZER, runtime(), 1, 4, 100)
    next(loader)
    [thread] = loader_threads()
    if way == "close":
        loader.close()
    del loader
    gc.collect()
    thread.join(10)
    assert not thread.is_alive()


def test_a_loader_that_was_never_used_has_no_thread() -> None:
    document_batches(texts_of([30]), TOKENIZER, runtime(), 1, 4, 100).close()
    assert not loader_threads()


# --- shards on disk ---------------------------------------------------------------------------------------------------


def test_reads_shards(tmp_path: Path) -> None:
    """Several shards with empty documents give the stream, also when resumed in the second epoch."""
    texts = [f"text {i} " * (i % 5) for i in range(50)]
    write_dataset(texts, ["v"], tmp_path, source="here", docs_per_shard=17)
    documents = open_split("train", tmp_path)
    loader = document_batches(documents, TOKENIZER, runtime(), 2, 16, total_tokens=4096)
    batches = list(itertools.islice(loader, 64))
    loader.close()
    assert torch.cat([batch.inputs.flatten() for batch in batches]).tolist() == expected_stream(Texts(texts), 64 * 32)
    assert batches[40].cursor["epoch"] >= 1
    resumed = document_batches(documents, TOKENIZER, runtime(), 2, 16, total_tokens=4096, cursor=batches[40].cursor)
    assert next(resumed).inputs.equal(batches[41].inputs)
    resumed.close()
    assert batches[32].progress == 0.25


@pytest.mark.parametrize("split", ["train", "val"])
def test_an_empty_split_fails_at_once(tmp_path: Path, split: Literal["train", "val"]) -> None:
    files = {
        **write_shards([] if split == "train" else ["a"], tmp_path, "shard"),
        **write_shards([] if split == "val" else ["a"], tmp_path, "shard_val"),
    }
    Manifest("here", ("shard.parquet",), "shard_val.parquet", files, {}).save(tmp_path)
    with pytest.raises(UserError, match=f"the {split} split in .* has no documents"):
        open_split(split, tmp_path)


@pytest.mark.parametrize(
    ("cursor", "message"),
    [
        ({"document": 6}, "is at document 6, of 6: it is damaged, or of other data"),
        ({"document": -1}, "has document = -1: it is damaged; resume from another one"),
        ({"epoch": 1.0}, "has epoch = 1.0"),
        ({"skip": True}, "has skip = True"),
        ({"tokens": "9"}, "has tokens = '9'"),
        ({"shard": 0}, "has shard = 0"),
    ],
)
def test_an_impossible_cursor_is_refused(cursor: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        document_batches(texts_of([3] * 6), TOKENIZER, runtime(), 1, 4, total_tokens=100, cursor=cursor)


def test_a_damaged_shard_ends_the_run_before_its_documents_are_used(tmp_path: Path) -> None:
    """A thread checks all shards while the first one is read; a run that needs few documents may end before."""
    write_dataset(["one ", "two ", "six "], ["val"], tmp_path, source="test", docs_per_shard=1)
    content = bytearray((tmp_path / "shard_00002.parquet").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "shard_00002.parquet").write_bytes(content)
    seen: list[int] = []
    documents = open_split("train", tmp_path)
    with (
        closing(document_batches(documents, TOKENIZER, runtime(), 1, 4, total_tokens=100)) as batches,
        pytest.raises(UserError, match=r"shard_00002\.parquet is damaged or was replaced"),
    ):
        seen.extend(batch.cursor["document"] for batch in batches)
    assert all(document <= 2 for document in seen)


# --- rows for an evaluation -------------------------------------------------------------------------------------------


@given(lengths=LENGTHS, sequence_len=st.integers(1, 9), max_tokens=st.integers(1, 120))
@settings(max_examples=60, deadline=None)
def test_document_eval_rows(lengths: list[int], sequence_len: int, max_tokens: int) -> None:
    """The rows have `max_tokens` targets, or those of one pass: each once, in order, after its inputs."""
    texts = texts_of(lengths)
    epoch = expected_stream(texts, sum(lengths) + len(lengths))
    count = min(max_tokens, len(epoch) - 1)
    rows, num_targets = document_eval_rows(texts, TOKENIZER, sequence_len, max_tokens)
    assert num_targets == count
    assert rows.shape == (max(1, -(-count // sequence_len)), sequence_len + 1)
    assert rows.dtype == torch.int64
    targets = rows[:, 1:].flatten()
    assert targets[:count].tolist() == epoch[1 : count + 1]
    assert (targets[count:] == -1).all()
    assert rows[:, :-1].flatten()[:count].tolist() == epoch[:count]


def test_document_eval_rows_reads_what_it_needs() -> None:
    """Several arrays are read if needed, and no more of them."""
    read = 0

    class Counted(Texts):
        def iter_arrays(self, start: int = 0) -> Iterator[pa.Array]:
            nonlocal read
            for array in super().iter_arrays(start):
                read += len(array)
                yield array

    texts = Counted(texts_of([3] * 5000).texts, size=256)
    rows, count = document_eval_rows(texts, TOKENIZER, 10, 6000)
    assert count == 6000
    assert rows[:, 1:].flatten().tolist() == expected_stream(texts, 6001)[1:]
    assert read < 3000
    assert document_eval_rows(texts, TOKENIZER, 10, 10**9)[1] == 4 * 5000 - 1


def test_document_eval_rows_of_nothing() -> None:
    """A single empty document has no token to predict: the result is a row of padding."""
    rows, count = document_eval_rows(Texts([""]), TOKENIZER, 4, 100)
    assert count == 0
    assert rows.tolist() == [[BOS, -1, -1, -1, -1]]
