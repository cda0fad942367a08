"""The forward pass of generation on a GPU: kernels of our own, decoding as one CUDA graph. This module needs Triton.

Letters in shape comments: N tokens of the step, R its sequences, M blocks of a sequence, A tiles of attention, L wanted
logits, V vocabulary, C width, H query heads, K key-value heads, D head size.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from nanochat.gpt import GPT, Block
from nanochat.inference.model_step import Int32s, StepTokens, to_device
from nanochat.steps import launch
from nanochat.steps.launch import AttentionInputs

_log = logging.getLogger(__name__)

BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)  # rows of captured steps
ALIGNMENT = 4  # int32 numbers: kernels are compiled for addresses that are multiples of 16 bytes


@dataclass(frozen=True)
class Layer:
    """Weights of a layer, in the dtype of the step, and its cache."""

    qkv: Tensor  # ((H + 2K) * D, C)
    out: Tensor  # (C, C)
    up: Tensor  # (4C, C)
    down: Tensor  # (C, 4C)
    cache: Tensor  # keys and values, (2, blocks, K, block_len, D)


@dataclass(frozen=True)
class StepInputs:
    """The numbers that a step reads on the device, all int32."""

    ids: Tensor  # (N,)
    wanted: Tensor  # (L,), indices into the N tokens
    attention: AttentionInputs


@dataclass(frozen=True)
class CapturedStep:
    """A decoding step for a number of rows, with fixed addresses: copy its inputs, replay it, read its logits."""

    inputs: Tensor  # int32, all arrays of `packed_inputs` in one
    graph: torch.cuda.CUDAGraph
    logits: Tensor  # (bucket, V)


class TritonStep:
    """A `ModelStep` on a GPU in which a token's numbers do not depend on the other tokens of the step, to the bit.

    Nor do they depend on the chunks in which its prompt was read (`kernels.py` says why). A step in which each sequence
    has one token is padded to a bucket of rows and replayed as a CUDA graph, which is captured when its bucket first
    occurs: a hundred kernels for the price of one start. Other steps start the same kernels one by one. The host waits
    for nothing.

    On a CPU the kernels run in Triton's interpreter (TRITON_INTERPRET=1), for tests.
    """

    def __init__(self, model: GPT, num_blocks: int, block_len: int = 16, *, is_captured: bool = True) -> None:
        """Pass the plain model, with weights in its compute dtype. The step keeps the weights, not the model.

        `is_captured`: False starts the kernels of all steps one by one.
        """
        self.config = model.config
        self.device = model.device
        self.block_len = block_len
        self.num_blocks = num_blocks
        self._is_captured = is_captured and self.device.type == "cuda"
        self._captured: dict[int, CapturedStep] = {}
        self._memory: Any = None  # a pool for all graphs
        self._table_len = math.ceil(model.config.sequence_len / block_len)
        self._dtype = model.compute_dtype
        self._embedding, self._head = model.embed.weight.detach(), model.head.weight.detach()
        self._cos, self._sin = model.rope_cos.to(self._dtype), model.rope_sin.to(self._dtype)  # (positions, D/2)
        self._layers = [self._layer(block) for block in cast("Sequence[Block]", model.blocks)]

    def _layer(self, block: Block) -> Layer:
        attn, mlp, config = block.attn, block.mlp, self.config
        qkv = torch.cat([part.weight.detach() for part in (attn.q_proj, attn.k_proj, attn.v_proj)])
        # One more block than the caller knows of is for padding: it has number `num_blocks`. All begins with zeros,
        # as masked values must be finite: 0 * inf is NaN.
        shape = (2, self.num_blocks + 1, config.n_kv_head, self.block_len, config.head_dim)
        cache = torch.zeros(shape, dtype=self._dtype, device=self.device)
        out, up, down = (part.weight.detach() for part in (attn.o_proj, mlp.up_proj, mlp.down_proj))
        return Layer(qkv, out, up, down, cache)

    @torch.inference_mode()
    def forward(self, step: StepTokens) -> Tensor:
        """Write keys and values of the tokens into their blocks; return float32 logits (L, V), soft-capped."""
        num_wanted = len(step.wanted)
        num_rows = len(step.block_tables)
        with self._on_device():
            # Each sequence has a token at least: with as many tokens as sequences, each has one.
            if not len(step.tokens) == num_rows == num_wanted or num_rows > BUCKETS[-1]:
                return self._run(self._inputs(step))
            step = padded(step, next(bucket for bucket in BUCKETS if bucket >= num_rows), self.num_blocks)
            arrays = self._arrays(step)
            captured = self._captured_step(arrays) if self._is_captured else None
            if captured is None:
                return self._run(unpacked(to_device(packed(arrays), self.device), arrays))[:num_wanted]
            # From pinned memory; torch keeps it until the copy is done.
            captured.inputs.copy_(torch.from_numpy(packed(arrays)).pin_memory(), non_blocking=True)
            captured.graph.replay()
            return captured.logits[:num_wanted].clone()  # the next replay overwrites its logits

    def _on_device(self) -> AbstractContextManager[object]:
        """Context manager in which kernels start on this step's GPU."""
        return torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext()

    # --- inputs -------------------------------------------------------------------------------------------------------

    def _inputs(self, step: StepTokens) -> StepInputs:
        arrays = self._arrays(step)
        return unpacked(to_device(packed(arrays), self.device), arrays)

    def _arrays(self, step: StepTokens) -> list[Int32s]:
        """Return the arrays of `StepInputs` in its order."""
        tables = np.full((len(step.block_tables), self._table_len), self.num_blocks, np.int32)
        given = step.block_tables[:, : self._table_len]
        tables[:, : given.shape[1]] = np.where(given < 0, self.num_blocks, given)
        tile_starts, tile_lengths = attention_tiles(
            step.rows, launch.tokens_of_a_tile(self.config.n_head, self.config.n_kv_head)
        )
        return [step.tokens, step.wanted, step.positions, step.rows, tables, tile_starts, tile_lengths]

    # --- the pass -----------------------------------------------------------------------------------------------------

    def _captured_step(self, arrays: list[Int32s]) -> CapturedStep | None:
        """Return the graph of a padded step, captured the first time; None if that fails, as it then always would."""
        bucket = len(arrays[0])
        if bucket not in self._captured:
            try:
                self._captured[bucket] = self._capture(arrays)
            except RuntimeError as error:
                self._is_captured = False
                _log.warning("A step of %d rows cannot be captured, so all run more slowly: %s", bucket, error)
                return None
        return self._captured[bucket]

    def _capture(self, arrays: list[Int32s]) -> CapturedStep:
        """Run a step once, which compiles and loads its kernels, then record it. Repeating a step changes nothing."""
        flat = to_device(packed(arrays), self.device)
        inputs = unpacked(flat, arrays)
        current, aside = torch.cuda.current_stream(), torch.cuda.Stream()
        aside.wait_stream(current)
        with torch.cuda.stream(aside):
            self._run(inputs)
        current.wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        # Other threads, with other copies of the model, may use CUDA meanwhile.
        with torch.cuda.graph(graph, pool=self._memory, capture_error_mode="thread_local"):
            logits = self._run(inputs)
        self._memory = graph.pool()
        return CapturedStep(flat, graph, logits)

    def _run(self, inputs: StepInputs) -> Tensor:
        """Start the kernels of a step one by one: -> (L, V)."""
        config = self.config
        x = launch.embed(inputs.ids, self._embedding)  # (N,) -> (N, C)
        for layer in self._layers:
            keys, values = layer.cache
            qkv = launch.linear(x, layer.qkv, is_normalized=True)  # (N, C) -> (N, (H + 2K) * D)
            q = launch.rotate(qkv, self._cos, self._sin, inputs.attention, keys, values, config.n_head)  # (N, H, D)
            y = launch.attend(q, inputs.attention, keys, values, config.sequence_len)  # (N, C)
            x = launch.linear(y, layer.out, residual=x)
            y = launch.linear(x, layer.up, is_normalized=True, is_relu_squared=True)  # (N, 4C)
            x = launch.linear(y, layer.down, residual=x)
        x = x.index_select(0, inputs.wanted)  # (N, C) -> (L, C)
        return launch.linear(
            x,
            self._head,
            is_normalized=True,
            softcap=config.softcap,
            num_out=config.vocab_size,
            dtype=torch.float32,
        )

    @torch.inference_mode()
    def copy_block(self, source: int, target: int) -> None:
        """Copy keys and values of one block to another, in all layers."""
        for layer in self._layers:
            layer.cache[:, target] = layer.cache[:, source]


