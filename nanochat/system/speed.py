"""Speed of a device: matrix products per second and memory bandwidth, measured."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

REPEATS = 5


def timed(work: Callable[[], object], device: torch.device) -> float:
    """Return the seconds that `work` takes on a device: by CUDA events, elsewhere by a clock after the work is done."""
    import torch

    if device.type == "cuda":
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        work()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1000
    synchronize(device)
    begin = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - begin


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished its work."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def matrix_rate(device: torch.device, dtype: torch.dtype, size: int = 0, repeats: int = REPEATS) -> float:
    """Return the FLOP/s of a product of two random square matrices: the median of a few.

    `size`: rows and columns; 0 = 8,192 on a GPU, where smaller products do not fill the device, and 2,048 elsewhere.
    """
    import torch

    size = size or (8192 if device.type == "cuda" else 2048)
    matrix = torch.randn(size, size, device=device).to(dtype)
    seconds = [timed(lambda: torch.mm(matrix, matrix), device) for _ in range(repeats + 1)]
    return float(2 * size**3 / statistics.median(seconds[1:]))  # the first one chooses its kernel


def memory_bandwidth(device: torch.device, num_bytes: int = 0, repeats: int = REPEATS) -> float:
    """Return the bytes per second that a copy within the device's memory reads and writes: the median of a few.

    `num_bytes`: of the tensor that is copied; 0 = more than any cache holds.
    """
    import torch

    num_bytes = num_bytes or 1 << 28
    source = torch.zeros(num_bytes, dtype=torch.uint8, device=device)
    target = torch.ones_like(source)
    seconds = [timed(lambda: target.copy_(source), device) for _ in range(repeats + 1)]
    return float(2 * num_bytes / statistics.median(seconds[1:]))


def silence_profiler() -> None:
    """Keep the library behind torch's profiler from writing its own progress, and errors without meaning, to stderr.

    Its level counts upwards from 0; $KINETO_LOG_LEVEL overrides this. Call it before the first profile.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
