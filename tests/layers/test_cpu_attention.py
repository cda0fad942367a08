"""The CPU's attention in training: values and gradients against the formula in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from nanochat.layers import cpu_attention
from nanochat.layers.cpu_attention import cpu_causal_attention


def reference(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return causal attention in float64, with all scores at once."""
    scores = q.double() @ k.double().transpose(-1, -2) / math.sqrt(q.size(-1))
    future = torch.ones(q.size(2), q.size(2), dtype=torch.bool).triu(1)
    return scores.masked_fill(future, float("-inf")).softmax(-1) @ v.double()


@pytest.mark.parametrize("num_positions", [1, 7, 32, 50])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.bfloat16, 2e-2)])
def test_values_and_gradients(
    monkeypatch: pytest.MonkeyPatch, num_positions: int, dtype: torch.dtype, tolerance: float
) -> None:
    """Relative to the norm of each result; lengths below, equal to and not a multiple of a block."""
    monkeypatch.setattr(cpu_attention, "BLOCK", 16)
    generator = torch.Generator().manual_seed(num_positions)
    # (B, T, H, D) in memory, as in the model.
    tensors = [torch.randn(2, num_positions, 3, 8, generator=generator).to(dtype).transpose(1, 2) for _ in range(4)]
    q, k, v, d_out = tensors
    inputs = [x.detach().requires_grad_() for x in (q, k, v)]
    out = cpu_causal_attention(*inputs)
    got = [out, *torch.autograd.grad(out, inputs, d_out)]
    precise = [x.detach().double().requires_grad_() for x in (q, k, v)]
    expected_out = reference(*precise)
    expected = [expected_out, *torch.autograd.grad(expected_out, precise, d_out.double())]
    for result, value in zip(got, expected, strict=True):
        assert result.dtype == dtype
        # A single position has gradients of 0 by q and k; what rounding leaves of them is small beside d_out.
        assert (result.double() - value).norm() <= tolerance * max(value.norm(), d_out.double().norm() / 2)


def test_no_score_matrix_of_all_positions_is_kept() -> None:
    """Between the passes only tensors of the size of q are kept, and the sums."""
    q = torch.randn(1, 2, 300, 8, requires_grad=True)
    sizes: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.numel()) or x, lambda x: x):
        cpu_causal_attention(q, q.detach(), q.detach())
    assert max(sizes) == q.numel()
