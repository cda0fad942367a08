"""The kernels in Triton: logits against those of torch, and a token's bits in company, in chunks, captured and not."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.util import find_spec
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch

from dev.gpu_check.check import Check, Skipped, relative_error
from dev.gpu_check.models import random_model
from nanochat.gpt import GPT, GPTConfig
from nanochat.inference.model_step import ModelStep, StepTokens
from nanochat.inference.torch_step import TorchStep
from nanochat.runtime import exact_float32
from nanochat.steps.choice import missing_for_triton

if TYPE_CHECKING:
    from nanochat.steps.triton_step import TritonStep

# Largest relative error of the logits. On a CPU Triton's interpreter rounds bfloat16 towards zero.
MAX_ERROR = {torch.float32: 1e-4, torch.bfloat16: 0.03}
MAX_ERROR_INTERPRETED = {torch.float32: 1e-4, torch.bfloat16: 0.2}
INTERPRET = "TRITON_INTERPRET"

Row = tuple[Sequence[int], int, Sequence[int]]  # tokens, position of the first, block table


def triton_step_class(check: Check, dtype: torch.dtype, config: GPTConfig) -> type[TritonStep]:
    """Return the class `TritonStep`. Raises `Skipped`, with what is missing, where it cannot run."""
    if check.is_dry_run and os.environ.get(INTERPRET) != "1":
        raise Skipped(f"no GPU, and {INTERPRET} was not set before Triton was imported")
    if not find_spec("triton"):
        raise Skipped("Triton is not installed")
    missing = "" if check.is_dry_run else missing_for_triton(check.device, dtype, config)
    if missing:
        raise Skipped(missing)
    from nanochat.steps.triton_step import TritonStep

    return TritonStep


def check_kernels(check: Check) -> None:
    """The step in Triton, float32 and bf16, grouped queries: logits, and the same bits whatever the load."""
    for dtype in MAX_ERROR:
        for is_grouped in (dtype == torch.bfloat16,) if check.is_dry_run else (False, True):
            if check.is_dry_run:
                config = GPTConfig(24, 40, n_layer=1, n_head=2, n_kv_head=1 if is_grouped else 2, n_embd=32)
            else:
                config = GPTConfig(512, 1000, n_layer=3, n_head=4, n_kv_head=2 if is_grouped else 4, n_embd=512)
            case = f"{str(dtype).removeprefix('torch.')}{', grouped' * is_grouped}"
            with exact_float32():
                model = random_model(config, check.device, dtype)
                kind = triton_step_class(check, dtype, config)
                compare_logits(check, case, model, kind)
                compare_bits(check, case, model, kind)


def compare_logits(check: Check, case: str, model: GPT, kind: type[TritonStep]) -> None:
    """Compare a prompt and decoded tokens with the step in torch, which is compared with whole passes elsewhere."""
    text = text_of(model)
    table = list(range(-(-len(text) // 16)))
    cuts = [0, len(text) - 2, len(text) - 1, len(text)]
    limit = (MAX_ERROR_INTERPRETED if check.is_dry_run else MAX_ERROR)[model.compute_dtype]
    steps = kind(model, len(table)), TorchStep(model, len(table))
    for start, end in pairwise(cuts):
        logits, expected = (step.forward(step_of([(text[start:end], start, table)])) for step in steps)
        name = "prompt" if start == 0 else "decoded token"
        check.expect(f"{name} at {start}, Triton against torch, {case}", relative_error(logits, expected), limit)


def compare_bits(check: Check, case: str, model: GPT, kind: type[TritonStep]) -> None:
    """Compare a text's logits, computed as one prompt alone, with those of chunks and of decoding in company."""
    text = text_of(model)
    num_blocks = -(-len(text) // 16)
    rows = (1, 2) if check.is_dry_run else (1, 2, 3, 7, 16, 31, 32, 33, 64, 100, 128, 200, 256)
    step = kind(model, 2 * num_blocks + max(rows))
    whole = step.forward(step_of([(text, 0, range(num_blocks))]))  # (T, V)
    others = [range(2 * num_blocks + row, 2 * num_blocks + row + 1) for row in range(max(rows))]
    table = range(num_blocks, 2 * num_blocks)

    chunks, start = [], 0
    for length in (1, 2, 5, 16, 17, 100, 33, len(text)):
        part = text[start:-1][:length]  # all but the last token
        if part:
            mixed = step_of([([3], 0, others[0]), (part, start, table), ([5, 6], 0, others[1])])
            chunks.append(step.forward(mixed)[1 : 1 + len(part)])
            start += len(part)
    differing = int((torch.cat(chunks) != whole[:start]).any(1).sum())
    check.expect_equal(f"tokens whose bits differ in chunks, {case}", differing, 0)

    last: Row = (text[start:], start, table)
    assert len(last[0]) == 1
    modes: dict[str, ModelStep] = {"captured" if check.device.type == "cuda" else "padded": step}
    if check.device.type == "cuda":
        eager = kind(model, step.num_blocks, is_captured=False)
        eager.forward(step_of([(text[:start], 0, table)]))
        modes["eager"] = eager
    for mode, one in modes.items():
        num_differing = 0
        for count in rows:
            for place in sorted({0, count // 2, count - 1}):
                batch: list[Row] = [([7 + row % 9], 0, others[row]) for row in range(count)]
                batch[place] = last
                num_differing += not torch.equal(one.forward(step_of(batch))[place], whole[-1])
        name = f"of {rows[0]} to {rows[-1]} rows, steps in which bits differ, {mode}, {case}"
        check.expect_equal(name, num_differing, 0)


def text_of(model: GPT) -> list[int]:
    """Return a text that nearly fills the context."""
    generator = torch.Generator().manual_seed(3)
    return torch.randint(model.config.vocab_size, (model.config.sequence_len - 3,), generator=generator).tolist()


def step_of(rows: Sequence[Row]) -> StepTokens:
    """Return a step of these rows, with the logits of all tokens wanted."""
    tokens = [token for own, _, _ in rows for token in own]
    width = max(len(table) for _, _, table in rows)
    return StepTokens(
        np.array(tokens, np.int32),
        np.array([start + index for own, start, _ in rows for index in range(len(own))], np.int32),
        np.array([row for row, (own, _, _) in enumerate(rows) for _ in own], np.int32),
        np.array([[*table, *[-1] * (width - len(table))] for _, _, table in rows], np.int32),
        np.arange(len(tokens), dtype=np.int32),
    )
