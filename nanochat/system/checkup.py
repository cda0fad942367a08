"""What a training run will find on this machine, and whether it stands in the way: one small check for each part.

What needs a library is imported in the check that uses it: where one is missing or broken, the others still speak.
"""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
import warnings
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

from nanochat.common import UserError, base_dir

OK, NOTICE, FAIL = "ok", "notice", "FAIL"
Finding = tuple[str, str]  # how grave, and what
LIBRARIES = (
    *("datasets", "fastapi", "filelock", "huggingface-hub", "matplotlib", "numpy", "psutil", "pyarrow"),
    *("pyyaml", "regex", "requests", "safetensors", "setuptools", "starlette", "tiktoken", "tokenizers", "tqdm"),
    "uvicorn",
)
MIN_TORCH = (2, 9)
GB = 1e9


def checkup(device: str) -> Iterator[tuple[str, Finding]]:
    """Every part's name with its finding, for a run with this `--device`. Raises nothing."""
    for check in NEEDED:
        yield check.__name__.removeprefix("check_"), examine(check, device, FAIL)
    for check in MADE_BY_A_RUN:
        yield check.__name__.removeprefix("check_"), examine(check, device, NOTICE)


def examine(check: Callable[[str], Finding], device: str, when_absent: str) -> Finding:
    """Run one check; whatever goes wrong in it is a finding too."""
    try:
        return check(device)
    except UserError as error:
        return when_absent, str(error)
    except Exception as error:  # a broken library can raise anything, and the other checks still have something to say
        return FAIL, f"{type(error).__name__}: {error}".splitlines()[0]


def check_versions(_: str) -> Finding:
    """Python, torch and the other declared dependencies."""
    from nanochat.system.environment import package_version

    versions = {name: package_version(name) for name in ("torch", *LIBRARIES)}
    if missing := [name for name, found in versions.items() if found is None]:
        return FAIL, f"not installed: {', '.join(missing)}; bash dev/setup.sh installs everything"
    told = ", ".join([f"Python {sys.version.split()[0]}", *(f"{name} {found}" for name, found in versions.items())])
    torch_version = tuple(int(part) for part in str(versions["torch"]).split(".")[:2])
    if sys.version_info < (3, 10) or torch_version < MIN_TORCH:
        return FAIL, f"Python 3.10 and torch {'.'.join(map(str, MIN_TORCH))} are needed; here are {told}"
    return OK, told


def check_machine(_: str) -> Finding:
    """Processor, cores, threads, memory."""
    import torch

    from nanochat.system.environment import num_usable_cores, processor_name, total_memory_gb

    threads, cores, memory = torch.get_num_threads(), num_usable_cores(), total_memory_gb()
    told = f"{processor_name()}, {cores} cores, {threads} threads, {memory} GB of memory"
    if threads > cores:
        return NOTICE, f"{told}; more threads than cores slow each other down: set OMP_NUM_THREADS={cores}"
    return (NOTICE, f"{told}; keep --depth and --device_batch_size small") if memory < 4 else (OK, told)


def check_bf16(_: str) -> Finding:
    """Whether the processor's bf16 instructions (AVX512-BF16, AMX) work and are worth it."""
    from nanochat.system.cpu import ISA_VARIABLE, cpu_flags, prepare_bf16

    named = {"avx512_bf16": "AVX512-BF16", "amx_bf16": "AMX"}
    units = " and ".join(name for flag, name in named.items() if flag in cpu_flags())
    if not units:
        return OK, "this processor has neither AVX512-BF16 nor AMX"
    speedup = prepare_bf16()
    if speedup is None:
        return NOTICE, f"{units} advertised, but bf16 products do not work here: float32 is used"
    told = f"{units}; bf16 products run at {speedup:.1f} times the speed of float32"
    limit = os.environ.get(ISA_VARIABLE)
    return (NOTICE, f"{told}, with {ISA_VARIABLE}={limit}") if limit else (OK, told)


