"""The inner side of nanochat/execution.py, which starts it as a process: fences itself in and becomes the program.

keeper           a Python of its own, in its own session; keeps the time and ends everything
  first process  of a new process namespace: when it ends, the kernel ends all in it (only with namespaces)
    program      limits, Landlock, seccomp; then a fresh Python that knows nothing of all this
"""

from __future__ import annotations

import json
import os
import resource
import signal
import struct
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any, NoReturn

from nanochat.sandbox.linux_guard import drop_privileges, libc, restrict_calls, restrict_files

_PR_SET_PDEATHSIG = 1
_NEW_SPACES = 0x00020000 | 0x04000000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000  # mnt uts ipc user pid net
_MS_NOSUID, _MS_NODEV, _MS_BIND, _MS_REC, _MS_PRIVATE = 2, 4, 4096, 16384, 1 << 18
_MOUNT_SETATTR, _HERE, _RECURSIVE, _ATTR_READ_ONLY, _ATTR_NOSUID, _ATTR_NODEV = 442, -100, 0x8000, 1, 2, 4
_HOME = "/sandbox"
_NOBODY = 1000  # the program's user id inside its namespace, with no capabilities
_MNT_DETACH = 2
_DEVICES = ("/dev/null", "/dev/urandom")
_PROCESSES = 64
_FILE_BYTES = 16 << 20
_FOLDER_BYTES = 64 << 20


class _Ended(BaseException):
    """The time is over, or the caller wants an end."""


