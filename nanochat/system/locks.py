"""Locks between processes: a file that one process at a time holds, and that tells who it is.

    with file_lock(folder / ".lock", f"{folder} is written to by"):
        ...

The system's lock on a file (flock) ends with its process, however that ends, so the file may stay behind without harm.
Some file systems have no such locks. There the file itself is the lock: it is created if it does not exist, and names
host and process. One that a process of this machine has left behind is recognised and replaced; of another machine
that cannot be known, so the error says what to remove.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import json
import os
import socket
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from nanochat.system.errors import UserError, remedy_of

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

NO_LOCKS = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL}
HELD_ELSEWHERE = {errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES}
ENDED = "ended"
POLL_SECONDS = 0.2
READ_SECONDS = 5.0  # within which a process that has taken a lock has written its name into the file


@dataclass(frozen=True)
class Holder:
    """A process that holds a lock, as the file of the lock names it."""

    pid: int
    host: str
    since: str  # date and time
    space: str = ""  # the process name space: numbers of processes of another container mean nothing here
    start: str = ""  # when the process was started, in the system's own count: a number may be given again

    @classmethod
    def this_process(cls) -> Holder:
        """Return the entry of this process."""
        now = time.strftime("%Y-%m-%d %H:%M:%S")
        return cls(os.getpid(), socket.gethostname(), now, process_space(), process_start(os.getpid()))

    def is_here(self) -> bool:
        """Return True if it is or was a process of this machine, and of this container."""
        return self.pid > 0 and (self.host, self.space) == (socket.gethostname(), process_space())

    def is_gone(self) -> bool:
        """Return True if this was a process of this machine that has ended. Of other machines nothing is known."""
        if not self.is_here():
            return False
        try:
            os.kill(self.pid, 0)
        except (ProcessLookupError, OverflowError):
            return True
        except OSError:  # a process of another user
            pass
        start = process_start(self.pid)
        return start == ENDED or (bool(self.start and start) and start != self.start)

    def __str__(self) -> str:
        return f"process {self.pid} of {self.host[:64]!r}, since {self.since[:32]}" if self.pid else "another process"


UNKNOWN = Holder(0, "", "")


def process_space() -> str:
    """Return the name of this process's process name space, or "" where there are none."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def process_start(pid: int) -> str:
    """Return when a process was started, in clock ticks since the machine's start; "" if that is not known.

    `ENDED`: it has ended, and its parent has not asked for its exit code yet.
    """
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            state, *facts = file.read().rpartition(")")[2].split()  # after the name, which may contain anything
            return ENDED if state in "ZX" else facts[18]
    except (OSError, ValueError, IndexError):
        return ""


class FileLock:
    """A lock on a file. `try_acquire` never waits; two locks on one file exclude each other in one process, too."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.is_by_name = False  # True: the file system has no locks, and the file itself is the lock
        self._descriptor = -1
        self._pid = 0  # of the process that holds it: a fork has a copy of this object, but not the lock

    def try_acquire(self) -> Holder | None:
        """Take the lock and return None, or return who holds it. Raises OSError if the file cannot be written."""
        while True:
            is_new, descriptor = _open(self.path)
            try:
                if fcntl is None:
                    raise OSError(errno.ENOSYS, "no flock")
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                os.close(descriptor)
                if error.errno in HELD_ELSEWHERE:
                    holder = _read_holder(self.path)
                    if holder is None:
                        continue  # it has been released
                    return holder
                if error.errno not in NO_LOCKS:
                    raise
                self.is_by_name = True
                holder = None if is_new else _find_holder_by_name(self.path)
                if holder is not None:
                    return holder
                if not is_new:
                    continue  # the file of an ended process has been removed
                descriptor = os.open(self.path, os.O_WRONLY)
            else:
                self.is_by_name = False
                if not _is_same_file(descriptor, self.path):  # its holder has removed it meanwhile
                    os.close(descriptor)
                    continue
            self._descriptor, self._pid = descriptor, os.getpid()
            _HELD.append(self)
            os.ftruncate(descriptor, 0)
            os.write(descriptor, json.dumps(asdict(Holder.this_process())).encode("utf-8"))
            return None

    def release(self) -> None:
        """Give the lock back and remove its file. Does nothing if this process does not hold it."""
        if self._pid != os.getpid():
            return
        with contextlib.suppress(OSError):
            if _is_same_file(self._descriptor, self.path):
                self.path.unlink()
        self.drop()

    def drop(self) -> None:
        """Close the file and keep it in place. In a fork, the parent's lock stays as it is."""
        if self in _HELD:
            _HELD.remove(self)
        with contextlib.suppress(OSError):
            os.close(self._descriptor)
        self._descriptor, self._pid = -1, 0


