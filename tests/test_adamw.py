"""AdamW against a scalar implementation of the paper's algorithm, and against torch.optim.AdamW."""

import math
from collections.abc import Callable

import pytest
import torch

from nanochat.adamw import adamw_step

STEPS = 20
LR = 0.01
DECAY = 0.1
BETAS = (0.8, 0.95)
EPS = 1e-10


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
    """Return the weights and the second moment after one update for each gradient. `dtype`: of the moments."""
    weights = weights.clone()
    first, second = torch.zeros(2, *weights.shape, dtype=dtype)
    for number, grad in enumerate(grads, start=1):
        step(
            weights,
            grad.to(dtype),
            first,
            second,
            lr=torch.tensor(lr, dtype=dtype),
            weight_decay=torch.tensor(decay, dtype=dtype),
            step=torch.tensor(float(number), dtype=dtype),
            betas=BETAS,
            eps=EPS,
        )
    return weights, second


def _reference(weight: float, grads: list[float]) -> float:
    """Algorithm 2 of Loshchilov and Hutter (arXiv 1711.05101) for a single number."""
    m = v = 0.0
    for t, grad in enumerate(grads, start=1):
        m = BETAS[0] * m + (1 - BETAS[0]) * grad
        v = BETAS[1] * v + (1 - BETAS[1]) * grad * grad
        m_hat, v_hat = m / (1 - BETAS[0] ** t), v / (1 - BETAS[1] ** t)
        weight = weight - LR * (m_hat / (math.sqrt(v_hat) + EPS) + DECAY * weight)
    return weight


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 1e-6)])
def test_equals_the_reference(dtype: torch.dtype, tolerance: float) -> None:
    start, grads = torch.linspace(-1, 1, 15, dtype=torch.float64), _gradients((15,))
    expected = [_reference(w.item(), [g[i].item() for g in grads]) for i, w in enumerate(start)]
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
    """At the first step both corrected moments equal the gradient: an eps of that size halves the update."""
    weights, _ = _run(torch.zeros(1), [torch.full((1,), EPS)], torch.float32)
    assert weights.item() == pytest.approx(-LR / 2, rel=1e-4)


def test_second_moment_of_bfloat16_weights_is_float32() -> None:
    """In bfloat16 a weight 1 - beta2 would be lost to rounding: only the weights are rounded, not the moments."""
    grads = _gradients((50,))
    start = torch.linspace(-1, 1, 50).bfloat16()
    weights, second = _run(start, grads[:1], torch.float32, decay=0.0)
    exact, _ = _run(start.float(), grads[:1], torch.float32, decay=0.0)
    assert weights.dtype == torch.bfloat16
    torch.testing.assert_close(second.double(), 0.05 * grads[0] ** 2, rtol=1e-6, atol=0)
    torch.testing.assert_close(weights, exact.bfloat16(), rtol=0, atol=0)


def test_unused_rows_stay() -> None:
    """Without gradient and decay the update is 0 / (0 + eps) = 0, not NaN."""
    weights, _ = _run(torch.ones(4), [torch.zeros(4)] * 3, torch.float32, decay=0.0)
    assert torch.equal(weights, torch.ones(4))


@pytest.mark.slow
def test_compiles_once() -> None:
    graphs = []

    def count(graph: torch.fx.GraphModule, _: list[torch.Tensor]) -> Callable[..., object]:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(adamw_step, backend=count, dynamic=False, fullgraph=True)
    start, grads = torch.ones(6, dtype=torch.float64), _gradients((6,), steps=5)
    for lr in (0.1, 0.2, 0.3):
        result, _ = _run(start, grads, torch.float64, compiled, lr=lr)
        torch.testing.assert_close(result, _run(start, grads, torch.float64, lr=lr)[0])
    assert len(graphs) == 1
