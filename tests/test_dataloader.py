"""The loader against its slow twin: all tokens of all documents in one list, cut into rows."""

from __future__ import annotations

import gc
import itertools
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat import dataloader
from nanochat.common import UserError
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
# Each byte is a token, so that what the loader gives can be compared with the text itself.
TOKENIZER = Tokenizer(
    SPLIT_PATTERN, {bytes([b]): b for b in range(256)}, {name: 256 + i for i, name in enumerate(SPECIAL_TOKENS)}
)
LENGTHS = st.lists(st.one_of(st.integers(0, 3), st.integers(0, 12), st.just(150)), min_size=1, max_size=8)


class Texts:
    """DocumentSource in memory, in Arrow arrays of at most `size` documents."""

    def __init__(self, texts: Sequence[str], size: int = 1024, kind: pa.DataType = STRING) -> None:
        self.texts, self.size = list(texts), size
        self.column = pa.array(texts, kind)

    def __len__(self) -> int:
        return len(self.texts)

    def iter_arrays(self, start: int = 0) -> Iterator[pa.Array]:
        return (self.column[i : i + self.size] for i in range(start, len(self), self.size))


def texts_of(lengths: Sequence[int]) -> Texts:
    """A document of each length; neighbouring bytes differ, across documents too."""
    letters = itertools.cycle("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789")
    return Texts(["".join(itertools.islice(letters, length)) for length in lengths])


