"""Settings of the CPU: the speed of bf16 matrix products on this processor, and the memory allocator.

The speed is measured, because the list of instruction sets does not determine it. bf16 instructions may be slower than
float32 ones (AVX512-BF16 on Sapphire Rapids has half the issue ports), and a virtual machine may advertise AMX although
its instructions are illegal there (its CPUID leaf of tile shapes is empty). The products therefore run once in a
separate process, which may crash, and the result is stored in `$NANOCHAT_BASE_DIR/cpu.json`.

Training and generation are measured apart. Training multiplies matrices of thousands of rows (tokens); a step of
generation has one row for each completion, and reads the keys and values of all earlier positions.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import math
import os
import platform
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, TypedDict

from nanochat.system.console import print0
from nanochat.system.errors import UserError
from nanochat.system.files import base_dir, read_regular_file, write_json_cache

ISA_VARIABLE = "ONEDNN_MAX_CPU_ISA"
MAX_CACHE_BYTES = 1 << 20  # of cpu.json
ISA_WITHOUT_AMX = "AVX512_CORE_BF16"
MAX_PROBE_SECONDS = 900


class Bf16Probe(TypedDict):
    """Result of measuring bf16 products, as stored in cpu.json."""

    speedup: float | None  # float32 seconds / bf16 seconds in training; None: bf16 products do not work
    decode_speedup: float | None  # the same for generation
    isa: str  # value of ISA_VARIABLE with which bf16 products work; "" = no limit


_uncertain: dict[tuple[Path | None, str], Bf16Probe] = {}  # of this process: measurements that were ended, not stored


# Prints float32 seconds / bfloat16 seconds, in a small model's shapes: of a product in training, for 2,048 tokens, and
# of a layer in generation, for the next token of 16 completions. The best of many runs counts, against noise. What
# hangs is ended by its processor time: on a busy machine the import of torch alone may take minutes.
PROBE = """
import os, resource
hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
limit = 120 * (os.cpu_count() or 1)  # of all threads together
resource.setrlimit(resource.RLIMIT_CPU, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))
import time, torch
from torch.nn.functional import linear, scaled_dot_product_attention
def train(ones):
    x, up = ones(2048, 256), ones(1024, 256)
    return lambda: linear(x, up)
def decode(ones):
    x, square, up, down, kv = ones(16, 256), ones(256, 256), ones(1024, 256), ones(256, 1024), ones(16, 4, 128, 64)
    def layer():
        q, k, v = (linear(x, square).view(16, 4, 1, 64) for _ in range(3))
        y = scaled_dot_product_attention(q, kv, kv)
        return linear(linear(linear(y.flatten(1), square), up), down)
    return layer
def best(work, dtype):
    run, times = work(lambda *shape: torch.ones(shape, dtype=dtype)), []
    for _ in range(30):
        start = time.perf_counter(); run(); times.append(time.perf_counter() - start)
    return min(times)
print(*(best(work, torch.float32) / best(work, torch.bfloat16) for work in (train, decode)))
"""


def cpu_flags() -> set[str]:
    """Return the instruction sets that Linux lists for this processor; empty on other systems."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return set()
    return next((set(line.partition(":")[2].split()) for line in lines if line.startswith("flags")), set())


def time_bf16_products(environment: dict[str, str]) -> tuple[float, float] | None:
    """Time bf16 and float32 in a new process with these environment variables.

    Returns the speed-ups of bf16 in training and in generation; None if bf16 products do not work there. Raises
    `subprocess.TimeoutExpired` if it was ended from outside, or took too long: then nothing is known.
    """
    command = [sys.executable, "-c", PROBE]
    completed = subprocess.run(
        command,
        env=environment,
        capture_output=True,
        text=True,
        encoding="utf-8",
        errors="replace",
        timeout=MAX_PROBE_SECONDS,
    )
    if completed.returncode in (-signal.SIGXCPU, -signal.SIGKILL, -signal.SIGTERM):
        raise subprocess.TimeoutExpired(command, MAX_PROBE_SECONDS)
    try:
        speedup, decode_speedup = map(float, completed.stdout.split())
    except ValueError:
        return None
    return (speedup, decode_speedup) if completed.returncode == 0 else None


