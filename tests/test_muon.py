"""Muon against the same mathematics in terms of singular values, in float64."""

import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from nanochat.muon import muon_step, orthogonalize

SHAPES = [(1, 16, 16), (3, 40, 10), (2, 10, 40), (5, 7, 9)]


def _by_singular_values(matrix: np.ndarray) -> np.ndarray:
    """Orthogonalize by singular values: Newton-Schulz steps are odd polynomials, which do not change the vectors."""
    u, s, vt = np.linalg.svd(matrix / (np.sqrt((matrix**2).sum()) + 1e-7), full_matrices=False)
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return (u * s) @ vt


def _stack(shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    """Random matrices whose columns differ up to a hundredfold in scale, as those of gradients do."""
    generator = torch.Generator().manual_seed(seed)
    scales = torch.logspace(-2, 0, shape[-1], dtype=torch.float64)
    return torch.randn(shape, generator=generator, dtype=torch.float64) * scales


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 1e-4)])
def test_orthogonalize(shape: tuple[int, ...], dtype: torch.dtype, tolerance: float) -> None:
    stack = _stack(shape)
    expected = torch.from_numpy(np.stack([_by_singular_values(m) for m in stack.numpy()]))
    result = orthogonalize(stack.to(dtype), dtype)
    assert result.dtype == dtype
    torch.testing.assert_close(result.double(), expected, rtol=0, atol=tolerance)


BFLOAT16 = """
import sys, torch
sys.path.insert(0, "tests")
from test_muon import SHAPES, _stack
from nanochat.muon import orthogonalize
for shape in [*SHAPES, (2, 128, 64)]:
    exact = orthogonalize(_stack(shape), torch.float64)
    coarse = orthogonalize(_stack(shape).float(), torch.bfloat16)
    assert coarse.dtype == torch.bfloat16
    print(float((coarse.double() - exact).norm() / exact.norm()))
"""


@pytest.mark.slow
def test_orthogonalize_in_bfloat16() -> None:
    """Within 3% of float64 in the Frobenius norm: four roundings of 2^-9 in each step add up to about 1%.

    In a separate process, without AMX: on some machines that advertise it, its instructions are illegal.
    """
    root = Path(__file__).parent.parent
    env = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"}
    done = subprocess.run([sys.executable, "-c", BFLOAT16], cwd=root, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    errors = [float(line) for line in done.stdout.split()]
    assert len(errors) == len(SHAPES) + 1
    assert 1e-4 < max(errors) < 0.03


def test_singular_values_come_close_to_one() -> None:
    values = torch.linalg.svdvals(orthogonalize(_stack((4, 32, 48)), torch.float64))
    assert values.min() > 0.6
    assert values.max() < 1.3


def test_zero_stays_zero() -> None:
    """At first most gradients are exactly zero, because the output projections are."""
    assert torch.equal(orthogonalize(torch.zeros(2, 4, 3), torch.float32), torch.zeros(2, 4, 3))


Step = Callable[..., None]
UNCOMPILED: Step = partial(muon_step, dtype=None)


def _run(
    weights: torch.Tensor,
    dtype: torch.dtype,
    step: Step = UNCOMPILED,
    steps: int = 20,
    lr: float = 0.02,
) -> torch.Tensor:
    weights = weights.to(dtype, copy=True)
    grad_avg = torch.zeros_like(weights)
    for number in range(steps):
        grads = _stack(tuple(weights.shape), seed=number).to(dtype)
        momentum = torch.tensor(0.85 + number / 200, dtype=dtype)
        step(weights, grads, grad_avg, lr=torch.tensor(lr, dtype=dtype), momentum=momentum)
    return weights


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 1e-5)])
def test_twenty_steps(shape: tuple[int, ...], dtype: torch.dtype, tolerance: float) -> None:
    """The reference updates each matrix of the stack alone."""
    start = _stack(shape, seed=99)
    result = _run(start, dtype)
    factor = 0.02 * max(1, shape[1] / shape[2]) ** 0.5
    for k in range(shape[0]):
        weights = start[k].numpy().copy()
        grad_avg = np.zeros(shape[1:])
        for number in range(20):
            momentum, grad = 0.85 + number / 200, _stack(shape, seed=number)[k].numpy()
            grad_avg = momentum * grad_avg + (1 - momentum) * grad
            weights -= factor * _by_singular_values(momentum * grad_avg + (1 - momentum) * grad)
        torch.testing.assert_close(result[k].double(), torch.from_numpy(weights), rtol=0, atol=tolerance)


def test_compiles_once() -> None:
    graphs = []

    def count(graph: torch.fx.GraphModule, _: list[torch.Tensor]) -> Callable[..., object]:
        graphs.append(graph)
        return graph.forward

    compiled = partial(torch.compile(muon_step, backend=count, dynamic=False, fullgraph=True), dtype=None)
    start = _stack((2, 6, 4))
    for lr in (0.1, 0.2, 0.3):
        result = _run(start, torch.float64, compiled, steps=4, lr=lr)
        torch.testing.assert_close(result, _run(start, torch.float64, steps=4, lr=lr))
    assert len(graphs) == 1
