"""Processes that start quickly, for tests: forks of a server process that has imported torch and nanochat.

The server is this file, run as a program: `python tests/support/processes.py ADDRESS`.
"""

from __future__ import annotations

import gc
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT = 240  # seconds
# Replaces Python: has its command line run by a fork of the server, in the same folder and environment.
CLIENT = """
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as server:
    server.connect(ADDRESS)
    socket.send_fds(server, [json.dumps([sys.argv[1:], dict(os.environ), os.getcwd()]).encode()], [1, 2])
    sys.exit(int(server.recv(9) or 1))
"""
PORT_TAKEN = ("Gloo connectFullMesh failed", "EADDRINUSE")  # what the ranks then say


def without_gloo(output: str) -> str:
    """Drop the lines in which torch 2.9 announces connections on stdout."""
    return "".join(line for line in output.splitlines(keepends=True) if not line.startswith("[Gloo]"))


class Forker:
    """Starts the server. `python` is a program that is called like Python and runs its command line in a fork.

    `prefix`: words in front of the server's command line, such as `ip netns exec NAME`. They must become the server.
    """

    def __init__(self, folder: Path, prefix: Sequence[str] = ()) -> None:
        self.python = folder / "python"
        client = folder / "client.py"
        address = folder / "address"
        client.write_text(CLIENT.replace("ADDRESS", repr(str(address))), encoding="utf-8")
        self.python.write_text(f'#!/bin/bash\nexec "{sys.executable}" -IS "{client}" "$@"\n', encoding="utf-8")
        self.python.chmod(0o755)
        command = [*prefix, sys.executable, "-W", "error", __file__, str(address)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(command, env=environment, start_new_session=True)
        while not address.exists():
            assert self.process.poll() is None, "the server has ended"
            time.sleep(0.05)

    def run_ranks(
        self, function: Callable[[Path], object], folder: Path, count: int = 2, **environment: str
    ) -> list[str]:
        """Call `function(folder)` on `count` ranks, as torchrun does. Return the output of each rank.

        `function` must be at the top level of a module. Fails if it raises on any rank.
        """
        code = f"from pathlib import Path; from {function.__module__} import {function.__name__} as f; "
        command = [str(self.python), "-c", code + f"f(Path({str(folder)!r}))"]

        def run(rank: int, port: int) -> subprocess.CompletedProcess[str]:
            common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count)}
            of_rank = {"RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(count)}
            env = {**os.environ, **common, **environment, **of_rank}
            return subprocess.run(command, env=env, capture_output=True, text=True, timeout=TIMEOUT)

        for _ in range(3):
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port = probe.getsockname()[1]
            with ThreadPoolExecutor(count) as pool:
                done = list(pool.map(lambda rank, port=port: run(rank, port), range(count)))
            # Before `function` does anything, processes of tests that run at the same time may have taken a port.
            if not any(failure in process.stderr for failure in PORT_TAKEN for process in done):
                break
        assert not any(process.returncode for process in done), "\n".join(process.stderr for process in done)
        return [without_gloo(process.stdout) for process in done]

    def close(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)  # and all of its forks
        self.process.wait()


def serve(address: str) -> NoReturn:
    """Fork for every client."""
    import hypothesis  # noqa: F401
    import pyarrow.parquet  # noqa: F401
    import pytest  # noqa: F401

    from nanochat import dataset, report  # noqa: F401
    from nanochat.reporting import plots  # noqa: F401
    from nanochat.rl import loop  # noqa: F401
    from nanochat.serving import server  # noqa: F401
    from nanochat.training import finetune  # noqa: F401

    gc.freeze()  # or the first collection of each fork would copy the memory of all objects
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # reaps the forks
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(address + ".part")
        listening.listen()
        os.rename(address + ".part", address)
        while True:
            client, _ = listening.accept()
            message, outputs, _, _ = socket.recv_fds(client, 1 << 20, 2)
            if os.fork() == 0:
                _run(client, *json.loads(message), outputs)
            for descriptor in (client.detach(), *outputs):
                os.close(descriptor)


def _run(
    client: socket.socket, argv: list[str], environment: dict[str, str], folder: str, outputs: list[int]
) -> NoReturn:
    """Run `python -m MODULE ...` or `python -c CODE` in a fork, and send the exit code to the client."""
    code = 1
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for number, descriptor in enumerate(outputs, 1):
            os.dup2(descriptor, number)
        os.environ.clear()
        os.environ.update(environment)
        os.chdir(folder)
        sys.argv = argv[1:]
        if argv[0] == "-m":
            sys.modules.pop(argv[1], None)
            runpy.run_module(argv[1], run_name="__main__", alter_sys=True)
        else:
            exec(argv[1], {})
        code = 0
    except SystemExit as exit_request:
        if isinstance(exit_request.code, int):
            code = exit_request.code
        else:
            code = 0 if exit_request.code is None else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        client.send(str(code).encode())
        os._exit(code)


if __name__ == "__main__":
    serve(sys.argv[1])
