"""NVIDIA GPUs: the number that torch can use, the reason if it cannot use those of the driver, and the allocator.

    python -m nanochat.system.gpu     # prints the number; if the GPUs cannot be used: one line and exit code 2

speedrun.sh and `Runtime` both take their answer from here. The driver's library counts GPUs even if the driver is too
old for the installed torch (`torch.cuda.device_count`); whether torch can use them is a second question
(`torch.cuda.is_available`).
"""

from __future__ import annotations

import os
import re
import warnings
from pathlib import Path

from nanochat.system.console import command
from nanochat.system.environment import command_output
from nanochat.system.errors import UserError

DEVICE_DIR = Path("/dev")  # the driver makes nvidia0, nvidia1, ... there on Linux
DRIVER_FILE = Path("/proc/driver/nvidia/version")
ALLOCATOR_VARIABLES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
EXPANDABLE_SEGMENTS = "expandable_segments:True"


def num_usable_gpus() -> int:
    """Return the number of GPUs that torch can use; 0 if there is none or none can be used."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of an unsuitable driver: `find_gpu_problem` has the reason
        return torch.cuda.device_count() if torch.cuda.is_available() else 0


def find_gpu_problem() -> str | None:
    """Return one line with the reason and the remedy if this machine has NVIDIA GPUs that torch cannot use, else None.

    GPUs that `$CUDA_VISIBLE_DEVICES` hides are none.
    """
    import torch

    if num_usable_gpus() or _are_gpus_hidden():
        return None
    driver_versions = (
        command_output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader") or ""
    ).split()
    nodes = [path for path in DEVICE_DIR.glob("nvidia*") if re.fullmatch(r"nvidia\d+", path.name)]
    num_gpus = max(torch.cuda.device_count(), len(driver_versions), len(nodes))
    if num_gpus == 0:
        return None
    try:
        torch.cuda.init()
        reason = "torch.cuda.is_available() is False"
    except Exception as error:  # RuntimeError of the driver, or AssertionError of a torch without CUDA
        reason = str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__
    gpus = f"{num_gpus} NVIDIA GPU{'s' * (num_gpus > 1)}"
    cuda = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
    driver = driver_versions[0] if driver_versions else _driver_version()
    return (
        f"{gpus} here, but torch {torch.__version__} ({cuda}) cannot use them with driver {driver}: {reason}. "
        "Update the driver, or install a torch for its CUDA version; CUDA_VISIBLE_DEVICES= (empty) hides the GPUs"
    )


def count_gpus() -> int:
    """Return the number of GPUs to train on. Raises `UserError` if there are GPUs that torch cannot use."""
    if problem := find_gpu_problem():
        raise UserError(problem)
    return num_usable_gpus()


def use_expandable_segments() -> None:
    """Let the segments of the GPU memory's allocator grow, unless the user has set the allocator.

    Segments of fixed sizes are split into pieces that do not fit the next shapes; training, evaluation and generation
    take turns in the same memory. Call this before the first tensor is on a GPU.
    """
    import torch

    if any(name in os.environ for name in ALLOCATOR_VARIABLES):
        return
    # torch before 2.11 ignores this setting under the new name (pytorch issue 183387).
    is_renamed = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 11)
    os.environ[ALLOCATOR_VARIABLES[0 if is_renamed else 1]] = EXPANDABLE_SEGMENTS
    # The variable serves processes that this one starts; torch itself may have read it when it was imported.
    if set_allocator := getattr(torch._C, "_accelerator_setAllocatorSettings", None):
        set_allocator(EXPANDABLE_SEGMENTS)


def _are_gpus_hidden() -> bool:
    """Return True if `$CUDA_VISIBLE_DEVICES` names no GPU: it is empty, or begins with -1 or another invalid entry."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible is not None and not re.match(r"\s*(\d|GPU-|MIG-)", visible)


def _driver_version() -> str:
    try:
        text = DRIVER_FILE.read_text(encoding="utf-8")
    except OSError:
        text = ""
    version = re.search(r"\b\d+\.\d+(\.\d+)?\b", text)
    return version[0] if version else "of unknown version"


def main() -> None:
    """Print the number of GPUs; SystemExit(2) after one line on stderr if they cannot be used."""
    with command():
        print(count_gpus())


if __name__ == "__main__":
    main()
