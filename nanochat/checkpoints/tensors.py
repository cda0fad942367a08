"""The tensor files of a checkpoint, in the safetensors format: written, hashed, compared with their hashes, and read.

A file's hash is the SHA-256 of the SHA-256s of its blocks of 16 MiB, because blocks can be hashed side by side.
"""

from __future__ import annotations

import hashlib
import math
import os
import stat
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from nanochat.checkpoints.meta import FileFacts
from nanochat.common import UserError
from nanochat.system.environment import num_usable_cores
from nanochat.system.files import check_regular_file

BLOCK_BYTES = 1 << 24
MAX_FLOAT32_NORM = math.sqrt(torch.finfo(torch.float32).max)  # 1.8e19; the square of a larger one overflows
MAX_THREADS = 8  # more are not faster than a disk
REMEDY = "remove its folder to continue from an older checkpoint"


def file_facts(path: Path) -> FileFacts:
    """Return size and hash of a file. Raises OSError."""
    return {"bytes": path.stat().st_size, "sha256_of_blocks": hash_blocks(path)}


def hash_blocks(path: Path) -> str:
    """Return the SHA-256 of the SHA-256s of a file's blocks of `BLOCK_BYTES`, in hexadecimal."""

    def digest_from(offset: int) -> bytes:
        buffer = bytearray(min(BLOCK_BYTES, size - offset))
        with open(path, "rb", buffering=0) as file:
            file.seek(offset)
            view = memoryview(buffer)
            while len(view) and (count := file.readinto(view)):
                view = view[count:]
        return hashlib.sha256(buffer).digest()

    size = path.stat().st_size
    local_processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # each of them reads the checkpoint
    num_threads = max(1, min(MAX_THREADS, num_usable_cores() // local_processes))
    with ThreadPoolExecutor(num_threads) as pool:
        digests = pool.map(digest_from, range(0, size, BLOCK_BYTES))
        return hashlib.sha256(b"".join(digests)).hexdigest()


def check_file(path: Path, facts: FileFacts | None) -> None:
    """Raise `UserError` unless a file is as it was written. `facts` None: not recorded, by an earlier version."""
    if facts is None:
        return
    try:
        size = path.stat().st_size
        if size != facts["bytes"]:
            raise UserError(f"{path} cannot be read (it has {size:,} of {facts['bytes']:,} bytes): {REMEDY}")
        if hash_blocks(path) != facts["sha256_of_blocks"]:
            raise UserError(f"{path} cannot be read (it is damaged: its SHA-256 is not that of meta.json): {REMEDY}")
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error}): {REMEDY}") from error


def load_tensors(path: Path, facts: FileFacts | None = None, remedy: str = REMEDY) -> dict[str, Tensor]:
    """Read a safetensors file to the CPU. Raises `UserError` with its path if it is missing or damaged."""
    _check_kind(path, remedy)
    check_file(path, facts)
    try:
        return load_file(path)
    except (OSError, SafetensorError, ValueError, KeyError) as error:  # KeyError: a dtype that torch has not
        raise UserError(f"{path} cannot be read ({error}): {remedy}") from error
    except RuntimeError as error:
        if "mmap" not in str(error):
            raise
        size = path.stat().st_size
        raise UserError(f"{path} cannot be read: its {size:,} bytes cannot be mapped into memory") from error


def tensor_shapes(path: Path, remedy: str = REMEDY) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a safetensors file's tensors by name. Raises `UserError` as `load_tensors` does.

    The header is checked against the size of the file: no shape promises more than the file holds.
    """
    _check_kind(path, remedy)
    try:
        with safe_open(path, "np") as file:  # for torch the whole file would be mapped, which may be too large for that
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise UserError(f"{path} cannot be read ({error}): {remedy}") from error


def _check_kind(path: Path, remedy: str) -> None:
    try:
        check_regular_file(path)
    except UserError as error:
        raise UserError(f"{error}: {remedy}") from error


def write_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file with the permissions of any other new file: the library gives it to its owner only."""
    with open(path, "wb") as file:
        mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
    save_file(dict(tensors), path, metadata=metadata)
    with suppress(OSError):  # a file system without permissions
        os.chmod(path, mode)


def find_non_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """Return the name of a tensor with a value that is infinite or not a number, or None.

    A sum is such a value if one of its terms is, and takes one pass over the tensor, at the speed of the memory. It may
    also be one because it is too large, so then all values are looked at.
    """
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not _has_finite_sum(tensor) and not tensor.isfinite().all():
            return name
    return None


def find_weight_fault(weights: Mapping[str, Tensor]) -> tuple[str, str] | None:
    """Return the name of a weight that no model can be computed with, and what it is; None if there is none.

    As in `Optimizer.weights_norm`, weights are refused that are not finite, or so large that their squares overflow
    float32: so do the squares in the model's norms.
    """
    norms = {
        name: torch.linalg.vector_norm(weight.float()).item()
        for name, weight in weights.items()
        if weight.is_floating_point()
    }
    if math.hypot(*norms.values()) <= MAX_FLOAT32_NORM:
        return None
    if name := find_non_finite(weights):
        return name, "not finite"
    return max(norms, key=lambda name: norms[name]), "too large: the squares overflow"


def _has_finite_sum(tensor: Tensor) -> bool:
    if tensor.element_size() == 1:  # fp8 has no sum
        tensor = tensor.to(torch.bfloat16)
    return math.isfinite(tensor.sum(dtype=torch.float64 if tensor.dtype == torch.float64 else torch.float32).item())
