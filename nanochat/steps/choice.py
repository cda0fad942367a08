"""The choice of the step in Triton: what it needs, and a comparison with the model before it is used."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from importlib.util import find_spec

import numpy as np
import torch

from nanochat.gpt import GPT, GPTConfig
from nanochat.inference.model_step import ModelStep, StepTokens

MAX_HEAD_DIM = 256  # keys and values of a pass fit into the memory of a processor
MIN_CAPABILITY = (8, 0)  # bfloat16 on tensor cores
# Largest |logits of the step - logits of the model| / |logits of the model|, by norms: rounding in another order, with
# float32 products in TF32 where the model's are.
MAX_DIFFERENCE = {torch.float32: 1e-2, torch.bfloat16: 0.1}
TEXT_LEN = 300  # tokens that are compared: more than a part of the positions that is attended to at once


def missing_for_triton(device: torch.device, dtype: torch.dtype, config: GPTConfig) -> str:
    """Return what the step in Triton lacks here, in a few words; "" if it can run."""
    if device.type != "cuda" or not torch.cuda.is_available() or torch.version.hip:
        return "no NVIDIA GPU"
    if find_spec("triton") is None:
        return "Triton is not installed"
    capability = torch.cuda.get_device_capability(device)
    if capability < MIN_CAPABILITY:
        return f"the GPU has compute capability {capability[0]}.{capability[1]}, less than 8.0"
    if not any(shutil.which(name) for name in (os.environ.get("CC") or "cc", "gcc", "clang")):
        return "no C compiler (gcc or clang), which Triton starts kernels with"
    if dtype not in MAX_DIFFERENCE:
        return f"there are no kernels for {str(dtype).removeprefix('torch.')}"
    if config.head_dim > MAX_HEAD_DIM:
        return f"the head size {config.head_dim} is above {MAX_HEAD_DIM}"
    return ""


def compared_step(make: Callable[[], ModelStep], model: GPT) -> ModelStep | str:
    """Make a step and compare it with the model. Return it, or in one line why it cannot be used.

    A GPU or a compiler on which the kernels do not work then costs speed, and gives no wrong answers. A fault that
    leaves CUDA unusable still ends the process.
    """
    try:
        step = make()
        difference = difference_from(step, model)
    except torch.cuda.OutOfMemoryError:
        raise  # the other step would find no more room
    except Exception as error:
        return f"{type(error).__name__}: {error}".splitlines()[0][:200]
    limit = MAX_DIFFERENCE[model.compute_dtype]
    if not difference <= limit:  # it may be NaN
        return f"its logits differ from the model's by {difference:.2g}, more than {limit:g} of their norm"
    return step


@torch.inference_mode()
def difference_from(step: ModelStep, model: GPT) -> float:
    """Return |step - model| / |model| of the logits of a text: as a prompt but for its last token, then that one.

    Beside the last token stand the first tokens of up to two other sequences. The step must be unused. The result is 0
    for a model whose logits are not finite, which no step can be compared with.
    """
    length = min(TEXT_LEN, step.config.sequence_len)
    ids = (np.arange(length) * 7919 % step.config.vocab_size).astype(np.int32)
    expected = model(torch.from_numpy(ids).long()[None].to(step.device))[0].double()  # (T, V)
    num_blocks = -(-length // step.block_len)
    num_others = min(2, step.num_blocks - num_blocks)
    tables = np.full((1 + num_others, num_blocks), -1, np.int32)
    tables[0] = np.arange(num_blocks)
    tables[1:, 0] = num_blocks + np.arange(num_others)
    prompt = np.arange(length - 1, dtype=np.int32)
    last = np.array([length - 1] + [0] * num_others, np.int32)
    total = norm = 0.0
    for positions, rows in ((prompt, np.zeros_like(prompt)), (last, np.arange(len(last), dtype=np.int32))):
        if len(positions):
            numbers = np.arange(len(positions), dtype=np.int32)
            used = tables[: rows[-1] + 1]
            logits = step.forward(StepTokens(ids[positions], positions, rows, used, numbers)).double()
            wanted = expected[torch.from_numpy(positions).long().to(expected.device)]
            total += float((logits - wanted).square().sum())
            norm += float(wanted.square().sum())
    return (total / norm) ** 0.5 if np.isfinite(norm) and norm else 0.0
