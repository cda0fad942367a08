"""The kernels in Triton's interpreter, against torch and to the bit. Run by test_kernels.py in a process of its own.

    TRITON_INTERPRET=1 python -m pytest tests/steps/interpreted.py

The interpreter must be chosen before Triton is imported. It takes milliseconds for a tile, so the shapes are tiny. It
rounds towards zero in conversions to bfloat16, hence errors of up to a unit in the last place, 2^-7.
"""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from nanochat.engine import with_compute_weights
from tests.support import torch_kernels
from tests.support.block_steps import make_step
from tests.support.models import random_model

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs TRITON_INTERPRET=1", allow_module_level=True)

from nanochat.steps import launch
from nanochat.steps.launch import AttentionInputs
from nanochat.steps.triton_step import TritonStep, attention_tiles

DTYPES = [torch.float32, torch.bfloat16]
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2**-6}


@pytest.fixture(autouse=True)
def _short_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "MIN_SPLIT_LEN", 64)


def randn(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


def assert_close(value: Tensor, expected: Tensor) -> None:
    assert value.dtype == expected.dtype
    limit = TOLERANCE[value.dtype]
    torch.testing.assert_close(value, expected, rtol=limit, atol=limit * float(expected.abs().max()))


@pytest.mark.parametrize("dtype", DTYPES)
def test_embed(dtype: torch.dtype) -> None:
    table = randn(9, 40, dtype=dtype)
    ids = torch.tensor([3, 8, 0], dtype=torch.int32)
    assert_close(launch.embed(ids, table), torch_kernels.embed(ids, table))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", ["plain", "norm", "norm, relu squared", "residual", "norm, cap, float32"])
def test_linear(case: str, dtype: torch.dtype) -> None:
    """33 rows are two tiles; neither 20 inputs nor 40 outputs fill theirs. Each row is the same alone, to the bit."""
    x, weight, residual = randn(33, 20, dtype=dtype), randn(40, 20, dtype=dtype), randn(33, 40, dtype=dtype)
    options = {
        "plain": {},
        "norm": {"is_normalized": True},
        "norm, relu squared": {"is_normalized": True, "is_relu_squared": True},
        "residual": {"residual": residual},
        "norm, cap, float32": {"is_normalized": True, "softcap": 15.0, "num_out": 37, "dtype": torch.float32},
    }[case]
    y = launch.linear(x, weight, **options)  # type: ignore[arg-type]
    assert_close(y, torch_kernels.linear(x, weight, **options))  # type: ignore[arg-type]
    for row in (0, 7, 32):
        if "residual" in options:
            options["residual"] = residual[row : row + 1]
        assert torch.equal(launch.linear(x[row : row + 1], weight, **options), y[row : row + 1])  # type: ignore[arg-type]


def attention_case(dtype: torch.dtype, num_heads: int, num_kv_heads: int) -> tuple[AttentionInputs, Tensor, Tensor]:
    """Tokens at both ends of splits, alone and in tiles; keys and values of two sequences of 136 positions."""
    positions = [[0], [63], [127], [*range(60, 68), *range(68, 78)]]
    rows = torch.tensor([row for row, own in enumerate(positions) for _ in own], dtype=torch.int32)
    tables = torch.randperm(80, generator=torch.Generator().manual_seed(1))[:68].view(4, 17).to(torch.int32)
    starts, lengths = attention_tiles(rows.numpy(), launch.tokens_of_a_tile(num_heads, num_kv_heads))
    places = torch.tensor([position for own in positions for position in own], dtype=torch.int32)
    inputs = AttentionInputs(places, rows, tables, torch.from_numpy(starts), torch.from_numpy(lengths))
    return inputs, randn(80, num_kv_heads, 8, 10, dtype=dtype), randn(81, num_kv_heads, 8, 10, dtype=dtype)[1:]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("heads", [(2, 2), (6, 2)])
def test_attend(dtype: torch.dtype, heads: tuple[int, int]) -> None:
    inputs, keys, values = attention_case(dtype, *heads)
    queries = randn(len(inputs.rows), heads[0], 10, dtype=dtype)
    y = launch.attend(queries, inputs, keys, values, 136)
    assert_close(y, torch_kernels.attend(queries, inputs, keys, values, 136))
    for token in (0, 2, 5, len(queries) - 1):  # each alone, to the bit
        one = torch.tensor([0], dtype=torch.int32)
        table = inputs.tables[inputs.rows[token]][None].contiguous()
        alone = AttentionInputs(inputs.positions[token : token + 1].clone(), one, table, one, one + 1)
        assert torch.equal(launch.attend(queries[token : token + 1], alone, keys, values, 136), y[token : token + 1])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("heads", [(2, 2), (6, 2)])
def test_rotate(dtype: torch.dtype, heads: tuple[int, int]) -> None:
    inputs, keys, values = attention_case(dtype, *heads)
    inputs = replace(inputs, positions=inputs.positions[:4].contiguous(), rows=inputs.rows[:4].contiguous())
    qkv = randn(4, (heads[0] + 2 * heads[1]) * 10, dtype=dtype)
    angles = randn(136, 5)
    results = []
    for module in (launch, torch_kernels):
        cached = keys.clone(), values.clone()
        queries = module.rotate(qkv, angles.cos().to(dtype), angles.sin().to(dtype), inputs, *cached, heads[0])
        results.append((queries, *cached))
    for value, expected in zip(*results, strict=True):
        assert_close(value, expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_step_gives_a_token_the_same_bits_in_chunks_in_company_and_alone(dtype: torch.dtype) -> None:
    model = with_compute_weights(random_model(20, 30, n_head=2, n_kv_head=1, n_embd=20), dtype)
    first, second = [3, 1, 4, 1, 5, 9], [2, 6]
    step = TritonStep(model, 9, 4)
    whole = step.forward(make_step([(first, 0, [4, 2])]))
    with torch.inference_mode():
        expected = model(torch.tensor([first]))[0]
    limit = 1e-5 if dtype == torch.float32 else 0.05
    torch.testing.assert_close(whole, expected, rtol=0, atol=limit * float(expected.abs().max()))

    chunks = [step.forward(make_step([(first[:3], 0, [7, 1]), (second, 0, [3])]))[:3]]  # in company
    chunks.append(step.forward(make_step([(first[3:5], 3, [7, 1])])))
    chunks.append(step.forward(make_step([(second[-1:], 1, [3]), (first[5:], 5, [7, 1]), ([8], 0, [5])]))[1:2])
    assert torch.equal(torch.cat(chunks), whole)