def main() -> NoReturn:
    """Run the program in the folder as the JSON in the first argument says; tell the outcome on the status pipe."""
    order = json.loads(sys.argv[1])
    os.set_inheritable(order["status"], False)
    signal.signal(signal.SIGALRM, _end)
    signal.signal(signal.SIGTERM, _end)
    child, code, timed_out = 0, 1, False
    try:
        if sys.platform == "linux":
            libc("prctl", _PR_SET_PDEATHSIG, signal.SIGTERM)
        spaces = "namespaces" not in order["without"] and _enter_spaces()
        signal.setitimer(signal.ITIMER_REAL, order["timeout"])
        child = os.fork()
        if child == 0:
            _first_process(order) if spaces else _program(order, set())
        code = _wait_for(child)
    except _Ended:
        timed_out = True
    finally:
        signal.signal(signal.SIGALRM, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        _end_all(child)
    _tell(order, code=code, timed_out=timed_out)
    os._exit(0)


def _end(_number: int, _frame: FrameType | None) -> None:
    raise _Ended


def _tell(order: dict[str, Any], **facts: object) -> None:
    os.write(order["status"], json.dumps(facts).encode() + b"\n")


def _wait_for(child: int) -> int:
    """Reap until `child` has ended: its exit code, or 128 + the signal that ended it, as shells say it."""
    while True:
        pid, status = os.wait()
        if pid == child:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code


def _end_all(child: int) -> None:
    """Kill the child and its group. There are no others: a namespace ends with its first, elsewhere none start."""
    for kill in (os.killpg, os.kill) if child else ():
        try:
            kill(child, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            continue
    try:
        os.wait()
    except ChildProcessError:
        pass  # it had ended before


# --- namespaces ------------------------------------------------------------------------------------------------------


def _enter_spaces() -> bool:
    """New user, process, network, mount and IPC namespaces for the children; whether this machine permits them."""
    user, group = os.getuid(), os.getgid()
    try:
        libc("unshare", _NEW_SPACES)
    except OSError:
        return False
    maps = {"setgroups": "deny", "uid_map": f"{_NOBODY} {user} 1", "gid_map": f"{_NOBODY} {group} 1"}
    for name, text in maps.items():
        with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
            file.write(text)
    return True


def _first_process(order: dict[str, Any]) -> NoReturn:
    """Of the new process namespace. It dies with the keeper, and all in the space die with it."""
    try:
        libc("prctl", _PR_SET_PDEATHSIG, signal.SIGKILL)
        layers = {"namespaces"}
        if "mounts" not in order["without"] and _new_root(order):
            layers.add("mounts")
        child = os.fork()
        if child == 0:
            _program(order, layers)
        os._exit(_wait_for(child))
    except BaseException as error:
        _tell(order, failed=repr(error))
        os._exit(1)


def _new_root(order: dict[str, Any]) -> bool:
    """A root folder with Python, its libraries and /dev/null, read-only, and a folder in memory with the program.

    Nothing else is there: no home, no /proc, no disk. False where this is not permitted: all then stays as it was.
    """
    root, work = order["folder"] + "/root", order["folder"] + "/work"
    with open(f"{work}/program.py", "rb") as file:
        source = file.read()
    try:
        _mount("none", "/", "none", _MS_REC | _MS_PRIVATE)
        _mount("tmpfs", root, "tmpfs", _MS_NOSUID | _MS_NODEV, "mode=755,size=1m")
        os.mkdir(root + _HOME)
        for path in order["readable"]:
            _show(path, root + path)
        for device in _DEVICES:
            _touch(root + device)
        _read_only(root, _ATTR_NODEV)
        for device in _DEVICES:
            _mount(device, root + device, "none", _MS_BIND)
            _read_only(root + device, 0)
        _mount("tmpfs", root + _HOME, "tmpfs", _MS_NOSUID | _MS_NODEV, f"mode=700,nr_inodes=4k,size={_FOLDER_BYTES}")
        os.chdir(root)
        libc("pivot_root", b".", b".")  # the old root now lies over the new one
    except OSError:
        os.chdir(work)
        return False
    libc("umount2", b".", _MNT_DETACH)
    os.chdir(_HOME)
    with open("program.py", "wb") as file:
        file.write(source)
    return True


def _mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    libc("mount", source.encode(), target.encode(), kind.encode(), flags, data.encode())


def _show(path: str, target: str) -> None:
    """Make a file or folder, with all below it, appear under `target` as well; a link stays a link."""
    if os.path.islink(path):
        os.symlink(os.readlink(path), target)
        return
    if os.path.isdir(path):
        os.makedirs(target, exist_ok=True)
    else:
        _touch(target)
    _mount(path, target, "none", _MS_BIND | _MS_REC)


def _touch(path: str) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "xb"):
        pass


def _read_only(target: str, more: int) -> None:
    attributes = struct.pack("=QQQQ", _ATTR_READ_ONLY | _ATTR_NOSUID | more, 0, 0, 0)
    libc("syscall", _MOUNT_SETATTR, _HERE, target.encode(), _RECURSIVE, attributes, len(attributes))


# --- the program ------------------------------------------------------------------------------------------------------


def _program(order: dict[str, Any], layers: set[str]) -> NoReturn:
    """Put up the last fences and become the program. Its exit code, or what the sandbox could not do, is told."""
    try:
        os.setsid()
        home = _HOME if "mounts" in layers else order["folder"] + "/work"
        if sys.platform == "linux":
            libc("prctl", _PR_SET_PDEATHSIG, signal.SIGKILL)
            drop_privileges()
            _try("landlock", order, layers, lambda: restrict_files(order["readable"], [home, *_DEVICES]))
            _try("seccomp", order, layers, restrict_calls)
        if "seccomp" not in layers and "namespaces" not in layers and os.geteuid() == 0:
            raise OSError(0, "no limit on processes holds for root here; run as another user")
        _limit(order, layers)
        _tell(order, layers=sorted(layers))
        environment = {"HOME": home, "TMPDIR": home, "PATH": "/usr/bin:/bin", **order["environment"]}
        os.execve(order["python"][0], [*order["python"], "program.py"], environment)
    except BaseException as error:
        _tell(order, failed=repr(error))
    os._exit(1)


def _try(layer: str, order: dict[str, Any], layers: set[str], put_up: Callable[[], None]) -> None:
    if layer not in order["without"]:
        try:
            put_up()
            layers.add(layer)
        except OSError:
            pass  # not on this machine; execution.isolation_layers() says so


def _limit(order: dict[str, Any], layers: set[str]) -> None:
    """Resource limits, of this process and of each that it could start. macOS does not know all of them."""
    limits = {
        "AS": order["memory_bytes"],
        "CPU": int(order["timeout"]) + 2,
        "FSIZE": _FILE_BYTES,
        "NOFILE": 64,
        "CORE": 0,
        "MEMLOCK": 0,
    }
    if "seccomp" not in layers:  # which lets threads start and nothing else; here threads count as well, on Linux
        limits["NPROC"] = _PROCESSES if "namespaces" in layers else 0
    for name, value in limits.items():
        try:
            resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, value))
        except (AttributeError, ValueError, OSError):
            if sys.platform == "linux":
                raise
