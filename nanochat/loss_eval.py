"""Bits per byte, a cross-entropy that does not depend on the tokenizer; and sums of losses over chosen tokens.

The scripts use `bits_per_byte`, which scores a fixed tensor of rows with any number of processes. `evaluate_bpb` is for
notebooks and other training loops: it takes batches from any loader. A model that computes in float32 is evaluated in
float32 on CUDA too, not in TF32.

Letters in shape comments: R rows of the whole evaluation, B rows of a batch, T tokens, V vocabulary. There are N
processes; process r scores rows r, r + N, r + 2N, ...
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from itertools import islice

import torch
import torch.distributed as dist
from torch import Tensor

from nanochat.layers.attention import varied_shapes
from nanochat.layers.padding import pad_rows
from nanochat.runtime import Runtime, exact_float32

Forward = Callable[..., Tensor]  # a model, compiled or not


@torch.no_grad()
@exact_float32()
def bits_per_byte(model: Forward, rows: Tensor, token_bytes: Tensor, batch_size: int, runtime: Runtime) -> float:
    """Return the model's bits per byte on rows of text (Gao et al., The Pile, arXiv 2101.00027, section 3.1).

        bits per byte = sum of the losses in nats / (ln 2 x sum of the bytes)

    Both sums are over the targets that have at least one byte: special tokens and padding do not count. A loss per
    token would depend on the tokenizer, because a larger vocabulary has fewer and harder tokens for the same text.

    Example: the targets " the" (4 bytes, 1.0 nats), "re" (2 bytes, 2.0 nats) and <|bos|> (0 bytes, 5.0 nats) give
    (1.0 + 2.0) / (ln 2 x (4 + 2)) = 0.72.

    `rows` (R, T + 1): token ids, -1 = padding, the same in all processes, which divide the rows among them.
    `token_bytes` (V,): the number of bytes of each token. The result is infinite if no target has a byte. For batches
    of a loader, use `evaluate_bpb`.
    """
    token_bytes = token_bytes.to(runtime.device)
    total_nats = torch.zeros((), dtype=_sum_dtype(runtime.device), device=runtime.device)
    total_bytes = torch.zeros((), dtype=torch.int64, device=runtime.device)
    local_rows = rows[runtime.rank :: runtime.world_size]
    for start in range(0, len(local_rows), batch_size):
        batch = pad_rows(local_rows[start : start + batch_size], batch_size, fill=-1).to(runtime.device)  # (B, T + 1)
        nats, num_bytes = _nats_and_bytes(model, batch[:, :-1].clamp(min=0), batch[:, 1:], token_bytes)
        total_nats += nats
        total_bytes += num_bytes
    return _bits_per_byte(runtime.all_reduce(total_nats).item(), runtime.all_reduce(total_bytes).item())


@torch.no_grad()
@exact_float32()
def evaluate_bpb(model: Forward, batches: Iterable[tuple[Tensor, Tensor]], steps: int, token_bytes: Tensor) -> float:
    """Return the bits per byte of a model on the first `steps` batches of a loader, (inputs, targets) each (B, T).

    Computed as in `bits_per_byte`, which the scripts use. Targets of -1 are ignored. Under torchrun each process passes
    its own batches, and all get the same result. The result is infinite if no target has a byte.
    """
    total_nats: Tensor | None = None
    total_bytes: Tensor | None = None
    for inputs, targets in islice(batches, steps):
        nats, num_bytes = _nats_and_bytes(model, inputs, targets, token_bytes.to(targets.device))
        total_nats = nats if total_nats is None else total_nats + nats
        total_bytes = num_bytes if total_bytes is None else total_bytes + num_bytes
    if total_nats is None or total_bytes is None:
        return float("inf")
    if dist.is_initialized():
        dist.all_reduce(total_nats)
        dist.all_reduce(total_bytes)
    return _bits_per_byte(total_nats.item(), total_bytes.item())


def _nats_and_bytes(model: Forward, inputs: Tensor, targets: Tensor, token_bytes: Tensor) -> tuple[Tensor, Tensor]:
    """Return the summed loss in nats of all targets that have a byte, and the number of their bytes, both scalars."""
    with varied_shapes(inputs.device):
        losses = model(inputs, targets, loss_reduction="none")  # (B, T)
    num_bytes = token_bytes[targets.clamp(min=0)] * (targets >= 0)  # (B, T)
    return (losses * (num_bytes > 0)).sum(dtype=_sum_dtype(losses.device)), num_bytes.sum()


def _bits_per_byte(nats: float, num_bytes: float) -> float:
    return nats / (math.log(2) * num_bytes) if num_bytes else float("inf")


@torch.no_grad()
@exact_float32()
def sum_nats(model: Forward, inputs: Tensor, targets: Tensor, batch_size: int, runtime: Runtime) -> tuple[float, int]:
    """Return the sum of the losses, in nats, over all targets that are not -1, and the number of these targets.

    `inputs` and `targets` (R, T) are the same in all processes, which divide the rows among them.
    """
    total_nats = torch.zeros((), dtype=_sum_dtype(runtime.device), device=runtime.device)
    local_rows = slice(runtime.rank, None, runtime.world_size)
    local_inputs = inputs[local_rows]
    local_targets = targets[local_rows]
    for start in range(0, len(local_inputs), batch_size):
        batch = slice(start, start + batch_size)
        batch_inputs = pad_rows(local_inputs[batch], batch_size, fill=0).to(runtime.device)  # (B, T)
        batch_targets = pad_rows(local_targets[batch], batch_size, fill=-1).to(runtime.device)
        with varied_shapes(runtime.device):
            losses = model(batch_inputs, batch_targets, loss_reduction="none")  # (B, T)
        total_nats += losses.sum(dtype=total_nats.dtype)
    return runtime.all_reduce(total_nats).item(), int((targets != -1).sum())


def _sum_dtype(device: torch.device) -> torch.dtype:
    """Return the dtype for sums over many tokens: float64, but float32 on MPS, which does not support float64."""
    return torch.float32 if device.type == "mps" else torch.float64
