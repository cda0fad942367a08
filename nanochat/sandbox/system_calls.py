"""Seccomp: the system calls that a program may make, for the calling process and its children on Linux.

The filter is a list of what is allowed: what a Python program needs that computes, reads files, writes into its folder
and prints, as traced over programs that use the standard library (Python 3.10 to 3.13), and what musl uses in place of
glibc's calls. All other calls fail: with ENOSYS if they are new, because the C library then uses an older call instead,
else with EPERM.

A call is allowed with some arguments only where others would reach beyond the process, or around a limit:

    clone        the exact flags of a new thread; sandbox/task_limit.py counts the threads
    kill, ...    the program itself
    fcntl, ioctl the commands for reading properties, blocking and closing; none that names a process to be signalled
    socketpair   a connected pair of streams (asyncio); datagram sockets could send to any local socket of the machine
    sendto       without an address
    fallocate    without flags, because one of them evades the limit on the size of a file
    mmap         without huge pages, which are a store of the whole machine
    prctl        names of threads and memory; not the signal that ends the program with its supervisor
    prlimit64    the program's own limits
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import sys
from typing import NamedTuple

from nanochat.sandbox.linux_guard import libc

_PR_SET_NO_NEW_PRIVS = 38
_SET_MODE_FILTER = 1

# Machine -> its audit architecture, and its column in the tables of system call numbers below.
MACHINES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1), "riscv64": (0xC00000F3, 1)}

# Name -> numbers on x86-64, and on ARM64 and RISC-V; None: the machine has no such call.
ALLOWED: dict[str, tuple[int | None, int | None]] = {
    # contents of files and folders
    "read": (0, 63),
    "write": (1, 64),
    "pread64": (17, 67),
    "pwrite64": (18, 68),
    "readv": (19, 65),
    "writev": (20, 66),
    "preadv": (295, 69),
    "pwritev": (296, 70),
    "preadv2": (327, 286),
    "pwritev2": (328, 287),
    "open": (2, None),
    "openat": (257, 56),
    "creat": (85, None),
    "close": (3, 57),
    "close_range": (436, 436),
    "lseek": (8, 62),
    "truncate": (76, 45),
    "ftruncate": (77, 46),
    "fadvise64": (221, 223),
    "fsync": (74, 82),
    "fdatasync": (75, 83),
    "copy_file_range": (326, 285),
    "sendfile": (40, 71),
    "dup": (32, 23),
    "dup2": (33, None),
    "dup3": (292, 24),
    "pipe": (22, None),
    "pipe2": (293, 59),
    "getdents64": (217, 61),
    # names and properties of files
    "stat": (4, None),
    "fstat": (5, 80),
    "lstat": (6, None),
    "newfstatat": (262, 79),
    "statx": (332, 291),
    "access": (21, None),
    "faccessat": (269, 48),
    "faccessat2": (439, 439),
    "readlink": (89, None),
    "readlinkat": (267, 78),
    "getcwd": (79, 17),
    "chdir": (80, 49),
    "fchdir": (81, 50),
    "mkdir": (83, None),
    "mkdirat": (258, 34),
    "rmdir": (84, None),
    "rename": (82, None),
    "renameat": (264, 38),
    "renameat2": (316, 276),
    "link": (86, None),
    "linkat": (265, 37),
    "symlink": (88, None),
    "symlinkat": (266, 36),
    "unlink": (87, None),
    "unlinkat": (263, 35),
    "umask": (95, 166),
    # waiting for files
    "poll": (7, None),
    "ppoll": (271, 73),
    "select": (23, None),
    "pselect6": (270, 72),
    "epoll_create": (213, None),
    "epoll_create1": (291, 20),
    "epoll_ctl": (233, 21),
    "epoll_wait": (232, None),
    "epoll_pwait": (281, 22),
    "epoll_pwait2": (441, 441),
    # a connected pair of sockets
    "getsockname": (51, 204),
    "getpeername": (52, 205),
    "getsockopt": (55, 209),
    "recvfrom": (45, 207),
    "shutdown": (48, 210),
    # memory
    "brk": (12, 214),
    "munmap": (11, 215),
    "mremap": (25, 216),
    "mprotect": (10, 226),
    "madvise": (28, 233),
    "msync": (26, 227),
    # threads, start and end
    "futex": (202, 98),
    "set_robust_list": (273, 99),
    "set_tid_address": (218, 96),
    "rseq": (334, 293),
    "sched_yield": (24, 124),
    "sched_getaffinity": (204, 123),
    "getcpu": (309, 168),
    "execve": (59, 221),
    "exit": (60, 93),
    "exit_group": (231, 94),
    "wait4": (61, 260),
    "waitid": (247, 95),
    "riscv_hwprobe": (None, 258),
    "riscv_flush_icache": (None, 259),
    # signals
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "rt_sigpending": (127, 136),
    "rt_sigtimedwait": (128, 137),
    "rt_sigsuspend": (130, 133),
    "sigaltstack": (131, 132),
    "restart_syscall": (219, 128),
    "pause": (34, None),
    "alarm": (37, None),
    "getitimer": (36, 102),
    "setitimer": (38, 103),
    # time
    "clock_gettime": (228, 113),
    "clock_getres": (229, 114),
    "clock_nanosleep": (230, 115),
    "nanosleep": (35, 101),
    "gettimeofday": (96, 169),
    "time": (201, None),
    "times": (100, 153),
    # information about the process and the machine
    "getpid": (39, 172),
    "getppid": (110, 173),
    "gettid": (186, 178),
    "getuid": (102, 174),
    "geteuid": (107, 175),
    "getgid": (104, 176),
    "getegid": (108, 177),
    "getgroups": (115, 158),
    "getresuid": (118, 148),
    "getresgid": (120, 150),
    "getpgrp": (111, None),
    "getpgid": (121, 155),
    "getsid": (124, 156),
    "getrlimit": (97, 163),
    "getrusage": (98, 165),
    "sysinfo": (99, 179),
    "uname": (63, 160),
    "getrandom": (318, 278),
}

# System calls that are allowed with some arguments; the rules are in `_rules`.
CONDITIONAL: dict[str, tuple[int, int | None]] = {
    "clone": (56, 220),
    "kill": (62, 129),
    "tkill": (200, 130),
    "tgkill": (234, 131),
    "fcntl": (72, 25),
    "ioctl": (16, 29),
    "socketpair": (53, 199),
    "sendto": (44, 206),
    "fallocate": (285, 47),
    "mmap": (9, 222),
    "prctl": (157, 167),
    "arch_prctl": (158, None),
    "prlimit64": (302, 261),
    "membarrier": (324, 283),
}

# From this number on, all machines share the numbers, and the C library expects that a kernel lacks the call.
_FIRST_NEW_CALL = 424
_FIRST_X32_CALL = 0x40000000  # the same calls under the numbers of the x32 ABI

_SYS_SECCOMP = (317, 277)

# The flags with which glibc and musl create a thread (CLONE_VM, _FS, _FILES, _SIGHAND, _THREAD, _SYSVSEM, _SETTLS,
# _PARENT_SETTID, _CHILD_CLEARTID). musl adds _DETACHED, which has no effect.
_THREAD_FLAGS = 0x003D0F00
_CLONE_DETACHED = 0x00400000
# Commands: F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_GETLK, F_SETLK, F_SETLKW (sqlite3), F_DUPFD_CLOEXEC
_FCNTL_COMMANDS = (0, 1, 2, 3, 5, 6, 7, 1030)
_F_SETFL = 4
_O_ASYNC = 0x2000
# Commands: TCGETS, TCGETS2, TIOCGWINSZ (is this a terminal?), FIONREAD, FIONBIO, FIONCLEX, FIOCLEX
_IOCTL_COMMANDS = (0x5401, 0x802C542A, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)
_AF_UNIX = 1
_SOCK_STREAM = 1
_SOCK_FLAGS = 0x80800  # SOCK_CLOEXEC, SOCK_NONBLOCK
_MAP_HUGETLB = 0x40000
_PRCTL_OPTIONS = (15, 16, 0x53564D41)  # PR_SET_NAME, PR_GET_NAME, PR_SET_VMA
_ARCH_PRCTL_OPTIONS = (0x1002, 0x1003)  # ARCH_SET_FS, ARCH_GET_FS
_MEMBARRIER_COMMANDS = (0, 8, 16)  # query, and the barrier among the threads of the process

_WHOLE = 0xFFFFFFFF


class Condition(NamedTuple):
    """Half of an argument, masked, must be one of the values."""

    values: tuple[int, ...]
    argument: int
    mask: int = _WHOLE
    is_upper_half: bool = False


def _rules(pid: int) -> dict[str, list[list[Condition]]]:
    """Return the rules of CONDITIONAL: a call is allowed if all conditions hold in one of its lists.

    The kernel ignores the upper half of those arguments that it takes as 32-bit numbers.
    """
    to_itself = [[Condition((pid,), 0)]]
    return {
        "clone": [[Condition((_THREAD_FLAGS,), 0, _WHOLE ^ _CLONE_DETACHED)]],
        "kill": to_itself,
        "tkill": to_itself,
        "tgkill": to_itself,
        "fcntl": [[Condition(_FCNTL_COMMANDS, 1)], [Condition((_F_SETFL,), 1), Condition((0,), 2, _O_ASYNC)]],
        "ioctl": [[Condition(_IOCTL_COMMANDS, 1)]],
        "socketpair": [
            [Condition((_AF_UNIX,), 0), Condition((_SOCK_STREAM,), 1, _WHOLE ^ _SOCK_FLAGS), Condition((0,), 2)]
        ],
        "sendto": [[Condition((0,), 4), Condition((0,), 4, is_upper_half=True)]],
        "fallocate": [[Condition((0,), 1)]],
        "mmap": [[Condition((0,), 3, _MAP_HUGETLB)]],
        "prctl": [[Condition(_PRCTL_OPTIONS, 0)]],
        "arch_prctl": [[Condition(_ARCH_PRCTL_OPTIONS, 0)]],
        "prlimit64": [[Condition((0,), 0)]],
        "membarrier": [[Condition(_MEMBARRIER_COMMANDS, 0)]],
    }


# --- the filter as classic BPF: instructions (code, jump if true, jump if false, operand) ---------------------------

_LOAD = 0x20
_AND = 0x54
_EQUAL = 0x15
_AT_LEAST = 0x35
_RETURN = 0x06

# Return values of a filter; an error has its number in the lower 16 bits.
RETURN_ALLOW = 0x7FFF0000
RETURN_NOTIFY = 0x7FC00000
RETURN_ERROR = 0x00050000
RETURN_KILL_PROCESS = 0x80000000

# Offsets in struct seccomp_data.
_NUMBER_AT = 0
_ARCHITECTURE_AT = 4
_ARGUMENTS_AT = 16


def _step(code: int, operand: int, true: int = 0, false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, true, false, operand)


def _return_error(number: int) -> bytes:
    return _step(_RETURN, RETURN_ERROR | number)


def _if_call(number: int | None, *steps: bytes) -> list[bytes]:
    """Run `steps`, which end the filter, for this system call, else skip them."""
    return [] if number is None else [_step(_EQUAL, number, 0, len(steps)), *steps]


def _check(alternatives: list[list[Condition]]) -> list[bytes]:
    """Allow the call if all conditions of one alternative hold, else refuse it."""
    steps: list[bytes] = []
    for conditions in alternatives:
        block = [_step(_RETURN, RETURN_ALLOW)]
        for condition in reversed(conditions):
            offset = _ARGUMENTS_AT + 8 * condition.argument + 4 * condition.is_upper_half
            last = len(condition.values) - 1
            tests = [
                _step(_EQUAL, value, last - index, 0 if index < last else len(block))
                for index, value in enumerate(condition.values)
            ]
            block = [_step(_LOAD, offset), _step(_AND, condition.mask), *tests, *block]
        steps += block
    return [*steps, _return_error(errno.EPERM)]


def begin_filter(machine: str) -> list[bytes]:
    """Return the first steps of a filter: refuse the calls of other architectures, load the number of the call."""
    architecture, _ = MACHINES[machine]
    return [
        _step(_LOAD, _ARCHITECTURE_AT),
        _step(_EQUAL, architecture, 1, 0),
        _step(_RETURN, RETURN_KILL_PROCESS),
        _step(_LOAD, _NUMBER_AT),
        _step(_AT_LEAST, _FIRST_X32_CALL, 0, 1),
        _return_error(errno.EPERM),
    ]


def build_filter(machine: str, pid: int, allow_threads: bool) -> bytes:
    """Return the filter for the process `pid` of a machine of MACHINES, as instructions of 8 bytes."""
    column = MACHINES[machine][1]
    steps = begin_filter(machine)
    for numbers in ALLOWED.values():
        steps += _if_call(numbers[column], _step(_RETURN, RETURN_ALLOW))
    rules = _rules(pid)
    for name, conditional in CONDITIONAL.items():
        check = [_return_error(errno.EAGAIN)] if name == "clone" and not allow_threads else _check(rules[name])
        steps += _if_call(conditional[column], *check)
    # The flags of clone3 are in memory, which a filter cannot read; it is among the new calls, so libraries use clone.
    steps += [_step(_AT_LEAST, _FIRST_NEW_CALL, 0, 1), _return_error(errno.ENOSYS), _return_error(errno.EPERM)]
    return b"".join(steps)


def build_notifier(machine: str, names: dict[str, tuple[int | None, int | None]]) -> bytes:
    """Return a filter that suspends the calls `names` until the holder of the filter's listener decides on them."""
    steps = begin_filter(machine)
    for numbers in names.values():
        steps += _if_call(numbers[MACHINES[machine][1]], _step(_RETURN, RETURN_NOTIFY))
    return b"".join([*steps, _step(_RETURN, RETURN_ALLOW)])


def this_machine() -> str:
    """Return the key of this machine in MACHINES. Raises OSError if there is no filter for it."""
    machine = platform.machine()
    if sys.platform != "linux" or machine not in MACHINES or struct.calcsize("P") != 8:
        raise OSError(0, f"there is no filter for {machine}")
    return machine


def install_filter(program: bytes, flags: int = 0) -> int:
    """Apply a filter to the calling thread and its children; with the flag for it, return its listener."""
    code = ctypes.create_string_buffer(program)
    header = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(code)))
    libc("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    number = _SYS_SECCOMP[MACHINES[this_machine()][1]]
    return libc("syscall", number, _SET_MODE_FILTER, flags, ctypes.addressof(header))


def restrict_system_calls(allow_threads: bool) -> None:
    """Forbid this process and its children all system calls that are not allowed above."""
    install_filter(build_filter(this_machine(), os.getpid(), allow_threads))
