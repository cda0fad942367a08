"""Bits per byte: cross-entropy that does not depend on the tokenizer. And nats, where tokens are chosen."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import islice

import torch
import torch.distributed as dist
from torch import Tensor, nn

from nanochat.layers.padding import pad_rows
from nanochat.runtime import Runtime


@torch.no_grad()
def bits_per_byte(model: nn.Module, rows: Tensor, token_bytes: Tensor, batch_size: int, runtime: Runtime) -> float:
    """Sum of the losses (nats) over all targets with at least one byte / (ln 2 x the bytes of these targets).

    `rows` (R, T + 1) of token ids, -1 = padding, equal on all processes, each of which scores every N-th row;
    `token_bytes` (V,) raw bytes of each token, 0 for special tokens. Infinite if no target has a byte.
    """
    token_bytes = token_bytes.to(runtime.device)
    nats = torch.zeros(
        (), dtype=torch.float64 if runtime.device.type != "mps" else torch.float32, device=runtime.device
    )
    num_bytes = torch.zeros((), dtype=torch.int64, device=runtime.device)
    mine = rows[runtime.rank :: runtime.world_size]
    for start in range(0, len(mine), batch_size):
        batch = pad_rows(mine[start : start + batch_size], batch_size, fill=-1).to(
            runtime.device
        )  # (B, T + 1): one shape, so that nothing is compiled again
        inputs, targets = batch[:, :-1].clamp(min=0), batch[:, 1:]
        losses = model(inputs, targets, loss_reduction="none")  # (B, T)
        size = token_bytes[targets.clamp(min=0)] * (targets >= 0)
        nats += (losses * (size > 0)).sum(dtype=nats.dtype)
        num_bytes += size.sum()
    total_nats, total_bytes = runtime.all_reduce(nats).item(), runtime.all_reduce(num_bytes).item()
    return total_nats / (math.log(2) * total_bytes) if total_bytes else float("inf")


@torch.no_grad()
def evaluate_bpb(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], steps: int, token_bytes: Tensor) -> float:
    """Bits per byte over the first `steps` batches of (inputs, targets), each (B, T): `bits_per_byte` of a loader.

    Targets of -1 are ignored. Under torchrun each process passes its own batches, and all get the same result.
    Infinite if no target has a byte.
    """
    num_nats: Tensor | None = None
    num_bytes: Tensor | None = None
    for inputs, targets in islice(batches, steps):
        losses = model(inputs, targets, loss_reduction="none")  # (B, T)
        sizes = token_bytes.to(targets.device)[targets.clamp(min=0)] * (targets >= 0)
        wide = torch.float64 if targets.device.type != "mps" else torch.float32
        nats = (losses * (sizes > 0)).sum(dtype=wide)
        num_nats = nats if num_nats is None else num_nats + nats
        num_bytes = sizes.sum() if num_bytes is None else num_bytes + sizes.sum()
    if num_nats is None or num_bytes is None:
        return float("inf")
    if dist.is_initialized():
        dist.all_reduce(num_nats)
        dist.all_reduce(num_bytes)
    return num_nats.item() / (math.log(2) * num_bytes.item()) if num_bytes.item() else float("inf")


@torch.no_grad()
def nats_and_tokens(
    model: nn.Module, inputs: Tensor, targets: Tensor, batch_size: int, runtime: Runtime
) -> tuple[float, int]:
    """Sum of the losses over all targets that are not -1, and their number.

    Rows (R, T) equal on all processes, each of which scores every N-th.
    """
    wide = torch.float64 if runtime.device.type != "mps" else torch.float32
    nats = torch.zeros((), dtype=wide, device=runtime.device)
    mine = slice(runtime.rank, None, runtime.world_size)
    for start in range(0, len(inputs[mine]), batch_size):
        idx, wanted = (rows[mine][start : start + batch_size].to(runtime.device) for rows in (inputs, targets))
        nats += model(idx, wanted, loss_reduction="none").sum(dtype=wide)
    return runtime.all_reduce(nats).item(), int((targets != -1).sum())
