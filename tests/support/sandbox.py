"""Targets that hostile programs attack, and the checks that they failed to; for the tests of the sandbox."""

from __future__ import annotations

import os
import signal
import socket
import string
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import pytest

from nanochat.execution import ProgramResult, isolation_layers, run_program
from tests.support.hostile_programs import PREAMBLE

ROOT = Path(__file__).resolve().parents[2]
MARK = f"nanochat-survivor-{os.getpid()}"  # part of the command line of the processes that hostile programs start
TOKEN = "a-secret-that-stays"

REASON_FOR_LACK = {  # layer -> why this machine lacks it, and which machine has it
    "namespaces": "no namespaces here (Linux has them; a container only where users may create some: --privileged)",
    "mounts": "no mounts here (they come with namespaces)",
    "landlock": "no Landlock here (Linux 6.2 or later has it, unless it is disabled)",
    "seccomp": "no seccomp filter for this machine (there is one for Linux on x86-64, arm64 and riscv64)",
}
# Configuration -> the layers to leave out, and those that the machine must have.
CONFIGURATIONS: dict[str, tuple[tuple[str, ...], set[str]]] = {
    "all layers": ((), {"seccomp", "landlock"}),
    "no namespaces": (("namespaces",), {"seccomp", "landlock"}),
    "no landlock": (("landlock",), {"seccomp", "mounts"}),
    "no seccomp": (("seccomp",), {"namespaces"}),
    "only namespaces": (("mounts", "landlock", "seccomp"), {"namespaces"}),
}


def survivors() -> list[str]:
    """Running processes that a hostile program of this test run has started."""
    listing = subprocess.run(["ps", "-A", "-o", "pid=,args="], capture_output=True, text=True, check=True).stdout
    return [line for line in listing.splitlines() if MARK in line]


def wait_until_empty(folder: Path) -> None:
    """Wait for the removal of all that is in a folder, which a busy machine leaves to a detached process."""
    deadline = time.monotonic() + 60
    while os.listdir(folder) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert os.listdir(folder) == []


class Targets:
    """A secret file, an open port, an open file descriptor and this process; and the hostile programs under way."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.secret = folder / "secret.txt"
        self.secret.write_text(TOKEN, encoding="utf-8")
        self.secret_stat = self.secret.stat()
        self.temporary = folder / "temporary"
        self.temporary.mkdir()
        self.server = socket.create_server(("127.0.0.1", 0))
        self.server.setblocking(False)
        self.udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.udp.bind(self.server.getsockname())
        self.udp.setblocking(False)
        self.mailbox = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        if sys.platform == "linux":  # elsewhere a path can be too long for a socket
            self.mailbox.bind(str(folder / "mailbox"))
        self.mailbox.setblocking(False)
        self.signals: list[int] = []
        self.inherited = os.open(self.secret, os.O_RDONLY)
        os.set_inheritable(self.inherited, True)
        self.active_layers = isolation_layers()
        self.pool = ThreadPoolExecutor(4)
        self.futures: dict[tuple[str, tuple[str, ...]], Future[ProgramResult]] = {}

    def layers_to_leave_out(self, configuration: str) -> tuple[str, ...]:
        """The argument `without` of `run_program`; skips the test if this machine lacks a layer that is needed."""
        without, needed = CONFIGURATIONS[configuration]
        if lacking := {layer for layer in needed if not self.active_layers[layer]}:
            pytest.skip("; ".join(sorted(REASON_FOR_LACK[layer] for layer in lacking)))
        return without

    def check(self, name: str, configuration: str, programs: dict[str, tuple[str, str]]) -> None:
        """Check the outcome of the program `name`; the first call for a configuration starts all of `programs`."""
        without = self.layers_to_leave_out(configuration)
        if (name, without) not in self.futures:
            for program, (expected, text) in programs.items():
                # These two test the first line of the source.
                source = text if program in ("odd encoding", "a null") else PREAMBLE + text
                self.futures[program, without] = self._submit(source, expected, without)
        assert_outcome(programs[name][0], self.futures[name, without].result())

    def _submit(self, text: str, expected: str, without: tuple[str, ...]) -> Future[ProgramResult]:
        values = {
            "mark": MARK,
            "pid": os.getpid(),
            "secret": self.secret,
            "folder": self.folder,
            "home": Path.home(),
            "repository": ROOT,
            "port": self.server.getsockname()[1],
            "token": TOKEN,
        }
        source = string.Template(text).safe_substitute(values)
        # A program that is to end by itself has long: a busy machine is slow.
        timeout = 1.0 if expected == "time" else 30.0
        return self.pool.submit(run_program, source, timeout, 256 << 20, without)

    def assert_unharmed(self) -> None:
        """Check that no file, signal, packet or process shows a trace of the programs."""
        now = self.secret.stat()
        before = self.secret_stat
        assert self.secret.read_text(encoding="utf-8") == TOKEN
        assert (now.st_mode, now.st_mtime_ns, now.st_uid) == (before.st_mode, before.st_mtime_ns, before.st_uid)
        assert sorted({*os.listdir(self.folder)} - {"mailbox"}) == ["secret.txt", "temporary"]
        assert self.signals == []
        with pytest.raises(BlockingIOError):
            self.server.accept()
        with pytest.raises(BlockingIOError):
            self.udp.recv(1)
        with pytest.raises(BlockingIOError):
            self.mailbox.recv(1)
        assert survivors() == []

    def assert_all_unharmed(self) -> None:
        """Wait for all programs; then the targets must be unharmed and every temporary folder removed."""
        for future in self.futures.values():
            future.result()
        self.assert_unharmed()
        wait_until_empty(self.temporary)

    def close(self) -> None:
        self.pool.shutdown(cancel_futures=True)
        os.close(self.inherited)
        self.server.close()
        self.udp.close()
        self.mailbox.close()


@contextmanager
def open_targets(folder: Path) -> Iterator[Targets]:
    """Targets in an empty folder, which is also the place of temporary files; signals to this process are recorded."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NANOCHAT_TEST_SECRET", TOKEN)
        patch.setattr(tempfile, "tempdir", str(folder / "temporary"))
        targets = Targets(folder)

        def record(number: int, _frame: FrameType | None) -> None:
            targets.signals.append(number)

        handlers = {number: signal.signal(number, record) for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGIO)}
        yield targets
        targets.close()
        for number, handler in handlers.items():
            signal.signal(number, handler)


def assert_outcome(expected: str, result: ProgramResult) -> None:
    """Check a result against the expected outcome, as tests/support/hostile_programs.py defines it."""
    assert TOKEN not in result.stdout + result.stderr
    if expected == "time":
        assert result.timed_out, result
        assert not result.ok
        return
    assert not result.timed_out, result
    assert result.ok == (expected != "fails") == (not result.error), result
    if expected == "refused":
        lines = result.stdout.splitlines()
        assert lines
        assert not [line for line in lines if not line.startswith("refused")], result
