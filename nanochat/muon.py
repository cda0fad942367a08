"""Muon's update rule: orthogonalized momentum (K. Jordan et al., "Muon: an optimizer for hidden layers", 2024).

Letters in shape comments: K matrices in the stack, R rows (outputs), C columns (inputs), S = min(R, C).
"""

from __future__ import annotations

import torch
from torch import Tensor

# Coefficients of X, (X X^T) X and (X X^T)^2 X. The polynomial is steep at 0: small singular values grow fast.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
NUM_ITERATIONS = 5
EPS = 1e-7  # avoids a division by zero for a matrix of zeros


def orthogonalize(stack: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Orthogonalize each matrix of a (K, R, C) stack: singular values move close to 1 (about 0.7 to 1.2).

    Five steps of a quintic Newton-Schulz iteration on all matrices at once. The products run in `dtype`, which is also
    the result's (None: the stack's dtype). bfloat16 is precise enough.

    >>> orthogonalize(torch.tensor([[[3.0, 0.0], [0.0, 4.0]]])).round(decimals=2)
    tensor([[[0.7200, 0.0000],
             [0.0000, 1.1200]]])
    """
    a, b, c = COEFFICIENTS
    x = (stack / (torch.linalg.vector_norm(stack, dim=(-2, -1), keepdim=True) + EPS)).to(dtype)
    is_tall = x.size(-2) > x.size(-1)
    if is_tall:
        x = x.transpose(-2, -1)  # (K, R, C) -> (K, C, R): the products are cheaper on the short side
    for _ in range(NUM_ITERATIONS):
        gram = x @ x.transpose(-2, -1)  # (K, S, S)
        poly = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)  # b A + c A^2
        x = torch.baddbmm(x, poly, x, beta=a)  # a X + (b A + c A^2) X
    result: Tensor = x.transpose(-2, -1) if is_tall else x
    return result


def muon_step(
    weights: Tensor, grads: Tensor, grad_avg: Tensor, *, lr: Tensor, momentum: Tensor, dtype: torch.dtype | None
) -> None:
    """Update `weights` and `grad_avg` in place. `weights`, `grads` and `grad_avg` are (K, R, C).

    `grad_avg` is a running average of the gradients, with Nesterov momentum on top. Unlike a running sum, it keeps its
    scale while `momentum` changes. `lr` and `momentum` are 0-dim tensors of the stack's dtype and device, so that a
    compiled function is compiled only once. `dtype` is the dtype of the Newton-Schulz products (None: the stack's). The
    step of a tall matrix is longer by the factor sqrt(R / C).
    """
    grad_avg.lerp_(grads, 1 - momentum)
    nesterov = grads.lerp(grad_avg, momentum)
    lr_factor = max(1.0, weights.size(-2) / weights.size(-1)) ** 0.5
    weights.sub_(orthogonalize(nesterov, dtype).to(grad_avg.dtype) * (lr * lr_factor))
