"""Checks of the machine for scripts/doctor.py: libraries, processor, device, kernels, compiler and disk.

Each check imports the libraries it needs itself, so that a missing or broken library does not stop the other checks.
"""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from nanochat.common import UserError, base_dir

OK = "ok"
NOTICE = "notice"
FAIL = "FAIL"
LIBRARIES = (
    "charset-normalizer",
    "datasets",
    "fastapi",
    "huggingface-hub",
    "markdown-it-py",
    "matplotlib",
    "mdit-py-plugins",
    "numpy",
    "prometheus-client",
    "psutil",
    "pyarrow",
    "pydantic",
    "pyyaml",
    "regex",
    "requests",
    "safetensors",
    "setuptools",
    "starlette",
    "tiktoken",
    "tokenizers",
    "tqdm",
    "uvicorn",
)
MIN_TORCH = (2, 9)
GB = 1e9


class Finding(NamedTuple):
    """Result of a check: `grade` is OK, NOTICE (training is possible) or FAIL (training is impossible)."""

    grade: str
    message: str


Check = Callable[[str], Finding]  # takes the value of --device


def run_check(check: Check, device: str, grade_of_user_error: str = FAIL) -> Finding:
    """Run a check for a run with this `--device`; an exception becomes a finding too."""
    try:
        return check(device)
    except UserError as error:
        return Finding(grade_of_user_error, str(error))
    except Exception as error:  # a broken library can raise anything, and the other checks must still run
        return Finding(FAIL, f"{type(error).__name__}: {error}".splitlines()[0])


def check_versions(_: str) -> Finding:
    """Python, torch and the other declared dependencies."""
    from nanochat.system.environment import package_version

    versions = {name: package_version(name) for name in ("torch", *LIBRARIES)}
    if missing := [name for name, installed in versions.items() if installed is None]:
        return Finding(FAIL, f"not installed: {', '.join(missing)}; bash dev/setup.sh installs everything")
    libraries = [f"{name} {installed}" for name, installed in versions.items()]
    summary = ", ".join([f"Python {sys.version.split()[0]}", *libraries])
    torch_version = tuple(int(part) for part in str(versions["torch"]).split(".")[:2])
    if sys.version_info < (3, 10) or torch_version < MIN_TORCH:
        needed = f"Python 3.10 and torch {'.'.join(map(str, MIN_TORCH))}"
        return Finding(FAIL, f"{needed} or newer are needed; this machine has {summary}")
    return Finding(OK, summary)


def check_machine(_: str) -> Finding:
    """Processor, cores, threads, memory."""
    import torch

    from nanochat.system.environment import num_usable_cores, processor_name, total_memory_gb

    num_threads = torch.get_num_threads()
    num_cores = num_usable_cores()
    memory_gb = total_memory_gb()
    summary = f"{processor_name()}, {num_cores} cores, {num_threads} threads, {memory_gb} GB of memory"
    if num_threads > num_cores:
        return Finding(
            NOTICE, f"{summary}; more threads than cores slow each other down: set OMP_NUM_THREADS={num_cores}"
        )
    if memory_gb < 4:
        return Finding(NOTICE, f"{summary}; keep --depth and --device_batch_size small")
    return Finding(OK, summary)


def check_bf16(_: str) -> Finding:
    """The processor's bf16 instructions (AVX512-BF16, AMX): present, working, and faster than float32."""
    from nanochat.system.cpu import ISA_VARIABLE, cpu_flags, measure_bf16_speedup

    unit_names = {"avx512_bf16": "AVX512-BF16", "amx_bf16": "AMX"}
    units = " and ".join(name for flag, name in unit_names.items() if flag in cpu_flags())
    if not units:
        return Finding(OK, "this processor has neither AVX512-BF16 nor AMX")
    speedup = measure_bf16_speedup()
    if speedup is None:
        return Finding(NOTICE, f"{units} advertised, but bf16 products do not work here: float32 is used")
    summary = f"{units}; bf16 products run at {speedup:.1f} times the speed of float32"
    if isa_limit := os.environ.get(ISA_VARIABLE):
        return Finding(NOTICE, f"{summary}, with {ISA_VARIABLE}={isa_limit}")
    return Finding(OK, summary)


def check_device(device: str) -> Finding:
    """Device and compute dtype of a run."""
    import torch

    from nanochat.runtime import Runtime, resolve_device
    from nanochat.system.gpu import find_gpu_problem

    runtime = Runtime.start(device=resolve_device(device, 0).type)
    runtime.finish()
    summary = f"{runtime.device}, computing in {runtime.dtype_name}"
    if device == "auto" and runtime.device.type == "cpu" and (problem := find_gpu_problem()):
        return Finding(NOTICE, f"{summary}; {problem}")
    if runtime.device.type == "cuda":
        cards = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        summary += "; " + ", ".join(f"{card.name} {card.total_memory / GB:.0f} GB" for card in cards)
    return Finding(OK, summary)


def check_compile(device: str) -> Finding:
    """Requirements of torch.compile: a C++ compiler and Python's headers, on CUDA also Triton."""
    from nanochat.runtime import resolve_device

    names = [os.environ.get("CXX"), "g++", "clang++", "c++", "cl"]
    compiler = next((path for name in names if name and (path := shutil.which(name))), None)
    missing = [] if compiler else ["a C++ compiler (g++ or clang++)"]
    if not Path(sysconfig.get_paths()["include"], "Python.h").is_file():
        missing.append("Python's headers (python3-dev)")
    if resolve_device(device, 0).type == "cuda" and find_spec("triton") is None:
        missing.append("Triton")
    if missing:
        return Finding(NOTICE, f"off: {' and '.join(missing)} not found; training runs eagerly")
    return Finding(OK, str(compiler))


def check_disk(_: str) -> Finding:
    """Free space and write permission in `$NANOCHAT_BASE_DIR`."""
    folder = base_dir().absolute()
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    free_gb = shutil.disk_usage(existing).free / GB
    summary = f"{free_gb:.1f} GB free for {folder}"
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        return Finding(FAIL, f"{existing} cannot be written to; set NANOCHAT_BASE_DIR to a folder that can")
    if free_gb < 0.2:
        return Finding(FAIL, f"{summary}: not enough for a checkpoint; set NANOCHAT_BASE_DIR to a larger disk")
    if free_gb < 5:
        return Finding(NOTICE, f"{summary}: little")
    return Finding(OK, summary)
