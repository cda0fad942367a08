"""What every training script does around the loop: find a batch size, compile, resume, save, say how to go on."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from nanochat.checkpoint_manager import Checkpoint, save_checkpoint
from nanochat.common import UserError, print0
from nanochat.gpt import GPT
from nanochat.optim import Optimizer
from nanochat.runtime import Runtime
from nanochat.train import LoopState

CPU_TOKENS = 8192  # of a micro-batch: larger ones are no faster on a CPU
MIN_COMPILED_STEPS = 100  # a shorter run ends before compiling has paid


def check_batch(total_batch_size: int, device_batch_size: int, sequence_len: int, world_size: int) -> int:
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


def auto_batch_size(model: GPT, total_batch_size: int, sequence_len: int, runtime: Runtime) -> int:
    """The largest legal device batch size: on CUDA that fits (tried for real), on the CPU within a fixed rule."""
    sizes = legal_batch_sizes(total_batch_size, sequence_len, runtime.world_size)
    if not sizes:
        check_batch(total_batch_size, 1, sequence_len, runtime.world_size)
    if runtime.device.type == "cuda":
        chosen = next((size for size in sizes if fits(model, size, sequence_len)), None)
        if chosen is None:
            raise UserError("not even one row fits into this GPU's memory: lower --max_seq_len or --depth")
    else:
        chosen = next((size for size in sizes if size * sequence_len <= CPU_TOKENS), 1)
    chosen = min(sizes, key=lambda size: abs(size - runtime.from_main(chosen)))
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


def warm_up(callable_model: nn.Module, model: GPT, batch_size: int, sequence_len: int) -> None:
    """A forward and backward pass on nothing, whose gradients are dropped."""
    zeros = torch.zeros(batch_size, sequence_len, dtype=torch.int64, device=model.device)
    callable_model(zeros, zeros, loss_reduction="sum").backward()
    model.zero_grad(set_to_none=True)


def compile_model(model: GPT, mode: str, num_steps: int, batch_size: int, runtime: Runtime) -> nn.Module:
    """The compiled model, or the model itself where compiling is off, does not pay, or fails (with a notice).

    `mode`: auto, on or off. All processes decide alike.
    """
    if mode == "off" or (mode == "auto" and (runtime.device.type == "mps" or num_steps < MIN_COMPILED_STEPS)):
        return model
    if runtime.device.type == "cpu" and not any(map(shutil.which, ("c++", "g++", "clang++"))):
        print0("No C++ compiler: training runs uncompiled, about a third slower.")
        return model
    print0("Compiling the model (the first time takes up to a minute) ...")
    compiled: nn.Module = torch.compile(model, dynamic=False)
    try:
        warm_up(compiled, model, batch_size, model.config.sequence_len)
        failure = None
    except Exception as error:  # whatever a compiler may raise
        failure = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
    if runtime.any(failure is not None):
        print0(f"Compiling failed, so training runs uncompiled: {failure or 'on another process'}")
        return model
    return compiled


def saver(
    folder: Any, model: GPT, optimizer: Optimizer, describe: Callable[[], dict[str, Any]], keep_last: int
) -> Callable[[LoopState], dict[str, float]]:
    """An event's `run` that writes a checkpoint; `describe` gives meta.json besides the loop state."""

    def save(state: LoopState) -> dict[str, float]:
        optimizer_state = optimizer.state_dict()  # gathered: every process takes part
        if optimizer.runtime.is_main:
            meta = {**describe(), "loop": asdict(state)}
            path = save_checkpoint(folder, state.step, model.state_dict(), optimizer_state, meta, keep_last)
            print0(f"Saved {path}")
        optimizer.runtime.barrier()
        return {}

    return save


def restore(checkpoint: Checkpoint, optimizer: Optimizer) -> LoopState:
    """Put a checkpoint's optimizer state in place and return where its run stood. (Nothing else of it is random: no
    step draws a number, and samples have seeds of their own.)"""
    optimizer.load_state_dict(checkpoint.optimizer_state())
    state = LoopState(**checkpoint.meta["loop"])
    state.stopped = False
    print0(f"Resuming {checkpoint.path}, {state.progress:.1%} of the run done")
    return state


def resume_command(module: str) -> str:
    """The command line that continues this run."""
    flags = [word for word in sys.argv[1:] if not word.replace("-", "_").startswith("__resume")]
    return " ".join(["python -m", module, *flags, "--resume"])
