"""Comparison of shards with the SHA-256 that the manifest records, once in each run.

A shard is checked before the first of its documents is used. In a long run a thread also goes ahead through all shards,
so that a damaged one ends the run in its first minute and not after hours. Of several processes on a host only the
first one checks: all of them read the same shards in the same order, and no step is taken without the first.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from nanochat.common import UserError
from nanochat.system.files import open_regular_file

_BLOCK_BYTES = 1 << 20

_checked: set[tuple[Path, int, int, int, str]] = set()  # files of this process that have the SHA-256


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's contents in hexadecimal."""
    digest = hashlib.sha256()
    with open_regular_file(path) as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


class ShardChecks:
    """Checks of some shards by any number of threads. `expected`: SHA-256 by path."""

    def __init__(self, expected: Mapping[Path, str]) -> None:
        self._expected = dict(expected)
        self._locks = {path: threading.Lock() for path in expected}  # a shard is hashed by one thread at a time
        self._fault: str | None = None

    def check(self, path: Path) -> None:
        """Hash a shard, unless this process has done so. Raises UserError if it, or any shard before, is damaged."""
        with self._locks[path]:
            status = path.stat()
            sha256 = self._expected[path]
            key = (path, status.st_ino, status.st_size, status.st_mtime_ns, sha256)
            if self._fault is None and key not in _checked:
                actual = file_sha256(path)
                if actual == sha256:
                    _checked.add(key)
                else:
                    self._fault = (
                        f"{path} is damaged or was replaced: its SHA-256 is {actual[:12]}..., in manifest.json "
                        f"{sha256[:12]}...; delete it and run python -m nanochat.dataset again"
                    )
        if self._fault is not None:
            raise UserError(self._fault)

    def check_ahead(self, paths: Sequence[Path]) -> threading.Thread:
        """Check shards in a thread. What it finds is raised by the next call of `check`, whatever shard it names."""

        def check_all() -> None:
            for path in paths:
                try:
                    self.check(path)
                except (UserError, OSError):  # an OSError occurs again when the shard is read, and is reported then
                    return

        thread = threading.Thread(target=check_all, name="shard checks", daemon=True)
        thread.start()
        return thread


def is_checking_process() -> bool:
    """Return True in the first process of a run on this host."""
    return os.environ.get("LOCAL_RANK", "0") == "0"
