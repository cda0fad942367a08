"""Landlock (file access) and seccomp (system calls): restrictions of the calling process and its children on Linux.

Both need no privileges and cannot be lifted again. A restriction that this kernel or processor does not support raises
OSError. The numbers are those of the kernel's headers; the C library has no functions for these calls.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
from collections.abc import Iterator

_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _PR_CAPBSET_DROP, _PR_SET_SECUREBITS = 38, 22, 24, 28


def libc(name: str, *arguments: int | bytes | None) -> int:
    """Call a function of the C library and return its result; -1 raises OSError."""
    as_long = (ctypes.c_long(value) if isinstance(value, int) else value for value in arguments)
    result = int(getattr(ctypes.CDLL(None, use_errno=True), name)(*as_long))
    if result == -1:
        raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")
    return result


def drop_privileges() -> None:
    """Give up all capabilities, and the ability to gain privileges by executing a program."""
    libc("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if os.geteuid() == 0:
        for capability in range(64):
            try:
                libc("prctl", _PR_CAPBSET_DROP, capability)
            except OSError:
                break  # this was the number after the kernel's last capability
        libc("prctl", _PR_SET_SECUREBITS, 0b11)  # SECBIT_NOROOT, locked: user 0 gets no capabilities


# --- Landlock: file access --------------------------------------------------------------------------------------------

_SYS_CREATE_RULESET, _SYS_ADD_RULE, _SYS_RESTRICT_SELF = 444, 445, 446
_GET_VERSION = 1
_RULE_PATH_BENEATH = 1
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = (1 << bit for bit in range(4))
_TRUNCATE, _IOCTL_DEV = 1 << 14, 1 << 15
_RIGHTS_OF_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV
_MIN_ABI = 3  # before it, a file could be truncated without the right to write


def restrict_files(readable: list[str], writable: list[str]) -> None:
    """Restrict reading and executing to the files under `readable`, and writing to those under `writable`.

    From Linux 6.7 on TCP is forbidden too, from 6.12 on signals to other processes. Files that are open stay usable.
    """
    abi = libc("syscall", _SYS_CREATE_RULESET, None, 0, _GET_VERSION)
    if abi < _MIN_ABI:
        raise OSError(0, f"Landlock's version is {abi}, not {_MIN_ABI}")
    all_rights = (1 << (16 if abi >= 5 else 15)) - 1
    attributes = struct.pack("=QQQ", all_rights, 0b11, 0b11)  # file system, network, scope
    if abi < 4:
        attributes = attributes[:8]
    elif abi < 6:
        attributes = attributes[:16]
    ruleset = libc("syscall", _SYS_CREATE_RULESET, attributes, len(attributes), 0)
    rules = [(path, _EXECUTE | _READ_FILE | _READ_DIR) for path in readable]
    for path, rights in [*rules, *((path, all_rights) for path in writable)]:
        try:
            descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        rights &= all_rights if os.path.isdir(path) else _RIGHTS_OF_FILES
        libc("syscall", _SYS_ADD_RULE, ruleset, _RULE_PATH_BENEATH, struct.pack("=Qi", rights, descriptor), 0)
        os.close(descriptor)
    libc("syscall", _SYS_RESTRICT_SELF, ruleset, 0)
    os.close(ruleset)


# --- seccomp: system calls --------------------------------------------------------------------------------------------

# Machine -> its audit number, and its column in the tables of system call numbers below (None: there is no such call).
_MACHINES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1), "riscv64": (0xC00000F3, 1)}
_CLONE, _CLONE3, _KILL, _TGKILL, _PRLIMIT, _FCNTL = (56, 220), (435, 435), (62, 129), (234, 131), (302, 261), (72, 25)
_DENIED = {
    "new processes": ((57, None), (58, None)),  # fork, vfork; clone depends on its flags
    "signals": ((200, 130), (129, 138), (297, 240), (424, 424)),  # tkill, rt_sigqueueinfo, rt_tgsigqueueinfo, pidfd_...
    # ptrace, process_vm_readv, process_vm_writev, kcmp, pidfd_open, pidfd_getfd, process_madvise
    "other processes": ((101, 117), (310, 270), (311, 271), (312, 272), (434, 434), (438, 438), (440, 440)),
    # setpriority, sched_setparam, sched_setscheduler, sched_setaffinity, ioprio_set, migrate_pages, move_pages,
    # sched_setattr
    "scheduling": (*((141, 140), (142, 118), (144, 119), (203, 122), (251, 30), (256, 238), (279, 239), (314, 274)),),
    "sockets": ((41, 198), (425, 425)),  # socket, io_uring_setup, which can create them
    # memfd_create, memfd_secret, shmget, msgget, semget, mq_open: memory that the limit on address space does not count
    "memory outside": ((319, 279), (447, 447), (29, 194), (68, 186), (64, 190), (240, 180)),
    # chmod, fchmod, fchmodat, fchmodat2, chown, fchown, lchown, fchownat, utime, utimes, futimesat, utimensat,
    # setxattr, lsetxattr, fsetxattr, setxattrat, removexattr, lremovexattr, fremovexattr, removexattrat: Landlock does
    # not restrict them
    "file attributes": (
        *((90, None), (91, 52), (268, 53), (452, 452), (92, None), (93, 55), (94, None), (260, 54)),
        *((132, None), (235, None), (261, None), (280, 88)),
        *((188, 5), (189, 6), (190, 7), (463, 463), (197, 14), (198, 15), (199, 16), (466, 466)),
    ),
    # mount, umount2, pivot_root, chroot, unshare, setns, open_tree, move_mount, fsopen, fsconfig, fsmount, fspick,
    # mount_setattr, open_by_handle_at, mknod, mknodat
    "namespaces": (
        *((165, 40), (166, 39), (155, 41), (161, 51), (272, 97), (308, 268), (428, 428), (429, 429), (430, 430)),
        *((431, 431), (432, 432), (433, 433), (442, 442), (304, 265), (133, None), (259, 33)),
    ),
    # add_key, request_key, keyctl, perf_event_open, bpf, userfaultfd, fanotify_init, quotactl, personality, acct,
    # swapon, reboot, init_module, finit_module, kexec_load, settimeofday, clock_settime, adjtimex, clock_adjtime
    "the kernel": (
        *((248, 217), (249, 218), (250, 219), (298, 241), (321, 280), (323, 282), (300, 262), (179, 60), (135, 92)),
        *((163, 89), (167, 224), (169, 142), (175, 105), (313, 273), (246, 104)),
        *((164, 170), (227, 112), (159, 171), (305, 266)),
    ),
}
# BPF codes and seccomp's return values.
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL_PROCESS, _EPERM, _ENOSYS = 0x7FFF0000, 0x80000000, 0x00050001, 0x00050026
# Offsets in struct seccomp_data; of an argument, the lower half.
_NUMBER_AT, _ARCHITECTURE_AT, _FIRST_ARGUMENT_AT, _SECOND_ARGUMENT_AT = 0, 4, 16, 24
_CLONE_THREAD = 0x10000


def restrict_syscalls() -> None:
    """Forbid new processes (threads are allowed), sockets, shared memory, mounts, and signals to other processes."""
    if os.uname().sysname != "Linux" or platform.machine() not in _MACHINES or struct.calcsize("P") != 8:
        raise OSError(0, f"there is no filter for {platform.machine()}")
    program = b"".join(_filter(*_MACHINES[platform.machine()], os.getpid()))
    code = ctypes.create_string_buffer(program)
    header = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(code)))
    libc("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    libc("prctl", _PR_SET_SECCOMP, 2, ctypes.addressof(header))


def _filter(architecture: int, column: int, pid: int) -> Iterator[bytes]:
    """Yield the filter as classic BPF instructions, each (code, jump if true, jump if false, operand)."""

    def step(code: int, operand: int, true: int = 0, false: int = 0) -> bytes:
        return struct.pack("=HBBI", code, true, false, operand)

    def if_call(numbers: tuple[int, int], *steps: bytes) -> Iterator[bytes]:
        """Run `steps` for the system call with this number, else skip them."""
        yield step(_EQUAL, numbers[column], 0, len(steps))
        yield from steps

    yield step(_LOAD, _ARCHITECTURE_AT)
    yield step(_EQUAL, architecture, 1, 0)
    yield step(_RETURN, _KILL_PROCESS)
    yield step(_LOAD, _NUMBER_AT)
    yield step(_AT_LEAST, 0x40000000, 0, 1)  # the same calls under the numbers of the x32 ABI
    yield step(_RETURN, _EPERM)
    for numbers in (pair[column] for group in _DENIED.values() for pair in group):
        if numbers is not None:
            yield step(_EQUAL, numbers, 0, 1)
            yield step(_RETURN, _EPERM)
    # The filter cannot see the flags of clone3, which are in memory. Told that it does not exist, libraries use clone.
    yield from if_call(_CLONE3, step(_RETURN, _ENOSYS))
    allow, deny = step(_RETURN, _ALLOW), step(_RETURN, _EPERM)
    load_first, load_second = step(_LOAD, _FIRST_ARGUMENT_AT), step(_LOAD, _SECOND_ARGUMENT_AT)
    yield from if_call(_CLONE, load_first, step(_ANY_BIT, _CLONE_THREAD, 0, 1), allow, deny)
    for call in (_KILL, _TGKILL):
        yield from if_call(call, load_first, step(_EQUAL, pid, 0, 1), allow, deny)
    yield from if_call(_PRLIMIT, load_first, step(_EQUAL, 0, 0, 1), allow, deny)
    # F_SETOWN (8) and F_SETOWN_EX (15) name another process that is signalled when a file is ready.
    yield from if_call(_FCNTL, load_second, step(_EQUAL, 8, 1, 0), step(_EQUAL, 15, 0, 1), deny, allow)
    yield allow
