"""A part's access to its device and its results: `Check`, and the lines that it writes."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nanochat.runtime import Runtime


class Skipped(Exception):
    """Raised by a part that cannot run here; the message says why."""


@dataclass
class Check:
    """One part's device, sizes and results. `part` is its name; `failures` are the expectations that did not hold."""

    part: str
    out: Path
    is_dry_run: bool
    failures: list[str] = field(default_factory=list)

    @property
    def device(self) -> torch.device:
        """The device to check: the GPU, or the CPU in a dry run."""
        return torch.device("cpu") if self.is_dry_run else torch.device("cuda", 0)

    def runtime(self, dtype: torch.dtype = torch.bfloat16) -> Runtime:
        """Return a runtime of one process on the device. TF32 stays off: the parts choose the precision themselves."""
        return Runtime(0, 0, 1, self.device, dtype, 42)

    def record(self, name: str, **values: Any) -> None:
        """Write a result as a line of results.jsonl, at once, and to the log."""
        write_line(self.out, {"part": self.part, "name": name, **values})
        print(f"{self.part}: {describe(name, values)}", flush=True)

    def expect(self, name: str, error: float, limit: float, **values: Any) -> None:
        """Record an error and its limit. The part fails if the error exceeds the limit or is NaN."""
        is_ok = error <= limit
        self.record(name, error=error, limit=limit, ok=is_ok, **values)
        if not is_ok:
            self.failures.append(f"{name}: {error:.3g} instead of at most {limit:.3g}")

    def expect_equal(self, name: str, value: object, expected: object) -> None:
        """Record if two values are equal. The part fails if they are not."""
        self.record(name, ok=value == expected)
        if value != expected:
            self.failures.append(f"{name}: {str(value)[:200]} instead of {str(expected)[:200]}")

    def earlier(self, part: str, name: str) -> dict[str, Any]:
        """Return a result of an earlier part of the same run, or {} if it is missing."""
        return next((row for row in read_lines(self.out) if (row["part"], row["name"]) == (part, name)), {})

    def synchronize(self) -> None:
        """Wait until the device has finished its work."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def seconds(self, work: Callable[[], object], repeats: int = 10, warm_up: int = 3) -> float:
        """Return the median seconds of `work` on the device, by CUDA events; by the clock on a CPU."""
        if self.is_dry_run:
            repeats, warm_up = 1, 1
        for _ in range(warm_up):
            work()
        times = []
        for _ in range(repeats):
            if self.device.type == "cuda":
                start = torch.cuda.Event(enable_timing=True)
                end = torch.cuda.Event(enable_timing=True)
                start.record()
                work()
                end.record()
                end.synchronize()
                times.append(start.elapsed_time(end) / 1000)
            else:
                begin = time.perf_counter()
                work()
                times.append(time.perf_counter() - begin)
        return float(statistics.median(times))

    def reset_peak_memory(self) -> None:
        """Count the peak memory from now on."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)

    def peak_memory_gb(self) -> float:
        """Return the largest amount of memory allocated on the GPU since `reset_peak_memory`, in 10^9 bytes."""
        return torch.cuda.max_memory_allocated(self.device) / 1e9 if self.device.type == "cuda" else 0.0


def relative_error(value: Tensor, reference: Tensor) -> float:
    """Return |value - reference| / |reference| by the norms of both, in float64 on the CPU."""
    reference = reference.detach().double().cpu()
    difference = value.detach().double().cpu() - reference
    return float(difference.norm() / reference.norm().clamp(min=1e-30))


# --- files ------------------------------------------------------------------------------------------------------------


def write_line(out: Path, row: dict[str, Any]) -> None:
    """Append a row to results.jsonl."""
    with open(out / "results.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def read_lines(out: Path) -> list[dict[str, Any]]:
    """Read the rows of results.jsonl."""
    path = out / "results.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def describe(name: str, values: dict[str, Any]) -> str:
    """Return a result as text.

    >>> describe("loss, float32", {"error": 0.0000123456, "limit": 0.001, "ok": True})
    'loss, float32: error 1.23e-05, limit 0.001, ok'
    """
    parts = []
    for key, value in values.items():
        if key == "ok":
            parts.append("ok" if value else "FAILED")
        elif isinstance(value, float):
            parts.append(f"{key} {value:,.0f}" if abs(value) >= 1000 else f"{key} {value:.3g}")
        else:
            parts.append(f"{key} {value}")
    return f"{name}: {', '.join(parts)}" if parts else name
