"""Linear layers in fp8: the three matrix products of a training step with tensorwise dynamic scaling.

A tensor is stored as 8-bit floating-point numbers and one float32 scale, computed from the tensor itself:

    scale = max |x| / largest number of the format,    x8 = round(x / scale),    x ~ scale * x8

    forward            y  = x w^T      e4m3 x e4m3
    input gradient     dx = dy w       e5m2 x e4m3
    weight gradient    dw = dy^T x     e5m2 x e4m3

e4m3 has 3 bits of mantissa (rounding error up to 1/16) and numbers up to 448. e5m2 has 2 bits (up to 1/8) and the wider
range that gradients need (arXiv 2209.05433). The products are accumulated in float32.

No number is clipped, because the largest one is mapped to the largest of the format. If a tensor contains inf or NaN,
the whole product becomes NaN, and with it the loss. The scales stay on the device, so nothing waits for it. In a
compiled model, maximum, division and rounding are fused with the operations around them.

Letters in shape comments: M tokens, K inputs of the layer, N outputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from nanochat.common import UserError

E4M3 = torch.float8_e4m3fn
E5M2 = torch.float8_e5m2
MIN_CAPABILITY = (8, 9)  # the first GPUs that multiply fp8 matrices
SIZE_MULTIPLE = 16  # cuBLAS needs rows of whole 16 bytes
MIN_AMAX = 1e-30  # for the scale of a tensor of zeros, which must not be 0


def fp8_linear(x: Tensor, weight: Tensor) -> Tensor:
    """Return `x @ weight.T` with all three products in fp8: (..., K), (N, K) -> (..., N), in the dtype of `x`.

    A gradient has the dtype of its tensor. M, K and N must be multiples of 16. On a CPU the products are emulated in
    float32, for tests.
    """
    y: Tensor = _FP8Linear.apply(x.flatten(0, -2), weight)  # (M, K) -> (M, N)
    return y.view(*x.shape[:-1], weight.size(0))


class _FP8Linear(torch.autograd.Function):
    """The layer on two dimensions: (M, K), (N, K) -> (M, N). It keeps x and w in fp8 for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        x8, x_scale = quantize(x, E4M3)
        w8, w_scale = quantize(weight, E4M3)
        ctx.save_for_backward(x8, x_scale, w8, w_scale)
        ctx.weight_dtype = weight.dtype
        # Fast accumulation keeps fewer bits of the partial sums: enough for activations, not for gradients.
        return scaled_product(x8, w8.t(), x_scale, w_scale, x.dtype, use_fast_accum=True)  # (M, K) x (K, N)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor]:
        x8, x_scale, w8, w_scale = ctx.saved_tensors
        dy8, dy_scale = quantize(dy, E5M2)
        # The tensor cores read both matrices along the summed dimension, so three of the four are transposed here.
        w8_columns = w8.t().contiguous().t()
        x8_columns = x8.t().contiguous().t()
        dy8_rows = dy8.t().contiguous()
        dx = scaled_product(dy8, w8_columns, dy_scale, w_scale, dy.dtype)  # (M, N) x (N, K)
        dw = scaled_product(dy8_rows, x8_columns, dy_scale, x_scale, ctx.weight_dtype)  # (N, M) x (M, K)
        return dx, dw


def quantize(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return a contiguous tensor in an fp8 `dtype` and its scale (float32, 0-dim), whose product is about `x`."""
    amax = x.abs().amax().float()  # inf or NaN if x contains one: then x / scale and the product are NaN
    scale = amax.clamp(min=MIN_AMAX) / torch.finfo(dtype).max
    return (x.float() / scale).to(dtype).contiguous(), scale


def scaled_product(
    a: Tensor, b: Tensor, a_scale: Tensor, b_scale: Tensor, dtype: torch.dtype, use_fast_accum: bool = False
) -> Tensor:
    """Return `(a * a_scale) @ (b * b_scale)` in `dtype`: fp8 matrices `a`, row-major, and `b`, column-major."""
    if a.device.type == "cpu":
        return ((a.float() @ b.float()) * (a_scale * b_scale)).to(dtype)
    return torch._scaled_mm(a, b, a_scale, b_scale, out_dtype=dtype, use_fast_accum=use_fast_accum)


def check_fp8_device(device: torch.device, compute_dtype: torch.dtype) -> None:
    """Raise `UserError` if fp8 training is impossible on this device, or with this dtype for everything else."""
    rule = "fp8 needs an NVIDIA GPU of compute capability 8.9 or higher (such as L4, RTX 4090, H100, B200)"
    remedy = "leave out --fp8"
    if device.type != "cuda" or torch.version.hip:
        raise UserError(f"the device is {device}, but {rule}: {remedy}")
    capability = torch.cuda.get_device_capability(device)
    if capability < MIN_CAPABILITY:
        name = torch.cuda.get_device_name(device)
        raise UserError(f"{name} has compute capability {capability[0]}.{capability[1]}, but {rule}: {remedy}")
    if compute_dtype != torch.bfloat16:
        raise UserError(f"fp8 is combined with bfloat16, but the model computes in {compute_dtype}: {remedy}")


def check_fp8_sizes(sizes: Mapping[str, int]) -> None:
    """Raise `UserError` if a size, given by name, is not a multiple of 16.

    >>> check_fp8_sizes({"max_seq_len": 100})
    Traceback (most recent call last):
    nanochat.system.errors.UserError: max_seq_len is 100: fp8 needs multiples of 16 (leave out --fp8 for other sizes)
    """
    for name, size in sizes.items():
        if size % SIZE_MULTIPLE:
            raise UserError(
                f"{name} is {size}: fp8 needs multiples of {SIZE_MULTIPLE} (leave out --fp8 for other sizes)"
            )