def twin(texts: Texts, count: int) -> list[int]:
    """The first `count` tokens of the stream."""
    epoch = [token for text in texts.texts for token in [BOS, *text.encode()]]
    return (epoch * (count // len(epoch) + 1))[:count]


def runtime(rank: int = 0, world_size: int = 1) -> Runtime:
    return Runtime(rank, rank, world_size, CPU, torch.float32, 0)


def batches_of(
    texts: Texts, rank: int, world_size: int, batch_size: int, sequence_len: int, cursor: dict[str, int] | None = None
) -> Iterator[MicroBatch]:
    """What one process gets, without the thread."""
    stream = TokenStream(texts, TOKENIZER, StreamCursor(**(cursor or {})))
    return token_batches(stream, runtime(rank, world_size), batch_size, sequence_len, horizon=1000)


@pytest.fixture(params=[1, 64, 1000], ids="refill{}".format)
def refill(request: pytest.FixtureRequest) -> Iterator[None]:
    """However much is tokenised at a time, down to single documents."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dataloader, "TOKENIZE_CHUNK_BYTES", request.param)
        yield


# --- the stream -------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("refill")
@pytest.mark.parametrize("world_size", [1, 2, 3])
@given(lengths=LENGTHS, batch_size=st.integers(1, 3), sequence_len=st.integers(1, 9))
@settings(max_examples=25, deadline=None)
def test_equals_the_twin(world_size: int, lengths: list[int], batch_size: int, sequence_len: int) -> None:
    """Over at least three epochs: the rows of all processes, side by side, are the stream; so are the targets."""
    texts = texts_of(lengths)
    tokens_of_batch = world_size * batch_size * sequence_len
    steps = 3 * (sum(lengths) + len(lengths)) // tokens_of_batch + 2
    wanted = torch.tensor(twin(texts, steps * tokens_of_batch + 1))
    ranks = [batches_of(texts, rank, world_size, batch_size, sequence_len) for rank in range(world_size)]
    for step in range(steps):
        found = [next(batches) for batches in ranks]
        start = step * tokens_of_batch
        inputs = torch.cat([batch.inputs for batch in found])
        targets = torch.cat([batch.targets for batch in found])
        assert inputs.shape == targets.shape == (world_size * batch_size, sequence_len)
        assert inputs.flatten().equal(wanted[start : start + tokens_of_batch])
        assert targets.flatten().equal(wanted[start + 1 : start + tokens_of_batch + 1])
        assert {batch.progress for batch in found} == {start / 1000}
        assert len({tuple(batch.cursor.items()) for batch in found}) == 1


@pytest.mark.usefixtures("refill")
@given(lengths=LENGTHS, world_size=st.integers(1, 3), next_size=st.integers(1, 3), sequence_len=st.integers(1, 9))
@settings(max_examples=25, deadline=None)
def test_resumes_at_every_cursor(lengths: list[int], world_size: int, next_size: int, sequence_len: int) -> None:
    """Continued at any batch, by as many processes or by others, the stream goes on with the very next token."""
    texts = texts_of(lengths)
    steps = 2 * (sum(lengths) + len(lengths)) // (world_size * sequence_len) + 2
    wanted = torch.tensor(twin(texts, (steps * world_size + 2 * next_size) * sequence_len + 1))
    batches = batches_of(texts, 0, world_size, 1, sequence_len)
    for step in range(1, steps + 1):
        cursor = next(batches).cursor
        assert cursor["tokens"] == step * world_size * sequence_len
        for rank in range(next_size):
            found = next(batches_of(texts, rank, next_size, 2, sequence_len, cursor))
            start = cursor["tokens"] + rank * 2 * sequence_len
            assert found.inputs.flatten().equal(wanted[start : start + 2 * sequence_len])
            assert found.targets.flatten().equal(wanted[start + 1 : start + 2 * sequence_len + 1])


@pytest.mark.usefixtures("refill")
@given(lengths=LENGTHS)
@settings(max_examples=10, deadline=None)
def test_cursor_names_the_place(lengths: list[int]) -> None:
    """Epoch, document and token of every position, against a list of them; a cursor never stands behind a document."""
    texts = texts_of(lengths)
    places = [(document, skip) for document, length in enumerate(lengths) for skip in range(length + 1)]
    stream = TokenStream(texts, TOKENIZER, StreamCursor())
    for position in range(1, 2 * len(places) + 1):
        stream.take(1)
        epoch, index = divmod(position, len(places))
        assert stream.cursor == StreamCursor(epoch, *places[index], position)


@pytest.mark.usefixtures("refill")
def test_each_token_is_a_target_once() -> None:
    """Each token of two epochs but the very first of the run, which nothing comes before."""
    texts = texts_of([20, 0, 3, 55, 1])
    size = sum(len(text) + 1 for text in texts.texts)
    batches = itertools.islice(batches_of(texts, 0, 1, 2, 7), 2 * size // 14 + 1)
    targets = torch.cat([batch.targets.flatten() for batch in batches])
    assert targets[: 2 * size - 1].tolist() == twin(texts, 2 * size)[1:]


def test_text_is_no_special_token() -> None:
    batch = next(batches_of(Texts(["<|bos|>"]), 0, 1, 1, 7))
    assert batch.inputs.tolist() == [[BOS, *b"<|bos|"]]


def test_a_larger_batch_is_the_same_stream() -> None:
    """Rows of a step do not depend on how they are divided."""
    texts = texts_of([30, 8, 0, 41])

    def rows(batch_size: int) -> torch.Tensor:
        batches = itertools.islice(batches_of(texts, 0, 1, batch_size, 5), 24 // batch_size)
        return torch.cat([batch.inputs for batch in batches])

    assert all(rows(1).equal(rows(size)) for size in (2, 3, 8, 24))


# --- from Arrow, against the strings ----------------------------------------------------------------------------------


class StringStream:
    """The slow twin: the stream by way of Python strings and lists of ids, a token at a time."""

    def __init__(self, texts: Sequence[str], tokenizer: Tokenizer, cursor: StreamCursor) -> None:
        self.rows = [tokenizer.encode(text, prepend="<|bos|>") for text in texts]
        self.cursor = cursor

    def step(self) -> int:
        at = self.cursor
        token = self.rows[at.document][at.skip]
        at = replace(at, skip=at.skip + 1, tokens=at.tokens + 1)
        if at.skip == len(self.rows[at.document]):
            at = replace(at, document=at.document + 1, skip=0)
        if at.document == len(self.rows):
            at = replace(at, document=0, epoch=at.epoch + 1)
        self.cursor = at
        return token

    def take(self, count: int) -> list[int]:
        tokens = [self.step() for _ in range(count)]
        return [*tokens, self.rows[self.cursor.document][self.cursor.skip]]


WITH_MERGES = HuggingFaceTokenizer.train_from_iterator(["the cat's mat, été 123 été\n\n  你好你好 "] * 3, 300)
BY_TIKTOKEN = HuggingFaceTokenizer(SPLIT_PATTERN, WITH_MERGES.ranks, WITH_MERGES.special_tokens)
BY_TIKTOKEN._encoder = TiktokenEncoder(SPLIT_PATTERN, list(WITH_MERGES.ranks), SPECIAL_TOKENS)


@pytest.mark.parametrize("tokenizer", [WITH_MERGES, BY_TIKTOKEN], ids=["default", "tiktoken"])
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_arrow_gives_what_strings_give(tokenizer: Tokenizer, data: st.DataObject) -> None:
    """Any documents, empty ones and tiny data sets among them, in arrays of any size: tokens, cursor, resumption."""
    texts = data.draw(st.lists(st.text(st.sampled_from("the cat's é你\n "), max_size=12) | st.text(), min_size=1))
    documents = Texts(texts, data.draw(st.integers(1, 5)), data.draw(st.sampled_from([STRING, pa.large_string()])))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dataloader, "TOKENIZE_CHUNK_BYTES", data.draw(st.sampled_from([1, 7, 50, 1 << 18])))
        stream, strings = (
            TokenStream(documents, tokenizer, StreamCursor()),
            StringStream(texts, tokenizer, StreamCursor()),
        )
        for count in data.draw(st.lists(st.integers(1, 80), min_size=1, max_size=8)):
            assert stream.take(count).tolist() == strings.take(count)
            assert stream.cursor == strings.cursor
            again = TokenStream(documents, tokenizer, stream.cursor)
            assert again.take(count).tolist() == StringStream(texts, tokenizer, stream.cursor).take(count)


# --- the thread -------------------------------------------------------------------------------------------------------


def loader_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "dataloader"]


def test_the_thread_changes_nothing() -> None:
    texts = texts_of([40, 2, 9])
    plain = list(itertools.islice(batches_of(texts, 1, 2, 2, 5), 30))
    loader = document_batches(texts, TOKENIZER, runtime(1, 2), 2, 5, horizon=1000)
    for expected, found in zip(plain, loader, strict=False):
        assert found.inputs.equal(expected.inputs)
        assert found.targets.equal(expected.targets)
        assert (found.progress, found.cursor) == (expected.progress, expected.cursor)
    loader.close()
    again = document_batches(texts, TOKENIZER, runtime(1, 2), 2, 5, 1000, cursor=plain[9].cursor)
    assert next(again).inputs.equal(plain[10].inputs)
    again.close()


@pytest.mark.parametrize("good", [0, 1, dataloader.PREFETCH_BATCHES + 3])
def test_an_exception_reaches_the_caller(good: int) -> None:
    """After the batches before it, however many; and the thread is gone."""

    def failing() -> Iterator[MicroBatch]:
        yield from itertools.islice(batches_of(texts_of([30]), 0, 1, 1, 4), good)
        raise ArithmeticError("this text cannot be read")

    loader = prefetch(failing(), CPU)
    for _ in range(good):
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


def test_a_finite_iterator_ends() -> None:
    loader = prefetch(itertools.islice(batches_of(texts_of([30]), 0, 1, 1, 4), 6), CPU)
    assert len(list(loader)) == 6
    assert not loader_threads()


@pytest.mark.parametrize("way", ["close", "forget"])
def test_the_thread_ends(way: str) -> None:
    """When the loader is closed, and when it is forgotten, though its queue is full."""
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
    """Several shards, empty documents among them, resumed in the second epoch."""
    texts = [f"text {i} " * (i % 5) for i in range(50)]
    write_dataset(texts, ["v"], tmp_path, source="here", docs_per_shard=17)
    documents = open_split("train", tmp_path)
    loader = document_batches(documents, TOKENIZER, runtime(), 2, 16, horizon=4096)
    found = list(itertools.islice(loader, 64))
    loader.close()
    assert torch.cat([batch.inputs.flatten() for batch in found]).tolist() == twin(Texts(texts), 64 * 32)
    assert found[40].cursor["epoch"] >= 1
    again = document_batches(documents, TOKENIZER, runtime(), 2, 16, horizon=4096, cursor=found[40].cursor)
    assert next(again).inputs.equal(found[41].inputs)
    again.close()
    assert found[32].progress == 0.25


@pytest.mark.parametrize("split", ["train", "val"])
def test_an_empty_split_fails_at_once(tmp_path: Path, split: Literal["train", "val"]) -> None:
    files = {
        **write_shards([] if split == "train" else ["a"], tmp_path, "shard"),
        **write_shards([] if split == "val" else ["a"], tmp_path, "shard_val"),
    }
    Manifest("here", ("shard.parquet",), "shard_val.parquet", files, {}).save(tmp_path)
    with pytest.raises(UserError, match=f"the {split} split in .* has no documents"):
        open_split(split, tmp_path)


# --- rows for an evaluation -------------------------------------------------------------------------------------------


@given(lengths=LENGTHS, sequence_len=st.integers(1, 9), max_tokens=st.integers(1, 120))
@settings(max_examples=60, deadline=None)
def test_document_eval_rows(lengths: list[int], sequence_len: int, max_tokens: int) -> None:
    """Exactly as many targets as asked for, or one pass: each once, in order, each after its own inputs."""
    texts = texts_of(lengths)
    epoch = twin(texts, sum(lengths) + len(lengths))
    count = min(max_tokens, len(epoch) - 1)
    rows, found = document_eval_rows(texts, TOKENIZER, sequence_len, max_tokens)
    assert found == count
    assert rows.shape == (max(1, -(-count // sequence_len)), sequence_len + 1)
    assert rows.dtype == torch.int64
    targets = rows[:, 1:].flatten()
    assert targets[:count].tolist() == epoch[1 : count + 1]
    assert (targets[count:] == -1).all()
    assert rows[:, :-1].flatten()[:count].tolist() == epoch[:count]


def test_document_eval_rows_reads_what_it_needs() -> None:
    """More documents than are in one array; and not the rest of them."""
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
    assert rows[:, 1:].flatten().tolist() == twin(texts, 6001)[1:]
    assert read < 3000
    assert document_eval_rows(texts, TOKENIZER, 10, 10**9)[1] == 4 * 5000 - 1


def test_document_eval_rows_of_nothing() -> None:
    """A single empty document has no token to predict: a row of padding, not a crash."""
    rows, count = document_eval_rows(Texts([""]), TOKENIZER, 4, 100)
    assert count == 0
    assert rows.tolist() == [[BOS, -1, -1, -1, -1]]