def probe_bf16(isa: str) -> tuple[Bf16Probe, bool]:
    """Measure bf16 products under the limit `isa` that the environment sets, and without AMX if they fail there.

    Returns the result, and True if it is certain: False if a measurement was ended or took too long.
    """
    speedups, is_certain = None, True
    for limit in (isa, ISA_WITHOUT_AMX):
        try:
            speedups = time_bf16_products({**os.environ, ISA_VARIABLE: limit} if limit else dict(os.environ))
        except subprocess.TimeoutExpired:
            is_certain = False
        isa = limit
        if speedups:
            break
    speedup, decode_speedup = speedups or (None, None)
    return {"speedup": speedup, "decode_speedup": decode_speedup, "isa": isa}, is_certain


def read_cached_probes(path: Path) -> dict[str, Bf16Probe]:
    """Return the results stored by earlier processes; none if the file is absent, damaged, or of an older version."""
    try:
        probes = json.loads(read_regular_file(path, MAX_CACHE_BYTES).decode("utf-8"))
        return {key: _checked(probe) for key, probe in probes.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def _checked(probe: dict[str, Any]) -> Bf16Probe:
    """Return a stored result. Raises TypeError or KeyError for what is none."""
    speedup, decode_speedup, isa = probe["speedup"], probe["decode_speedup"], probe["isa"]
    for value in (speedup, decode_speedup):
        if value is not None and not (type(value) in (int, float) and math.isfinite(value)):
            raise TypeError(f"{value!r} is no speed-up")
    if not (isinstance(isa, str) and isa.isprintable()):  # it becomes an environment variable
        raise TypeError(f"{isa!r} is no limit of the instruction set")
    return {"speedup": speedup, "decode_speedup": decode_speedup, "isa": isa}


def measure_bf16_speedup() -> float | None:
    """Return the speed-up of bf16 products over float32 ones in training on this processor (None: they do not work).

    It is measured once for each processor, torch version and value of `$ONEDNN_MAX_CPU_ISA`, then read from
    `$NANOCHAT_BASE_DIR/cpu.json`. If bf16 products work only without AMX, that variable is set for this process.
    Therefore call this before the first matrix product.
    """
    probe = measure_bf16()
    return probe["speedup"] if probe else None


def measure_bf16_decode_speedup() -> float | None:
    """Return the speed-up of bf16 products in generation, as `measure_bf16_speedup` does for training."""
    probe = measure_bf16()
    return probe["decode_speedup"] if probe else None


def measure_bf16() -> Bf16Probe | None:
    """Return the stored or new measurement of this processor; None if it has no bf16 products.

    Sets `$ONEDNN_MAX_CPU_ISA` where that is necessary.
    """
    flags = cpu_flags()
    if not flags & {"avx512_bf16", "amx_bf16"}:
        return None
    from importlib.metadata import version

    def cache_key(isa: str) -> str:
        facts = f"{platform.node()} {sorted(flags)} {version('torch')} {isa}"
        return hashlib.sha256(facts.encode()).hexdigest()[:16]

    try:
        path = base_dir() / "cpu.json"
    except UserError:  # there is no home folder: what needs the base folder will say so
        path = None
    isa = os.environ.get(ISA_VARIABLE, "")
    stored = read_cached_probes(path) if path else {}
    probe = stored.get(cache_key(isa)) or _uncertain.get((path, cache_key(isa)))
    if probe is None:
        print0("Trying bf16 matrix products on this processor (once) ...")
        probe, is_certain = probe_bf16(isa)
        # The second entry serves this process and its children, in which the variable is set below.
        if not is_certain:
            for limit in (isa, probe["isa"]):
                _uncertain[path, cache_key(limit)] = probe
        elif path:
            stored = read_cached_probes(path)  # another process may have added to it meanwhile
            write_json_cache(path, {**stored, cache_key(isa): probe, cache_key(probe["isa"]): probe})
    if probe["isa"]:
        os.environ[ISA_VARIABLE] = probe["isa"]
    return probe


def keep_freed_memory() -> None:
    """Make glibc's allocator keep freed memory for reuse instead of returning it to the system.

    Training allocates and frees the same large tensors in every step. Without this setting a quarter of the time goes
    into page faults. Does nothing on other C libraries.
    """
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        return
    trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD, M_MMAP_MAX of malloc.h
    libc = ctypes.CDLL(None)
    libc.mallopt(trim_threshold, (1 << 31) - 1)
    libc.mallopt(mmap_max, 0)
