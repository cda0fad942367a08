"""Temporary folders of programs: created, and removed in a bounded time whatever a program has put into them.

A folder belongs to the process that has it locked (flock); the system removes the lock when that process ends, however
it ends. Each new folder first removes those that nobody has locked. A removal that takes longer than a moment is left
to a detached process, which shares the lock.
"""

from __future__ import annotations

import math
import os
import secrets
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

_PREFIX = "nanochat-program-"
_REMOVAL_SECONDS = 0.5  # for a removal that the caller waits for; an ordinary one takes a few milliseconds
_DETACH = "import sys; sys.path.append(sys.argv[2]); from nanochat.sandbox.work_folder import main; main()"


def create_folder() -> tuple[Path, int]:
    """Return a new folder and its locked descriptor, and remove the folders of callers that were killed."""
    _remove_leftovers(tempfile.gettempdir())
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX)).resolve()
        try:
            return folder, _lock(folder)
        except (BlockingIOError, FileNotFoundError):
            continue  # another caller has found it before it was locked, and removes it
        except OSError:  # no locks in this file system: nobody will take the folder for a leftover
            return folder, os.open(folder, os.O_RDONLY)


def remove_folder(folder: Path, descriptor: int) -> None:
    """Remove a folder and close its descriptor, in a bounded time: what is left then, a detached process removes."""
    try:
        if not remove_tree(folder, time.monotonic() + _REMOVAL_SECONDS):
            _remove_detached(folder, descriptor)
    finally:
        os.close(descriptor)


def remove_tree(folder: Path, deadline: float) -> bool:
    """Remove a folder of any depth, whatever a program has done to it. Return False if the deadline came first.

    Subfolders are moved to the top first, because very long paths would fail. Nothing outside the folder is touched:
    links are removed, not followed. What cannot be removed is left: where no layer protects its folder, a program can
    have moved it, or forbidden its removal.
    """
    moved = f"{folder}/{secrets.token_hex(8)}-"  # a program cannot have used these names
    num_moved = 0
    with suppress(OSError):
        os.chmod(folder, stat.S_IRWXU)
        while not _is_empty(folder):
            for path, is_folder in _entries(folder):
                if not is_folder:
                    os.unlink(path)
                for inner, is_inner_folder in _entries(path) if is_folder else ():
                    if time.monotonic() >= deadline:
                        return False
                    if is_inner_folder:
                        os.chmod(inner, stat.S_IRWXU)  # a folder can be moved by those who may write into it
                        os.rename(inner, f"{moved}{num_moved}")
                        num_moved += 1
                    else:
                        os.unlink(inner)
                if is_folder and _is_empty(path):
                    os.rmdir(path)
                if time.monotonic() >= deadline:
                    return False
        os.rmdir(folder)
    return True


def main() -> NoReturn:
    """Remove the folder of the first argument, in a process that nobody waits for."""
    if os.fork() == 0:
        remove_tree(Path(sys.argv[1]), math.inf)
    os._exit(0)


def _entries(folder: str | Path) -> Iterator[tuple[str, bool]]:
    """Yield path and True for each folder, path and False for all else. The caller may remove them meanwhile."""
    os.chmod(folder, stat.S_IRWXU)
    with os.scandir(folder) as entries:
        for entry in entries:
            yield entry.path, entry.is_dir(follow_symlinks=False)


def _is_empty(folder: str | Path) -> bool:
    with os.scandir(folder) as entries:
        return next(entries, None) is None


def _lock(folder: str | Path) -> int:
    """Return a locked descriptor of a folder. Raises OSError: BlockingIOError if it is locked already."""
    import fcntl  # Windows lacks it

    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.path.samestat(os.fstat(descriptor), os.lstat(folder)):
            raise FileNotFoundError(f"{folder} is another folder now")
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _remove_leftovers(temporary: str) -> None:
    """Remove this user's folders that nobody has locked, for a moment; the rest of them is left to the next call."""
    deadline = time.monotonic() + _REMOVAL_SECONDS
    for name in os.listdir(temporary):
        path = os.path.join(temporary, name)
        if not name.startswith(_PREFIX) or time.monotonic() >= deadline:
            continue
        with suppress(OSError):
            status = os.lstat(path)
            if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
                continue
            if not status.st_mode & stat.S_IRUSR:
                os.chmod(path, stat.S_IRWXU)
            remove_folder(Path(path), _lock(path))


def _remove_detached(folder: Path, descriptor: int) -> None:
    """Start a process that removes the folder and shares its lock. It is not a child, so that nobody must wait."""
    root = str(Path(__file__).resolve().parents[2])
    command = [sys.executable, "-I", "-S", "-c", _DETACH, str(folder), root]
    with suppress(OSError):  # left to the next call
        subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(descriptor,),
            cwd="/",
            start_new_session=True,
            check=False,
        )
