"""Data sets of the Hugging Face hub: read from `$NANOCHAT_HUB_DIR`, a local mirror, or else through `datasets`.

A mirror has the hub's own layout, `<repository id>/<subset>/<split>-00000-of-00001.parquet`; data sets without subsets
have `data` as `<subset>`. Downloads are cached by the `datasets` library.
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

from nanochat.common import UserError, expand_path
from nanochat.system.credentials import hub_address, protect_hub_token
from tasks.common import Task

HUB_TIMEOUT = 5  # seconds to wait for a connection to the hub


class DatasetUnavailableError(UserError):
    """A data set is not in the mirror and cannot be loaded from the hub."""


class HubTask(Task):
    """A task over one split of a data set. The constructor loads the table: a missing data set fails early."""

    repo_id: str
    columns: tuple[str, ...]

    def __init__(self, subset: str, split: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.split = split
        self._table = load_table(self.repo_id, subset, split, self.columns)
        self._columns = {name: self._table[name] for name in self.columns}

    def num_examples(self) -> int:
        return int(self._table.num_rows)

    def get_row(self, index: int) -> dict[str, Any]:
        """Return a row of the data set as {column: value}."""
        return {name: column[index].as_py() for name, column in self._columns.items()}


def load_table(repo_id: str, subset: str, split: str, columns: Sequence[str]) -> Any:
    """Return `columns` of a split as a pyarrow.Table. Columns wrapped in a single struct column are unwrapped.

    Raises DatasetUnavailableError if neither mirror nor hub has the data set, UserError if it is damaged, incomplete or
    lacks a column.
    """
    mirror = os.environ.get("NANOCHAT_HUB_DIR")
    files = _find_shards(expand_path(mirror, "NANOCHAT_HUB_DIR") / repo_id / subset, split) if mirror else []
    table = _read_shards(files) if files else _load_from_hub(repo_id, subset, split, mirror)
    while len(table.column_names) == 1 and _is_struct(table.schema.field(0).type):  # as in MMLU's auxiliary_train
        table = table.flatten()
        table = table.rename_columns([name.partition(".")[2] for name in table.column_names])
    if missing := [name for name in columns if name not in table.column_names]:
        names = ", ".join(table.column_names)
        raise UserError(f"{repo_id} ({subset}, {split}) has no column {missing[0]!r}, but {names}")
    return table.select(list(columns))


def _find_shards(folder: Path, split: str) -> list[Path]:
    """Return the files of a split. Raises UserError if there are not as many as their names announce."""
    files = sorted([*folder.glob(f"{split}-*.parquet"), *folder.glob(f"{split}.parquet")])
    for file in files:
        match = re.fullmatch(rf"{re.escape(split)}-\d+-of-(\d+)", file.stem)
        if match and int(match[1]) != len(files):
            raise UserError(
                f"{folder}: {len(files)} files of {split}, but {file.name} is one of {int(match[1])}: "
                "copy the missing ones"
            )
    return files


def _read_shards(files: list[Path]) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pa.concat_tables([pq.read_table(file) for file in files])
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(f"{files[0].parent}: {error}") from error


def _load_from_hub(repo_id: str, subset: str, split: str, mirror: str | None) -> Any:
    name = None if subset == "data" else subset
    if not _is_hub_reachable():
        # Offline, `datasets` would retry for 40 seconds; with this it loads its cache at once, or fails.
        os.environ["HF_HUB_OFFLINE"] = "1"
    protect_hub_token()
    try:
        import datasets

        return datasets.load_dataset(repo_id, name, split=split).data.table
    except Exception as error:  # the library raises errors of the network, the disk and the parser
        mirror_state = f"not under $NANOCHAT_HUB_DIR ({mirror})" if mirror else "$NANOCHAT_HUB_DIR is not set"
        reason = str(error).strip().partition("\n")[0][:200] or type(error).__name__
        raise DatasetUnavailableError(
            f"{repo_id} ({subset}, {split}) cannot be loaded: {mirror_state}, and the hub failed with: {reason}. "
            f"Go online, or set NANOCHAT_HUB_DIR to a folder with {repo_id}/{subset}/{split}-*.parquet"
        ) from error


@functools.cache
def _is_hub_reachable() -> bool:
    """Return True if the hub's host accepts a connection, or if a proxy is set, which may reach it."""
    if urllib.request.getproxies():
        return True
    try:
        address = urllib.parse.urlsplit(hub_address())
        port = address.port or (80 if address.scheme == "http" else 443)
        socket.create_connection((address.hostname or "", port), timeout=HUB_TIMEOUT).close()
    except (OSError, ValueError):  # ValueError: the address is no URL
        return False
    return True


def _is_struct(arrow_type: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_struct(arrow_type))
