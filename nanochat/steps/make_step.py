"""The forward pass that a machine generates with, and the number of cache blocks that its memory has room for."""

from __future__ import annotations

import math
from functools import cache

import torch

from nanochat.common import UserError, print0
from nanochat.gpt import GPT, GPTConfig
from nanochat.inference import native_step
from nanochat.inference.model_step import ModelStep
from nanochat.inference.native_step import NativeStep
from nanochat.inference.torch_step import TorchStep
from nanochat.runtime import Runtime, choose_generation_dtype
from nanochat.steps.choice import compared_step, missing_for_triton
from nanochat.system.environment import free_memory_bytes

BLOCK_LEN = native_step.BLOCK_LEN  # positions in a block, of either kind of step
QUANTIZE_CHOICES = ("none", "int8")
SHARE_OF_FREE_MEMORY = {"cpu": 0.4, "cuda": 0.8}  # what the cache may take; a GPU's memory serves nothing else
MAX_BLOCKS = 1 << 18  # four million positions: more is not needed for sharing, and the tables of blocks take memory too


def is_native(device: torch.device, dtype: torch.dtype) -> bool:
    """Return True if `make_step` returns the step in Rust: on CPUs, if the extension is built."""
    return device.type == "cpu" and native_step.is_available() and dtype in native_step.FORMATS


def check_step_dtype(device: torch.device, dtype: torch.dtype) -> None:
    """Raise `UserError` for weights that only the step in Rust can compute with, where it does not run."""
    if not dtype.is_floating_point and not is_native(device, dtype):
        name = str(dtype).removeprefix("torch.")
        raise UserError(
            f"weights in {name} need the step in Rust, on a CPU: use --device=cpu and build the extension with bash "
            "dev/setup.sh, or leave out --quantize"
        )


def generation_dtype(runtime: Runtime, compute_dtype: torch.dtype, quantize: str = "none") -> torch.dtype:
    """Return the dtype in which a model of `compute_dtype` generates text, the same on all ranks.

    It is int8 for `quantize` "int8", else the model's own, except where the step in Rust does not run and another dtype
    is faster (`choose_generation_dtype`).
    """
    if quantize == "int8":
        return torch.int8
    if is_native(runtime.device, compute_dtype):
        return compute_dtype
    return choose_generation_dtype(runtime, compute_dtype)


def is_invariant(device: torch.device, dtype: torch.dtype, config: GPTConfig) -> bool:
    """Return True if `make_step` returns a step in which a token's numbers do not depend on its company.

    It is the one in Rust on a CPU, the one in Triton on a GPU.
    """
    return is_native(device, dtype) or not missing_for_triton(device, dtype, config)


def make_step(model: GPT, dtype: torch.dtype, num_blocks: int) -> ModelStep:
    """Return the step of a model in a dtype: `NativeStep` on a CPU, `TritonStep` on a GPU, else `TorchStep`.

    The first needs the extension; the second Triton, and kernels that agree with the model. The weights are converted
    or packed here, once; only the `TorchStep` keeps the model. Raises `UserError` for int8 weights without the first.
    """
    check_step_dtype(model.device, dtype)
    if is_native(model.device, dtype):
        return NativeStep(model, num_blocks, dtype, cpu=native_step.fastest_cpu(dtype))
    model = with_compute_weights(model, dtype)
    if not missing_for_triton(model.device, dtype, model.config):
        step = compared_step(lambda: _triton_step(model, num_blocks), model)
        if not isinstance(step, str):
            return step
        _say_once(f"Text is generated in plain torch, and more slowly: the kernels in Triton do not work here ({step})")
    return TorchStep(model, num_blocks, BLOCK_LEN)


def _triton_step(model: GPT, num_blocks: int) -> ModelStep:
    from nanochat.steps.triton_step import TritonStep  # Triton is not everywhere, and may fail to be imported

    return TritonStep(model, num_blocks, BLOCK_LEN)


@cache
def _say_once(line: str) -> None:
    print0(line)


def with_compute_weights(model: GPT, dtype: torch.dtype) -> GPT:
    """Return the model with weights in the dtype in which it is to compute: `model` itself if it does, else a copy.

    Training keeps float32 weights and converts them in every product. In generation the conversion would take most of
    the time. A copy in float32 shares its weights with `model`.
    """
    weights = model.state_dict()
    if model.compute_dtype == dtype and all(weight.dtype == dtype for weight in weights.values()):
        return model
    with torch.device("meta"):
        converted = GPT(model.config, dtype)
    converted.load_state_dict({name: weight.to(dtype) for name, weight in weights.items()}, assign=True)
    converted.rope_cos = model.rope_cos.to(dtype)
    converted.rope_sin = model.rope_sin.to(dtype)
    return converted


def block_bytes(config: GPTConfig, dtype: torch.dtype, block_len: int = BLOCK_LEN) -> int:
    """Return the bytes of a block: keys and values of `block_len` positions in all layers.

    They are in the dtype of the step, and in bfloat16 if the weights are int8.
    """
    return 2 * config.n_layer * config.n_kv_head * config.head_dim * block_len * max(2, dtype.itemsize)


def blocks_that_fit(
    config: GPTConfig,
    dtype: torch.dtype,
    block_len: int,
    cache_gb: float | None,
    device: torch.device,
    num_sharing: int = 1,
) -> int:
    """Return the number of cache blocks for `cache_gb` (10^9 bytes), or for a share of what is free if it is None.

    `num_sharing`: caches that share what is free. Call it when the weights are in memory. On a CPU memory is taken when
    a block is first written, not before. Raises `UserError` if there is no room for one full context.
    """
    size = block_bytes(config, dtype, block_len)
    if cache_gb is not None:
        num_bytes = int(cache_gb * 1e9)
    elif device.type == "cuda":
        # What torch keeps for itself and does not use now is free too.
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        free = torch.cuda.mem_get_info(device)[0] + unused
        num_bytes = int(free * SHARE_OF_FREE_MEMORY["cuda"]) // num_sharing
    else:
        num_bytes = int(free_memory_bytes() * SHARE_OF_FREE_MEMORY["cpu"]) // num_sharing
    needed = math.ceil(config.sequence_len / block_len)
    if num_bytes < needed * size:
        has = f"cache_gb is {cache_gb:g}" if cache_gb is not None else f"only {num_bytes / 1e9:.3g} GB are free for it"
        takes = f"the KV cache of one context of {config.sequence_len:,} tokens takes {needed * size / 1e9:.3g} GB"
        raise UserError(f"{takes}, but {has}")
    return min(num_bytes // size, max(MAX_BLOCKS, needed))
