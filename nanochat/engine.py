"""Writes text with a model: a cache of keys and values, several samples at once.

Letters in shape comments: B batch (samples still being written), T new tokens, S tokens in the cache, N samples asked
for, K key-value heads, D head size, C width, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from nanochat.common import UserError
from nanochat.gpt import GPT, GPTConfig
from nanochat.sampling import check_sampling, sample_next
from nanochat.tokenizer import Tokenizer

CACHE_CHUNK = 256  # positions that the cache grows by, so that a short answer does not pay for the whole context

Column = tuple[list[int], list[int]]  # the tokens of one step, one per sample, and their masks


class KVCache:
    """Keys and values of every position so far, in each layer: allocated ahead, filled in place."""

    def __init__(self, config: GPTConfig, rows: int, dtype: torch.dtype, device: torch.device) -> None:
        empty = torch.empty(2, rows, config.n_kv_head, 0, config.head_dim, dtype=dtype, device=device)
        self.layers = [empty] * config.n_layer  # each (2, B, K, capacity, D): keys, values
        self.limit = config.sequence_len
        self._pos = 0

    @property
    def pos(self) -> int:
        """Positions filled: moves on when the last layer has inserted."""
        return self._pos

    def insert(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Add (B, K, T, D) keys and values of one layer; return views of all of them so far, (B, K, S, D)."""
        end = self._pos + k.size(2)
        assert end <= self.limit, f"the cache has {self._pos} of {self.limit} positions: {k.size(2)} more do not fit"
        if end > self.layers[layer].size(3):
            self._grow(layer, end)
        keys, values = self.layers[layer]
        keys[:, :, self._pos : end] = k
        values[:, :, self._pos : end] = v
        if layer == len(self.layers) - 1:
            self._pos = end
        return keys[:, :, :end], values[:, :, :end]

    def _grow(self, layer: int, needed: int) -> None:
        old = self.layers[layer]
        capacity = min(self.limit, math.ceil(needed / CACHE_CHUNK) * CACHE_CHUNK)
        new = old.new_empty(*old.shape[:3], capacity, old.size(4))
        new[:, :, :, : self._pos] = old[:, :, :, : self._pos]
        self.layers[layer] = new

    def select(self, rows: Tensor) -> None:
        """Keep these rows of the batch, in this order; a row named twice is copied. `rows`: int64, (B_new,)."""
        for layer, old in enumerate(self.layers):
            self.layers[layer] = old.index_select(1, rows)


