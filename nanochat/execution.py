"""Runs the model's Python programs in a process of their own, behind as many fences as the machine has.

A program finds Python's standard library, an empty folder to write in, no environment and no input. Between it and the
rest stand (`isolation_layers()` says which of the first four this machine has):

    namespaces   its own users, processes, network and shared memory (Linux, where users may make them)
    mounts        its own root: Python read-only, a small folder in memory, no home, no /proc (with namespaces)
    landlock      no file read but Python's and the system's, none written outside of its folder (Linux 6.2 and later)
    seccomp       no new processes, sockets, signals to others, mounts, shared memory (Linux on x86-64, ARM64, RISC-V)
    always        limits on time, memory, file size and output; a fresh interpreter; what it started is killed

What this does not protect against:

- Errors in the kernel. It is a fence around a model's exercises, not around an attacker: that takes a virtual machine.
- Reading what everybody may read of the system: /usr, the libraries, Python itself.
- A program that fakes its own success: it shares its process with the tests that judge it. (tasks/humaneval.py asks for
  a word that only its last line prints; a program that looks for that word in its own file finds it.)
- Using what it is given: a core for its time, its memory, and without mounts the disk, any number of files of 16 MiB.
- Without mounts and landlock (macOS, older Linux): it reads and writes whatever files the user can.
- Without namespaces and seccomp (macOS): the network is open, and it can signal the user's other processes; it cannot
  start any. Root is refused there, because no limit on processes holds for root.
"""

from __future__ import annotations

import json
import os
import selectors
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from nanochat.common import UserError
from nanochat.sandbox.calculator import calculate

__all__ = ["ISOLATION_LAYERS", "ProgramResult", "calculate", "isolation_layers", "run_program"]

ISOLATION_LAYERS = ("namespaces", "mounts", "landlock", "seccomp")

_KEPT_BYTES = 64 << 10  # of each output
_FLOOD_BYTES = 1 << 20  # both outputs together: more ends the program
_SOURCE_BYTES = 1 << 20
_GRACE = 30.0  # seconds for a busy machine to start and to end a program
_READABLE = ("/usr", "/lib", "/lib32", "/lib64", "/bin", "/etc/ld.so.cache", "/nix/store", "/gnu/store")
_ISOLATED = ("-I", "-S", "-B", "-X", "utf8")
_START = "import sys; sys.path.append(sys.argv[2]); from nanochat.sandbox.isolation import main; main()"


@dataclass(frozen=True)
class ProgramResult:
    """What became of a program. `error` is one line that says why it is not ok; empty if it is."""

    ok: bool  # ended by itself, in time, with exit code 0
    timed_out: bool
    exit_code: int | None  # 128 + the signal that ended it; None if it was stopped, or never started
    stdout: str  # the first 64 KiB
    stderr: str
    error: str
    layers: tuple[str, ...]  # which of ISOLATION_LAYERS were active


def isolation_layers() -> dict[str, bool]:
    """Which of ISOLATION_LAYERS are active on this machine, found out by running an empty program."""
    active = run_program("").layers
    return {layer: layer in active for layer in ISOLATION_LAYERS}


def run_program(
    source: str, timeout: float = 5.0, memory_bytes: int = 256 << 20, without: Collection[str] = ()
) -> ProgramResult:
    """Run a program (Python's standard library, no input, an empty folder) and say how it ended. Safe in threads.

    `timeout` is in seconds by the clock; `memory_bytes` limits the address space; tests leave layers out by `without`.
    Raises UserError where nothing can be run at all: it is never a program's fault.
    """
    assert not set(without) - set(ISOLATION_LAYERS), f"layers are {ISOLATION_LAYERS}, not {without}"
    if sys.platform == "win32":
        raise UserError("programs of the model can be run on Linux and macOS, not on Windows")
    text = source.encode("utf-8", "surrogatepass")
    if len(text) > _SOURCE_BYTES or b"\0" in text:
        reason = "a null character" if b"\0" in text else f"more than {_SOURCE_BYTES} bytes"
        return ProgramResult(False, False, None, "", "", f"not run: the program has {reason}", ())
    folder = Path(tempfile.mkdtemp(prefix="nanochat-program-")).resolve()
    try:
        (folder / "root").mkdir()
        (folder / "work").mkdir()
        (folder / "work" / "program.py").write_bytes(text)
        return _run(folder, timeout, memory_bytes, without)
    finally:
        _remove(folder)


