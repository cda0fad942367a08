"""Batch sizes: rows of a micro-batch on one device, and micro-batches of an optimizer step (accumulation steps).

total_batch_size = device_batch_size x max_seq_len x number of processes x accumulation steps    (in tokens)

`sequence_len` is the number of tokens of a row, the setting `max_seq_len`.

On a GPU the rows of "auto" follow from the computed memory of the run (nanochat/training/memory.py); then the model is
measured with them as it will be trained.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from nanochat.checkpoint_manager import Checkpoint
from nanochat.common import UserError, print0
from nanochat.gpt import GPT, GPTConfig
from nanochat.runtime import Runtime
from nanochat.train import Forward, warm_up
from nanochat.training.memory import (
    TrainingMemory,
    evaluation_memory,
    largest_fitting,
    training_memory,
)

MAX_CPU_TOKENS = 8192  # of a micro-batch: larger ones are no faster on a CPU
MAX_GPU_MEMORY_SHARE = 0.9  # the rest is for libraries, and for the unused parts of the allocator's blocks
POWERS_OF_TWO = (64, 32, 16, 8, 4, 2, 1)


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


@dataclass(frozen=True)
class BatchFitter:
    """Chooses the device batch size of a run.

    `is_compiled`: the model will be compiled. `compile_for` returns the model as it is trained on micro-batches of a
    given number of rows; all processes call it together, and it raises torch's OutOfMemoryError on all or on none.
    """

    model: GPT
    runtime: Runtime
    total_batch_size: int
    sequence_len: int
    is_compiled: bool
    compile_for: Callable[[int], Forward]

    def resolve(self, setting: int | str, checkpoint: Checkpoint | None) -> tuple[int, Forward]:
        """Return the device batch size, the setting or for "auto" the largest that fits, and the model to train.

        A run that resumes `checkpoint` with the same number of processes keeps the size that the checkpoint records.
        Raises `UserError` if no size is valid, or if the rows do not fit into memory.
        """
        if setting == "auto" and checkpoint and checkpoint.meta.get("world_size") == self.runtime.world_size:
            setting = checkpoint.meta.get("device_batch_size", setting)
        if setting == "auto":
            rows, forward = self.largest()
            print0(f"Device batch size {rows}")
            return rows, forward
        with self.explained_out_of_memory(int(setting)):
            return int(setting), self.compile_for(int(setting))

    def largest(self) -> tuple[int, Forward]:
        """Return the largest valid size that fits into each process's GPU, or within `MAX_CPU_TOKENS`, and its model.

        Raises `UserError` if no size is valid, or if not even one row fits.
        """
        sizes = valid_device_batch_sizes(self.total_batch_size, self.sequence_len, self.runtime.world_size)
        if not sizes:  # raises `UserError`, with the nearest valid totals
            accumulation_steps(self.total_batch_size, 1, self.sequence_len, self.runtime.world_size)
        if self.runtime.device.type != "cuda":
            rows = next((size for size in sizes if size * self.sequence_len <= MAX_CPU_TOKENS), 1)
            return rows, self.compile_for(rows)
        limit = -self.runtime.maximum(-memory_limit(self.runtime.device))  # of the smallest GPU
        one_row = self.memory(rows=1)
        first = largest_fitting(sizes, lambda rows: self.memory(rows).peak, limit) or sizes[-1]
        compiled: dict[int, Forward] = {}

        def measure(rows: int) -> float:
            return self._measured_peak(rows, one_row.step_buffers, compiled)

        rows = search_largest(sizes, first, measure, one_row.constant, limit)
        if not rows:
            raise UserError(f"not even one row fits into this GPU's memory: {self._remedies(rows=1)}")
        return rows, compiled[rows]

    def memory(self, rows: int, checkpoint_activations: bool | None = None) -> TrainingMemory:
        """Return the computed memory of training on `rows` rows; `checkpoint_activations` None: as the model is set."""
        if checkpoint_activations is None:
            checkpoint_activations = self.model.checkpoint_activations
        return training_memory(
            self.model.config,
            self.model.compute_dtype,
            rows,
            self.sequence_len,
            world_size=self.runtime.world_size,
            compiled=self.is_compiled,
            checkpoint_activations=checkpoint_activations,
        )

    def _measured_peak(self, rows: int, step_buffers: int, compiled: dict[int, Forward]) -> float:
        """Return the most bytes that training takes on any process; infinite if the memory of one is exhausted.

        The second pass adds to the gradients of the first. The optimizer's state exists already; its step would change
        the weights, so its buffers are computed instead. The model is added to `compiled`.
        """
        device = self.runtime.device
        torch.cuda.reset_peak_memory_stats(device)
        peak = float("inf")
        try:
            compiled[rows] = self.compile_for(rows)
            warm_up(compiled[rows], self.model, rows, self.sequence_len, num_passes=2)
            gradients = sum(param.nbytes for param in self.model.parameters())
            in_step = torch.cuda.memory_allocated(device) + gradients + step_buffers
            peak = float(max(torch.cuda.max_memory_allocated(device), in_step))
        except torch.OutOfMemoryError:
            pass
        self.model.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()
        return self.runtime.maximum(peak)

    @contextmanager
    def explained_out_of_memory(self, rows: int) -> Iterator[None]:
        """Context manager of a run on `rows` rows: a GPU without memory left is a `UserError` with what would fit."""
        try:
            yield
        except torch.OutOfMemoryError as error:
            used = f"{self.runtime.device} with --device_batch_size={rows}"
            raise UserError(f"out of memory on {used}: {self._remedies(rows)}") from error

    def _remedies(self, rows: int) -> str:
        """Return what would fit by computation instead of `rows` rows, with and without checkpointed activations."""
        limit = memory_limit(self.runtime.device)
        sizes = valid_device_batch_sizes(self.total_batch_size, self.sequence_len, self.runtime.world_size)
        options = []
        for is_checkpointed in sorted({self.model.checkpoint_activations, True}):
            is_change = is_checkpointed != self.model.checkpoint_activations
            candidates = [size for size in sizes if size < rows or is_change]
            peaks = {size: self.memory(size, is_checkpointed).peak for size in candidates}
            if fitting := largest_fitting(candidates, peaks.__getitem__, limit):
                flag = " with --checkpoint_activations" if is_checkpointed else ""
                options.append(f"{fitting} {'row fits' if fitting == 1 else 'rows fit'}{flag}")
        return f"by computation {', '.join(options)}" if options else "lower --depth or --max_seq_len"


def memory_limit(device: torch.device) -> float:
    """Return the bytes of a GPU's memory that a run may use."""
    return MAX_GPU_MEMORY_SHARE * torch.cuda.get_device_properties(device).total_memory


