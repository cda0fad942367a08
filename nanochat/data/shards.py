"""A data set on disk: parquet shards with a `text` column, and a manifest that lists them.

    base_data/manifest.json            {"format": 1, "source": ..., "train": [names], "validation": name, ...}
    base_data/shard_00000.parquet      row groups of at most 1,024 documents

Only the files that the manifest names belong to the data set. It is written last, in one step, when all of its shards
are complete, so that an interrupted download or import leaves the previous data set as it was. There are two splits,
"train" (all shards of `train`) and "val" (the shard `validation`). The documents of a split have one global order: the
shards in the order of the manifest, and the rows of each in their order.
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
ROW_GROUP_CHARACTERS = 32_000_000  # a row group is read as a whole, so long documents make it end earlier

Split = Literal["train", "val"]


@dataclass(frozen=True)
class ShardInfo:
    """Size and contents of a shard, as the manifest records them."""

    documents: int  # number of rows
    bytes: int  # size of the file
    sha256: str  # of the file, in hexadecimal


@dataclass(frozen=True)
class Manifest:
    """The data set of a folder. The fields are the keys of `manifest.json`."""

    source: str  # "hub:OWNER/NAME" (Hugging Face hub), "storyworld" or "files:NAME"
    train: tuple[str, ...]  # file names of the training shards, in order
    validation: str  # file name of the validation shard
    files: dict[str, ShardInfo]  # by file name, of all shards
    recipe: dict[str, Any]  # fingerprint of the settings that determine the data; empty for a download

    def hash(self) -> str:
        """Return a SHA-256 of the names, order and contents of the shards, without source and recipe."""
        names = (*self.train, self.validation)
        contents = [(name, self.files[name].documents, self.files[name].sha256) for name in names]
        return hashlib.sha256(json.dumps([FORMAT, contents]).encode()).hexdigest()

    def save(self, data_dir: Path) -> None:
        """Write `manifest.json`. From then on this is the data set of the folder."""
        write_json_atomic(data_dir / "manifest.json", {"format": FORMAT, **asdict(self)})


def default_data_dir() -> Path:
    """Return the folder of the pretraining data: `$NANOCHAT_BASE_DIR/base_data`."""
    return base_dir() / "base_data"


def read_manifest(data_dir: Path) -> Manifest | None:
    """Read the manifest of a folder, or return None if there is none. The shards are not checked.

    Raises UserError for a file that is not a manifest, or one of another format.
    """
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
    """Read the manifest of a folder (default: `default_data_dir()`) and check that all of its shards are there.

    Raises UserError if there is no data set or a shard is missing.
    """
    folder = data_dir or default_data_dir()
    manifest = read_manifest(folder)
    if manifest is None:
        raise UserError(f"no data set in {folder}: make one, for example with python -m nanochat.dataset -n 8")
    missing = missing_shards(manifest, folder)
    if missing:
        kind = "the validation shard" if manifest.validation in missing else "a training shard"
        raise UserError(f"{folder / missing[-1]}, {kind}, is missing or cut short: make the data set again")
    return manifest


def missing_shards(manifest: Manifest, data_dir: Path) -> list[str]:
    """Return the names of shards that are absent or do not have the recorded size; the validation shard comes last."""

    def is_complete(name: str) -> bool:
        path = data_dir / name
        return path.is_file() and path.stat().st_size == manifest.files[name].bytes

    return [name for name in (*manifest.train, manifest.validation) if not is_complete(name)]


def shard_paths(split: Split, data_dir: Path | None = None) -> list[Path]:
    """Return the paths of a split's shards, in order. Raises UserError if any shard of the data set is missing."""
    if split not in ("train", "val"):
        raise UserError(f"no split {split!r}: choose train or val")
    folder = data_dir or default_data_dir()
    manifest = load_manifest(folder)
    names = manifest.train if split == "train" else (manifest.validation,)
    return [folder / name for name in names]


def open_split(split: Split, data_dir: Path | None = None) -> Documents:
    """Open the documents of a split. Raises UserError if there is no data set, or the split has no documents."""
    documents = Documents(shard_paths(split, data_dir))
    if not len(documents):
        folder = data_dir or default_data_dir()
        raise UserError(f"the {split} split in {folder} has no documents: make the data set again, from more text")
    return documents


def iter_documents(split: Split, data_dir: Path | None = None) -> Iterator[str]:
    """Yield every document of a split once, in the global order. One row group is in memory at a time."""
    return open_split(split, data_dir).iter_texts()


class Documents:
    """The documents of several shards as one sequence, of which one row group at a time is in memory.

    A null in the text column is an empty document, so that all methods agree on the index of a document.
    """

    def __init__(self, paths: list[Path]) -> None:
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
        with _open_shard(path) as shard:
            try:
                column = shard.read_row_group(number, columns=["text"], use_threads=False).column("text")
                if column.type not in (pa.string(), pa.large_string()):  # such as dictionary codes or binary
                    column = column.cast(pa.large_string())
            except (pa.ArrowException, OSError) as error:
                raise _unreadable(path, error) from error
        assert len(column) == self._starts[group + 1] - self._starts[group], f"{path} was replaced while it was read"
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
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            with pq.ParquetWriter(file, schema, compression="zstd") as writer:
                for group in _row_groups(documents):
                    writer.write_table(pa.table({"text": group}, schema=schema), row_group_size=ROW_GROUP_DOCUMENTS)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
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


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's contents in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


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
