"""Batch sizes: rows of a micro-batch on one device, and micro-batches of an optimizer step (accumulation steps).

total_batch_size = device_batch_size x max_seq_len x number of processes x accumulation steps    (in tokens)

`sequence_len` is the number of tokens of a row, the setting `max_seq_len`.
"""

from __future__ import annotations

import torch

from nanochat.checkpoint_manager import Checkpoint
from nanochat.common import UserError, print0
from nanochat.gpt import GPT
from nanochat.runtime import Runtime
from nanochat.train import warm_up

MAX_CPU_TOKENS = 8192  # of a micro-batch: larger ones are no faster on a CPU
MAX_GPU_MEMORY_SHARE = 0.9


def accumulation_steps(total_batch_size: int, device_batch_size: int, sequence_len: int, world_size: int) -> int:
    """Return the number of micro-batches in a step.

    Raises `UserError` that names the nearest valid totals if the total batch is not a whole number of micro-batches.

    >>> accumulation_steps(total_batch_size=524288, device_batch_size=32, sequence_len=2048, world_size=4)
    2
    """
    tokens = device_batch_size * sequence_len * world_size
    if total_batch_size % tokens:
        below = total_batch_size // tokens * tokens
        nearest = f"{below} or {below + tokens}" if below else f"{tokens}"
        raise UserError(
            f"total_batch_size {total_batch_size} does not divide by device_batch_size {device_batch_size} x "
            f"max_seq_len {sequence_len} x {world_size} processes = {tokens}: choose {nearest}"
        )
    return total_batch_size // tokens


def valid_device_batch_sizes(total_batch_size: int, sequence_len: int, world_size: int) -> list[int]:
    """Return the device batch sizes that `accumulation_steps` accepts, in descending order; may be empty.

    >>> valid_device_batch_sizes(total_batch_size=8192, sequence_len=512, world_size=2)
    [8, 4, 2, 1]
    """
    if total_batch_size % (sequence_len * world_size):
        return []
    rows = total_batch_size // (sequence_len * world_size)
    return [size for size in range(rows, 0, -1) if rows % size == 0]


def resolve_device_batch_size(
    setting: int | str,
    checkpoint: Checkpoint | None,
    model: GPT,
    total_batch_size: int,
    runtime: Runtime,
    sequence_len: int | None = None,
) -> int:
    """Return the device batch size of a run: the setting, or for "auto" the largest that fits.

    A run that resumes `checkpoint` with the same number of processes keeps the size that the checkpoint records.
    `sequence_len` None: rows as long as the model's context.
    """
    if setting != "auto":
        return int(setting)
    if checkpoint and checkpoint.meta["world_size"] == runtime.world_size:
        return int(checkpoint.meta["device_batch_size"])
    return largest_device_batch_size(model, total_batch_size, sequence_len or model.config.sequence_len, runtime)


def largest_device_batch_size(model: GPT, total_batch_size: int, sequence_len: int, runtime: Runtime) -> int:
    """Return the largest valid device batch size that fits into the GPU's memory, or within `MAX_CPU_TOKENS`.

    Raises `UserError` if no size is valid, or if not even one row fits.
    """
    sizes = valid_device_batch_sizes(total_batch_size, sequence_len, runtime.world_size)
    if not sizes:
        accumulation_steps(
            total_batch_size, 1, sequence_len, runtime.world_size
        )  # raises `UserError`, with the nearest valid totals
    if runtime.device.type == "cuda":
        largest = next((size for size in sizes if fits_in_memory(model, size, sequence_len)), 0)
        if not largest:
            raise UserError("not even one row fits into this GPU's memory: lower --max_seq_len or --depth")
    else:
        largest = next((size for size in sizes if size * sequence_len <= MAX_CPU_TOKENS), 1)
    largest = runtime.broadcast(largest)
    print0(f"Device batch size {largest}")
    return largest


def fits_in_memory(model: GPT, batch_size: int, sequence_len: int) -> bool:
    """Run a forward and backward pass; return True if it leaves a tenth of the GPU's memory free."""
    torch.cuda.reset_peak_memory_stats(model.device)
    try:
        warm_up(forward=model, model=model, batch_size=batch_size, sequence_len=sequence_len)
        total_memory = torch.cuda.get_device_properties(model.device).total_memory
        return torch.cuda.max_memory_allocated(model.device) < MAX_GPU_MEMORY_SHARE * total_memory
    except torch.cuda.OutOfMemoryError:
        return False
    finally:
        model.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()
