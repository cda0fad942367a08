"""A function of a test in several processes, which find each other as those of torchrun do."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PATIENCE = 240  # seconds: what takes longer hangs


def together(function: Callable[[Path], object], folder: Path, count: int = 2, **environment: str) -> list[str]:
    """Call `function(folder)` in `count` processes at once; what each printed. Fails if one of them does.

    The function stands in a test's file, by itself. Warnings are errors there, too.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    name = function.__name__
    code = f"import pathlib, sys; from {function.__module__} import {name}; {name}(pathlib.Path(sys.argv[1]))"
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "error", "-c", code, str(folder)],
            cwd=ROOT,
            env={**os.environ, **common, **environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]
    try:
        told = [process.communicate(timeout=PATIENCE) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert not any(process.returncode for process in processes), "\n".join(errors for _, errors in told)
    return [printed for printed, _ in told]
