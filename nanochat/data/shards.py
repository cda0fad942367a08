"""A data set on disk: parquet shards with a `text` column, and the manifest that says which of them are what.

    base_data/manifest.json            {"format": 1, "source": ..., "train": [names], "validation": name, ...}
    base_data/shard_00000.parquet      row groups of at most 1,024 documents

The manifest is the only switch: a file that it does not name does not exist. It is replaced in one step, after every
shard that it names stands whole under its final name, so that an interrupted download or import leaves the data of
before as it was.
The documents of a split have one global order: that of the manifest, then that of the rows.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from nanochat.common import UserError, base_dir, write_json_atomic

FORMAT = 1
ROW_GROUP_DOCUMENTS = 1024
ROW_GROUP_CHARACTERS = 32_000_000  # a row group is held in memory: long documents make it shorter
Split = Literal["train", "val"]


@dataclass(frozen=True)
class ShardInfo:
    """What is known of a shard: its documents, its size in bytes and its SHA-256."""

    documents: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """The data set that stands in a folder. `files` has an entry for each shard; `recipe` tells how it was made."""

    source: str
    train: tuple[str, ...]
    validation: str
    files: dict[str, ShardInfo]
    recipe: dict[str, Any]

    def hash(self) -> str:
        """SHA-256 of what the data is (names, order and contents), not of where it came from or when."""
        facts = [(name, self.files[name].documents, self.files[name].sha256) for name in (*self.train, self.validation)]
        return hashlib.sha256(json.dumps([FORMAT, facts]).encode()).hexdigest()

    def save(self, data_dir: Path) -> None:
        """Make this the data set of the folder, in one step."""
        write_json_atomic(data_dir / "manifest.json", {"format": FORMAT, **asdict(self)})


def default_data_dir() -> Path:
    """Where the data set that everything trains on stands."""
    return base_dir() / "base_data"


def read_manifest(data_dir: Path) -> Manifest | None:
    """The folder's manifest, or None where there is none. UserError if it is not one; the shards are not looked at."""
    path = data_dir / "manifest.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise UserError(f"{path} has format {content['format']}, not {FORMAT}: make the data set again")
        files = {name: ShardInfo(**facts) for name, facts in content["files"].items()}
        names = (*content["train"], content["validation"])
        if missing := [name for name in names if name not in files]:
            raise KeyError(missing[0])
        return Manifest(content["source"], tuple(content["train"]), content["validation"], files, content["recipe"])
    except FileNotFoundError:
        return None
    except UserError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not a data set's manifest ({error!r}): make the data set again") from error


def load_manifest(data_dir: Path | None = None) -> Manifest:
    """The manifest, with every shard that it names in its place. UserError otherwise, which says what to do."""
    folder = data_dir or default_data_dir()
    manifest = read_manifest(folder)
    if manifest is None:
        raise UserError(f"no data set in {folder}: make one, for example with python -m nanochat.dataset -n 8")
    if missing := missing_shards(manifest, folder):
        what = "the validation shard" if manifest.validation in missing else "a training shard"
        raise UserError(f"{folder / missing[-1]}, {what}, is missing or cut short: make the data set again")
    return manifest


def missing_shards(manifest: Manifest, data_dir: Path) -> list[str]:
    """The shards that are not there, or not of the size that the manifest gives; the validation shard comes last."""

    def whole(name: str) -> bool:
        path = data_dir / name
        return path.is_file() and path.stat().st_size == manifest.files[name].bytes

    return [name for name in (*manifest.train, manifest.validation) if not whole(name)]


def shard_paths(split: Split, data_dir: Path | None = None) -> list[Path]:
    """The shards of a split in their order. UserError if any of the data set is missing."""
    if split not in ("train", "val"):
        raise UserError(f"no split {split!r}: choose train or val")
    folder = data_dir or default_data_dir()
    manifest = load_manifest(folder)
    return [folder / name for name in (manifest.train if split == "train" else (manifest.validation,))]


def open_split(split: Split, data_dir: Path | None = None) -> Documents:
    """The documents of a split. UserError if there is no data set, or the split has no documents."""
    paths = shard_paths(split, data_dir)
    documents = Documents(paths)
    if not len(documents):
        folder = data_dir or default_data_dir()
        raise UserError(f"the {split} split in {folder} has no documents: make the data set again, from more text")
    return documents


def iter_documents(split: Split, data_dir: Path | None = None) -> Iterator[str]:
    """Every document of a split, once, in the global order; one row group is in memory at a time."""
    return open_split(split, data_dir).iter_texts()


