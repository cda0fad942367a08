"""How a step's tokens are divided: rows of a micro-batch on one device, and micro-batches in a step."""

from __future__ import annotations

import torch

from nanochat.checkpoint_manager import Checkpoint
from nanochat.common import UserError, print0
from nanochat.gpt import GPT
from nanochat.runtime import Runtime
from nanochat.train import warm_up

CPU_TOKENS = 8192  # of a micro-batch: larger ones are no faster on a CPU


def accumulation_steps(total_batch_size: int, device_batch_size: int, sequence_len: int, world_size: int) -> int:
    """Micro-batches in a step. Raises `UserError`, with the nearest legal total, if the batch does not divide."""
    unit = device_batch_size * sequence_len * world_size
    if total_batch_size % unit:
        below = total_batch_size // unit * unit
        nearest = f"{below} or {below + unit}" if below else f"{unit}"
        raise UserError(
            f"total_batch_size {total_batch_size} does not divide by device_batch_size {device_batch_size} x "
            f"max_seq_len {sequence_len} x {world_size} processes = {unit}: choose {nearest}"
        )
    return total_batch_size // unit


def legal_batch_sizes(total_batch_size: int, sequence_len: int, world_size: int) -> list[int]:
    """Device batch sizes with which the total divides, the largest first; empty if there is none."""
    if total_batch_size % (sequence_len * world_size):
        return []
    rows = total_batch_size // (sequence_len * world_size)
    return [size for size in range(rows, 0, -1) if rows % size == 0]


def batch_size_of(
    asked: int | str,
    checkpoint: Checkpoint | None,
    model: GPT,
    total_batch_size: int,
    runtime: Runtime,
    sequence_len: int | None = None,
) -> int:
    """The device batch size: a number if one was asked for; for "auto" the one that was found when the run began.

    `sequence_len`: tokens of a row, if not the whole context.
    """
    if asked != "auto":
        return int(asked)
    if checkpoint and checkpoint.meta["world_size"] == runtime.world_size:
        return int(checkpoint.meta["device_batch_size"])
    return auto_batch_size(model, total_batch_size, sequence_len or model.config.sequence_len, runtime)


def auto_batch_size(model: GPT, total_batch_size: int, sequence_len: int, runtime: Runtime) -> int:
    """The largest legal device batch size: on CUDA that fits (tried for real), on the CPU within a fixed rule."""
    sizes = legal_batch_sizes(total_batch_size, sequence_len, runtime.world_size)
    if not sizes:
        accumulation_steps(total_batch_size, 1, sequence_len, runtime.world_size)
    if runtime.device.type == "cuda":
        chosen = next((size for size in sizes if fits(model, size, sequence_len)), 0)
        if not chosen:
            raise UserError("not even one row fits into this GPU's memory: lower --max_seq_len or --depth")
    else:
        chosen = next((size for size in sizes if size * sequence_len <= CPU_TOKENS), 1)
    chosen = runtime.broadcast(chosen)
    print0(f"Device batch size {chosen}")
    return chosen


def fits(model: GPT, batch_size: int, sequence_len: int) -> bool:
    """Whether a forward and backward pass of this size runs with a tenth of the GPU's memory to spare."""
    torch.cuda.reset_peak_memory_stats(model.device)
    try:
        warm_up(model, model, batch_size, sequence_len)
        total = torch.cuda.get_device_properties(model.device).total_memory
        return torch.cuda.max_memory_allocated(model.device) < 0.9 * total
    except torch.cuda.OutOfMemoryError:
        return False
    finally:
        model.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()
