"""What this processor does well: which dtype its matrix products like, and a memory allocator that keeps its pages.

Two facts make this a measurement and not a table. A processor may have bf16 instructions that are slower than its
float32 ones (AVX512-BF16 on Sapphire Rapids has half the issue ports), and a virtual machine may advertise AMX that
ends the process with an illegal instruction (its CPUID leaf of tile shapes is empty). So the products are tried once,
in a process of their own, and the answer is kept in the base folder.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import TypedDict

from nanochat.system.console import print0
from nanochat.system.files import base_dir, write_json_atomic

ISA_VARIABLE = "ONEDNN_MAX_CPU_ISA"
ISA_WITHOUT_AMX = "AVX512_CORE_BF16"


class Bf16Probe(TypedDict):
    """An answer of this file."""

    speedup: float | None  # of bf16 products over float32 ones; None: they do not work
    isa: str  # the limit that oneDNN must have for them; "" = none


# float32 seconds / bfloat16 seconds of a product as a small model has it; best of many: noise must not decide
PROBE = """
import time, torch
def best(dtype):
    a, b, times = torch.ones(2048, 256, dtype=dtype), torch.ones(1024, 256, dtype=dtype), []
    for _ in range(30):
        start = time.perf_counter(); torch.nn.functional.linear(a, b); times.append(time.perf_counter() - start)
    return min(times)
print(best(torch.float32) / best(torch.bfloat16))
"""


def cpu_flags() -> set[str]:
    """Instruction sets that Linux lists for this processor; empty elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return set()
    return next((set(line.partition(":")[2].split()) for line in lines if line.startswith("flags")), set())


def measure_bf16_speedup(environment: dict[str, str]) -> float | None:
    """How many times faster bf16 products are than float32 ones, with this environment; None if they do not work."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", PROBE], env=environment, capture_output=True, text=True, timeout=120
        )
        return float(done.stdout) if done.returncode == 0 else None
    except (subprocess.TimeoutExpired, ValueError):
        return None


def probe_bf16(limit: str) -> Bf16Probe:
    """How bf16 products do, measured now: under this limit of oneDNN's if they work there, else without AMX."""
    speedup = measure_bf16_speedup(dict(os.environ))
    if speedup is None:
        limit = ISA_WITHOUT_AMX
        speedup = measure_bf16_speedup({**os.environ, ISA_VARIABLE: limit})
    return {"speedup": speedup, "isa": limit}


def read_cached_probes(path: Path) -> dict[str, Bf16Probe]:
    """What earlier processes measured; nothing where the file is absent or damaged."""
    try:
        answers = json.loads(path.read_text(encoding="utf-8"))
        return {key: {"speedup": answer["speedup"], "isa": answer["isa"]} for key, answer in answers.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def prepare_bf16() -> float | None:
    """Make bf16 products safe in this process and return their speed-up over float32 (None: they do not work).

    Measured once for each processor, torch version and limit that the user sets, then read from
    `<base folder>/cpu.json`. Must run before the first product of the process.
    """
    flags = cpu_flags()
    if not flags & {"avx512_bf16", "amx_bf16"}:
        return None
    from importlib.metadata import version

    def key(limit: str) -> str:
        facts = f"{platform.node()} {sorted(flags)} {version('torch')} {limit}"
        return hashlib.sha256(facts.encode()).hexdigest()[:16]

    path, limit = base_dir() / "cpu.json", os.environ.get(ISA_VARIABLE, "")
    answer = read_cached_probes(path).get(key(limit))
    if answer is None:
        print0("Trying bf16 matrix products on this processor (once) ...")
        answer = probe_bf16(limit)
        # the second entry is for this process, and those it starts, when they ask again under the limit set below
        write_json_atomic(path, {**read_cached_probes(path), key(limit): answer, key(answer["isa"]): answer})
    if answer["isa"]:
        os.environ[ISA_VARIABLE] = answer["isa"]
    return answer["speedup"]


def keep_freed_memory() -> None:
    """Tell glibc's allocator to keep what a step frees for the next one, instead of fetching zeroed pages each time.

    Training allocates and frees the same large tensors every step; without this, page faults take a quarter of it.
    """
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        return
    trim_threshold, mmap_max = -1, -4  # names of malloc.h
    libc = ctypes.CDLL(None)
    libc.mallopt(trim_threshold, (1 << 31) - 1)
    libc.mallopt(mmap_max, 0)
