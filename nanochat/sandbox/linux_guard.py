"""Landlock (file access) and seccomp (system calls): restrictions of the calling process and its children on Linux.

Neither needs privileges, and neither can be lifted again. A restriction that this kernel or processor does not support
raises OSError. The numbers are those of the kernel's headers; the C library has no functions for these calls.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
from collections.abc import Iterator

_PR_SET_SECCOMP = 22
_PR_CAPBSET_DROP = 24
_PR_SET_SECUREBITS = 28
_PR_SET_NO_NEW_PRIVS = 38


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
                break  # beyond the kernel's last capability
        libc("prctl", _PR_SET_SECUREBITS, 0b11)  # SECBIT_NOROOT, locked: user 0 gets no capabilities


# --- Landlock: file access --------------------------------------------------------------------------------------------

_SYS_CREATE_RULESET = 444
_SYS_ADD_RULE = 445
_SYS_RESTRICT_SELF = 446
_GET_VERSION = 1
_RULE_PATH_BENEATH = 1
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = (1 << bit for bit in range(4))
_TRUNCATE, _IOCTL_DEV = 1 << 14, 1 << 15
_RIGHTS_OF_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV
_MIN_ABI = 3  # earlier versions do not restrict the truncation of files


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

# Machine -> its audit architecture, and its column in the tables of system call numbers below.
_MACHINES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1), "riscv64": (0xC00000F3, 1)}

# System calls that are allowed with some arguments: name -> numbers on x86-64, and on ARM64 and RISC-V.
_CONDITIONAL = {
    "clone": (56, 220),
    "clone3": (435, 435),
    "kill": (62, 129),
    "tgkill": (234, 131),
    "prlimit64": (302, 261),
    "fcntl": (72, 25),
}

# System calls that fail with EPERM; None: the machine has no such call.
_DENIED: dict[str, tuple[int, int | None]] = {
    # new processes; clone is allowed for threads
    "fork": (57, None),
    "vfork": (58, None),
    # signals; kill and tgkill are allowed to the process itself
    "tkill": (200, 130),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "pidfd_send_signal": (424, 424),
    # other processes
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "kcmp": (312, 272),
    "pidfd_open": (434, 434),
    "pidfd_getfd": (438, 438),
    "process_madvise": (440, 440),
    # scheduling
    "setpriority": (141, 140),
    "sched_setparam": (142, 118),
    "sched_setscheduler": (144, 119),
    "sched_setaffinity": (203, 122),
    "ioprio_set": (251, 30),
    "migrate_pages": (256, 238),
    "move_pages": (279, 239),
    "sched_setattr": (314, 274),
    # sockets; io_uring can create them too
    "socket": (41, 198),
    "io_uring_setup": (425, 425),
    # memory that the limit on the address space does not count
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "shmget": (29, 194),
    "msgget": (68, 186),
    "semget": (64, 190),
    "mq_open": (240, 180),
    # file attributes, which Landlock does not restrict
    "chmod": (90, None),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "fchmodat2": (452, 452),
    "chown": (92, None),
    "fchown": (93, 55),
    "lchown": (94, None),
    "fchownat": (260, 54),
    "utime": (132, None),
    "utimes": (235, None),
    "futimesat": (261, None),
    "utimensat": (280, 88),
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "fsetxattr": (190, 7),
    "setxattrat": (463, 463),
    "removexattr": (197, 14),
    "lremovexattr": (198, 15),
    "fremovexattr": (199, 16),
    "removexattrat": (466, 466),
    # mounts, namespaces and device files
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "unshare": (272, 97),
    "setns": (308, 268),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "open_by_handle_at": (304, 265),
    "mknod": (133, None),
    "mknodat": (259, 33),
    # keys, tracing, and the kernel's own settings
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "perf_event_open": (298, 241),
    "bpf": (321, 280),
    "userfaultfd": (323, 282),
    "fanotify_init": (300, 262),
    "quotactl": (179, 60),
    "personality": (135, 92),
    "acct": (163, 89),
    "swapon": (167, 224),
    "reboot": (169, 142),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "kexec_load": (246, 104),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "adjtimex": (159, 171),
    "clock_adjtime": (305, 266),
}

# BPF instruction codes.
_LOAD = 0x20
_EQUAL = 0x15
_AT_LEAST = 0x35
_ANY_BIT = 0x45
_RETURN = 0x06

# Return values of a seccomp filter; the errors have their number in the lower 16 bits.
_ALLOW = 0x7FFF0000
_KILL_PROCESS = 0x80000000
_EPERM = 0x00050001
_ENOSYS = 0x00050026

# Offsets in struct seccomp_data; for the arguments, of their lower half.
_NUMBER_AT = 0
_ARCHITECTURE_AT = 4
_FIRST_ARGUMENT_AT = 16
_SECOND_ARGUMENT_AT = 24

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

    def if_call(name: str, *steps: bytes) -> Iterator[bytes]:
        """Run `steps` for this system call, else skip them."""
        yield step(_EQUAL, _CONDITIONAL[name][column], 0, len(steps))
        yield from steps

    yield step(_LOAD, _ARCHITECTURE_AT)
    yield step(_EQUAL, architecture, 1, 0)
    yield step(_RETURN, _KILL_PROCESS)
    yield step(_LOAD, _NUMBER_AT)
    yield step(_AT_LEAST, 0x40000000, 0, 1)  # the same calls under the numbers of the x32 ABI
    yield step(_RETURN, _EPERM)
    for numbers in _DENIED.values():
        number = numbers[column]
        if number is not None:
            yield step(_EQUAL, number, 0, 1)
            yield step(_RETURN, _EPERM)

    allow = step(_RETURN, _ALLOW)
    deny = step(_RETURN, _EPERM)
    load_first = step(_LOAD, _FIRST_ARGUMENT_AT)
    load_second = step(_LOAD, _SECOND_ARGUMENT_AT)
    # The flags of clone3 are in memory, which the filter cannot read. If clone3 is reported as missing, libraries use
    # clone instead.
    yield from if_call("clone3", step(_RETURN, _ENOSYS))
    yield from if_call("clone", load_first, step(_ANY_BIT, _CLONE_THREAD, 0, 1), allow, deny)
    for name in ("kill", "tgkill"):
        yield from if_call(name, load_first, step(_EQUAL, pid, 0, 1), allow, deny)
    yield from if_call("prlimit64", load_first, step(_EQUAL, 0, 0, 1), allow, deny)
    # F_SETOWN (8) and F_SETOWN_EX (15) choose another process to be signalled when a file is ready.
    yield from if_call("fcntl", load_second, step(_EQUAL, 8, 1, 0), step(_EQUAL, 15, 0, 1), deny, allow)
    yield allow
