"""Limit on the number of a program's threads and processes, on Linux.

RLIMIT_NPROC counts all processes of a user, and does not apply to root. This limit counts those of the program: each
call that creates a thread or a process is suspended by a seccomp filter until the supervisor, which has the filter's
listener, has counted the program's tasks (Linux 5.5 and later). As a task waits for one answer at a time, there are
never more than twice MAX_TASKS.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from nanochat.sandbox.system_calls import build_notifier, install_filter, this_machine

MAX_TASKS = 64

_Item = TypeVar("_Item", str, bytes)

# The calls that create tasks: numbers on x86-64, and on ARM64 and RISC-V.
_CREATING: dict[str, tuple[int | None, int | None]] = {
    "clone": (56, 220),
    "clone3": (435, 435),
    "fork": (57, None),
    "vfork": (58, None),
}

# Constants of linux/seccomp.h.
_FLAG_NEW_LISTENER = 1 << 3
_FLAG_CONTINUE = 1
_RECEIVE = 0xC0502100
_ANSWER = 0xC0182101
_NOTIFICATION_BYTES = 80  # begins with the id of the notification (u64)
_ANSWER_FORMAT = "=QqiI"  # id, value, error, flags


class TaskLimit:
    """Connection between a program and its supervisor: created before the fork, then used on both sides."""

    def __init__(self) -> None:
        self._supervisor, self._program = socket.socketpair()
        # The supervisor's root folder changes with the program's, to one without /proc.
        self._proc = os.open("/proc" if os.path.isdir("/proc") else "/", os.O_RDONLY)
        self._source: socket.socket | int | None = self._supervisor  # of the listener, then of its notifications

    def apply(self) -> bool:
        """Limit the tasks of this process and its children. Return False if this machine cannot.

        Is called in the program's process. Must precede other seccomp filters, which would forbid its own calls.
        """
        self._supervisor.close()
        os.close(self._proc)
        with self._program:  # if it is closed without a message, the supervisor has nothing to decide on
            try:
                listener = install_filter(build_notifier(this_machine(), _CREATING), _FLAG_NEW_LISTENER)
            except OSError:
                return False
            socket.send_fds(self._program, [b"listener"], [listener])
        os.close(listener)  # the program must not answer its own calls
        return True

    def wait(self, child: int, wakeup: int) -> None:
        """Wait until the descriptor `wakeup` can be read, deciding on new tasks meanwhile. It is the supervisor's part.

        `child`: the process that is, or starts, the program. The supervisor cannot use a thread for this: a process
        that has created a PID namespace for its children cannot start any.
        """
        self._program.close()
        while True:
            poll = select.poll()
            poll.register(wakeup, select.POLLIN)
            if self._source is not None:
                poll.register(self._source, select.POLLIN)
            events = dict(poll.poll())
            for descriptor in events.keys() - {wakeup}:
                self._handle(child, has_message=bool(events[descriptor] & select.POLLIN))
            if wakeup in events:
                return

    def _handle(self, child: int, has_message: bool) -> None:
        source = self._source
        assert source is not None, "an event of a source"
        if has_message and isinstance(source, socket.socket):
            with source:
                descriptors = socket.recv_fds(source, 64, 1)[1]
            self._source = descriptors[0] if descriptors else None
        elif has_message and isinstance(source, int):
            notification = bytearray(_NOTIFICATION_BYTES)
            with suppress(InterruptedError, FileNotFoundError):  # ENOENT: the task was killed while it waited
                fcntl.ioctl(source, _RECEIVE, notification)
                _answer(source, bytes(notification[:8]), self._has_room(child))
        else:  # all tasks under the filter have ended
            self._source = None

    def _has_room(self, child: int) -> bool:
        try:
            return count_tasks(child, self._proc) < MAX_TASKS
        except OSError:
            return False


def _answer(listener: int, notification_id: bytes, is_allowed: bool) -> None:
    number = int.from_bytes(notification_id, "little")
    flags = _FLAG_CONTINUE if is_allowed else 0
    try:
        fcntl.ioctl(
            listener, _ANSWER, struct.pack(_ANSWER_FORMAT, number, 0, 0 if is_allowed else -errno.EAGAIN, flags)
        )
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        # Before Linux 5.5 a call cannot be allowed.
        fcntl.ioctl(listener, _ANSWER, struct.pack(_ANSWER_FORMAT, number, 0, -errno.EAGAIN, 0))


def count_tasks(pid: int, proc: int) -> int:
    """Return the number of threads of a process and all its descendants. `proc`: descriptor of /proc.

    A task is not counted if it ends meanwhile. Raises OSError if this machine does not tell.
    """
    os.stat(f"{os.getpid()}/task/{os.getpid()}/children", dir_fd=proc)
    num_tasks = 0
    processes = [pid]
    while processes:
        tasks = f"{processes.pop()}/task"
        for task in _read(tasks, proc, os.listdir):
            num_tasks += 1
            processes += map(int, _read(f"{tasks}/{task}/children", proc, lambda file: os.read(file, 1 << 16).split()))
    return num_tasks


def _read(path: str, proc: int, read: Callable[[int], list[_Item]]) -> list[_Item]:
    """Return what `read` makes of the file or folder `path` of /proc; an empty list if the task has ended."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc)
    except (FileNotFoundError, ProcessLookupError):
        return []
    try:
        return read(descriptor)
    except (FileNotFoundError, ProcessLookupError):
        return []
    finally:
        os.close(descriptor)
