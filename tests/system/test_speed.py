"""Measured speeds: what is timed is done, and the FLOPs and bytes are those of the work."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest
import torch

from nanochat.system import speed
from nanochat.system.speed import matrix_rate, memory_bandwidth, timed

CPU = torch.device("cpu")


def test_timed() -> None:
    assert timed(lambda: time.sleep(0.02), CPU) >= 0.02


def test_rates_are_work_per_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a device that takes a quarter of a second for anything; the first product is not counted."""
    seconds = iter([9.0, 0.25, 0.25, 0.25] * 2)
    done = []

    def quarter(work: object, _: torch.device) -> float:
        done.append(work)
        return next(seconds)

    monkeypatch.setattr(speed, "timed", quarter)
    assert matrix_rate(CPU, torch.bfloat16, size=8, repeats=3) == 2 * 8**3 / 0.25
    assert memory_bandwidth(CPU, num_bytes=100, repeats=3) == 2 * 100 / 0.25
    assert len(done) == 8


def test_real_rates_are_positive() -> None:
    assert matrix_rate(CPU, torch.float32, size=32) > 0
    assert memory_bandwidth(CPU, num_bytes=1000) > 0


def test_a_profile_writes_nothing() -> None:
    """The library behind it writes to stderr by itself. (Warnings of torch 2.11 do not count.)"""
    program = (
        "import torch; from nanochat.system.speed import silence_profiler; silence_profiler()\n"
        "with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]): torch.ones(3) + 1"
    )
    environment = {key: value for key, value in os.environ.items() if key != "KINETO_LOG_LEVEL"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout + done.stderr == ""
