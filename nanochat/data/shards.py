"""A data set on disk: parquet shards with a `text` column, and a manifest that lists them.

    base_data/manifest.json            {"format": 1, "source": ..., "train": [names], "validation": name, ...}
    base_data/shard_00000.parquet      row groups of at most 1,024 documents

Only the files that the manifest names belong to the data set. It is written last, in one step, when all of its shards
are complete, so that an interrupted download or import leaves the previous data set as it was. There are two splits,
"train" (all shards of `train`) and "val" (the shard `validation`). The documents of a split have one global order: the
shards in the order of the manifest, and the rows of each in their order.
"""

from __future__ import annotations

import itertools
import os
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from nanochat.common import UserError, print0
from nanochat.data.arrow_text import as_parquet_error, open_parquet, to_text
from nanochat.data.manifest import (
    Manifest,
    ShardInfo,
    default_data_dir,
    load_manifest,
    missing_shards,
    raise_if_link_leads_out,
    read_manifest,
)
from nanochat.data.shard_checks import ShardChecks, file_sha256, is_checking_process
from nanochat.system.files import flush_to_disk, remove_abandoned, temporary_name

__all__ = [
    "Documents",
    "Manifest",
    "ShardInfo",
    "Split",
    "default_data_dir",
    "file_sha256",
    "iter_documents",
    "load_manifest",
    "missing_shards",
    "open_split",
    "read_manifest",
    "read_shard_info",
    "shard_paths",
    "write_dataset",
    "write_shard",
    "write_shards",
]

ROW_GROUP_DOCUMENTS = 1024
ROW_GROUP_CHARACTERS = 32_000_000  # a row group is read as a whole, so long documents make it end earlier

Split = Literal["train", "val"]
_REMEDY = ": delete it and run python -m nanochat.dataset again"


def shard_paths(split: Split, data_dir: Path | None = None) -> list[Path]:
    """Return the paths of a split's shards, in order. Raises UserError if any shard of the data set is missing."""
    if split not in ("train", "val"):
        raise UserError(f"no split {split!r}: choose train or val")
    folder = data_dir or default_data_dir()
    manifest = load_manifest(folder)
    names = manifest.train if split == "train" else (manifest.validation,)
    return [folder / name for name in names]


def open_split(split: Split, data_dir: Path | None = None) -> Documents:
    """Open the documents of a split. A shard is compared with its SHA-256 before its first document is read.

    Raises UserError if there is no data set, or the split has no documents.
    """
    paths = shard_paths(split, data_dir)
    folder = data_dir or default_data_dir()
    infos = load_manifest(folder).files
    checks = ShardChecks({path: infos[path.name].sha256 for path in paths}) if is_checking_process() else None
    documents = Documents(paths, checks)
    if not len(documents):
        raise UserError(f"the {split} split in {folder} has no documents: make the data set again, from more text")
    recorded = sum(infos[path.name].documents for path in paths)
    if len(documents) != recorded:
        raise UserError(
            f"the {split} split in {folder} has {len(documents)} documents, in manifest.json {recorded}: make the data "
            "set again, with --overwrite"
        )
    return documents


def iter_documents(split: Split, data_dir: Path | None = None) -> Iterator[str]:
    """Yield every document of a split once, in the global order. One row group is in memory at a time."""
    return open_split(split, data_dir).iter_texts()


class Documents:
    """The documents of several shards as one sequence, of which one row group at a time is in memory.

    A null in the text column is an empty document, so that all methods agree on the index of a document. Bytes that are
    not UTF-8 become U+FFFD, with a notice for the first row group that has some.

    `checks`: None reads the shards without comparing them with their SHA-256.
    """

    def __init__(self, paths: list[Path], checks: ShardChecks | None = None) -> None:
        self._checks = checks
        self._has_noticed = False
        self._groups: list[tuple[Path, int]] = []  # (shard, row group in it)
        self._starts = [0]  # index of the first document of each row group, and the number of all documents
        for path in paths:
            with _open_shard(path) as shard:
                metadata = shard.metadata
                for group in range(metadata.num_row_groups):
                    self._groups.append((path, group))
                    self._starts.append(self._starts[-1] + metadata.row_group(group).num_rows)

    def __len__(self) -> int:
        return self._starts[-1]

    def check_ahead(self, start: int = 0) -> None:
        """Check the SHA-256 of all shards in a thread, beginning with the shard of document `start`."""
        if self._checks is None:
            return
        paths = list(dict.fromkeys(path for path, _ in self._groups))
        first = paths.index(self._groups[bisect_right(self._starts, start) - 1][0])
        self._checks.check_ahead([*paths[first:], *paths[:first]])

    def iter_texts(self, start: int = 0, step: int = 1) -> Iterator[str]:
        """Yield documents start, start + step, ... to the end.

        `iter_texts(rank, world_size)` is one rank's share of an epoch.

        Row groups without such a document are not read. Raises UserError if a shard cannot be read.
        """
        assert start >= 0, f"start {start} must not be negative"
        assert step >= 1, f"step {step} must be positive"
        index = start
        while index < len(self):
            group = bisect_right(self._starts, index) - 1
            first, end = self._starts[group], self._starts[group + 1]
            rows = range(index - first, end - first, step)
            yield from self._read(group).take(pa.array(rows, pa.int64())).to_pylist()
            index += len(rows) * step

    def iter_arrays(self, start: int = 0) -> Iterator[Any]:
        """Yield documents start, start + 1, ... to the end in non-empty Arrow arrays of strings without nulls.

        The documents are those of `iter_texts`, but no Python object is created for each. Raises UserError if a shard
        cannot be read.
        """
        assert start >= 0, f"start {start} must not be negative"
        for group in range(bisect_right(self._starts, start) - 1, len(self._groups)):
            column = self._read(group)[max(0, start - self._starts[group]) :]
            yield from (chunk for chunk in column.chunks if len(chunk))

    def _read(self, group: int) -> Any:
        """Read the documents of a row group as an Arrow column of strings."""
        path, number = self._groups[group]
        with as_parquet_error(path, _REMEDY):
            if self._checks is not None:
                self._checks.check(path)
            with _open_shard(path) as shard:
                column = shard.read_row_group(number, columns=["text"], use_threads=False).column("text")
            column, num_invalid = to_text(column)
        if len(column) != self._starts[group + 1] - self._starts[group]:
            raise UserError(f"{path} was replaced while it was read: start again when nothing writes to its folder")
        if num_invalid and not self._has_noticed:
            self._has_noticed = True
            print0(f"notice: {path} has documents that are not UTF-8; their unreadable bytes became U+FFFD")
        return pc.fill_null(column, "") if column.null_count else column