def check_device(device: str) -> Finding:
    """Where a run would compute, and in what."""
    import torch

    from nanochat.runtime import Runtime

    runtime = Runtime.start(device=device)
    runtime.finish()
    told = f"{runtime.device}, computing in {runtime.dtype_name}"
    if runtime.device.type == "cuda":
        cards = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        return OK, f"{told}; " + ", ".join(f"{card.name} {card.total_memory / GB:.0f} GB" for card in cards)
    return OK, told


def check_attention(device: str) -> Finding:
    """The first attention kernel that takes the model's shapes: tried, not looked up."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    from nanochat.runtime import Runtime

    runtime = Runtime.start(device=device)
    q = torch.randn(1, 2, 64, 128, device=runtime.device, dtype=runtime.compute_dtype)
    kernels = {"flash": SDPBackend.FLASH_ATTENTION, "memory-efficient": SDPBackend.EFFICIENT_ATTENTION}
    for name, kernel in kernels.items():
        with warnings.catch_warnings(), sdpa_kernel(kernel):
            warnings.simplefilter("ignore")  # they say why a kernel does not take these shapes
            try:
                torch.nn.functional.scaled_dot_product_attention(q, q, q, is_causal=True)
                return OK, f"{name} kernel"
            except RuntimeError:
                continue
    grade = OK if runtime.device.type == "mps" else NOTICE  # where there is no other, there is nothing to mend
    return grade, "plain mathematics: slower, and more memory in long contexts"


def check_compile(device: str) -> Finding:
    """What torch.compile needs: a C++ compiler and Python's headers, on CUDA also Triton."""
    from nanochat.runtime import resolve_device

    compilers = [os.environ.get("CXX"), "g++", "clang++", "c++", "cl"]
    compiler = next((found for name in compilers if name and (found := shutil.which(name))), None)
    missing = [] if compiler else ["a C++ compiler (g++ or clang++)"]
    if not Path(sysconfig.get_paths()["include"], "Python.h").is_file():
        missing.append("Python's headers (python3-dev)")
    if resolve_device(device, 0).type == "cuda" and find_spec("triton") is None:
        missing.append("Triton")
    if missing:
        return NOTICE, f"off: {' and '.join(missing)} not found; training runs eagerly"
    return OK, str(compiler)


def check_trainer(_: str) -> Finding:
    """Who would train the tokenizer."""
    try:
        from nanochat.tokenization import _rustbpe
    except ImportError as error:
        return NOTICE, f"the Rust extension is not built ({error}): Hugging Face's trainer takes over, slower"
    return OK, f"the Rust extension, {Path(str(_rustbpe.__file__)).name}"


def check_disk(_: str) -> Finding:
    """Room and permission in the base folder."""
    folder = base_dir().absolute()
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(existing).free / GB
    told = f"{free:.1f} GB free for {folder}"
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        return FAIL, f"{existing} cannot be written to; set NANOCHAT_BASE_DIR to a folder that can"
    if free < 0.2:
        return FAIL, f"{told}: not enough for a checkpoint; set NANOCHAT_BASE_DIR to a larger disk"
    return (NOTICE, f"{told}: little") if free < 5 else (OK, told)


def check_data(_: str) -> Finding:
    """The data set that is there."""
    from nanochat.data.shards import load_manifest

    manifest = load_manifest()
    return OK, f"{manifest.source}: {len(manifest.train)} training shards and {manifest.validation}"


def check_tokenizer(_: str) -> Finding:
    """The trained tokenizer that is there."""
    from nanochat.tokenizer import get_tokenizer

    return OK, f"{get_tokenizer().get_vocab_size():,} tokens"


def check_checkpoints(_: str) -> Finding:
    """The models that are there."""
    found = sorted(path.parent.relative_to(base_dir()) for path in base_dir().glob("*_checkpoints/*/step_*/meta.json"))
    return OK, ", ".join(map(str, found)) or "none yet"


NEEDED = (
    check_versions,
    check_machine,
    check_bf16,
    check_device,
    check_attention,
    check_compile,
    check_trainer,
    check_disk,
)
MADE_BY_A_RUN = (check_data, check_tokenizer, check_checkpoints)  # what is absent here can be made
