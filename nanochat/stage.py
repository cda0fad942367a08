"""What every training script does around the loop: find a batch size, compile, resume, save, say how to go on."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nanochat.checkpoint_manager import Checkpoint, check_tokenizer, open_checkpoint, save_checkpoint
from nanochat.common import UserError, print0
from nanochat.gpt import GPT, GPTConfig
from nanochat.optim import Optimizer
from nanochat.runtime import Runtime
from nanochat.tokenizer import Tokenizer
from nanochat.train import LoopState, Metrics

Forward = Callable[..., Tensor]  # a model, compiled or not
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


def batch_size_of(
    asked: str, checkpoint: Checkpoint | None, model: GPT, total_batch_size: int, runtime: Runtime
) -> int:
    """The device batch size: as found when the run began, else as asked for, which may be "auto"."""
    if checkpoint and checkpoint.meta["world_size"] == runtime.world_size:
        return int(checkpoint.meta["device_batch_size"])
    if asked == "auto":
        return auto_batch_size(model, total_batch_size, model.config.sequence_len, runtime)
    return int(asked)


def auto_batch_size(model: GPT, total_batch_size: int, sequence_len: int, runtime: Runtime) -> int:
    """The largest legal device batch size: on CUDA that fits (tried for real), on the CPU within a fixed rule."""
    sizes = legal_batch_sizes(total_batch_size, sequence_len, runtime.world_size)
    if not sizes:
        check_batch(total_batch_size, 1, sequence_len, runtime.world_size)
    if runtime.device.type == "cuda":
        chosen = next((size for size in sizes if fits(model, size, sequence_len)), 0)
        if not chosen:
            raise UserError("not even one row fits into this GPU's memory: lower --max_seq_len or --depth")
    else:
        chosen = next((size for size in sizes if size * sequence_len <= CPU_TOKENS), 1)
    chosen = runtime.from_main(chosen)
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


def warm_up(forward: Forward, model: GPT, batch_size: int, sequence_len: int) -> None:
    """A forward and backward pass on nothing, whose gradients are dropped."""
    zeros = torch.zeros(batch_size, sequence_len, dtype=torch.int64, device=model.device)
    forward(zeros, zeros, loss_reduction="sum").backward()
    model.zero_grad(set_to_none=True)


def compile_model(model: GPT, mode: str, num_steps: int, batch_size: int, runtime: Runtime) -> Forward:
    """The compiled model, or the model itself where compiling is off, does not pay, or fails (with a notice).

    `mode`: auto, on or off. All processes decide alike.
    """
    if mode == "off" or (mode == "auto" and (runtime.device.type == "mps" or num_steps < MIN_COMPILED_STEPS)):
        return model
    if runtime.device.type == "cpu" and not any(map(shutil.which, ("c++", "g++", "clang++"))):
        print0("No C++ compiler: training runs uncompiled, about a third slower.")
        return model
    print0("Compiling the model (the first time takes up to a minute) ...")
    compiled: Forward = torch.compile(model, dynamic=False)
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
    folder: Path, model: GPT, optimizer: Optimizer, meta: dict[str, Any], keep_last: int
) -> Callable[[LoopState], Metrics]:
    """An event's `run` that writes a checkpoint; `meta` is meta.json besides the loop state."""
    runtime = optimizer.runtime

    def save(state: LoopState) -> Metrics:
        optimizer_state = optimizer.state_dict()  # gathered: every process takes part
        if runtime.is_main:
            whole = {**meta, "world_size": runtime.world_size, "loop": asdict(state)}
            path = save_checkpoint(folder, state.step, model.state_dict(), optimizer_state, whole, keep_last)
            print0(f"Saved {path}")
        runtime.barrier()
        return {}

    return save


def checkpoint_to_resume(folder: Path, step: int, tokenizer: Tokenizer, data_hash: str, shape: GPTConfig) -> Checkpoint:
    """The checkpoint of a step (-1: the last). UserError if tokenizer, data or model are not those it was made with."""
    checkpoint = open_checkpoint(folder, step)
    check_tokenizer(checkpoint, tokenizer)
    if checkpoint.meta["data_hash"] != data_hash:
        raise UserError(f"{checkpoint.path} was trained on other data than what is here now: put that back to resume")
    found, asked = checkpoint.meta["model_config"], asdict(shape)
    if changed := [f"{name} {found[name]} -> {asked[name]}" for name in found if found[name] != asked[name]]:
        raise UserError(f"{checkpoint.path} is another model ({', '.join(changed)}): resume with the settings it had")
    return checkpoint


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
