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
TEXT_LEN = 40  # tokens that are compared


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

    A GPU or a compiler on which the kernels do not work then costs speed, and neither a crash nor wrong answers.
    """
    try:
        step = make()
        difference = difference_from(step, model)
    except torch.cuda.OutOfMemoryError:
        raise  # the other step would find no more room
    except Exception as error:
        return f"{type(error).__name__}: {error}".splitlines()[0][:200]
    limit = MAX_DIFFERENCE[model.compute_dtype]
    if difference > limit:
        return f"its logits differ from the model's by {difference:.2g}, more than {limit:g} of their norm"
    return step


@torch.inference_mode()
def difference_from(step: ModelStep, model: GPT) -> float:
    """Return |step - model| / |model| of the logits of a short text: as a prompt but for its last token, then that one.

    The step must be unused. It is 0 for a model whose logits are not finite, which no step can be compared with.
    """
    length = min(TEXT_LEN, step.config.sequence_len)
    ids = (np.arange(length) * 7919 % step.config.vocab_size).astype(np.int32)
    expected = model(torch.from_numpy(ids).long()[None].to(step.device))[0].double()  # (T, V)
    table = np.arange(-(-length // step.block_len), dtype=np.int32)[None]
    total = 0.0
    for start, end in ((0, length - 1), (length - 1, length)):
        if start < end:
            positions = np.arange(start, end, dtype=np.int32)
            rows, wanted = np.zeros(end - start, np.int32), np.arange(end - start, dtype=np.int32)
            logits = step.forward(StepTokens(ids[start:end], positions, rows, table, wanted))
            total += float((logits.double() - expected[start:end]).square().sum())
    norm = float(expected.square().sum())
    return (total / norm) ** 0.5 if np.isfinite(norm) and norm else 0.0
