"""The kernels that a step would start, recorded on the meta device: nothing is computed, and no memory is taken."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch

from nanochat.gpt import GPT, GPTConfig
from nanochat.inference.model_step import StepTokens

TYPE_NAMES = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.int32: "*i32"}


@dataclass(frozen=True)
class Launch:
    """A kernel, its grid, the Triton types of its arguments, its constants and options."""

    kernel: Any
    grid: tuple[int, ...]
    types: tuple[str, ...]
    constants: dict[str, Any]
    num_warps: int
    num_stages: int


def recorded_launches(
    config: GPTConfig, dtype: torch.dtype, step: StepTokens, monkeypatch: pytest.MonkeyPatch
) -> list[Launch]:
    """Return the launches of a step of a model with this shape, in order."""
    from nanochat.steps import launch, triton_step

    launches = []

    def record(
        kernel: Any,
        grid: tuple[int, ...],
        values: tuple[torch.Tensor | int, ...],
        constants: dict[str, Any],
        num_warps: int = 4,
        num_stages: int = 3,
    ) -> None:
        types = tuple(TYPE_NAMES[value.dtype] if isinstance(value, torch.Tensor) else "i32" for value in values)
        launches.append(Launch(kernel, grid, types, constants, num_warps, num_stages))

    monkeypatch.setattr(launch, "launch", record)
    monkeypatch.setattr(triton_step, "to_device", lambda values, device: torch.from_numpy(values).to(device))
    with torch.device("meta"):
        model = GPT(config, dtype).to(dtype)
    triton_step.TritonStep(model, num_blocks=1000, block_len=16).forward(step)
    return launches
