"""Batched generation with a KV cache and calculator calls.

Letters in shape comments: B rows (unfinished completions), V vocabulary.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from nanochat.common import UserError
from nanochat.gpt import GPT
from nanochat.inference.decode_batch import DecodeBatch
from nanochat.inference.kv_cache import KVCache as KVCache  # a public name of this module
from nanochat.inference.make_step import with_compute_weights as with_compute_weights  # a public name of this module
from nanochat.inference.tool_use import RowState, Tool
from nanochat.layers.sampler import drawn_ids, rng_keys, sample_at, sample_next, uniforms
from nanochat.layers.sampling_params import SamplingParams
from nanochat.sandbox.calculator import use_calculator as use_calculator  # a public name of this module
from nanochat.tokenizer import Tokenizer

Column = tuple[list[int], list[int]]  # the tokens of one step, one per sample, and their masks


@dataclass(frozen=True)
class Completion:
    """The tokens that follow a prompt, and their `mask`: 1 = sampled from the model, 0 = forced by the tool.

    `has_ended`: True if the last token is an end token, False if a length limit cut the completion.
    """

    tokens: list[int]
    mask: list[int]
    has_ended: bool


class Engine:
    """Generates text with a model, up to `<|assistant_end|>` or `<|bos|>` (the start of a base model's next document).

    The text that the model generates between `<|python_start|>` and `<|python_end|>` goes to the calculator, and the
    result is forced into the completion (`inference/tool_use.py`), a token a step, without delaying other rows.

    Pass the plain model, not a compiled one. If its compute dtype is not float32, the weights are converted here, once:
    after a training step, make a new Engine. The conversion does not change any output. `dtype` computes in another
    dtype than the model's, which changes outputs by rounding (`choose_generation_dtype` in runtime.py).
    """

    def __init__(self, model: GPT, tokenizer: Tokenizer, dtype: torch.dtype | None = None) -> None:
        self.model = with_compute_weights(model, dtype or model.compute_dtype)
        self.tokenizer = tokenizer
        self.tool = Tool(tokenizer)
        self.end_ids = self.tool.end_ids

    @property
    def context_len(self) -> int:
        """Number of tokens that a prompt and its completion may have."""
        return self.model.config.sequence_len

    def stream(self, tokens: list[int], params: SamplingParams) -> Generator[Column, None, None]:
        """Continue one prompt `params.num_samples` times. Yields `(token_column, token_masks)`, an entry per sample.

        Mask 1: sampled from the model (the end token included); 0: forced by the tool. A sample that has ended repeats
        its end token with mask 0 until all have. The iterator stops when all samples have ended, after `max_tokens`
        columns, or when the context is full (prompt + completion = `sequence_len`), even within a tool's output.
        Raises `UserError`, before the first step, if the prompt is empty or longer than the context.
        """
        [max_tokens] = self._max_tokens([tokens], params)
        rows = [RowState(self.tool, max_tokens) for _ in range(params.num_samples)]
        generator = torch.Generator(self.model.device).manual_seed(params.draw_seed())
        return self._columns(tokens, rows, params, generator)

    @torch.inference_mode()
    def _columns(
        self, tokens: list[int], rows: list[RowState], params: SamplingParams, generator: torch.Generator
    ) -> Generator[Column, None, None]:
        if rows[0].is_done:
            return
        batch = DecodeBatch(self.model, [tokens], [rows])
        num_steps = 0
        is_running = True
        while is_running:
            batch.append(sample_next(batch.logits, params, generator).tolist())
            num_steps += 1
            masks = [row.mask[-1] if len(row.tokens) == num_steps else 0 for row in rows]
            yield [row.tokens[-1] for row in rows], masks
            is_running = batch.advance()

    @torch.inference_mode()
    def generate_many(
        self,
        prompts: Sequence[list[int]],
        params: SamplingParams,
        *,
        seeds: Sequence[int] | None = None,
        batch_size: int = 256,
    ) -> list[list[Completion]]:
        """Continue each prompt `params.num_samples` times, `batch_size` completions at once. Returns a list per prompt.

        The prompts may have different lengths. A completion depends on its prompt, the seed, its index among all
        completions and the other settings, but (up to rounding) not on `batch_size` or on the rest of its batch. With
        `seeds`, one for each prompt instead of `params.seed`, it depends on its index among the completions of its own
        prompt, and not on the other prompts. Raises `UserError` as `stream` does.
        """
        if batch_size < 1:
            raise UserError(f"batch_size is {batch_size}: must be at least 1")
        limits = self._max_tokens(prompts, params)
        rows = [[RowState(self.tool, limit) for _ in range(params.num_samples)] for limit in limits]
        key_of_row = _rng_key_of_row(rows, params, seeds)
        # The longest prompts come first: if memory does not suffice, the first batch fails.
        by_length = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
        queue = [(index, sample) for index in by_length if limits[index] for sample in range(params.num_samples)]
        for start in range(0, len(queue), batch_size):
            rows_of_prompt: dict[int, list[RowState]] = {}
            for index, sample in queue[start : start + batch_size]:
                rows_of_prompt.setdefault(index, []).append(rows[index][sample])
            batch = DecodeBatch(self.model, [prompts[index] for index in rows_of_prompt], list(rows_of_prompt.values()))
            is_running = True
            while is_running:
                keys = np.array([key_of_row[id(row)] for row in batch.rows], np.uint64)  # (B,)
                steps = np.array([len(row.tokens) for row in batch.rows])
                u = torch.from_numpy(uniforms(keys, steps)).to(self.model.device)  # (B,)
                batch.append(drawn_ids(sample_at(batch.logits, params, u), batch.logits))
                is_running = batch.advance()
        return [[Completion(row.tokens, row.mask, row.has_ended) for row in prompt_rows] for prompt_rows in rows]

    def _max_tokens(self, prompts: Sequence[list[int]], params: SamplingParams) -> list[int]:
        """Return the length limit of each prompt's completions. Raises `UserError` for a prompt that does not fit."""
        context_len = self.context_len
        for tokens in prompts:
            if not tokens:
                raise UserError("the prompt is empty: pass at least one token, such as <|bos|>")
            if len(tokens) > context_len:
                raise UserError(
                    f"the prompt has {len(tokens)} tokens, but the context of this model is {context_len}: shorten it"
                )
        limit = context_len if params.max_tokens is None else params.max_tokens
        return [min(context_len - len(tokens), limit) for tokens in prompts]

    def generate(
        self,
        tokens: list[int],
        num_samples: int = 1,
        max_tokens: int | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        seed: int = 42,
    ) -> Generator[Column, None, None]:
        """Call `stream` with separate arguments. Also raises `UserError` for an impossible setting."""
        return self.stream(tokens, SamplingParams(temperature, top_k, max_tokens, num_samples, seed))

    def generate_batch(
        self,
        tokens: list[int],
        num_samples: int = 1,
        max_tokens: int | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        seed: int = 42,
    ) -> tuple[list[list[int]], list[list[int]]]:
        """Collect `generate`. Returns for each sample its tokens, the prompt included, and their masks (prompt: 0).

        Both kinds of end token are left out, so a base model's sample is at most one document.
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
        """Continue a document that begins with `prompt` ("" = an empty one). Returns a text per sample."""
        tokens = self.tokenizer.encode(prompt, prepend=self.tokenizer.get_bos_token_id())
        sequences, _ = self.generate_batch(tokens, num_samples, max_tokens, temperature, top_k, seed)
        return [self.tokenizer.decode(sequence[len(tokens) :]) for sequence in sequences]


def _rng_key_of_row(
    rows: Sequence[Sequence[RowState]], params: SamplingParams, seeds: Sequence[int] | None
) -> dict[int, int]:
    """Return the key of each row's random numbers, by the `id` of the row."""
    if seeds is None:
        keys = rng_keys(params.draw_seed(), len(rows) * params.num_samples)
    else:
        assert len(seeds) == len(rows), f"{len(seeds)} seeds for {len(rows)} prompts"
        keys = np.concatenate([rng_keys(seed, params.num_samples) for seed in seeds] or [rng_keys(0, 0)])
    flat_rows = (row for prompt_rows in rows for row in prompt_rows)
    return {id(row): int(key) for row, key in zip(flat_rows, keys, strict=True)}
