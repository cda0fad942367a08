"""AdamW against the textbook, number by number, and against PyTorch's own."""

import math
from collections.abc import Callable

import pytest
import torch

from nanochat.adamw import adamw_step

STEPS, LR, DECAY, BETAS, EPS = 20, 0.01, 0.1, (0.8, 0.95), 1e-10


def _gradients(shape: tuple[int, ...], steps: int = STEPS) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(steps)]


def _run(
    weights: torch.Tensor,
    grads: list[torch.Tensor],
    dtype: torch.dtype,
    step: Callable[..., None] = adamw_step,
    lr: float = LR,
    decay: float = DECAY,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(last weights, second moment) after one update a gradient; `dtype` is that of the moments."""
    weights = weights.clone()
    first, second = torch.zeros(2, *weights.shape, dtype=dtype)
    for number, grad in enumerate(grads, start=1):
        lr_now, decay_now, number_now = (torch.tensor(x, dtype=dtype) for x in (lr, decay, float(number)))
        step(
            weights, grad.to(dtype), first, second,
            lr=lr_now, weight_decay=decay_now, step=number_now, betas=BETAS, eps=EPS,
        )  # fmt: skip
    return weights, second


def _textbook(weight: float, grads: list[float]) -> float:
    """Loshchilov and Hutter's algorithm 2 for a single number."""
    m = v = 0.0
    for t, grad in enumerate(grads, start=1):
        m = BETAS[0] * m + (1 - BETAS[0]) * grad
        v = BETAS[1] * v + (1 - BETAS[1]) * grad * grad
        m_hat, v_hat = m / (1 - BETAS[0] ** t), v / (1 - BETAS[1] ** t)
        weight = weight - LR * (m_hat / (math.sqrt(v_hat) + EPS) + DECAY * weight)
    return weight


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 1e-6)])
def test_equals_the_textbook(dtype: torch.dtype, tolerance: float) -> None:
    start, grads = torch.linspace(-1, 1, 15, dtype=torch.float64), _gradients((15,))
    expected = [_textbook(w.item(), [g[i].item() for g in grads]) for i, w in enumerate(start)]
    weights, _ = _run(start.to(dtype), grads, dtype)
    torch.testing.assert_close(weights.double(), torch.tensor(expected).double(), rtol=0, atol=max(tolerance, 6e-8))


@pytest.mark.parametrize("shape", [(7,), (5, 3), (2, 3, 4)])
def test_equals_torch(shape: tuple[int, ...]) -> None:
    grads = _gradients(shape)
    param = torch.nn.Parameter(torch.ones(shape, dtype=torch.float64))
    peer = torch.optim.AdamW([param], lr=LR, betas=BETAS, eps=EPS, weight_decay=DECAY)
    for grad in grads:
        param.grad = grad.clone()
        peer.step()
    weights, second = _run(torch.ones(shape, dtype=torch.float64), grads, torch.float64)
    torch.testing.assert_close(weights, param.detach(), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(second, peer.state[param]["exp_avg_sq"], rtol=1e-13, atol=0)


def test_eps_is_added_after_the_bias_correction() -> None:
    """At the first step both corrected moments are the gradient itself: with eps as large as it, half a step."""
    weights, _ = _run(torch.zeros(1), [torch.full((1,), EPS)], torch.float32)
    assert weights.item() == pytest.approx(-LR / 2, rel=1e-4)


def test_second_moment_moves_beside_bfloat16_weights() -> None:
    """1 - beta2 is 0 in bfloat16: the moments have their own precision, and only the weights are rounded."""
    grads = _gradients((50,))
    start = torch.linspace(-1, 1, 50).bfloat16()
    weights, second = _run(start, grads[:1], torch.float32, decay=0.0)
    exact, _ = _run(start.float(), grads[:1], torch.float32, decay=0.0)
    assert weights.dtype == torch.bfloat16
    torch.testing.assert_close(second.double(), 0.05 * grads[0] ** 2, rtol=1e-6, atol=0)
    torch.testing.assert_close(weights, exact.bfloat16(), rtol=0, atol=0)


def test_unused_rows_stay() -> None:
    """No gradient ever, no decay: 0 / (0 + eps) is nothing, not NaN."""
    weights, _ = _run(torch.ones(4), [torch.zeros(4)] * 3, torch.float32, decay=0.0)
    assert torch.equal(weights, torch.ones(4))


def test_compiles_once() -> None:
    graphs = []

    def count(graph: torch.fx.GraphModule, _: list[torch.Tensor]) -> Callable[..., object]:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(adamw_step, backend=count, dynamic=False, fullgraph=True)
    start, grads = torch.ones(6, dtype=torch.float64), _gradients((6,), steps=5)
    for lr in (0.1, 0.2, 0.3):
        ours, _ = _run(start, grads, torch.float64, compiled, lr=lr)
        torch.testing.assert_close(ours, _run(start, grads, torch.float64, lr=lr)[0])
    assert len(graphs) == 1