class Engine:
    """Generates with a model, to `<|assistant_end|>` or `<|bos|>` (where a base model would begin another document).

    Where the compute dtype is not float32 the weights are converted once, here: after a training step, make a new
    Engine. Numbers do not change by that. Give it the plain model, not a compiled one.
    """

    def __init__(self, model: GPT, tokenizer: Tokenizer) -> None:
        self.model, self.tokenizer = with_compute_weights(model), tokenizer
        self.end_ids = {tokenizer.encode_special("<|assistant_end|>"), tokenizer.get_bos_token_id()}

    def generate(
        self,
        tokens: list[int],
        num_samples: int = 1,
        max_tokens: int | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        seed: int = 42,
    ) -> Iterator[Column]:
        """Continue `tokens`, `num_samples` times: yields one `(token_column, token_masks)` a step, an entry per sample.

        Mask 1: the model chose this token, the end token included. When a sample has ended before the others its entry
        repeats its end token with mask 0. Ends when all samples have, after `max_tokens`, or when the context is full
        (prompt + answer = `sequence_len`; at once, if the prompt fills it).
        Raises `UserError`, before the first step, for settings that mean nothing and for a prompt that does not fit.
        """
        check_sampling(temperature, top_k)
        context = self.model.config.sequence_len
        if not tokens:
            raise UserError("the prompt is empty: give at least one token, such as <|bos|>")
        if len(tokens) > context:
            raise UserError(f"the prompt has {len(tokens)} tokens, but the context of this model is {context}: cut it")
        if num_samples < 1:
            raise UserError(f"num_samples is {num_samples}: it must be at least 1")
        if max_tokens is not None and max_tokens < 1:
            raise UserError(f"max_tokens is {max_tokens}: it must be at least 1; leave it out to fill the context")
        num_steps = min(context - len(tokens), context if max_tokens is None else max_tokens)
        return self._steps(tokens, num_samples, num_steps, temperature, top_k, seed)

    @torch.inference_mode()
    def _steps(
        self, tokens: list[int], num_samples: int, num_steps: int, temperature: float, top_k: int | None, seed: int
    ) -> Iterator[Column]:
        if num_steps == 0:
            return
        model, device = self.model, self.model.device
        generator = torch.Generator(device).manual_seed(seed)
        cache = KVCache(model.config, 1, model.compute_dtype, device)
        hidden = model.hidden(torch.tensor([tokens], device=device), cache)[:, -1]  # (1, T) -> (1, C)
        cache.select(torch.zeros(num_samples, dtype=torch.int64, device=device))
        logits = model.logits(hidden).expand(num_samples, -1)  # (1, V) -> (N, V): the samples part at the first draw
        alive = list(range(num_samples))  # which sample each row of the batch is
        column = [0] * num_samples
        for step in range(1, num_steps + 1):
            drawn = sample_next(logits, temperature, top_k, generator)  # (B, V) -> (B,)
            masks = [0] * num_samples
            for sample, token in zip(alive, drawn.tolist(), strict=True):
                column[sample], masks[sample] = token, 1
            yield column.copy(), masks
            rows = [row for row, sample in enumerate(alive) if column[sample] not in self.end_ids]
            if not rows or step == num_steps:
                return
            if len(rows) < len(alive):  # the finished leave the batch, and cost nothing from here
                kept = torch.tensor(rows, device=device)
                cache.select(kept)
                drawn, alive = drawn[kept], [alive[row] for row in rows]
            logits = model.logits(model.hidden(drawn[:, None], cache)[:, -1])  # (B, 1) -> (B, C) -> (B, V)

    def generate_batch(
        self,
        tokens: list[int],
        num_samples: int = 1,
        max_tokens: int | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        seed: int = 42,
    ) -> tuple[list[list[int]], list[list[int]]]:
        """`generate`, collected: for each sample its tokens, the prompt first, and their masks (0 on the prompt).

        End tokens are left out, both kinds: what stays of a base model's sample is at most one document.
        """
        sequences = [list(tokens) for _ in range(num_samples)]
        masks = [[0] * len(tokens) for _ in range(num_samples)]
        for column, column_masks in self.generate(tokens, num_samples, max_tokens, temperature, top_k, seed):
            for sample, (token, mask) in enumerate(zip(column, column_masks, strict=True)):
                if token not in self.end_ids:
                    sequences[sample].append(token)
                    masks[sample].append(mask)
        return sequences, masks

    def complete(
        self,
        prompt: str,
        num_samples: int = 1,
        max_tokens: int | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        seed: int = 42,
    ) -> list[str]:
        """What the model writes after `prompt`, the beginning of a document ("" = from nothing): a text per sample."""
        tokens = self.tokenizer.encode(prompt, prepend=self.tokenizer.get_bos_token_id())
        sequences, _ = self.generate_batch(tokens, num_samples, max_tokens, temperature, top_k, seed)
        return [self.tokenizer.decode(sequence[len(tokens) :]) for sequence in sequences]


def with_compute_weights(model: GPT) -> GPT:
    """The same model with its weights in its compute dtype; the model itself if they are already.

    A training step wants float32 weights, converted in every product; writing would spend most of its time on that.
    """
    dtype = model.compute_dtype
    weights = model.state_dict()
    if all(weight.dtype == dtype for weight in weights.values()):
        return model
    with torch.device("meta"):
        twin = GPT(model.config, dtype)
    twin.load_state_dict({name: weight.to(dtype) for name, weight in weights.items()}, assign=True)
    twin.rope_cos, twin.rope_sin = model.rope_cos.to(dtype), model.rope_sin.to(dtype)
    return twin
