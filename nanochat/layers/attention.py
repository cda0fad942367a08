"""Choice of the attention kernel by use, on CUDA.

Training repeats one shape, so it takes torch's own order, in which cuDNN comes first on Hopper. cuDNN builds and caches
a plan for each new shape, which takes far longer than the attention itself. Generation, evaluation and RL change their
shapes all the time, so they leave cuDNN out: torch then prefers flash attention, the memory-efficient kernel (which
also takes masks), and plain mathematics, in this order.

    with varied_shapes(model.device):
        hidden = model.hidden_states(idx, kv_cache)

Letters in shape comments: B rows, H query heads, K key-value heads, T query positions, S key positions, D head size.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend

PLAIN = "plain mathematics"
NAMES = {
    SDPBackend.CUDNN_ATTENTION: "cuDNN",
    SDPBackend.FLASH_ATTENTION: "flash",
    SDPBackend.EFFICIENT_ATTENTION: "memory-efficient",
    SDPBackend.MATH: PLAIN,
}


@contextmanager
def varied_shapes(device: torch.device) -> Iterator[None]:
    """Context manager for forward passes whose shapes vary: no kernel that builds a plan for each shape.

    Enter it around a forward pass; never across a `yield`, and never inside of a compiled function, which keeps the
    kernel of its first call. It does nothing except on CUDA. Two flags are read and set there, so that it can be
    entered for every token (`torch.nn.attention.sdpa_kernel` takes some 60 microseconds).
    """
    if device.type != "cuda":
        yield
        return
    was_enabled = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(was_enabled)


def kernel_name(q: Tensor, k: Tensor, attn_mask: Tensor | None = None) -> str:
    """Return the name of the attention kernel that torch chooses now: q (B, H, T, D), k and v (B, K, S, D).

    Nothing is computed. T = S without a mask is causal attention, as in the model.
    """
    if q.device.type not in ("cpu", "cuda"):
        return "the device's own"  # torch does not say
    is_causal = attn_mask is None and q.size(2) == k.size(2)
    is_grouped = q.size(1) != k.size(1)
    choice = torch._fused_sdp_choice(q, k, k, attn_mask=attn_mask, is_causal=is_causal, enable_gqa=is_grouped)
    return next((name for backend, name in NAMES.items() if backend.value == choice), f"number {choice}")


def kernels_in_use(device: torch.device, dtype: torch.dtype, head_dim: int = 128) -> dict[str, str]:
    """Return the name of the kernel for each use: "training", "generation" and "padded generation".

    In generation all rows have one length; in padded generation they have different ones, and a mask.
    """

    def heads(num_tokens: int) -> Tensor:
        return torch.zeros(2, 2, num_tokens, head_dim, device=device, dtype=dtype)

    mask = torch.ones(2, 1, 1, 64, device=device, dtype=torch.bool)  # (B, 1, T, S)
    trained = heads(64).requires_grad_()
    names = {"training": kernel_name(trained, trained)}
    with torch.no_grad(), varied_shapes(device):
        names["generation"] = kernel_name(heads(1), heads(64))
        names["padded generation"] = kernel_name(heads(1), heads(64), mask)
    return names


def describe_kernels(device: torch.device, dtype: torch.dtype, head_dim: int = 128) -> str:
    """Return the kernels in use as text, in one line.

    >>> describe_kernels(torch.device("cpu"), torch.float32)
    'training flash, generation flash, padded generation flash'
    """
    return ", ".join(f"{use} {name}" for use, name in kernels_in_use(device, dtype, head_dim).items())
