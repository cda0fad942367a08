"""AdamW's update rule (arXiv 1412.6980, 1711.05101)."""

from __future__ import annotations

from torch import Tensor


def adamw_step(
    weights: Tensor,
    grads: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    *,
    lr: Tensor,
    weight_decay: Tensor,
    step: Tensor,
    betas: tuple[float, float],
    eps: float,
) -> None:
    """Update `weights` and both moments in place. All four tensors have one shape; `grads` has the moments' dtype.

    `step` counts from 1. `eps` is added after the bias correction of both moments. The decay is decoupled: weights
    shrink by `lr * weight_decay` before the update. `lr`, `weight_decay` and `step` change from step to step. They are
    0-dim tensors of the moments' dtype and device, so that a compiled function is compiled only once.
    """
    beta1, beta2 = betas
    exp_avg.lerp_(grads, 1 - beta1)
    exp_avg_sq.mul_(beta2).addcmul_(grads, grads, value=1 - beta2)
    root = (exp_avg_sq / (1 - beta2**step)).sqrt_().add_(eps)
    weights.mul_(1 - lr * weight_decay).sub_((exp_avg / root).mul_(lr / (1 - beta1**step)))
