"""Fixtures for the tasks over data sets of the hub."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest


@pytest.fixture
def hub_data(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the real data sets, set as `$NANOCHAT_HUB_DIR`."""
    folder = shared_data / "hub"
    monkeypatch.setenv("NANOCHAT_HUB_DIR", str(folder))
    return folder


@pytest.fixture
def write_to_mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """`write_to_mirror(path, table or rows)` writes a Parquet file to a mirror, set as `$NANOCHAT_HUB_DIR`."""
    monkeypatch.setenv("NANOCHAT_HUB_DIR", str(tmp_path))

    def write_to_mirror(path: str, table: pa.Table | list[dict[str, Any]]) -> Path:
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table if isinstance(table, pa.Table) else pa.Table.from_pylist(table), file)
        return file

    return write_to_mirror
