"""The step of a model on CPUs, in Rust (`rustgpt/`): a token gets the same bits whatever else the step computes.

Weights are packed once, in the dtype of the step. With bfloat16 and int8 weights, keys and values and the inputs of
products are rounded to bfloat16; the other activations stay float32. The bits are those of any processor, with AMX or
without: it is only faster.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nanochat.gpt import GPT
from nanochat.inference.model_step import StepTokens
from nanochat.system.cpu import ISA_VARIABLE, cpu_flags, measure_bf16

try:
    from nanochat.tokenization._rustbpe import NativeGPT, has_amx
except ImportError:  # the extension is not built, or is older than this file
    NativeGPT = None  # type: ignore[assignment, misc]

BLOCK_LEN = 16  # positions of a block of the cache: the lanes of a vector
MATRICES = ("attn.q_proj", "attn.k_proj", "attn.v_proj", "attn.o_proj", "mlp.up_proj", "mlp.down_proj")
FORMATS = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.int8: "int8"}


def is_available() -> bool:
    """Return True if the extension was built with the native step."""
    return NativeGPT is not None


def fastest_cpu(dtype: torch.dtype) -> str | None:
    """Return the kind of instructions for `NativeStep`: "amx" where that works and serves the dtype, else None.

    Whether it works is tried once on each machine (`measure_bf16` in system/cpu.py). A limit that is set for oneDNN,
    the library of torch's products, is taken for a limit here too.
    """
    if dtype == torch.float32 or "amx_bf16" not in cpu_flags() or os.environ.get(ISA_VARIABLE):
        return None
    probe = measure_bf16()
    works = probe and probe["speedup"] is not None and not probe["isa"]
    return "amx" if works and has_amx() else None


class NativeStep:
    """A model on the CPU with packed weights and its cache in blocks. Implements `ModelStep`.

    `dtype`: float32, bfloat16, or int8 (a scale for each output). The model is read, and not kept. The weights take
    memory of their own: drop the model where nothing else needs it.
    """

    block_len = BLOCK_LEN

    def __init__(
        self, model: GPT, num_blocks: int, dtype: torch.dtype, num_threads: int | None = None, cpu: str | None = None
    ) -> None:
        """`cpu`: kind of instructions (amx, avx512, avx2, neon, portable); None = the fastest without AMX."""
        assert NativeGPT is not None, "the extension is not built"
        assert dtype in FORMATS, f"dtype {dtype}: must be one of {list(FORMATS)}"
        self.config = model.config
        self.device = torch.device("cpu")
        self.dtype = dtype
        self.num_blocks = num_blocks
        config = model.config
        weight_dtype = torch.float32 if dtype == torch.float32 else torch.bfloat16
        if dtype == torch.int8:  # quantized from float32
            weight_dtype = torch.float32

        def converted(weight: Tensor) -> Tensor:
            return weight.detach().to("cpu", weight_dtype).contiguous()

        kept: list[Tensor] = []  # alive until the constructor has read them

        def array(tensor: Tensor) -> tuple[int, int]:
            kept.append(tensor)
            return tensor.data_ptr(), tensor.numel()

        weights = model.state_dict()
        self._native = NativeGPT(
            context_len=config.sequence_len,
            vocab_size=config.vocab_size,
            n_layer=config.n_layer,
            n_head=config.n_head,
            n_kv_head=config.n_kv_head,
            head_dim=config.head_dim,
            softcap=config.softcap,
            format=FORMATS[dtype],
            num_blocks=num_blocks,
            num_threads=num_threads or torch.get_num_threads(),
            is_bf16=weight_dtype == torch.bfloat16,
            embedding=array(converted(weights["embed.weight"][: config.vocab_size])),
            head=array(converted(weights["head.weight"][: config.vocab_size])),
            rope_cos=array(model.rope_cos.detach().to("cpu", torch.float32).contiguous()),
            rope_sin=array(model.rope_sin.detach().to("cpu", torch.float32).contiguous()),
            matrices=[
                [array(converted(weights[f"blocks.{layer}.{name}.weight"])) for name in MATRICES]
                for layer in range(config.n_layer)
            ],
            cpu=cpu,
        )

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights that every step reads."""
        return self._native.weight_bytes

    def forward(self, step: StepTokens) -> Tensor:
        """Write the keys and values of all tokens, and return the logits of the wanted ones, float32 (L, V)."""
        logits = torch.empty(len(step.wanted), self.config.vocab_size)
        arrays = [step.tokens, step.positions, step.rows, step.block_tables, step.wanted]
        tokens, positions, rows, block_tables, wanted = (np.ascontiguousarray(array, np.int32) for array in arrays)
        self._native.forward(
            _array(tokens),
            _array(positions),
            _array(rows),
            _array(block_tables),
            block_tables.shape[1],
            _array(wanted),
            (logits.data_ptr(), logits.numel()),
        )
        return logits

    def copy_block(self, source: int, target: int) -> None:
        """Copy a block of the cache."""
        self._native.copy_block(source, target)


def _array(array: Any) -> tuple[int, int]:
    """Return the address and the number of elements of an array."""
    return array.ctypes.data, array.size
