"""Process isolation: the processes that nanochat/execution.py starts for a program.

supervisor      a separate Python process in its own session; enforces the time limit, and kills the others at the end
  init process  the first process of a new PID namespace: when it ends, the kernel kills all others in the namespace
                (only with namespaces)
    program     applies limits, Landlock and seccomp to itself, then executes a fresh Python

The supervisor also decides on each new thread or process of the program (sandbox/task_limit.py).

A process reports to execution.py by JSON lines on the status pipe.
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
from typing import NoReturn, TypedDict

from nanochat.sandbox.linux_guard import drop_privileges, libc, restrict_files
from nanochat.sandbox.system_calls import restrict_system_calls
from nanochat.sandbox.task_limit import MAX_TASKS, TaskLimit

# Constants of Linux's headers.
_PR_SET_PDEATHSIG = 1
_CLONE_NEWNS, _CLONE_NEWUTS, _CLONE_NEWIPC = 0x00020000, 0x04000000, 0x08000000
_CLONE_NEWUSER, _CLONE_NEWPID, _CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
_NEW_NAMESPACES = _CLONE_NEWNS | _CLONE_NEWUTS | _CLONE_NEWIPC | _CLONE_NEWUSER | _CLONE_NEWPID | _CLONE_NEWNET
_MS_NOSUID, _MS_NODEV, _MS_BIND, _MS_REC, _MS_PRIVATE = 2, 4, 4096, 16384, 1 << 18
_MNT_DETACH = 2
_SYS_MOUNT_SETATTR = 442
_AT_FDCWD, _AT_RECURSIVE = -100, 0x8000
_MOUNT_ATTR_RDONLY, _MOUNT_ATTR_NOSUID, _MOUNT_ATTR_NODEV = 1, 2, 4

_HOME = "/sandbox"
_USER_ID = 1000  # of the program inside its namespace, without capabilities
_DEVICES = ("/dev/null", "/dev/urandom")
_MAX_FILE_BYTES = 16 << 20
_HOME_BYTES = 64 << 20


class Job(TypedDict):
    """The supervisor's argument, as JSON."""

    status: int  # file descriptor of the status pipe
    folder: str  # holds the folders `root` (empty, for the mounts) and `work` (with program.py)
    timeout: float  # seconds
    memory_bytes: int
    without: list[str]  # layers to leave out
    readable: list[str]  # paths that the program may read
    python: list[str]  # interpreter with its options
    environment: dict[str, str]


class Report(TypedDict, total=False):
    """Message to execution.py; each process sends a part of it, as a JSON line on the status pipe."""

    started: bool  # the time limit is running
    layers: list[str]  # active layers; sent just before the program starts
    process: int  # the program's, sent just before it starts if it has no namespaces
    failed: str  # the error that kept the program from starting
    code: int  # exit code, 128 + N for signal N
    timed_out: bool


class _Interrupted(BaseException):
    """The time limit has passed, or the caller has sent SIGTERM."""