def _run(folder: Path, timeout: float, memory_bytes: int, without: Collection[str]) -> ProgramResult:
    python = os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)
    read_status, write_status = os.pipe()
    # Some builds of Python find their library by this variable only.
    environment = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
    order = {
        "status": write_status,
        "folder": str(folder),
        "timeout": timeout,
        "memory_bytes": memory_bytes,
        "without": list(without),
        "readable": _readable(python),
        "python": [python, *_ISOLATED],
        "environment": environment,
    }
    command = [python, "-I", "-S", "-c", _START, json.dumps(order), str(Path(__file__).resolve().parent.parent)]
    try:
        keeper = subprocess.Popen(
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
    with keeper, open(read_status, "rb", buffering=0) as status:
        outputs = _Outputs(keeper, status)
        try:
            outputs.read(time.monotonic() + timeout + _GRACE)
        finally:
            _stop(keeper)
    return _result(outputs, timeout)


class _Outputs:
    """What the keeper tells, and what the program writes, as far as it is kept."""

    def __init__(self, keeper: subprocess.Popen[bytes], status: BinaryIO) -> None:
        assert keeper.stdout, "a pipe"
        assert keeper.stderr, "a pipe"
        self.texts = {"stdout": b"", "stderr": b""}
        self.num_bytes = 0
        self.facts: dict[str, Any] = {}
        self._told = b""
        self._selector = selectors.DefaultSelector()
        for name, file in (("stdout", keeper.stdout), ("stderr", keeper.stderr), ("status", status)):
            os.set_blocking(file.fileno(), False)
            self._selector.register(file, selectors.EVENT_READ, name)

    @property
    def flooded(self) -> bool:
        return self.num_bytes > _FLOOD_BYTES

    def read(self, deadline: float) -> None:
        """Until the keeper ends, which closes the status pipe, or there is too much, or the deadline has passed."""
        ended = False
        while not ended and not self.flooded and time.monotonic() < deadline:
            for key, _ in self._selector.select(1.0):
                text = _read(key.fd)
                if key.data == "status":
                    self._told += text or b""
                    ended = text == b""
                elif text:
                    self._keep(key.data, text)
                elif text == b"":
                    self._selector.unregister(key.fileobj)
        # What was written just before the end.
        for key in list(self._selector.get_map().values()):
            while key.data != "status" and not self.flooded and (text := _read(key.fd)):
                self._keep(key.data, text)
        self._selector.close()
        for line in self._told.splitlines():
            self.facts.update(json.loads(line))

    def _keep(self, name: str, text: bytes) -> None:
        self.num_bytes += len(text)
        self.texts[name] += text[: _KEPT_BYTES - len(self.texts[name])]


def _read(file: int) -> bytes | None:
    """What there is; nothing at the end; None where there is nothing now."""
    try:
        return os.read(file, 1 << 16)
    except BlockingIOError:
        return None


def _stop(keeper: subprocess.Popen[bytes]) -> None:
    """The keeper ends everything when asked to; the kernel does when the keeper is killed."""
    try:
        keeper.terminate()
        keeper.wait(_GRACE)
    except subprocess.TimeoutExpired:
        keeper.kill()


def _result(outputs: _Outputs, timeout: float) -> ProgramResult:
    stdout, stderr = (outputs.texts[name].decode("utf-8", "replace") for name in ("stdout", "stderr"))
    facts = outputs.facts
    started = "layers" in facts
    if "failed" in facts or not (started or facts.get("timed_out")):
        raise UserError(f"programs cannot be run on this machine: {facts.get('failed') or stderr.strip()[-500:]}")
    code = None if outputs.flooded or facts.get("timed_out") else facts.get("code")
    timed_out = bool(facts.get("timed_out")) and not outputs.flooded
    if outputs.flooded:
        error = f"more than {_FLOOD_BYTES} bytes of output"
    elif timed_out:
        error = f"not done after {timeout:g} seconds"
    elif code is None:
        error = "its keeper was killed"
    else:
        last = (stderr.strip().splitlines() or [""])[-1][:200]
        error = f"exit code {code}: {last}".rstrip(": ") if code else ""
    return ProgramResult(code == 0, timed_out, code, stdout, stderr, error, tuple(facts.get("layers", ())))


def _readable(python: str) -> list[str]:
    """What Python needs to start: itself, its library and the system's; none of these lies within another."""
    own = [os.path.realpath(path) for path in (sys.base_prefix, sys.base_exec_prefix, os.path.dirname(python))]
    found: list[str] = []
    for path in (*_READABLE, *own):
        if os.path.exists(path) and not any(path == other or path.startswith(other + "/") for other in found):
            found.append(path)
    return found


def _remove(folder: Path) -> None:
    """Remove what a program left, however deep: folders in folders are moved up, so that no path gets too long."""
    shutil.rmtree(folder / "root", ignore_errors=True)
    number = 0
    while True:
        folders = [entry for entry in os.scandir(folder) if entry.is_dir(follow_symlinks=False)]
        if not folders:
            break
        for entry in folders:
            os.chmod(entry.path, stat.S_IRWXU)
            for inner in os.scandir(entry.path):
                if inner.is_dir(follow_symlinks=False):
                    os.chmod(inner.path, stat.S_IRWXU)
                    os.rename(inner.path, folder / f"folder-{number}")
                    number += 1
                else:
                    os.unlink(inner.path)
            os.rmdir(entry.path)
    folder.rmdir()