def write_shards(
    documents: Iterable[str], data_dir: Path, prefix: str = "shard", docs_per_shard: int | None = None
) -> dict[str, ShardInfo]:
    """Write documents to `<prefix>_00000.parquet`, ..., each in one step; return the infos by file name, in order.

    Without `docs_per_shard` there is one file, `<prefix>.parquet`, even if there are no documents.
    """
    data_dir.mkdir(parents=True, exist_ok=True)
    if docs_per_shard is None:
        return {f"{prefix}.parquet": write_shard(documents, data_dir / f"{prefix}.parquet")}
    remaining = iter(documents)
    infos: dict[str, ShardInfo] = {}
    for first in remaining:
        name = f"{prefix}_{len(infos):05d}.parquet"
        shard = itertools.chain([first], itertools.islice(remaining, docs_per_shard - 1))
        infos[name] = write_shard(shard, data_dir / name)
    return infos


def write_shard(documents: Iterable[str], path: Path) -> ShardInfo:
    """Write one parquet file with a `text` column, completely or not at all."""
    schema = pa.schema([("text", pa.string())])
    temporary = temporary_name(path)
    try:
        with open(temporary, "wb") as file:
            with pq.ParquetWriter(file, schema, compression="zstd") as writer:
                for group in _row_groups(documents):
                    writer.write_table(pa.table({"text": group}, schema=schema), row_group_size=ROW_GROUP_DOCUMENTS)
            file.flush()
            flush_to_disk(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    remove_abandoned(path)
    return read_shard_info(path)


def write_dataset(
    train: Iterable[str],
    validation: Iterable[str],
    data_dir: Path | None = None,
    *,
    source: str,
    recipe: dict[str, Any] | None = None,
    prefix: str = "shard",
    docs_per_shard: int = 8192,
) -> Manifest:
    """Write both splits and then the manifest, which makes them the data set of the folder. Returns the manifest.

    Raises UserError if either split has no documents; the previous data set then remains.
    """
    folder = data_dir or default_data_dir()
    validation_shards = write_shards(validation, folder, f"{prefix}_val")
    train_shards = write_shards(train, folder, prefix, docs_per_shard)
    [(validation_name, validation_info)] = validation_shards.items()
    if not validation_info.documents or not train_shards:
        kind = "training" if validation_info.documents else "validation"
        raise UserError(f"{source} gives no {kind} documents: more text is needed")
    files = {**train_shards, **validation_shards}
    manifest = Manifest(source, tuple(train_shards), validation_name, files, recipe or {})
    manifest.save(folder)
    return manifest


def read_shard_info(path: Path) -> ShardInfo:
    """Count the documents of a shard and hash it. Raises UserError if it is not parquet with a `text` column."""
    with _open_shard(path) as shard:
        num_documents = shard.metadata.num_rows
    return ShardInfo(num_documents, path.stat().st_size, file_sha256(path))


def _row_groups(documents: Iterable[str]) -> Iterator[list[str]]:
    group: list[str] = []
    num_characters = 0
    for text in documents:
        group.append(text)
        num_characters += len(text)
        if len(group) == ROW_GROUP_DOCUMENTS or num_characters >= ROW_GROUP_CHARACTERS:
            yield group
            group = []
            num_characters = 0
    if group:
        yield group


def _open_shard(path: Path) -> pq.ParquetFile:
    raise_if_link_leads_out(path)
    return open_parquet(path, "text", _REMEDY)