def search_largest(
    sizes: Sequence[int], first: int, measure: Callable[[int], float], constant: float, limit: float
) -> int:
    """Return the largest of `sizes` whose measured bytes are within the limit, 0 if none is, with few measurements.

    It starts from `first` and goes to smaller sizes until one fits. If `first` fits, it tries larger ones while they
    should fit according to what was measured: `constant` bytes, and the rest in proportion to the size.

    >>> search_largest([1, 2, 4, 8, 16], 16, lambda size: 3 + size, constant=3, limit=8)
    4
    """
    ascending = sorted(sizes)
    index = ascending.index(first)
    while (peak := measure(ascending[index])) > limit:
        if index == 0:
            return 0
        index -= 1
    while ascending[index] >= first and index + 1 < len(ascending):
        larger = ascending[index + 1]
        if constant + (peak - constant) * larger / ascending[index] > limit:
            break
        larger_peak = measure(larger)
        if larger_peak > limit:
            break
        index += 1
        peak = larger_peak
    return ascending[index]


def fitting_rows(depth: int, compute_dtype: torch.dtype, limit: float) -> int:
    """Return the rows with which base_train's model of a depth, compiled, fits into `limit` bytes; 0 if none does.

    The other settings are base_train's defaults. Powers of two up to 64 are tried.
    """
    shape = GPTConfig.from_depth(depth, vocab_size=65536, sequence_len=2048)

    def peak(rows: int) -> int:
        return training_memory(shape, compute_dtype, rows, compiled=True).peak

    return largest_fitting(POWERS_OF_TWO, peak, limit)


def evaluation_rows(model: GPT, runtime: Runtime, sequence_len: int | None = None) -> int:
    """Return the rows that an evaluation of the loss can take at a time, the same on all processes.

    On a GPU they follow from the computed memory; on a CPU they have at most `MAX_CPU_TOKENS` tokens.
    """
    length = sequence_len or model.config.sequence_len
    if runtime.device.type != "cuda":
        return next((rows for rows in POWERS_OF_TWO if rows * length <= MAX_CPU_TOKENS), 1)
    limit = -runtime.maximum(-memory_limit(runtime.device))

    def peak(rows: int) -> int:
        return evaluation_memory(model.config, model.compute_dtype, rows, length)

    return largest_fitting(POWERS_OF_TWO, peak, limit) or 1