_HELD: list[FileLock] = []


def _release_all() -> None:
    for lock in list(_HELD):
        lock.release()


def _drop_all() -> None:
    """Close the files of the locks in a fork, which would hold them beyond the end of the process that took them."""
    for lock in list(_HELD):
        lock.drop()


atexit.register(_release_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_drop_all)


@contextmanager
def file_lock(
    path: Path, claim: str, advice: str = "", *, notice: Callable[[str], object] | None = None
) -> Iterator[None]:
    """Context manager that holds a lock on a file, whose folder is made if need be.

    `claim` begins the message if another process holds it, as in "FOLDER is in use by". Without `notice`, UserError is
    raised then, with `advice`. With it, the message is given to `notice` once, and the lock is waited for, as long as
    its holder is known to live; else UserError is raised, too.
    """
    lock = acquire(path, claim, advice, notice=notice)
    try:
        yield
    finally:
        lock.release()


def acquire(path: Path, claim: str, advice: str = "", *, notice: Callable[[str], object] | None = None) -> FileLock:
    """Return a lock as `file_lock` takes it, which is held until `release` or the end of the process."""
    lock = FileLock(path)
    is_noticed = False
    num_missing = 0
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            holder = lock.try_acquire()
        except FileNotFoundError as error:
            num_missing += 1  # another process, at its end, has removed the empty folder since the line above
            if num_missing == 100:
                raise UserError(f"{path} cannot be written ({error})") from error
            continue
        except OSError as error:
            remedy = remedy_of(error, "make its folder writable")
            raise UserError(f"{path} cannot be written ({error.strerror or error}): {remedy}") from error
        if holder is None:
            return lock
        message = f"{claim} {holder}"
        if notice is None or (lock.is_by_name and not holder.is_here()):
            remedy = "" if not lock.is_by_name else f"if that process has ended, remove {path}"
            raise UserError(": ".join(filter(None, (message, "; ".join(filter(None, (advice, remedy)))))))
        if not is_noticed:
            notice(f"{message}; waiting for it")
            is_noticed = True
        time.sleep(POLL_SECONDS)


def _open(path: Path) -> tuple[bool, int]:
    """Open the file of a lock. Returns True if this call has created it, and the descriptor."""
    for _ in range(100):
        try:
            return True, os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            with contextlib.suppress(FileNotFoundError):  # removed meanwhile
                return False, _open_existing(path)
    raise OSError(errno.EBUSY, "it comes and goes", str(path))


def _open_existing(path: Path) -> int:
    """Open a file that is there. Raises OSError for a link of either kind: taking the lock writes to the file."""
    descriptor = os.open(path, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    facts = os.fstat(descriptor)
    if not stat.S_ISREG(facts.st_mode) or facts.st_nlink > 1:
        os.close(descriptor)
        raise OSError(errno.EPERM, "it is not a file of its own", str(path))
    return descriptor


def _is_same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except OSError:
        return False


def _read_holder(path: Path) -> Holder | None:
    """Return who has written the file of a lock, or None if there is no file any more.

    The process that has just taken the lock may not have written the file yet: it has `READ_SECONDS` for that.
    """
    deadline = 0.0
    inode = -1
    while True:
        try:
            with open(path, "rb") as file:
                facts = os.fstat(file.fileno())
                if facts.st_ino != inode:
                    inode = facts.st_ino
                    deadline = time.monotonic() + READ_SECONDS
                holder = Holder(**json.loads(file.read(4096)))
            if isinstance(holder.pid, int) and all(isinstance(text, str) for text in (holder.host, holder.since)):
                return holder
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError):
            pass
        if time.monotonic() > deadline:
            return UNKNOWN
        time.sleep(0.02)


def _find_holder_by_name(path: Path) -> Holder | None:
    """Return who holds a lock that is a file. None: the file is gone, or was removed, as its process has ended."""
    holder = _read_holder(path)
    if holder is None or not holder.is_gone():
        return holder
    # Another process may do the same at this moment, and have taken the lock already: what is moved away is looked at.
    aside = path.with_name(f"{path.name}.{os.getpid()}.old")
    try:
        os.rename(path, aside)
        moved = _read_holder(aside)
        if moved is not None and moved != holder:
            with contextlib.suppress(OSError):
                os.link(aside, path)
            return moved
        return None
    except FileNotFoundError:
        return None
    finally:
        with contextlib.suppress(OSError):
            aside.unlink()
