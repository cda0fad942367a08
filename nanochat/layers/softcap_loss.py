"""Cross-entropy of soft-capped logits in chunks of tokens: logits and their gradient are never in memory whole.

For raw logits x, the cap c (Gemma 2, arXiv 2408.00118) and the target t of a token:

    z_v = c tanh(x_v / c)        loss = log(S) - z_t   with S = sum over v of exp(z_v)
    d loss / d x_v = (exp(z_v) / S - [v = t]) (1 - (z_v / c)^2)

exp(z) cannot overflow, because |z| <= c, so no maximum has to be found first. One pass over a chunk of logits gives S
and exp(z_v) (1 - (z_v / c)^2), which is the gradient but for the factor 1 / S of each row. That factor is applied to
the (n, C) matrices of the two products that follow. If the gradient of the loss is known in advance, as in a sum, the
forward pass computes the gradients of hidden states and weights too, and the backward pass only scales them.

c = 0 means no cap: z_v = x_v - m, where m is the largest logit of the row, which changes neither loss nor gradient, and
without which exp(z) would overflow. The gradient's last factor is 1 then.

Letters in shape comments: N tokens, n tokens of a chunk, C embedding width, V vocabulary (rows of the weight).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

# A chunk has few logits, so that they stay in caches and memory is saved, but not few tokens: for each chunk the whole
# gradient of the weight is read and written once more.
MAX_CPU_LOGITS = 1 << 22
MAX_GPU_LOGITS = 1 << 30  # 16,384 tokens of a vocabulary of 65,536: 2 GB in bfloat16
MIN_CHUNK_TOKENS = 1024

# A function with the signature of `softcap_terms`. It may write the gradient over the raw logits.
SoftcapTerms = Callable[[Tensor, float, bool], tuple[Tensor, Tensor, Tensor | None]]


def softcap(raw: Tensor, cap: float) -> Tensor:
    """Return float32 logits in (-cap, cap) of raw ones, element by element; with a cap of 0 the raw ones."""
    return cap * torch.tanh(raw.float() / cap) if cap else raw.float()


def softcap_terms(raw: Tensor, cap: float, needs_grads: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the sums S (n,), exp(z) (1 - (z / c)^2) (n, V), and m (n,) of raw logits (n, V).

    The second is in the dtype of the logits, and empty without `needs_grads`; the others are in float32. m is None with
    a cap. tanh(x / c) = 1 - 2 u with u = 1 / (1 + exp(2 x / c)), because vectorized exponentials are several times as
    fast as tanh.
    """
    if cap == 0:
        largest = raw.amax(-1).float()
        exps = torch.exp(raw.float() - largest[:, None])  # (n, V)
        return exps.sum(-1), exps.to(raw.dtype) if needs_grads else raw.new_empty(0), largest
    u = torch.reciprocal(1 + torch.exp(raw.float() * (2 / cap)))  # (n, V)
    exps = torch.exp(cap - 2 * cap * u)
    sums = exps.sum(-1)
    if not needs_grads:
        return sums, raw.new_empty(0), None
    return sums, (exps * (u * (1 - u)) * 4).to(raw.dtype), None


def chunk_len(num_tokens: int, vocab_size: int, device: torch.device) -> int:
    """Return the number of tokens of a chunk: equal chunks, each within the limit on its logits."""
    limit = MAX_GPU_LOGITS if device.type == "cuda" else MAX_CPU_LOGITS
    num_chunks = math.ceil(num_tokens / max(MIN_CHUNK_TOKENS, limit // vocab_size))
    return max(1, math.ceil(num_tokens / max(1, num_chunks)))


def softcap_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    vocab_size: int,
    cap: float,
    reduction: str,
    terms: SoftcapTerms = softcap_terms,
) -> Tensor:
    """Return the cross-entropy in nats of N tokens with the logits softcap(hidden @ weight^T, cap), in float32.

    `hidden` (N, C) in the dtype of the products, `weight` (V, C), of which rows from `vocab_size` on are padding,
    `targets` (N,), -1 = ignored. `cap`: 0 = none. `reduction`: "sum", (), or "none", (N,) with 0 where the target is
    ignored. With "none" the backward pass computes the logits a second time.
    """
    arguments = (hidden, weight, targets, vocab_size, cap, terms)
    if not (torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)):
        losses = token_losses(*arguments)
        return losses.sum() if reduction == "sum" else losses
    function = SummedLoss if reduction == "sum" else TokenLosses
    result: Tensor = function.apply(*arguments)
    return result


