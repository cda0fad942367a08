"""Pieces of a training step on CPUs, in Rust (`rustgpt/src/training/`): one pass where torch's operations take several.

They run on torch's own threads. The results do not depend on their number.

Letters in shape comments: B rows, H heads, T positions, D head size, n tokens of a chunk, V vocabulary.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor, library
from torch.autograd.profiler import record_function

from nanochat.layers.softcap_loss import softcap_terms as torch_softcap_terms
from nanochat.system.cpu import ISA_VARIABLE, cpu_flags, measure_bf16

try:
    from nanochat.tokenization import _rustbpe as _native

    HAS_KERNELS = hasattr(_native, "has_vectors") and _native.has_vectors()  # the newest of the functions
except ImportError:  # the extension is not built
    HAS_KERNELS = False

DTYPES = (torch.float32, torch.bfloat16)


def are_available(device: torch.device) -> bool:
    """Return True if the extension was built with these kernels, and the device is a CPU."""
    return HAS_KERNELS and device.type == "cpu"


def softcap_terms(raw: Tensor, cap: float, needs_grads: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return what `softcap_loss.softcap_terms` does: the sums (n,), the gradients times the sums (n, V), and m (n,).

    `raw` (n, V), float32 or bfloat16; without a cap torch computes it. The gradients replace `raw` if it is contiguous:
    a step is limited by memory here.
    """
    assert HAS_KERNELS, "the extension is not built"
    if cap == 0 or raw.dtype not in DTYPES or raw.stride(1) != 1:
        return torch_softcap_terms(raw, cap, needs_grads)
    count, length = raw.shape
    sums = torch.empty(count, dtype=torch.float32)
    if not needs_grads:
        grads = raw.new_empty(0)
    else:
        grads = raw if raw.is_contiguous() else raw.new_empty(count, length)
    _native.softcap_terms(
        raw.dtype == torch.bfloat16,
        raw.data_ptr(),
        count,
        length,
        raw.stride(0),
        cap,
        sums.data_ptr(),
        grads.data_ptr() if needs_grads else 0,
        torch.get_num_threads(),
    )
    return sums, grads, None


def can_attend(q: Tensor, k: Tensor) -> bool:
    """Return True if `causal_attention` is available for q (B, H, T, D) and k (B, K, T, D)."""
    return are_available(q.device) and q.dtype == torch.float32 and q.shape == k.shape and q.size(-1) % 16 == 0


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Compute causal attention of q, k and v, (B, H, T, D) each, float32 on a CPU: (B, H, T, D). It has a gradient."""
    out: Tensor = _attention(q, k, v)[0]
    return out


def _like_heads(x: Tensor) -> Tensor:
    """Return a new tensor of the shape (B, H, T, D) that is (B, T, H, D) in memory, as the layers around it use it."""
    batch, num_heads, num_positions, head_dim = x.shape
    return x.new_empty(batch, num_positions, num_heads, head_dim).transpose(1, 2)


def _sizes(x: Tensor) -> tuple[int, int, int, int]:
    batch, num_heads, num_positions, head_dim = x.shape
    return batch, num_heads, num_positions, head_dim


def _described(x: Tensor) -> tuple[int, int, int, int]:
    """Return address and strides."""
    batch, head, position, _ = x.stride()
    return x.data_ptr(), batch, head, position


@library.custom_op("nanochat::causal_attention", mutates_args=())
def _attention(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Return the result, and the logarithms of the sums of the exponentials, (B, H, T)."""
    q, k, v = (x if x.stride(3) == 1 else x.contiguous() for x in (q, k, v))
    out, log_sums = _like_heads(q), q.new_empty(q.shape[:3])
    with record_function("causal_attention"):  # its name in a profile
        _native.causal_attention(
            _sizes(q),
            _described(q),
            _described(k),
            _described(v),
            _described(out),
            log_sums.data_ptr(),
            torch.get_num_threads(),
        )
    return out, log_sums


_amx: dict[str, bool] = {}  # "works", once it is known


def uses_amx() -> bool:
    """Return True if AMX, the matrix unit of some x86 processors, works here and is not excluded by a limit for oneDNN.

    Whether it works is tried once on each machine, in another process (`measure_bf16` in system/cpu.py). Call this
    before what calls it is compiled: the compiler cannot follow the measurement, only its result.
    """
    if not _amx:
        _amx["works"] = _find_amx()
    return _amx["works"]


def _find_amx() -> bool:
    if not HAS_KERNELS or "amx_bf16" not in cpu_flags() or os.environ.get(ISA_VARIABLE):
        return False
    probe = measure_bf16()
    works = probe is not None and probe["speedup"] is not None and not probe["isa"]
    return works and _native.has_amx()  # torch's products also succeed where the system refuses AMX


@library.custom_op("nanochat::causal_attention_backward", mutates_args=())
def _attention_backward(
    q: Tensor, k: Tensor, v: Tensor, out: Tensor, log_sums: Tensor, d_out: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients by q, k and v, all float32; or all bfloat16, which takes AMX and a multiple of 32 for D."""
    q, k, v, out, d_out = (x if x.stride(3) == 1 else x.contiguous() for x in (q, k, v, out, d_out))
    d_q, d_k, d_v = (_like_heads(q) for _ in range(3))
    log_sums = log_sums.contiguous()
    compute = _native.causal_attention_grads if q.dtype == torch.float32 else _native.amx_attention_grads
    with record_function("causal_attention_backward"):
        compute(
            _sizes(q),
            _described(q),
            _described(k),
            _described(v),
            _described(out),
            log_sums.data_ptr(),
            _described(d_out),
            _described(d_q),
            _described(d_k),
            _described(d_v),
            torch.get_num_threads(),
        )
    return d_q, d_k, d_v


@_attention.register_fake
def _fake(q: Tensor, *_: Tensor) -> tuple[Tensor, Tensor]:
    return _like_heads(q), q.new_empty(q.shape[:3])


@_attention_backward.register_fake
def _fake_backward(q: Tensor, *_: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return _like_heads(q), _like_heads(q), _like_heads(q)


def bf16_attention_grads(
    q: Tensor, k: Tensor, v: Tensor, out: Tensor, log_sums: Tensor, d_out: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of causal attention in bfloat16 by q, k and v, (B, H, T, D) each, computed with AMX.

    `out` and `log_sums`, (B, H, T), are the results of the forward pass, `d_out` the gradient of the first.
    """
    grads: tuple[Tensor, Tensor, Tensor] = _attention_backward(q, k, v, out, log_sums, d_out)
    return grads


def _save(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, *output)


def _gradients(ctx: Any, d_out: Tensor, _: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    grads: tuple[Tensor, Tensor, Tensor] = _attention_backward(*ctx.saved_tensors, d_out)
    return grads


_attention.register_autograd(_gradients, setup_context=_save)
