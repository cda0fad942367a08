"""The forward pass of generation in plain torch, over a KV cache in blocks: for any device, and to be read.

The products run over all tokens of the step at once. Attention gathers the keys of each sequence from its blocks: the
sequences with one token together, each chunk of a prompt alone. Example with blocks of 2 positions:

    block table [4, 1, -1], position 2    ->    slots 8 9 2 3, of which the first three are visible

Letters in shape comments: N tokens of the step, padding included; G sequences of a group, T tokens of each of them,
M blocks, S = M * block_len positions, H query heads, K key-value heads, D head size, C width, V vocabulary, L wanted
logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from nanochat.gpt import GPT, Attention, Block, GPTConfig, apply_rotary, causal_attention, rms_norm
from nanochat.inference.model_step import Int32s, StepTokens, to_device
from nanochat.layers.attention import varied_shapes

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class TokenGroup:
    """Sequences that have T tokens each in a step: all that have one (T = 1), or one chunk of a prompt (G = 1).

    An index of -1 is a padding token.
    """

    tokens: Indices  # (G, T), indices into the tokens of the step
    num_blocks: int  # M, which reach up to the last position


class TorchStep:
    """A `ModelStep` over a GPT model on its device, with a cache in the model's compute dtype.

    A token's numbers depend on the other tokens of the step by rounding, since torch chooses the order of summation in
    a product by its number of rows. On accelerators the step is padded, so that few different shapes occur, and the
    host waits for nothing; that has been run on a fake device only, on no GPU.
    """

    def __init__(self, model: GPT, num_blocks: int, block_len: int = 16) -> None:
        """Pass the plain model, with weights in its compute dtype (`with_compute_weights` in make_step.py)."""
        self.model = model
        self.block_len = block_len
        self.num_blocks = num_blocks
        config = model.config
        # One more block than the caller knows of stands for -1: padding is written there and read from there. All
        # begins with zeros, as masked values must be finite: 0 * inf is NaN.
        shape = (2, (num_blocks + 1) * block_len, config.n_kv_head, config.head_dim)  # keys, values
        self._layers = [torch.zeros(shape, dtype=model.compute_dtype, device=self.device) for _ in model.blocks]

    @property
    def config(self) -> GPTConfig:
        """Shape of the model."""
        return self.model.config

    @property
    def device(self) -> torch.device:
        """Device of the model and of the logits."""
        return self.model.device

    @torch.inference_mode()
    def forward(self, step: StepTokens) -> Tensor:
        """Write keys and values of the tokens into their blocks; return float32 logits (L, V), soft-capped."""
        model = self.model
        groups = token_groups(step, self.block_len, is_padded=self.device.type != "cpu")
        order = np.concatenate([group.tokens.ravel() for group in groups])  # (N,), the tokens group by group
        is_padding = order < 0
        positions = np.where(is_padding, 0, step.positions[order])
        tables = np.pad(step.block_tables, ((0, 0), (0, max(group.num_blocks for group in groups))), constant_values=-1)
        tables = np.where(tables < 0, self.num_blocks, tables)
        blocks = np.where(is_padding, self.num_blocks, tables[step.rows[order], positions // self.block_len])
        slots = self._upload(blocks * self.block_len + positions % self.block_len)
        attention_groups = [self._attention_tables(group, step, tables) for group in groups]

        ids = self._upload(np.where(is_padding, 0, step.tokens[order]))
        where = self._upload(positions)
        cos = model.rope_cos[where].to(model.compute_dtype)  # (N, D/2)
        sin = model.rope_sin[where].to(model.compute_dtype)
        x = rms_norm(model.embed(ids).to(model.compute_dtype))[None]  # (1, N, C)
        with varied_shapes(self.device):
            for block, layer in zip(cast("Sequence[Block]", model.blocks), self._layers, strict=True):
                x = x + self._attention(block.attn, layer, rms_norm(x), cos, sin, slots, attention_groups)
                x = x + block.mlp(rms_norm(x))
        wanted = np.flatnonzero(np.isin(order, step.wanted))
        wanted = wanted[np.argsort(order[wanted])]  # in the order of the step
        num_wanted = len(wanted) if self.device.type == "cpu" else power_of_two(len(wanted))
        hidden = rms_norm(x)[0, self._upload(np.resize(wanted, num_wanted))]  # (1, N, C) -> (L, C)
        return model.logits(hidden)[: len(wanted)]

    def _attention(
        self,
        attn: Attention,
        layer: Tensor,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        slots: Tensor,
        groups: Sequence[tuple[int, Tensor, Tensor]],
    ) -> Tensor:
        """Attention of one layer, whose cache is `layer`, (2, slots, K, D): (1, N, C) -> (1, N, C)."""
        q, k, v = (y.view(1, x.size(1), -1, attn.head_dim).transpose(1, 2) for y in attn.project(x))
        q = rms_norm(apply_rotary(q, cos, sin))[0].transpose(0, 1)  # (1, H, N, D) -> (N, H, D)
        k = rms_norm(apply_rotary(k, cos, sin))[0].transpose(0, 1)  # (1, K, N, D) -> (N, K, D)
        layer[0, slots] = k
        layer[1, slots] = v[0].transpose(0, 1)
        outputs = []
        for group, (num_tokens, group_slots, mask) in zip(q.split([n for n, *_ in groups]), groups, strict=True):
            num_rows = len(group_slots)
            queries = group.unflatten(0, (num_rows, num_tokens // num_rows)).transpose(1, 2)  # (G, H, T, D)
            keys, values = (part[group_slots].transpose(1, 2) for part in layer)  # (G, K, S, D)
            y = causal_attention(queries, keys, values, mask, attn.is_grouped)  # (G, H, T, D)
            outputs.append(y.transpose(1, 2).flatten(0, 1).flatten(1))  # (G * T, C)
        out: Tensor = attn.o_proj(torch.cat(outputs)[None])  # (1, N, C)
        return out

    def _attention_tables(self, group: TokenGroup, step: StepTokens, tables: Int32s) -> tuple[int, Tensor, Tensor]:
        """Return G * T, the slots of all positions (G, S), and the mask (G, 1, T, S), True = visible."""
        is_padding = group.tokens < 0  # (G, T)
        positions = np.where(is_padding, 0, step.positions[group.tokens])
        blocks = tables[step.rows[group.tokens[:, 0]], : group.num_blocks]  # (G, M)
        blocks = np.where(is_padding[:, :1], self.num_blocks, blocks)
        slots = (blocks[:, :, None] * self.block_len + np.arange(self.block_len)).reshape(len(blocks), -1)
        columns = torch.arange(slots.shape[1], device=self.device)
        mask = columns <= self._upload(positions)[:, None, :, None]
        return group.tokens.size, self._upload(slots), mask

    def _upload(self, values: npt.NDArray[np.integer]) -> Tensor:
        return to_device(values.astype(np.int64), self.device)

    @torch.inference_mode()
    def copy_block(self, source: int, target: int) -> None:
        """Copy keys and values of one block to another, in all layers."""
        for layer in self._layers:
            blocks = layer.unflatten(1, (-1, self.block_len))  # a view, (2, blocks, block_len, K, D)
            blocks[:, target] = blocks[:, source]


def token_groups(step: StepTokens, block_len: int, *, is_padded: bool) -> list[TokenGroup]:
    """Return the groups of a step: all sequences with one token, then each other sequence.

    `is_padded`: G, T and M of each group are powers of two.
    """
    starts = np.flatnonzero(np.diff(step.rows, prepend=-1))  # (R,), index of the first token of each sequence
    lengths = np.diff(starts, append=len(step.rows))
    indices = [starts[lengths == 1, None]] if (lengths == 1).any() else []
    for start, length in zip(starts[lengths > 1], lengths[lengths > 1], strict=True):
        indices.append(np.arange(start, start + length)[None])
    groups = []
    for tokens in indices:  # (G, T)
        num_blocks = int(step.positions[tokens].max()) // block_len + 1
        if is_padded:
            num_blocks = power_of_two(num_blocks)
            extra = [(0, power_of_two(size) - size) for size in tokens.shape]
            tokens = np.pad(tokens, extra, constant_values=-1)
        groups.append(TokenGroup(tokens, num_blocks))
    return groups


def power_of_two(count: int) -> int:
    """Return the least power of two that is at least `count`.

    >>> [power_of_two(count) for count in (1, 2, 3, 64, 65)]
    [1, 2, 4, 64, 128]
    """
    return 1 << (count - 1).bit_length()