def padded(step: StepTokens, num_rows: int, padding_block: int) -> StepTokens:
    """Return a decoding step with rows up to `num_rows`; those added read and write the block `padding_block`."""
    missing = num_rows - len(step.tokens)
    numbers = np.arange(num_rows, dtype=np.int32)
    tables = np.pad(step.block_tables, ((0, missing), (0, 0)), constant_values=padding_block)
    tokens, positions = (np.pad(array, (0, missing)) for array in (step.tokens, step.positions))
    return StepTokens(tokens, positions, numbers, tables, numbers)


def attention_tiles(rows: Int32s, max_tokens: int) -> tuple[Int32s, Int32s]:
    """Return the first token and the length of each tile: up to `max_tokens` neighbouring tokens of one sequence.

    `rows`: the sequence of each token, ascending.

    >>> attention_tiles(np.array([0, 1, 1, 1, 1, 1], np.int32), max_tokens=2)
    (array([0, 1, 3, 5], dtype=int32), array([1, 2, 2, 1], dtype=int32))
    """
    numbers = np.arange(len(rows), dtype=np.int32)
    is_first = np.diff(rows, prepend=-1) != 0  # of a sequence
    start_of_sequence = np.maximum.accumulate(np.where(is_first, numbers, 0))
    starts = numbers[(numbers - start_of_sequence) % max_tokens == 0]
    return starts, np.diff(starts, append=len(rows)).astype(np.int32)


def packed(arrays: Sequence[Int32s]) -> Int32s:
    """Return the arrays one after the other in one, each from an index that is a multiple of ALIGNMENT."""
    flat = np.zeros(sum(_aligned(array.size) for array in arrays), np.int32)
    offset = 0
    for array in arrays:
        flat[offset : offset + array.size] = array.ravel()
        offset += _aligned(array.size)
    return flat


def unpacked(flat: Tensor, arrays: Sequence[Int32s]) -> StepInputs:
    """Return views of a tensor that `packed(arrays)` was copied to."""
    views = []
    offset = 0
    for array in arrays:
        views.append(flat[offset : offset + array.size].view(array.shape))
        offset += _aligned(array.size)
    ids, wanted, *rest = views
    return StepInputs(ids, wanted, AttentionInputs(*rest))


def _aligned(size: int) -> int:
    return math.ceil(size / ALIGNMENT) * ALIGNMENT
