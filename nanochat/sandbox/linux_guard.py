"""Privileges and Landlock (file access): restrictions of the calling process and its children on Linux.

They need no privileges and cannot be lifted again. A restriction that this kernel does not support raises OSError. The
numbers are those of the kernel's headers; the C library has no functions for these calls.
"""

from __future__ import annotations

import ctypes
import os
import struct

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
