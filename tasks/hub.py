"""Data sets by their repository id: from `$NANOCHAT_HUB_DIR`, a folder that mirrors the hub, else from the hub itself.

A mirror has the hub's own files, `<repository id>/<configuration>/<split>-00000-of-00001.parquet`, where data sets of
one configuration have `data` in its place. The hub's files are kept by the `datasets` library, in its own cache.
"""

from __future__ import annotations

import functools
import os
import re
import socket
import urllib.parse
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nanochat.common import UserError
from tasks.common import Task


class DatasetUnavailableError(UserError):
    """A data set is neither in the mirror nor to be had from the hub."""


class HubTask(Task):
    """A task whose rows are those of a data set. It is loaded at once, so that what is missing shows early."""

    repository: str
    columns: tuple[str, ...]

    def __init__(self, configuration: str, split: str, **rows: Any) -> None:
        super().__init__(**rows)
        self.split = split
        self._table = load_table(self.repository, configuration, split, self.columns)

    def num_examples(self) -> int:
        return int(self._table.num_rows)

    def row(self, index: int) -> dict[str, Any]:
        """A row of the data set, by column."""
        return {name: self._table[name][index].as_py() for name in self.columns}


def load_table(repository: str, configuration: str, split: str, columns: Sequence[str]) -> Any:
    """A split of a data set as a pyarrow.Table with these columns. Columns wrapped in one struct are unwrapped.

    Raises Unavailable if it cannot be had, UserError if what is there is damaged, incomplete or has other columns.
    """
    mirror = os.environ.get("NANOCHAT_HUB_DIR")
    folder = Path(mirror or ".") / repository / configuration
    files = _shards(folder, split) if mirror else []
    table = _read(files) if files else _from_hub(repository, configuration, split, mirror)
    while len(table.column_names) == 1 and _is_struct(table.schema.field(0).type):  # as MMLU's auxiliary_train
        table = table.flatten()
        table = table.rename_columns([name.partition(".")[2] for name in table.column_names])
    if missing := [name for name in columns if name not in table.column_names]:
        raise UserError(
            f"{repository} ({configuration}, {split}) has no column {missing[0]!r} but {', '.join(table.column_names)}"
        )
    return table.select(list(columns))


def _shards(folder: Path, split: str) -> list[Path]:
    """The files of a split, all of those that their names promise."""
    files = sorted([*folder.glob(f"{split}-*.parquet"), *folder.glob(f"{split}.parquet")])
    for file in files:
        match = re.fullmatch(rf"{re.escape(split)}-\d+-of-(\d+)", file.stem)
        if match and int(match[1]) != len(files):
            raise UserError(f"{folder}: {len(files)} files of {split} where the name {file.name} says {int(match[1])}")
    return files


def _read(files: list[Path]) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pa.concat_tables([pq.read_table(file) for file in files])
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(f"{files[0].parent}: {error}") from error


def _from_hub(repository: str, configuration: str, split: str, mirror: str | None) -> Any:
    name = None if configuration == "data" else configuration
    if not _hub_answers():
        os.environ["HF_HUB_OFFLINE"] = "1"  # else it tries for 40 seconds; what it has kept from before still loads
    try:
        import datasets

        return datasets.load_dataset(repository, name, split=split).data.table
    except Exception as error:  # the library raises whatever its many layers do: no network, no such data set, no disk
        where = f"not under $NANOCHAT_HUB_DIR ({mirror})" if mirror else "$NANOCHAT_HUB_DIR is not set"
        reason = str(error).strip().partition("\n")[0][:200] or type(error).__name__
        raise DatasetUnavailableError(
            f"{repository} ({configuration}, {split}) cannot be had: {where}, and the hub gave: {reason}. "
            f"Go online, or set NANOCHAT_HUB_DIR to a folder with {repository}/{configuration}/{split}-*.parquet"
        ) from error


@functools.cache
def _hub_answers() -> bool:
    """Whether there is a way to the hub: its machine answers, or a proxy stands between."""
    if urllib.request.getproxies():
        return True
    address = urllib.parse.urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
    try:
        socket.create_connection((address.hostname or "", address.port or 443), timeout=5).close()
    except OSError:
        return False
    return True


def _is_struct(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_struct(kind))
