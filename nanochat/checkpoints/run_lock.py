"""The lock of a run's folder: one training run at a time writes checkpoints there.

    @run_locks()
    def main(config):
        lock_run(folder)        # held until main returns or raises

Programs that only read checkpoints do not take it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nanochat.common import base_dir
from nanochat.system.locks import FileLock, acquire

LOCK_FILE = ".lock"
ANOTHER_TAG = "wait for its end or stop it, or choose another name with --model_tag"
_held: list[FileLock] = []


@contextmanager
def run_locks() -> Iterator[None]:
    """Context manager, and decorator, at whose end the locks that `lock_run` has taken are released."""
    num_outer = len(_held)
    try:
        yield
    finally:
        while len(_held) > num_outer:
            lock = _held.pop()
            lock.release()
            with contextlib.suppress(OSError):  # the folder is removed if it is empty: the run has saved nothing
                folder = lock.path.parent
                folder.rmdir()
                if folder.parent != base_dir():
                    folder.parent.rmdir()


def lock_run(folder: Path, advice: str = ANOTHER_TAG) -> None:
    """Take the lock of a run's folder, which is made if need be. On rank 0 only: it is the one that writes.

    Raises `UserError` if another process has it, with who that is, or if the folder cannot be written.
    """
    if os.environ.get("RANK", "0") != "0":
        return
    _held.append(acquire(folder / LOCK_FILE, f"{folder} is in use by", advice))
