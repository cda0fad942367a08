"""The kernels: they compile for NVIDIA GPUs, which needs none, and compute in the interpreter what torch computes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from nanochat.gpt import GPTConfig
from tests.support.block_steps import make_step
from tests.support.recorded_launches import Launch, recorded_launches

triton = pytest.importorskip("triton")
SHARED_MEMORY = 99 * 1024  # bytes for a program: cards of compute capability 8.6 and 8.9; others have more
ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_the_interpreter_computes_what_torch_computes(tmp_path: Path) -> None:
    """tests/steps/interpreted.py, in a process that has chosen the interpreter."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/steps/interpreted.py"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-1000:]
    assert re.search(r"\b[1-9]\d* passed", done.stdout), done.stdout
    assert "skipped" not in done.stdout, done.stdout


def compiled(launch: Launch, capability: int) -> Any:
    """The kernel as it would be compiled at its first launch."""
    names = launch.kernel.arg_names
    signature = dict(zip(names, launch.types, strict=False))
    signature |= dict.fromkeys(names[len(launch.types) :], "constexpr")
    assert set(launch.constants) == set(names[len(launch.types) :])
    pointers = [index for index, kind in enumerate(launch.types) if kind.startswith("*")]
    attributes = {(index,): [["tt.divisibility", 16]] for index in pointers}
    source = triton.compiler.ASTSource(launch.kernel, signature, launch.constants, attributes)
    target = triton.backends.compiler.GPUTarget("cuda", capability, 32)
    options = {"num_warps": launch.num_warps, "num_stages": launch.num_stages, "enable_fp_fusion": True}
    return triton.compile(source, target=target, options=options)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("depth", "dtype", "capability"),
    [(12, torch.bfloat16, 80), (20, torch.bfloat16, 90), (20, torch.float32, 90)],
)
def test_the_kernels_of_a_step_compile(
    depth: int, dtype: torch.dtype, capability: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Machine code for A100 and H100; products of bfloat16 in one instruction of the tensor cores, for any rows."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    config = GPTConfig.from_depth(depth, vocab_size=32768, sequence_len=2048)
    launches = recorded_launches(config, dtype, make_step([([1], 0, [0]), ([1], 0, [1])]), monkeypatch)
    assert len(launches) == 2 + 7 * depth
    for launch in launches[:8] + launches[-1:]:  # all layers are alike
        code = compiled(launch, capability)
        assert code.metadata.shared <= SHARED_MEMORY, launch
        instructions = set(re.findall(r"\b(?:w?g?mma|wgmma)\.[\w.]+", code.asm["ptx"]))
        has_product = launch.kernel.__name__ in ("linear_kernel", "attention_kernel") and dtype == torch.bfloat16
        expected = {"mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32"} if has_product else set()
        assert instructions == expected, launch


def test_launches_depend_on_the_number_of_rows_in_their_grids_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """The code, its constants and options are the same for 1 row, 256 rows and chunks of prompts."""
    config = GPTConfig.from_depth(2, vocab_size=1000, sequence_len=2048, n_kv_head=1)
    steps = {
        "1 row": make_step([([1], 9, [0])]),
        "200 rows": make_step([([1], 0, [row]) for row in range(200)]),
        "chunks": make_step([([1] * 33, 5, [0, 1, 2]), ([1], 0, [4]), ([1] * 7, 0, [5])], wanted=[3, 40]),
    }
    found = {name: recorded_launches(config, torch.bfloat16, step, monkeypatch) for name, step in steps.items()}
    for name, launches in found.items():
        assert [launch.types for launch in launches] == [launch.types for launch in found["1 row"]]
        for launch, other in zip(launches, found["1 row"], strict=True):
            assert launch.kernel is other.kernel, name
            assert launch.constants == other.constants, name
            assert (launch.num_warps, launch.num_stages) == (other.num_warps, other.num_stages)
    grids = [[launch.grid for launch in launches] for launches in found.values()]
    assert len({str(grid) for grid in grids}) == 3
