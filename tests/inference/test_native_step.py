"""The step in Rust against the model in torch, and its bits against themselves in every company."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from nanochat.gpt import GPT, Linear
from nanochat.inference import native_step
from nanochat.inference.kv_cache import KVCache
from nanochat.inference.model_step import StepTokens
from nanochat.inference.native_step import BLOCK_LEN, NativeStep, is_available
from nanochat.system.cpu import time_bf16_products
from tests.support.models import random_model
from tests.support.processes import ROOT

pytestmark = pytest.mark.skipif(not is_available(), reason="the Rust extension is not built")

SHAPES: dict[str, dict[str, Any]] = {
    "two heads": {"vocab_size": 300, "n_layer": 2, "n_head": 2, "n_kv_head": 2, "n_embd": 64},
    "grouped, head size 24": {"vocab_size": 517, "n_layer": 2, "n_head": 6, "n_kv_head": 2, "n_embd": 144},
    "head size 10": {"vocab_size": 130, "n_layer": 2, "n_head": 3, "n_kv_head": 3, "n_embd": 30},
    "the smallest": {"vocab_size": 70, "n_layer": 1, "n_head": 1, "n_kv_head": 1, "n_embd": 2},
    "no cap, head size 136": {
        "vocab_size": 100,
        "n_layer": 1,
        "n_head": 2,
        "n_kv_head": 1,
        "n_embd": 272,
        "softcap": 0.0,
    },
}
DTYPES = (torch.float32, torch.bfloat16, torch.int8)


def kinds_of_cpu() -> list[str]:
    """The kinds of instructions that this processor supports."""
    kinds = []
    for kind in ("avx512", "avx2", "neon", "portable"):
        try:
            NativeStep(MODEL, 1, torch.float32, num_threads=1, cpu=kind)
        except ValueError:
            continue
        kinds.append(kind)
    return kinds


MODEL = random_model(sequence_len=64, **SHAPES["grouped, head size 24"])


def int32(values: Any) -> np.ndarray:
    return np.array(values, np.int32)


def logits_of(step: NativeStep, ids: list[int], blocks: np.ndarray, chunks: list[int] | None = None) -> Tensor:
    """The logits of all tokens of one sequence, in chunks that end at these positions (default: one chunk)."""
    ends = [*(chunks or []), len(ids)]
    found = []
    for start, end in zip([0, *ends], ends, strict=False):
        if start == end:
            continue
        tokens = int32(ids[start:end])
        positions = np.arange(start, end, dtype=np.int32)
        rows = np.zeros(end - start, np.int32)
        found.append(step.forward(StepTokens(tokens, positions, rows, blocks[None], positions - start)))
    return torch.cat(found)


class RoundingCache(KVCache):
    """A cache that stores keys and values in bfloat16 and gives them back as float32."""

    def insert(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        return super().insert(layer, k.bfloat16().float(), v.bfloat16().float())


def round_input(_module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    return (inputs[0].bfloat16().float(),)


def rounded_model(model: GPT, dtype: torch.dtype) -> GPT:
    """The model with the weights and inputs of products that a step in this dtype computes with, in float32."""
    rounded = copy.deepcopy(model)
    for module in rounded.modules():
        if isinstance(module, Linear):
            module.register_forward_pre_hook(round_input)
    with torch.no_grad():
        for name, param in rounded.named_parameters():
            if dtype == torch.bfloat16:
                param.copy_(param.bfloat16().float())
            elif name != "embed.weight":
                scale = param.abs().amax(dim=1, keepdim=True) / 127
                param.copy_((param / scale).round() * scale)
    return rounded


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_logits_are_those_of_the_model(shape: dict[str, Any], dtype: torch.dtype) -> None:
    model = random_model(sequence_len=200, **shape, scale=0.15)
    rng = np.random.default_rng(1)
    ids = rng.integers(0, model.config.vocab_size, 150).tolist()
    blocks = rng.permutation(12).astype(np.int32)[:10]
    found = logits_of(NativeStep(model, 12, dtype), ids, blocks, chunks=[1, 8, 77])
    with torch.no_grad():
        if dtype == torch.float32:
            expected = model(torch.tensor([ids]))[0]
        else:
            cache = RoundingCache(model.config, 1, torch.float32, model.device)
            expected = rounded_model(model, dtype)(torch.tensor([ids]), kv_cache=cache)[0]
    assert expected.std() > 0.05
    difference = (found - expected).abs() / expected.abs().max()
    if dtype == torch.float32:
        assert difference.max() < 1e-5
    else:  # a number between two of bfloat16 may be rounded to the other one; without rounding the mean is 5 to 9e-4
        assert difference.max() < 8e-3
        assert difference.mean() < 4.5e-4


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_same_bits_with_all_instructions_and_threads(dtype: torch.dtype) -> None:
    ids = np.random.default_rng(2).integers(0, MODEL.config.vocab_size, 60).tolist()
    blocks = np.arange(4, dtype=np.int32)
    expected = logits_of(NativeStep(MODEL, 4, dtype, num_threads=1), ids, blocks)
    kinds = kinds_of_cpu()
    assert "portable" in kinds
    for cpu in kinds:
        for num_threads in (1, 3):
            found = logits_of(NativeStep(MODEL, 4, dtype, num_threads, cpu), ids, blocks, chunks=[num_threads, 23])
            assert torch.equal(found, expected), (cpu, num_threads)


@pytest.fixture(scope="session")
def amx() -> None:
    """Skip the test where AMX does not work. Some virtual machines advertise it and kill who uses it."""
    code = "from tests.inference.test_native_step import *; logits_of(amx_step(4), [1, 2], int32([0]))"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    if "supports" in result.stderr:
        pytest.skip("the processor has no AMX")
    # A crash of ours is no reason to skip: torch's products with AMX must end their process too.
    if result.returncode < 0 and time_bf16_products({**os.environ, "ONEDNN_MAX_CPU_ISA": ""}) is None:
        pytest.skip("AMX is advertised, but ends every process that uses it, as on some virtual machines")
    assert result.returncode == 0, f"code {result.returncode}: {result.stderr}"


def amx_step(num_blocks: int, num_threads: int = 1, dtype: torch.dtype = torch.bfloat16) -> NativeStep:
    return NativeStep(MODEL, num_blocks, dtype, num_threads, cpu="amx")


@pytest.mark.usefixtures("amx")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int8])
def test_amx_gives_the_bits_of_the_other_instructions(dtype: torch.dtype) -> None:
    ids = np.random.default_rng(2).integers(0, MODEL.config.vocab_size, 64).tolist()
    blocks = np.arange(4, dtype=np.int32)
    expected = logits_of(NativeStep(MODEL, 4, dtype), ids, blocks)
    for chunks in ([], [1], [4, 9], [16], [17, 18, 19], [32, 33], [3, 20, 50]):
        assert torch.equal(logits_of(amx_step(4, 2, dtype), ids, blocks, chunks), expected), chunks


@pytest.mark.usefixtures("amx")
def test_amx_gives_the_same_bits_where_results_are_too_small_for_normal_numbers() -> None:
    model = random_model(sequence_len=64, **SHAPES["two heads"], softcap=0.0)
    with torch.no_grad():
        model.head.weight.mul_(1e-37)
    ids = np.random.default_rng(3).integers(0, model.config.vocab_size, 40).tolist()
    blocks = np.arange(3, dtype=np.int32)
    alone = logits_of(NativeStep(model, 3, torch.bfloat16), ids, blocks)
    assert 0 < float((alone == 0).float().mean()) < 1  # some are flushed to zero
    assert torch.equal(logits_of(NativeStep(model, 3, torch.bfloat16, cpu="amx"), ids, blocks), alone)


LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=9)


@settings(max_examples=30, deadline=None)
@given(LENGTHS, st.sampled_from(DTYPES), st.integers(0, 2**32))
def test_the_same_bits_in_every_company(lengths: list[int], dtype: torch.dtype, seed: int) -> None:
    check_company(lengths, seed, lambda num_blocks, threads: NativeStep(MODEL, num_blocks, dtype, threads))


@pytest.mark.usefixtures("amx")
@settings(max_examples=15, deadline=None)
@given(LENGTHS, st.integers(0, 2**32))
def test_the_same_bits_in_every_company_with_amx(lengths: list[int], seed: int) -> None:
    check_company(lengths, seed, amx_step)


def check_company(lengths: list[int], seed: int, make_step: Callable[[int, int], NativeStep]) -> None:
    """Sequences that advance by random chunks, in random companies, get the logits that each has alone."""
    rng = np.random.default_rng(seed)
    sequences = [rng.integers(0, MODEL.config.vocab_size, length).tolist() for length in lengths]
    step = make_step(3 * len(sequences), 2)
    tables = rng.permutation(3 * len(sequences)).astype(np.int32).reshape(-1, 3)
    done = [0] * len(sequences)
    found: list[list[Tensor]] = [[] for _ in sequences]
    while any(len(ids) > count for ids, count in zip(sequences, done, strict=True)):
        tokens: list[int] = []
        positions: list[int] = []
        rows: list[int] = []
        for row, ids in enumerate(sequences):
            count = int(rng.integers(0, min(12, len(ids) - done[row]) + 1))
            tokens += ids[done[row] : done[row] + count]
            positions += range(done[row], done[row] + count)
            rows += [row] * count
            done[row] += count
        if not tokens:
            continue
        wanted = np.arange(len(tokens), dtype=np.int32)
        logits = step.forward(StepTokens(int32(tokens), int32(positions), int32(rows), tables, wanted))
        for row, row_logits in zip(rows, logits, strict=True):
            found[row].append(row_logits)
    for ids, row_found in zip(sequences, found, strict=True):
        alone = logits_of(make_step(3, 1), ids, np.arange(3, dtype=np.int32))
        assert torch.equal(torch.stack(row_found), alone)


def test_only_wanted_logits_and_copied_blocks() -> None:
    ids = list(range(40))
    step = NativeStep(MODEL, 8, torch.bfloat16)
    blocks = int32([5, 1, 3])
    all_logits = logits_of(step, ids, blocks)
    step.copy_block(1, 7)
    step.copy_block(3, 0)
    again = StepTokens(int32([ids[-1]]), int32([39]), int32([1]), int32([[-1, -1, -1], [5, 7, 0]]), int32([0]))
    assert torch.equal(step.forward(again), all_logits[-1:])
    wanted = StepTokens(int32(ids), np.arange(40, dtype=np.int32), np.zeros(40, np.int32), blocks[None], int32([3, 39]))
    assert torch.equal(step.forward(wanted), all_logits[[3, 39]])
    nothing = StepTokens(int32(ids), np.arange(40, dtype=np.int32), np.zeros(40, np.int32), blocks[None], int32([]))
    assert step.forward(nothing).shape == (0, MODEL.config.vocab_size)


def test_logits_that_are_not_finite_stay_so() -> None:
    model = random_model(sequence_len=32)
    with torch.no_grad():
        model.blocks[0].mlp.up_proj.weight[0, 0] = float("nan")  # type: ignore[union-attr, operator, index]
    for dtype in (torch.float32, torch.bfloat16):
        assert logits_of(NativeStep(model, 2, dtype), [1, 2, 3], int32([0])).isnan().all()


@pytest.mark.parametrize(
    ("part", "value", "reason"),
    [
        ("tokens", [517, 0], "token 517 of a vocabulary of 517"),
        ("tokens", [-1, 0], "token -1"),
        ("positions", [0, 64], "position 64 of a context of 64"),
        ("positions", [3, 5], "token 1 does not follow"),
        ("rows", [0, 1], "row 1 of 1 block tables"),
        ("rows", [1, 0], "row 1 of 1"),
        ("block_tables", [[4]], "block 4 of 4"),
        ("block_tables", [[-1]], "block -1"),
        ("block_tables", [[]], "row 0 of 0 block tables"),
        ("wanted", [2], "logits of token 2 of 2"),
    ],
)
def test_a_wrong_step_is_refused(part: str, value: list[Any], reason: str) -> None:
    step = NativeStep(MODEL, 4, torch.float32)
    arrays = {"tokens": [1, 2], "positions": [0, 1], "rows": [0, 0], "block_tables": [[0]], "wanted": [0]}
    with pytest.raises(RuntimeError, match=reason):
        step.forward(StepTokens(**{name: int32(numbers) for name, numbers in {**arrays, part: value}.items()}))
    with pytest.raises(RuntimeError, match="block 4 of 4"):
        step.copy_block(0, 4)


def test_instructions_that_the_processor_lacks() -> None:
    with pytest.raises(ValueError, match='cpu "z80": this one supports'):
        NativeStep(MODEL, 1, torch.float32, cpu="z80")


def test_the_choice_of_amx(monkeypatch: pytest.MonkeyPatch) -> None:
    probes = {"works": {"speedup": 3.0, "isa": ""}, "slower": {"speedup": 0.5, "isa": ""}}
    probes |= {"dies": {"speedup": 1.1, "isa": "AVX512_CORE_BF16"}, "no products": {"speedup": None, "isa": ""}}
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    monkeypatch.setattr(native_step, "cpu_flags", lambda: {"amx_bf16", "avx512f"})
    monkeypatch.setattr(native_step, "has_amx", lambda: True)
    found = {}
    for name, probe in probes.items():
        monkeypatch.setattr(native_step, "measure_bf16", lambda probe=probe: probe)
        found[name] = native_step.fastest_cpu(torch.bfloat16)
    assert found == {"works": "amx", "slower": "amx", "dies": None, "no products": None}
    monkeypatch.setattr(native_step, "measure_bf16", lambda: probes["works"])
    monkeypatch.setattr(native_step, "has_amx", lambda: False)  # the system refuses it to this process
    assert native_step.fastest_cpu(torch.bfloat16) is None
    monkeypatch.setattr(native_step, "measure_bf16", lambda: pytest.fail("nothing is to be tried"))
    assert native_step.fastest_cpu(torch.float32) is None
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert native_step.fastest_cpu(torch.bfloat16) is None
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA")
    monkeypatch.setattr(native_step, "cpu_flags", lambda: {"avx512f"})
    assert native_step.fastest_cpu(torch.bfloat16) is None


def test_block_len() -> None:
    assert NativeStep.block_len == BLOCK_LEN == 16
    step = NativeStep(MODEL, 1, torch.int8)
    weights = sum(param.numel() for name, param in MODEL.named_parameters() if name != "embed.weight")
    assert weights <= step.weight_bytes < 1.5 * weights
