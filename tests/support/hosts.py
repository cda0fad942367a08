"""Two hosts on one machine, for tests of runs on several nodes: network namespaces, joined by a virtual cable."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from tests.support.processes import Forker

ROOT = Path(__file__).resolve().parents[2]
ADDRESSES = ("10.77.0.1", "10.77.0.2")
INTERFACE = "cable"  # the same name in both namespaces


class TwoHosts:
    """Starts commands on host 0 and host 1. They share files and processors, and see only each other's network."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.names = [f"nanochat-{os.getpid()}-{number}" for number in range(2)]
        self.running: list[subprocess.Popen[str]] = []
        self.forkers: dict[int, Forker] = {}  # by host

    def create(self) -> None:
        """Create both namespaces and the cable. Raises CalledProcessError where that is not permitted."""
        for name in self.names:
            _ip("netns", "add", name)
        ends = [["name", INTERFACE, "netns", name] for name in self.names]
        _ip("link", "add", *ends[0], "type", "veth", "peer", *ends[1])
        for name, address in zip(self.names, ADDRESSES, strict=True):
            _ip("-n", name, "addr", "add", f"{address}/24", "dev", INTERFACE)
            _ip("-n", name, "link", "set", INTERFACE, "up")
            _ip("-n", name, "link", "set", "lo", "up")

    def forker(self, host: int) -> Forker:
        """Return the server of a host's forks. It is started at the first call, which takes seconds."""
        if host not in self.forkers:
            folder = Path(tempfile.mkdtemp(dir=self.folder))
            self.forkers[host] = Forker(folder, ["ip", "netns", "exec", self.names[host]])
        return self.forkers[host]

    def fork(self, host: int, command: Sequence[str], **environment: str) -> subprocess.Popen[str]:
        """Run a Python command line on a host in a fork, which has imported torch. Its output is a pipe."""
        return self._popen([str(self.forker(host).python), *command], environment)

    def start(self, host: int, command: Sequence[str], **environment: str) -> subprocess.Popen[str]:
        """Start a Python command line on a host, as the leader of a process group. Its output is a pipe."""
        return self._popen(["ip", "netns", "exec", self.names[host], sys.executable, *command], environment)

    def _popen(self, command: Sequence[str], environment: Mapping[str, str]) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, "GLOO_SOCKET_IFNAME": INTERFACE, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.running.append(process)
        return process

    def cut_the_cable(self) -> None:
        """Take the interface of host 1 down: packets are lost, and no connection is closed."""
        _ip("-n", self.names[1], "link", "set", INTERFACE, "down")

    def switch_off(self, host: int) -> None:
        """Kill all forks on a host, as a power cut does."""
        self.forkers.pop(host).close()

    def restore(self) -> None:
        """End what still runs, and mend the cable, for the next test."""
        if any(process.poll() is None for process in self.running):
            self._switch_all_off()
        self._end_commands()
        _ip("-n", self.names[1], "link", "set", INTERFACE, "up")

    def kill(self, process: subprocess.Popen[str]) -> None:
        """Kill a command and all its processes, as a power cut does."""
        found = subprocess.run(["ps", "-o", "pid=", "-s", str(process.pid)], capture_output=True, text=True)
        # The workers of torchrun have sessions of their own.
        children = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True)
        for pid in {*found.stdout.split(), *children.stdout.split(), str(process.pid)}:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)

    def _switch_all_off(self) -> None:
        for host in list(self.forkers):
            self.switch_off(host)

    def _end_commands(self) -> None:
        for process in self.running:
            if process.poll() is None:
                self.kill(process)
            process.communicate()
        self.running.clear()

    def close(self) -> None:
        """Kill what still runs, and remove the namespaces."""
        self._switch_all_off()
        self._end_commands()
        for name in self.names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


@contextlib.contextmanager
def two_hosts(folder: Path) -> Iterator[TwoHosts]:
    """Context manager with two hosts. Skips the test where network namespaces are not permitted."""
    if not shutil.which("ip"):
        pytest.skip("no `ip` command (iproute2), which makes network namespaces")
    hosts = TwoHosts(folder)
    try:
        try:
            hosts.create()
        except subprocess.CalledProcessError as error:
            pytest.skip(f"network namespaces are not permitted here: {error.stderr.strip()}")
        yield hosts
    finally:
        hosts.close()