class Documents:
    """The documents of some shards as one long list, of which one row group at a time is in memory.

    A row without text counts as a document of no characters, so that an index means the same to every reader.
    """

    def __init__(self, paths: list[Path]) -> None:
        self._groups: list[tuple[Path, int]] = []  # (shard, row group in it)
        self._starts = [0]  # the first document of each row group, and the end
        for path in paths:
            with _open_shard(path) as shard:
                metadata = shard.metadata
                for group in range(metadata.num_row_groups):
                    self._groups.append((path, group))
                    self._starts.append(self._starts[-1] + metadata.row_group(group).num_rows)

    def __len__(self) -> int:
        return self._starts[-1]

    def iter_texts(self, start: int = 0, step: int = 1) -> Iterator[str]:
        """Yield documents start, start + step, ... to the end.

        `iter_texts(rank, world_size)` is one rank's share of an epoch.

        Row groups of which no document is wanted are not read. UserError if a shard turns out not to be readable.
        """
        assert start >= 0, f"start {start} must not be negative"
        assert step >= 1, f"step {step} must be positive"
        index = start
        while index < len(self):
            group = bisect_right(self._starts, index) - 1
            first, end = self._starts[group], self._starts[group + 1]
            wanted = range(index - first, end - first, step)
            yield from self._read(group).take(pa.array(wanted, pa.int64())).to_pylist()
            index += len(wanted) * step

    def iter_arrays(self, start: int = 0) -> Iterator[Any]:
        """Documents start, start + 1, ... to the end as Arrow arrays of strings without nulls, none of them empty.

        The same documents as `iter_texts` gives, without a Python object for each. UserError as there.
        """
        assert start >= 0, f"start {start} must not be negative"
        for group in range(bisect_right(self._starts, start) - 1, len(self._groups)):
            column = self._read(group)[max(0, start - self._starts[group]) :]
            yield from (chunk for chunk in column.chunks if len(chunk))

    def _read(self, group: int) -> Any:
        """The documents of a row group, an Arrow column of strings."""
        path, number = self._groups[group]
        with _open_shard(path) as shard:
            try:
                column = shard.read_row_group(number, columns=["text"], use_threads=False).column("text")
                if column.type not in (pa.string(), pa.large_string()):  # dictionary codes, say
                    column = column.cast(pa.large_string())
            except (pa.ArrowException, OSError) as error:
                raise _unreadable(path, error) from error
        assert len(column) == self._starts[group + 1] - self._starts[group], f"{path} was replaced while it was read"
        return pc.fill_null(column, "") if column.null_count else column


def write_shards(
    documents: Iterable[str], data_dir: Path, prefix: str = "shard", docs_per_shard: int | None = None
) -> dict[str, ShardInfo]:
    """Write documents as `<prefix>_00000.parquet`, ... (`<prefix>.parquet` when docs_per_shard is None, even if empty).

    Each file appears under its name when it is whole. Returns the facts of the files, in order.
    """
    data_dir.mkdir(parents=True, exist_ok=True)
    if docs_per_shard is None:
        return {f"{prefix}.parquet": write_shard(documents, data_dir / f"{prefix}.parquet")}
    rest = iter(documents)
    files: dict[str, ShardInfo] = {}
    for first in rest:
        name = f"{prefix}_{len(files):05d}.parquet"
        shard = itertools.chain([first], itertools.islice(rest, docs_per_shard - 1))
        files[name] = write_shard(shard, data_dir / name)
    return files


def write_shard(documents: Iterable[str], path: Path) -> ShardInfo:
    """Write one parquet file with a `text` column; it appears whole or not at all."""
    schema = pa.schema([("text", pa.string())])
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(aside, "wb") as file:
            with pq.ParquetWriter(file, schema, compression="zstd") as writer:
                for group in _row_groups(documents):
                    writer.write_table(pa.table({"text": group}, schema=schema), row_group_size=ROW_GROUP_DOCUMENTS)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
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
    """Write both splits and make them the folder's data set; the old one is in force until the last step.

    Returns the new manifest. UserError if either split turns out empty: then the data of before stays.
    """
    folder = data_dir or default_data_dir()
    held_out = write_shards(validation, folder, f"{prefix}_val")
    shards = write_shards(train, folder, prefix, docs_per_shard)
    [(name, facts)] = held_out.items()
    if not facts.documents or not shards:
        kind = "training" if facts.documents else "validation"
        raise UserError(f"{source} gives no {kind} documents: more text is needed")
    manifest = Manifest(source, tuple(shards), name, {**shards, **held_out}, recipe or {})
    manifest.save(folder)
    return manifest


def read_shard_info(path: Path) -> ShardInfo:
    """Count and hash a shard. UserError if it is not parquet with a `text` column."""
    with _open_shard(path) as shard:
        documents = shard.metadata.num_rows
    return ShardInfo(documents, path.stat().st_size, file_sha256(path))


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's contents, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _row_groups(documents: Iterable[str]) -> Iterator[list[str]]:
    group: list[str] = []
    characters = 0
    for text in documents:
        group.append(text)
        characters += len(text)
        if len(group) == ROW_GROUP_DOCUMENTS or characters >= ROW_GROUP_CHARACTERS:
            yield group
            group, characters = [], 0
    if group:
        yield group


def _open_shard(path: Path) -> pq.ParquetFile:
    try:
        shard = pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(path, error) from error
    if "text" not in shard.schema_arrow.names:
        shard.close()
        raise UserError(f"{path} has no text column, only {', '.join(shard.schema_arrow.names) or 'none'}")
    return shard


def _unreadable(path: Path, error: Exception) -> UserError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return UserError(f"{path} cannot be read as parquet ({reason}): delete it and run python -m nanochat.dataset again")
