"""Two hosts on one machine, for tests of runs on several nodes: network namespaces, joined by a virtual cable."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ADDRESSES = ("10.77.0.1", "10.77.0.2")
INTERFACE = "cable"  # the same name in both namespaces


class TwoHosts:
    """Starts commands on host 0 and host 1. They share files and processors, and see only each other's network."""

    def __init__(self) -> None:
        self.names = [f"nanochat-{os.getpid()}-{number}" for number in range(2)]
        self.running: list[subprocess.Popen[str]] = []

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

    def start(self, host: int, command: Sequence[str], **environment: str) -> subprocess.Popen[str]:
        """Start a Python command line on a host, as the leader of a process group. Its output is a pipe."""
        process = subprocess.Popen(
            ["ip", "netns", "exec", self.names[host], sys.executable, *command],
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

    def kill(self, process: subprocess.Popen[str]) -> None:
        """Kill a command and all its processes, as a power cut does."""
        found = subprocess.run(["ps", "-o", "pid=", "-s", str(process.pid)], capture_output=True, text=True)
        # The workers of torchrun have sessions of their own.
        children = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True)
        for pid in {*found.stdout.split(), *children.stdout.split(), str(process.pid)}:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)

    def close(self) -> None:
        """Kill what still runs, and remove the namespaces."""
        for process in self.running:
            if process.poll() is None:
                self.kill(process)
            process.communicate()
        for name in self.names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


@contextlib.contextmanager
def two_hosts() -> Iterator[TwoHosts]:
    """Context manager with two hosts. Skips the test where network namespaces are not permitted."""
    if not shutil.which("ip"):
        pytest.skip("no `ip` command (iproute2), which makes network namespaces")
    hosts = TwoHosts()
    try:
        try:
            hosts.create()
        except subprocess.CalledProcessError as error:
            pytest.skip(f"network namespaces are not permitted here: {error.stderr.strip()}")
        yield hosts
    finally:
        hosts.close()