def main() -> NoReturn:
    """Supervise the program of the job in the first argument, and report how it ended."""
    job: Job = json.loads(sys.argv[1])
    os.set_inheritable(job["status"], False)
    signal.signal(signal.SIGALRM, _interrupt)
    signal.signal(signal.SIGTERM, _interrupt)
    child = 0
    exit_code = 1
    timed_out = False
    try:
        if sys.platform == "linux":
            libc("prctl", _PR_SET_PDEATHSIG, signal.SIGTERM)
        has_namespaces = "namespaces" not in job["without"] and _enter_namespaces()
        signal.setitimer(signal.ITIMER_REAL, job["timeout"])
        _send(job, {"started": True})
        task_limit = TaskLimit()
        child = os.fork()
        if child == 0:
            _run_init(job, task_limit) if has_namespaces else _become_program(job, set(), task_limit)
        exit_code = _supervise(child, task_limit)
    except _Interrupted:
        timed_out = True
    finally:
        signal.signal(signal.SIGALRM, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        _kill_all(child)
    _send(job, {"code": exit_code, "timed_out": timed_out})
    os._exit(0)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise _Interrupted


def _send(job: Job, report: Report) -> None:
    os.write(job["status"], json.dumps(report).encode() + b"\n")


def _wait_for(child: int) -> int:
    """Reap processes until `child` has ended. Return its exit code, or 128 + N if it died from signal N.

    A child that has asked to be traced (ptrace) is reported when a signal stops it, too. It is left to the time limit.
    """
    while True:
        pid, status = os.wait()
        if pid == child and not os.WIFSTOPPED(status):
            return _exit_code(status)


def _supervise(child: int, task_limit: TaskLimit) -> int:
    """Decide on new tasks of the program until `child` has ended. Return its exit code as `_wait_for` does."""
    read_wakeup, write_wakeup = os.pipe()
    os.set_blocking(write_wakeup, False)
    signal.set_wakeup_fd(write_wakeup, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)  # a signal with a handler writes to the wakeup descriptor
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid == 0:
            task_limit.wait(child, read_wakeup)
            os.read(read_wakeup, 512)
        elif not os.WIFSTOPPED(status):
            return _exit_code(status)


def _exit_code(status: int) -> int:
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _kill_all(child: int) -> None:
    """Kill the child and its process group.

    The program has no other processes: a PID namespace ends with its init process, and without a namespace the program
    cannot start any.
    """
    for kill in (os.killpg, os.kill) if child else ():
        try:
            kill(child, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            continue
    try:
        os.wait()
    except ChildProcessError:
        pass  # it has ended already


# --- namespaces ------------------------------------------------------------------------------------------------------


def _enter_namespaces() -> bool:
    """Create namespaces for the children. Return False if this machine does not permit it."""
    uid, gid = os.getuid(), os.getgid()
    try:
        libc("unshare", _NEW_NAMESPACES)
    except OSError:
        return False
    id_maps = {"setgroups": "deny", "uid_map": f"{_USER_ID} {uid} 1", "gid_map": f"{_USER_ID} {gid} 1"}
    for name, text in id_maps.items():
        with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
            file.write(text)
    return True


def _run_init(job: Job, task_limit: TaskLimit) -> NoReturn:
    """Run as the init process of the PID namespace. It dies with the supervisor, and the program dies with it."""
    try:
        libc("prctl", _PR_SET_PDEATHSIG, signal.SIGKILL)
        layers = {"namespaces"}
        if "mounts" not in job["without"] and _enter_new_root(job):
            layers.add("mounts")
        child = os.fork()
        if child == 0:
            _become_program(job, layers, task_limit)
        os._exit(_wait_for(child))
    except BaseException as error:
        _send(job, {"failed": repr(error)})
        os._exit(1)


def _enter_new_root(job: Job) -> bool:
    """Replace the root folder by one that contains only Python, its libraries and two devices, all read-only.

    The home folder is in memory and writable, and contains the program. There is no /proc and no disk. Return False,
    with nothing changed, if this machine does not permit it.
    """
    root = job["folder"] + "/root"
    work = job["folder"] + "/work"
    with open(f"{work}/program.py", "rb") as file:
        source = file.read()
    try:
        _mount("none", "/", "none", _MS_REC | _MS_PRIVATE)
        _mount("tmpfs", root, "tmpfs", _MS_NOSUID | _MS_NODEV, "mode=755,size=1m")
        os.mkdir(root + _HOME)
        for path in job["readable"]:
            _bind(path, root + path)
        for device in _DEVICES:
            _create_file(root + device)
        _make_read_only(root, _MOUNT_ATTR_NODEV)
        for device in _DEVICES:
            _mount(device, root + device, "none", _MS_BIND)
            _make_read_only(root + device, 0)
        _mount("tmpfs", root + _HOME, "tmpfs", _MS_NOSUID | _MS_NODEV, f"mode=700,nr_inodes=4k,size={_HOME_BYTES}")
        os.chdir(root)
        libc("pivot_root", b".", b".")  # the old root is now mounted over the new one, until it is detached below
    except OSError:
        os.chdir(work)
        return False
    libc("umount2", b".", _MNT_DETACH)
    os.chdir(_HOME)
    with open("program.py", "wb") as file:
        file.write(source)
    return True


def _mount(source: str, target: str, filesystem: str, flags: int, data: str = "") -> None:
    libc("mount", source.encode(), target.encode(), filesystem.encode(), flags, data.encode())


def _bind(path: str, target: str) -> None:
    """Make a file, or a folder with its content, also available as `target`. A symbolic link is copied."""
    if os.path.islink(path):
        os.symlink(os.readlink(path), target)
        return
    if os.path.isdir(path):
        os.makedirs(target, exist_ok=True)
    else:
        _create_file(target)
    _mount(path, target, "none", _MS_BIND | _MS_REC)


def _create_file(path: str) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "xb"):
        pass


def _make_read_only(target: str, more_attributes: int) -> None:
    attributes = struct.pack("=QQQQ", _MOUNT_ATTR_RDONLY | _MOUNT_ATTR_NOSUID | more_attributes, 0, 0, 0)
    libc("syscall", _SYS_MOUNT_SETATTR, _AT_FDCWD, target.encode(), _AT_RECURSIVE, attributes, len(attributes))


# --- the program ------------------------------------------------------------------------------------------------------


def _become_program(job: Job, layers: set[str], task_limit: TaskLimit) -> NoReturn:
    """Apply the remaining layers and limits to this process, then execute the program. Failures are reported."""
    try:
        os.setsid()
        home = _HOME if "mounts" in layers else job["folder"] + "/work"
        if sys.platform == "linux":
            libc("prctl", _PR_SET_PDEATHSIG, signal.SIGKILL)
            drop_privileges()
            _try_layer("landlock", job, layers, lambda: restrict_files(job["readable"], [home, *_DEVICES]))
        has_task_limit = task_limit.apply()
        _try_layer("seccomp", job, layers, lambda: restrict_system_calls(allow_threads=has_task_limit))
        if os.geteuid() == 0 and "seccomp" not in layers and not (has_task_limit and "namespaces" in layers):
            raise OSError(0, "the limit on processes does not apply to root; run as another user")
        _set_limits(job, layers)
        if "namespaces" not in layers:
            _send(job, {"process": os.getpid()})
        _send(job, {"layers": sorted(layers)})
        environment = {"HOME": home, "TMPDIR": home, "PATH": "/usr/bin:/bin", **job["environment"]}
        environment["MALLOC_ARENA_MAX"] = "1"  # glibc reserves 64 MiB of the address space for each thread otherwise
        os.execve(job["python"][0], [*job["python"], "program.py"], environment)
    except BaseException as error:
        _send(job, {"failed": repr(error)})
    os._exit(1)


def _try_layer(layer: str, job: Job, layers: set[str], apply: Callable[[], None]) -> None:
    """Apply a layer and add it to `layers`, unless the job excludes it or this machine lacks it."""
    if layer not in job["without"]:
        try:
            apply()
            layers.add(layer)
        except OSError:
            pass  # reported by execution.isolation_layers()


def _set_limits(job: Job, layers: set[str]) -> None:
    """Set the resource limits of this process and its children. macOS lacks some of them."""
    limits = {
        "AS": job["memory_bytes"],
        "CPU": int(job["timeout"]) + 2,
        "FSIZE": _MAX_FILE_BYTES,
        "NOFILE": 64,
        "CORE": 0,
        "MEMLOCK": 0,
    }
    if (
        "seccomp" not in layers
    ):  # this limit counts threads too, on Linux; with seccomp, sandbox/task_limit.py counts them
        limits["NPROC"] = MAX_TASKS if "namespaces" in layers else 0
    for name, value in limits.items():
        try:
            resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, value))
        except (AttributeError, ValueError, OSError):
            if sys.platform == "linux":
                raise
