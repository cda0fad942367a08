"""Shards and manifest: documents are read as they were written, and damage is reported."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat.common import UserError
from nanochat.data import shards
from nanochat.data.shards import (
    Documents,
    iter_documents,
    load_manifest,
    open_split,
    read_shard_info,
    shard_paths,
    write_dataset,
    write_shard,
)
from tests.support.datasets import numbered_texts, read_splits


@settings(max_examples=25, deadline=None)
@given(st.lists(st.text(max_size=20), min_size=1, max_size=40), st.integers(1, 9), st.integers(1, 9), st.data())
def test_documents_are_read_as_written(texts: list[str], per_shard: int, per_group: int, data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "ROW_GROUP_DOCUMENTS", per_group)
        write_dataset(texts, ["held out"], Path(name), source="test", docs_per_shard=per_shard)
        documents = open_split("train", Path(name))
        start, step = data.draw(st.integers(0, len(texts) + 1)), data.draw(st.integers(1, len(texts) + 1))
        assert len(documents) == len(texts)
        assert list(documents.iter_texts(start, step)) == texts[start::step]
        arrays = list(documents.iter_arrays(start))
        assert [text for array in arrays for text in array.to_pylist()] == texts[start:]
        assert all(len(array) and array.type == pa.string() for array in arrays)
        assert list(iter_documents("val", Path(name))) == ["held out"]
        assert len(shard_paths("train", Path(name))) == -(-len(texts) // per_shard)


def test_row_groups_have_1024_documents_and_few_characters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def sizes(path: Path) -> list[int]:
        metadata = pq.read_metadata(path)
        return [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]

    write_shard(numbered_texts(2500, words=1), tmp_path / "a.parquet")
    assert sizes(tmp_path / "a.parquet") == [1024, 1024, 452]
    monkeypatch.setattr(shards, "ROW_GROUP_CHARACTERS", 1000)
    write_shard(["x" * 400] * 7, tmp_path / "b.parquet")
    assert sizes(tmp_path / "b.parquet") == [3, 3, 1]


def test_one_row_group_is_read_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_dataset(numbered_texts(3000, words=1), ["held out"], tmp_path, source="test")
    documents = open_split("train", tmp_path)
    groups_read: list[int] = []
    read_row_group = pq.ParquetFile.read_row_group

    def recorded(self: pq.ParquetFile, group: int, **options: object) -> pa.Table:
        groups_read.append(group)
        return read_row_group(self, group, **options)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", recorded)
    iterator = documents.iter_texts(1030)
    assert next(iterator).startswith("1030:")
    assert groups_read == [1]
    arrays = documents.iter_arrays(1030)
    assert next(arrays)[0].as_py().startswith("1030:")
    assert groups_read == [1, 1]


def test_a_null_is_an_empty_document(tmp_path: Path) -> None:
    manifest = write_dataset(["x"] * 3, ["held out"], tmp_path, source="test")
    path = tmp_path / manifest.train[0]
    pq.write_table(pa.table({"id": [1, 2, 3], "text": ["a", None, "b"]}), path)
    files = {**manifest.files, path.name: read_shard_info(path)}
    dataclasses.replace(manifest, files=files).save(tmp_path)
    assert list(iter_documents("train", tmp_path)) == ["a", "", "b"]
    [array] = open_split("train", tmp_path).iter_arrays()
    assert array.to_pylist() == ["a", "", "b"]
    assert array.null_count == 0
    # Column types that other programs write; dictionary codes are read as such.
    for kind in (pa.dictionary(pa.int32(), pa.string()), pa.large_string(), pa.binary()):
        pq.write_table(pa.table({"text": pa.array([b"a", None, b"\xc3\xa9"]).cast(pa.string()).cast(kind)}), path)
        [array] = Documents([path]).iter_arrays()
        assert array.to_pylist() == list(Documents([path]).iter_texts()) == ["a", "", "é"]
        assert array.type in (pa.string(), pa.large_string())


def test_the_hash_depends_on_the_contents_only(tmp_path: Path) -> None:
    def written_hash(name: str, train: list[str], val: list[str], **options: object) -> str:
        return write_dataset(train, val, tmp_path / name, source=name, **options).hash()

    first = written_hash("a", ["1", "2"], ["3"])
    assert written_hash("b", ["1", "2"], ["3"], recipe={"made": "later"}) == first
    others = [
        written_hash("c", ["2", "1"], ["3"]),
        written_hash("d", ["1", "2"], ["4"]),
        written_hash("e", ["1", "2"], ["3"], docs_per_shard=1),
    ]
    assert len({first, *others}) == 4
    assert load_manifest(tmp_path / "a").hash() == first


def test_no_data_set(base_dir: Path) -> None:
    with pytest.raises(UserError, match=r"no data set in .*base_data: make one"):
        open_split("train")
    assert not (base_dir / "base_data").exists()


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_missing_shard_is_named(tmp_path: Path, split: str) -> None:
    write_dataset(["a"], ["b"], tmp_path, source="test")
    path = shard_paths(split, tmp_path)[0]
    content = path.read_bytes()
    kind = "the validation" if split == "val" else "a training"
    for damage in (lambda: path.write_bytes(content[:-1]), path.unlink):
        damage()
        with pytest.raises(UserError, match=f"{path.name}, {kind} shard"):
            open_split("train", tmp_path)


def test_only_the_shards_of_the_manifest_are_read(tmp_path: Path) -> None:
    """Another shard in the folder, the last by name, changes nothing."""
    write_dataset(["a"], ["b"], tmp_path, source="test")
    write_shard(["c"], tmp_path / "shard_99999.parquet")
    assert read_splits(tmp_path) == (["a"], ["b"])


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_split_without_documents(tmp_path: Path, split: str) -> None:
    manifest = write_dataset(["a"], ["b"], tmp_path, source="test")
    path = shard_paths(split, tmp_path)[0]
    info = write_shard([], path)
    dataclasses.replace(manifest, files={**manifest.files, path.name: info}).save(tmp_path)
    with pytest.raises(UserError, match=f"the {split} split .* has no documents"):
        open_split(split, tmp_path)
    with pytest.raises(UserError, match="gives no validation documents"):
        write_dataset(["a"], [], tmp_path / "other", source="test")
    with pytest.raises(UserError, match="gives no training documents"):
        write_dataset([], ["a"], tmp_path / "other", source="test")
    assert not (tmp_path / "other" / "manifest.json").exists()


def test_a_shard_that_is_not_parquet(tmp_path: Path) -> None:
    manifest = write_dataset(["a"], ["b"], tmp_path, source="test")
    path = tmp_path / manifest.train[0]
    path.write_bytes(b"x" * path.stat().st_size)
    with pytest.raises(UserError, match=r"cannot be read as parquet .*: delete it"):
        open_split("train", tmp_path)
    with pytest.raises(UserError, match="no split 'test'"):
        open_split("test", tmp_path)
