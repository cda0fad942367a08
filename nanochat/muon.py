"""Muon's update rule: momentum made orthogonal (K. Jordan et al., "Muon: an optimizer for hidden layers", 2024).

Letters in shape comments: K matrices in the stack, R rows (outputs), C columns (inputs), S = min(R, C).
"""

from __future__ import annotations

import torch
from torch import Tensor

# Of X, of (X Xt) X and of (X Xt)^2 X. Steep at 0, so that small singular values rise fast.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
TINY = 1e-7  # keeps a matrix of zeros at zero


def orthogonalize(stack: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """The matrices of a (K, R, C) stack with their singular values moved close to 1 (about 0.7 to 1.2), as `dtype`.

    Five steps of a quintic Newton-Schulz iteration, all matrices at once. The products run in `dtype`, by default the
    stack's own; bfloat16 is enough.
    """
    a, b, c = COEFFICIENTS
    x = (stack / (torch.linalg.vector_norm(stack, dim=(-2, -1), keepdim=True) + TINY)).to(dtype)
    tall = x.size(-2) > x.size(-1)
    if tall:
        x = x.transpose(-2, -1)  # the products are cheaper on the short side
    for _ in range(ITERATIONS):
        gram = x @ x.transpose(-2, -1)  # (K, S, S)
        poly = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)  # b A + c A^2
        x = torch.baddbmm(x, poly, x, beta=a)  # a X + (b A + c A^2) X
    result: Tensor = x.transpose(-2, -1) if tall else x
    return result


def muon_step(
    weights: Tensor, grads: Tensor, average: Tensor, *, lr: Tensor, momentum: Tensor, dtype: torch.dtype | None
) -> None:
    """Update `weights` and `average` in place. All three are (K, R, C); nothing else is read or kept.

    `average` is the momentum as a running average: unlike a running sum, it keeps its scale while `momentum` rises.
    `lr` and `momentum` are 0-dim tensors of the stack's dtype and device, so that a compiled step is compiled once.
    `dtype` is that of the Newton-Schulz products (None: the stack's). Tall matrices take a longer step, by sqrt(R / C).
    """
    average.lerp_(grads, 1 - momentum)
    nesterov = grads.lerp(average, momentum)
    stretch = max(1.0, weights.size(-2) / weights.size(-1)) ** 0.5
    weights.sub_(orthogonalize(nesterov, dtype).to(average.dtype) * (lr * stretch))
