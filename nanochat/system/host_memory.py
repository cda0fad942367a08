"""Copies of tensors in host memory that later changes of the tensors do not reach."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def copy_to_host(tensor: Tensor) -> Tensor:
    """Start to copy a tensor to the host, and return the copy. Call `wait_for_copies` before it is read.

    From a GPU the copy goes to pinned memory, several times as fast as to other memory, and is only queued: kernels
    that are queued later, on the same stream, may change the tensor, and its memory may be freed. torch keeps pinned
    memory for the next copies. Where it cannot be had, and on other devices, the copy is complete on return.
    """
    import torch

    source = tensor.detach()
    if source.device.type != "cuda":
        return source.to("cpu", copy=True)
    try:
        target = torch.empty(source.shape, dtype=source.dtype, pin_memory=True)
    except RuntimeError:  # the system does not give as much pinned memory
        return source.to("cpu")
    return target.copy_(source, non_blocking=True)


def wait_for_copies(device: torch.device) -> None:
    """Wait until the copies from this device that `copy_to_host` has queued are complete."""
    import torch

    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()
