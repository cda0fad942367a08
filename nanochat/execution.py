"""Execution of model-generated Python programs in a sandboxed process.

A program gets Python's standard library, an empty working folder, no environment variables and no input. It is isolated
by several layers. The machine may lack some of the first four (see `isolation_layers()`):

    namespaces   separate users, processes, network and shared memory (Linux, where users may create namespaces)
    mounts       a separate root folder: Python read-only, a small folder in memory, no home, no /proc (with namespaces)
    landlock     reads only files of Python and the system, writes only in its folder (Linux 6.2 and later)
    seccomp      only the system calls of a program that computes, reads files and prints: no processes, sockets,
                 signals to others, properties of files (Linux on x86-64, ARM64, RISC-V; see sandbox/system_calls.py)
    always       limits on time, memory, tasks, file size and output; a fresh interpreter; its processes are killed

With seccomp or namespaces the limit on tasks is 64 threads and processes, for root as well, where Linux lets the
supervisor count them (5.5 and later, see sandbox/task_limit.py). Where it does not: with seccomp, a program has no
threads; with namespaces alone, it has the 64 processes of RLIMIT_NPROC, and root, to whom that does not apply, is
refused. With neither seccomp nor namespaces (macOS; Landlock alone), a program can start neither threads nor processes
on Linux and no processes on macOS, and root is refused: nothing could find processes that leave their group.

The limit on memory is of the address space of each process. Stacks of threads count: with 256 MiB and Linux's usual
stacks of 8 MiB, about 30 threads fit, and 64 if the program calls `threading.stack_size(1 << 20)`.

Limits of the protection:

- The sandbox is meant for a model's mistakes. It does not protect against bugs of the kernel. Against an attacker, use
  a virtual machine.
- The program can read the parts of the system that all users can read: /usr, libraries, Python itself.
- The program can fake success, because the tests that judge it run in the same process. (In tasks/humaneval.py only the
  last line of the tests prints a secret word; a program can still find that word in its own file.)
- The program can use up its budget: one core for its time, its memory, and without mounts any number of 16 MiB files
  and folders (a detached process removes them if that takes long, see sandbox/work_folder.py); without seccomp the
  memory of each of its 64 processes, and files in memory (memfd_create) beside them.
- Without namespaces and seccomp (Landlock alone) its System V shared memory and its keys stay after it.
- Without mounts and landlock (macOS, Linux before 6.2) it can read and write all files that the user can: also /proc,
  through which the user's other processes can be read and changed.
- Without namespaces and seccomp (macOS) it can use the network and signal the user's other processes.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from nanochat.common import UserError
from nanochat.sandbox.work_folder import create_folder, remove_folder
from nanochat.system.console import visible_line

if TYPE_CHECKING:  # isolation.py cannot be imported on Windows
    from nanochat.sandbox.isolation import Job, Report

ISOLATION_LAYERS = ("namespaces", "mounts", "landlock", "seccomp")

_KEPT_BYTES = 64 << 10  # of stdout, and of stderr
_MAX_OUTPUT_BYTES = 1 << 20  # of stdout and stderr together: a program that writes more is ended
_MAX_SOURCE_BYTES = 1 << 20
_START_SECONDS = 30.0  # for a busy machine to start the supervisor
_END_SECONDS = 3.0  # for the supervisor to end a program after its time; a program without layers can stop it
_STOP_SECONDS = 2.0  # for the supervisor to end itself and the program when it is told to
_READABLE_PATHS = ("/usr", "/lib", "/lib32", "/lib64", "/bin", "/etc/ld.so.cache", "/nix/store", "/gnu/store")
_PYTHON_OPTIONS = ("-I", "-S", "-B", "-X", "utf8")  # isolated, without site-packages, without .pyc files
_START = "import sys; sys.path.append(sys.argv[2]); from nanochat.sandbox.isolation import main; main()"


@dataclass(frozen=True)
class ProgramResult:
    """Outcome of a program. `error` is empty if the program is ok, else one line with the reason.

    Control characters are escapes in `error`, and as they are in `stdout` and `stderr`.
    """

    ok: bool  # it ended within its time, with exit code 0
    timed_out: bool
    exit_code: int | None  # 128 + N if it died from signal N; None if it was ended by the sandbox or never started
    stdout: str  # the first 64 KiB
    stderr: str  # the first 64 KiB
    error: str
    layers: tuple[str, ...]  # those of ISOLATION_LAYERS that were active


def isolation_layers() -> dict[str, bool]:
    """Return layer -> True if this machine has it, for all ISOLATION_LAYERS. Runs an empty program."""
    active = run_program("").layers
    return {layer: layer in active for layer in ISOLATION_LAYERS}


def run_program(
    source: str, timeout: float = 5.0, memory_bytes: int = 256 << 20, without: Collection[str] = ()
) -> ProgramResult:
    """Run a Python program in the sandbox and return its outcome. Thread-safe.

    `timeout`: seconds of wall-clock time. `memory_bytes`: limit of the address space. `without`: layers to leave out
    (for tests). Raises UserError if this machine cannot run programs at all, never because of the program.
    """
    assert not set(without) - set(ISOLATION_LAYERS), f"layers are {ISOLATION_LAYERS}, not {without}"
    if sys.platform == "win32":
        raise UserError("programs of the model can be run on Linux and macOS, not on Windows")
    encoded = source.encode("utf-8", "surrogatepass")
    if len(encoded) > _MAX_SOURCE_BYTES or b"\0" in encoded:
        reason = "a null character" if b"\0" in encoded else f"more than {_MAX_SOURCE_BYTES} bytes"
        return ProgramResult(False, False, None, "", "", f"not run: the program has {reason}", ())
    folder, descriptor = create_folder()
    try:
        (folder / "root").mkdir()
        (folder / "work").mkdir()
        (folder / "work" / "program.py").write_bytes(encoded)
        return _run(folder, timeout, memory_bytes, without)
    finally:
        remove_folder(folder, descriptor)


def _run(folder: Path, timeout: float, memory_bytes: int, without: Collection[str]) -> ProgramResult:
    python = os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)
    read_status, write_status = os.pipe()
    # Some builds of Python find their shared library only through this variable.
    environment = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
    job: Job = {
        "status": write_status,
        "folder": str(folder),
        "timeout": timeout,
        "memory_bytes": memory_bytes,
        "without": list(without),
        "readable": _readable_paths(python),
        "python": [python, *_PYTHON_OPTIONS],
        "environment": environment,
    }
    command = [python, "-I", "-S", "-c", _START, json.dumps(job), str(Path(__file__).resolve().parent.parent)]
    try:
        supervisor = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=(write_status,),
            cwd=folder / "work",
            env=environment,
            start_new_session=True,
        )
    except BaseException:
        os.close(read_status)
        raise
    finally:
        os.close(write_status)
    with supervisor, open(read_status, "rb", buffering=0) as status:
        pipes = _Pipes(supervisor, status)
        try:
            pipes.read(timeout)
        finally:
            _stop(supervisor, pipes.report.get("process"))
    return _to_result(pipes, timeout)


class _Pipes:
    """Reads the program's output and the supervisor's report until the supervisor ends."""

    def __init__(self, supervisor: subprocess.Popen[bytes], status: BinaryIO) -> None:
        assert supervisor.stdout, "a pipe"
        assert supervisor.stderr, "a pipe"
        self.output = {"stdout": b"", "stderr": b""}
        self.num_bytes = 0  # of output, including the part that is not kept
        self.report: Report = {}
        self.is_late = False  # the supervisor has not ended the program in its time
        self._status = b""
        self._selector = selectors.DefaultSelector()
        for name, file in (("stdout", supervisor.stdout), ("stderr", supervisor.stderr), ("status", status)):
            os.set_blocking(file.fileno(), False)
            self._selector.register(file, selectors.EVENT_READ, name)

    @property
    def is_flooded(self) -> bool:
        return self.num_bytes > _MAX_OUTPUT_BYTES

    def read(self, timeout: float) -> None:
        """Read until the status pipe is closed, there is too much output, or the supervisor is late.

        `timeout`: seconds that the program has. They count from the supervisor's report that it has started.
        """
        has_ended = False
        deadline = time.monotonic() + _START_SECONDS
        while not has_ended and not self.is_flooded and not self.is_late:
            for key, _ in self._selector.select(max(0.0, min(1.0, deadline - time.monotonic()))):
                chunk = _read_chunk(key.fd)
                if key.data == "status":
                    had_started = "started" in self.report
                    self._read_report(chunk or b"")
                    if "started" in self.report and not had_started:
                        deadline = time.monotonic() + timeout + _END_SECONDS
                    has_ended = chunk == b""
                elif chunk:
                    self._keep(key.data, chunk)
                elif chunk == b"":
                    self._selector.unregister(key.fileobj)
            self.is_late = not has_ended and time.monotonic() >= deadline
        # Read the output that was written just before the end and is still in the pipes.
        for key in list(self._selector.get_map().values()):
            while key.data != "status" and not self.is_flooded and (chunk := _read_chunk(key.fd)):
                self._keep(key.data, chunk)
        self._selector.close()

    def _read_report(self, chunk: bytes) -> None:
        *lines, self._status = (self._status + chunk).split(b"\n")
        for line in lines:
            self.report.update(json.loads(line))

    def _keep(self, name: str, chunk: bytes) -> None:
        self.num_bytes += len(chunk)
        self.output[name] += chunk[: _KEPT_BYTES - len(self.output[name])]


def _read_chunk(descriptor: int) -> bytes | None:
    """Return the available bytes: b"" at the end of the file, None if there are none yet."""
    try:
        return os.read(descriptor, 1 << 16)
    except BlockingIOError:
        return None


def _stop(supervisor: subprocess.Popen[bytes], process: int | None) -> None:
    """End the supervisor and with it all processes of the program.

    On SIGTERM the supervisor kills them, and exits with code 0. If it does not, because the program has stopped, traced
    or killed it, it is killed. With namespaces the kernel kills the program then; without them the program can have
    refused that, but is the only process of its own and cannot leave its group: `process`.
    """
    supervisor.terminate()
    with suppress(subprocess.TimeoutExpired):
        supervisor.wait(_STOP_SECONDS)
    if supervisor.returncode != 0 and process is not None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process, signal.SIGKILL)
    supervisor.kill()


def _to_result(pipes: _Pipes, timeout: float) -> ProgramResult:
    stdout, stderr = (pipes.output[name].decode("utf-8", "replace") for name in ("stdout", "stderr"))
    report = pipes.report
    has_timed_out = report.get("timed_out", False) or (pipes.is_late and "started" in report)
    if "failed" in report or not ("layers" in report or has_timed_out):
        raise UserError(f"programs cannot be run on this machine: {report.get('failed') or stderr.strip()[-500:]}")
    exit_code = None if pipes.is_flooded or has_timed_out else report.get("code")
    if pipes.is_flooded:
        error = f"more than {_MAX_OUTPUT_BYTES} bytes of output"
    elif has_timed_out:
        error = f"not done after {timeout:g} seconds"
    elif exit_code is None:
        error = "its supervisor was killed"
    else:
        last_line = (stderr.strip().splitlines() or [""])[-1][:200]
        error = f"exit code {exit_code}: {last_line}".rstrip(": ") if exit_code else ""
    return ProgramResult(
        ok=exit_code == 0,
        timed_out=has_timed_out and not pipes.is_flooded,
        exit_code=exit_code,
        stdout=stdout,
        stderr=stderr,
        error=visible_line(error),
        layers=tuple(report.get("layers", ())),
    )


def _readable_paths(python: str) -> list[str]:
    """Return the paths Python needs to start: system libraries and its own folders. None lies within another."""
    python_paths = [os.path.realpath(path) for path in (sys.base_prefix, sys.base_exec_prefix, os.path.dirname(python))]
    paths: list[str] = []
    for path in (*_READABLE_PATHS, *python_paths):
        if os.path.exists(path) and not any(path == other or path.startswith(other + "/") for other in paths):
            paths.append(path)
    return paths
