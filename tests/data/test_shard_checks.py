"""Comparison of shards with the manifest's SHA-256: before they are used, once a run, ahead in a thread."""

from __future__ import annotations

import itertools
import os
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import pytest

from nanochat.common import UserError
from nanochat.data import shard_checks
from nanochat.data.shard_checks import ShardChecks, file_sha256
from nanochat.data.shards import Documents, iter_documents, open_split, shard_paths, write_dataset, write_shard
from nanochat.dataset import Config, prepare
from tests.support.datasets import import_files, write_files


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The names of the files that are hashed, in order."""
    names: list[str] = []

    def recorded(path: Path) -> str:
        names.append(path.name)
        return file_sha256(path)

    monkeypatch.setattr(shard_checks, "file_sha256", recorded)
    return names


def _replace(path: Path, texts: list[str]) -> None:
    """Put another valid shard of the same size in the place of a shard."""
    size = path.stat().st_size
    write_shard(texts, path)
    assert path.stat().st_size == size


def test_a_shard_is_hashed_once_before_it_is_read(tmp_path: Path, hashed: list[str]) -> None:
    write_dataset(["one", "two", "six"], ["val"], tmp_path, source="test", docs_per_shard=1)
    texts = open_split("train", tmp_path).iter_texts()
    assert (next(texts), hashed) == ("one", ["shard_00000.parquet"])
    assert [*texts] == ["two", "six"]
    assert list(iter_documents("train", tmp_path)) == ["one", "two", "six"]
    assert hashed == [f"shard_{number:05d}.parquet" for number in range(3)]


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_damaged_shard_of_the_right_size_is_named_with_the_remedy(tmp_path: Path, split: str) -> None:
    source = write_files(tmp_path / "source", **{f"t{number}__txt": f"text {number}" for number in range(40)})
    before = import_files(source, tmp_path / "data")
    path = shard_paths(split, tmp_path / "data")[0]
    texts = before[split == "val"]
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    for documents in (
        open_split(split, tmp_path / "data").iter_texts(),
        open_split(split, tmp_path / "data").iter_arrays(),
    ):
        with pytest.raises(UserError, match=f"{path.name} is damaged or was replaced: .*; delete it and run") as caught:
            next(documents)
        assert "\n" not in str(caught.value)
    path.unlink()  # the remedy
    prepare(Config(source=str(source)), tmp_path / "data")
    assert list(iter_documents(split, tmp_path / "data")) == texts


@pytest.mark.parametrize("position", [4, -9, -2])
def test_a_flipped_bit_anywhere(tmp_path: Path, position: int) -> None:
    manifest = write_dataset(["x" * 5000] * 100, ["val"], tmp_path, source="test")
    path = tmp_path / manifest.train[0]
    content = bytearray(path.read_bytes())
    content[position if position > 0 else len(content) // 2 + position] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=path.name):
        list(iter_documents("train", tmp_path))


def test_a_file_that_has_changed_is_hashed_again(tmp_path: Path) -> None:
    write_dataset(["one"], ["val"], tmp_path, source="test")
    assert list(iter_documents("train", tmp_path)) == ["one"]
    _replace(tmp_path / "shard_00000.parquet", ["two"])
    with pytest.raises(UserError, match="is damaged or was replaced"):
        list(iter_documents("train", tmp_path))


def test_a_damaged_shard_is_found_long_before_it_is_read(tmp_path: Path, hashed: list[str]) -> None:
    write_dataset(["one", "two", "six"], ["val"], tmp_path, source="test", docs_per_shard=1)
    paths = [tmp_path / f"shard_{number:05d}.parquet" for number in range(3)]
    expected = {path: file_sha256(path) for path in paths}
    _replace(paths[2], ["ten"])
    checks = ShardChecks(expected)
    checks.check_ahead([*paths[1:], paths[0]]).join()
    assert hashed == ["shard_00001.parquet", "shard_00002.parquet"]
    with pytest.raises(UserError, match="shard_00002"):
        next(Documents(paths, checks).iter_texts())
    documents = open_split("train", tmp_path)
    documents.check_ahead(1)
    endless = itertools.chain.from_iterable(documents.iter_texts() for _ in itertools.count())  # as in training
    with pytest.raises(UserError, match="shard_00002"):
        deque(endless, maxlen=0)


def test_a_vanished_shard_ends_the_thread_and_is_reported_by_the_reader(tmp_path: Path) -> None:
    write_dataset(["one", "two"], ["val"], tmp_path, source="test", docs_per_shard=1)
    documents = open_split("train", tmp_path)
    (tmp_path / "shard_00001.parquet").unlink()
    documents.check_ahead()
    with pytest.raises(UserError, match=r"shard_00001\.parquet cannot be read"):
        list(documents.iter_texts())


@pytest.mark.parametrize(("local_rank", "count"), [(None, 1), ("0", 1), ("1", 0)])
def test_one_process_of_a_host_checks(
    tmp_path: Path, hashed: list[str], monkeypatch: pytest.MonkeyPatch, local_rank: str | None, count: int
) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if local_rank is not None:
        monkeypatch.setitem(os.environ, "LOCAL_RANK", local_rank)
    write_dataset(["one"], ["val"], tmp_path, source="test")
    assert list(iter_documents("train", tmp_path)) == ["one"]
    assert len(hashed) == count