def token_losses(
    hidden: Tensor, weight: Tensor, targets: Tensor, vocab_size: int, cap: float, terms: SoftcapTerms
) -> Tensor:
    """Return the losses (N,) without gradients."""
    weight = weight.to(hidden.dtype)
    losses = []
    size = chunk_len(len(hidden), len(weight), hidden.device)
    for h, t in zip(hidden.split(size), targets.split(size), strict=True):
        raw = h @ weight.t()  # (n, C) -> (n, V)
        _, z = _targets(raw, t, cap)
        sums, _, largest = terms(raw[:, :vocab_size], cap, False)
        losses.append(torch.where(t >= 0, sums.log() - (z if largest is None else z - largest), 0.0))
    return torch.cat(losses)


def _targets(raw: Tensor, targets: Tensor, cap: float) -> tuple[Tensor, Tensor]:
    """Return the indices of the targets (0 where ignored), and their logits z, all (n,)."""
    index = targets.clamp(min=0)
    return index, softcap(raw.gather(1, index[:, None]).squeeze(1), cap)


def losses_and_grads(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    scales: Tensor | None,
    vocab_size: int,
    cap: float,
    terms: SoftcapTerms,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return losses (N,), and the gradients of sum(scales x losses) by `hidden` (N, C) and by `weight` (V, C).

    `scales` (N,); None: all 1.
    """
    dtype = hidden.dtype
    cast_weight = weight.to(dtype)
    d_hidden = torch.empty_like(hidden)
    d_weight: Tensor | None = None
    losses = []
    size = chunk_len(len(hidden), len(weight), hidden.device)
    for start in range(0, len(hidden), size):
        rows = slice(start, start + size)
        h, t = hidden[rows], targets[rows]
        raw = h @ cast_weight.t()  # (n, C) -> (n, V)
        index, z = _targets(raw, t, cap)
        sums, grads, largest = terms(raw[:, :vocab_size], cap, True)  # (n,), (n, V): the gradient by raw, times S
        if largest is not None:
            z = z - largest
        losses.append(torch.where(t >= 0, sums.log() - z, 0.0))
        # At the target -1 is added to the probability. The subtraction is done in float32, before it is rounded.
        at_target = z.exp() - sums
        if cap:
            at_target = at_target * (1 - (z / cap).square())
        # (scatter_ would copy all of `grads` twice where deterministic algorithms are on.)
        flat_index = torch.arange(len(t), device=t.device) * grads.size(1) + index
        grads.view(-1).index_copy_(0, flat_index, at_target.to(dtype))
        if vocab_size < len(weight):
            grads = F.pad(grads, (0, len(weight) - vocab_size))
        factors = (t >= 0) / sums if scales is None else torch.where(t >= 0, scales[rows], 0.0) / sums  # (n,)
        d_hidden[rows] = (grads @ cast_weight) * factors[:, None]  # (n, V) -> (n, C)
        scaled = (h * factors[:, None]).to(dtype)
        if d_weight is None:
            d_weight = (grads.t() @ scaled).to(weight.dtype)  # (V, n) @ (n, C) -> (V, C)
        elif dtype == weight.dtype:
            d_weight = torch.addmm(d_weight, grads.t(), scaled)
        else:
            d_weight += grads.t() @ scaled
    assert d_weight is not None, "a loss of no tokens"
    return torch.cat(losses), d_hidden, d_weight


class SummedLoss(torch.autograd.Function):
    """Sum of the losses, (). The gradients are computed in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, vocab_size: int, cap: float, terms: SoftcapTerms
    ) -> Tensor:
        losses, d_hidden, d_weight = losses_and_grads(hidden, weight, targets, None, vocab_size, cap, terms)
        ctx.save_for_backward(d_hidden, d_weight)
        return losses.sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        d_hidden, d_weight = ctx.saved_tensors
        return (d_hidden * grad).to(d_hidden.dtype), d_weight * grad, None, None, None, None


class TokenLosses(torch.autograd.Function):
    """Losses of the tokens, (N,). The backward pass computes the logits again."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, vocab_size: int, cap: float, terms: SoftcapTerms
    ) -> Tensor:
        ctx.save_for_backward(hidden, weight, targets)
        ctx.settings = (vocab_size, cap, terms)
        return token_losses(hidden, weight, targets, vocab_size, cap, terms)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, targets = ctx.saved_tensors
        _, d_hidden, d_weight = losses_and_grads(hidden, weight, targets, grads, *ctx.settings)
        return d_hidden, d_weight, None, None, None, None
