"""Names that every script uses: errors, `$NANOCHAT_BASE_DIR`, printing, atomic writes, and the setup of a process.

They are defined in `nanochat/system/` and imported from here. Importing this module does not import torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nanochat.system.console import command, print0, run_without_output, visible
from nanochat.system.errors import StoppedBySignal, UserError, as_user_error, find_fault_of_file, find_lost_process
from nanochat.system.files import (
    as_write_error,
    base_dir,
    check_file_writable,
    check_name,
    check_writable,
    expand_path,
    write_json_atomic,
    write_json_cache,
    write_text_atomic,
    written_atomically,
)

if TYPE_CHECKING:
    import torch

__all__ = [
    "StoppedBySignal",
    "UserError",
    "as_user_error",
    "as_write_error",
    "base_dir",
    "check_file_writable",
    "check_name",
    "check_writable",
    "command",
    "compute_init",
    "expand_path",
    "find_fault_of_file",
    "find_lost_process",
    "print0",
    "run_without_output",
    "visible",
    "write_json_atomic",
    "write_json_cache",
    "write_text_atomic",
    "written_atomically",
]


def compute_init(seed: int = 42, device: str = "auto") -> tuple[bool, int, int, int, torch.device]:
    """Set up this process and return (ddp, ddp_rank, ddp_local_rank, ddp_world_size, device).

    Joins the other processes under torchrun (`ddp` is then True), chooses the device (auto, cpu, cuda or mps), and
    seeds torch. The scripts use `nanochat.runtime.Runtime.start` instead, which returns all of this in one object.
    """
    from nanochat.runtime import Runtime

    runtime = Runtime.start(seed, device)
    return runtime.world_size > 1, runtime.rank, runtime.local_rank, runtime.world_size, runtime.device
