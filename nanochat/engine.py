"""Batched generation with a KV cache and calculator calls.

Letters in shape comments: B rows (unfinished completions), V vocabulary.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nanochat.common import UserError
from nanochat.gpt import GPT
from nanochat.inference.block_cache import BlockCache
from nanochat.inference.decode_batch import DecodeBatch
from nanochat.inference.generation_request import FinishEvent, GenerationRequest, TokenEvent
from nanochat.inference.kv_cache import KVCache as KVCache  # a public name of this module
from nanochat.inference.model_step import ModelStep
from nanochat.inference.scheduler import Scheduler
from nanochat.inference.tool_use import RowState, Tool
from nanochat.layers.sampler import RNGKeys, drawn_ids, rng_keys, sample_at, sample_next, uniforms
from nanochat.layers.sampling_params import SamplingParams
from nanochat.sandbox.calculator import use_calculator as use_calculator  # a public name of this module
from nanochat.steps.make_step import BLOCK_LEN, blocks_that_fit, check_step_dtype, is_invariant, make_step
from nanochat.steps.make_step import with_compute_weights as with_compute_weights  # a public name of this module
from nanochat.tokenizer import Tokenizer

Column = tuple[list[int], list[int]]  # the tokens of one step, one per sample, and their masks

PREFILL_TOKENS = 256  # of a step: nobody waits for a token in the meantime
MIN_CONTEXTS = 8  # that an engine's cache on a GPU has room for, if they fit
MAX_BLOCKS = 1 << 16  # of an engine's cache: a million tokens. Completions that find no room begin when others end


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

    Pass the plain model, not a compiled one. Its weights are converted here or at the first completion, once: after a
    training step, make a new Engine. The conversion does not change any output. `dtype` computes in another dtype than
    the model's, which changes outputs by rounding (`generation_dtype` in steps/make_step.py); int8: weights of 8
    bits, on a CPU only.

    A `Scheduler` runs the completions on the step in Rust or, on GPUs, in Triton (`make_step`), in which a completion's
    numbers do not depend on its company, and the cache keeps what prompts begin with from call to call. Where neither
    is there they run in a `DecodeBatch`.
    """

    def __init__(self, model: GPT, tokenizer: Tokenizer, dtype: torch.dtype | None = None) -> None:
        self._dtype = dtype or model.compute_dtype
        self._is_scheduled = is_invariant(model.device, self._dtype, model.config)  # else it is a `DecodeBatch`
        check_step_dtype(model.device, self._dtype)
        self.model = model if self._is_scheduled else with_compute_weights(model, self._dtype)
        self.tokenizer = tokenizer
        self.tool = Tool(tokenizer)
        self.end_ids = self.tool.end_ids
        self._step_and_cache: tuple[ModelStep, BlockCache] | None = None  # made by the first completion
        self._lock = threading.Lock()  # of a step: completions can be generated in several threads

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
        generator = torch.Generator(self.model.device).manual_seed(params.draw_seed())
        if self._is_scheduled:
            return self._scheduled_columns(tokens, params, generator)
        rows = [RowState(self.tool, max_tokens) for _ in range(params.num_samples)]
        return self._batch_columns(tokens, rows, params, generator)

    def _scheduled_columns(
        self, tokens: list[int], params: SamplingParams, generator: torch.Generator
    ) -> Generator[Column, None, None]:
        def draw(logits: Tensor) -> list[int]:
            return sample_next(logits, params, generator).tolist()

        with self._run(params.num_samples, draw) as run:
            rows = [run.submit(tokens, params) for _ in range(params.num_samples)]
            num_columns = 0
            while run.step():
                lengths = [len(row.tokens) for row in rows]
                # A row whose blocks were taken away for a while is behind the others.
                behind = [length for length, row in zip(lengths, rows, strict=True) if not row.is_done]
                for step in range(num_columns, min(behind, default=max(lengths))):
                    yield (
                        [row.tokens[min(step, len(row.tokens) - 1)] for row in rows],
                        [row.mask[step] if step < len(row.tokens) else 0 for row in rows],
                    )
                    num_columns += 1

    @torch.inference_mode()
    def _batch_columns(
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
        completions and the other settings, but not on `batch_size` or on the rest of its batch (in a `DecodeBatch`: up
        to rounding). With `seeds`, one for each prompt instead of `params.seed`, it depends on its index among the
        completions of its own prompt, and not on the other prompts. Raises `UserError` as `stream` does.
        """
        if batch_size < 1:
            raise UserError(f"batch_size is {batch_size}: must be at least 1")
        limits = self._max_tokens(prompts, params)
        keys = _keys_of_prompts(len(prompts), params, seeds)
        # The longest prompts come first: if memory does not suffice, the first batch fails.
        by_length = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
        queue = [(index, sample) for index in by_length for sample in range(params.num_samples)]
        rows: list[list[RowState]] = [[] for _ in prompts]
        if self._is_scheduled:
            with self._run(batch_size) as run:
                for index, sample in queue:
                    rows[index].append(run.submit(prompts[index], params, int(keys[index, sample])))
                while run.step():
                    pass
        else:
            for index, _ in queue:
                rows[index].append(RowState(self.tool, limits[index]))
            queue = [(index, sample) for index, sample in queue if limits[index]]
            for start in range(0, len(queue), batch_size):
                self._decode_batch(prompts, rows, keys, params, queue[start : start + batch_size])
        return [[Completion(row.tokens, row.mask, row.has_ended) for row in prompt_rows] for prompt_rows in rows]

    @torch.inference_mode()
    def _decode_batch(
        self,
        prompts: Sequence[list[int]],
        rows: Sequence[Sequence[RowState]],
        keys: RNGKeys,
        params: SamplingParams,
        members: Sequence[tuple[int, int]],
    ) -> None:
        """Generate the completions `members`, (prompt, sample) each, in one `DecodeBatch`."""
        rows_of_prompt: dict[int, list[RowState]] = {}
        key_of_row: dict[int, int] = {}  # by the id of the row
        for index, sample in members:
            row = rows[index][sample]
            rows_of_prompt.setdefault(index, []).append(row)
            key_of_row[id(row)] = int(keys[index, sample])
        batch = DecodeBatch(self.model, [prompts[index] for index in rows_of_prompt], list(rows_of_prompt.values()))
        is_running = True
        while is_running:
            row_keys = np.array([key_of_row[id(row)] for row in batch.rows], np.uint64)  # (B,)
            steps = np.array([len(row.tokens) for row in batch.rows])
            u = torch.from_numpy(uniforms(row_keys, steps)).to(self.model.device)  # (B,)
            batch.append(drawn_ids(sample_at(batch.logits, params, u), batch.logits))
            is_running = batch.advance()

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

    # --- the scheduler ------------------------------------------------------------------------------------------------

    @contextmanager
    def _run(self, max_running: int, draw: Callable[[Tensor], list[int]] | None = None) -> Iterator[_Run]:
        """Context manager for a scheduler on this engine's step, which shares the cache with all others."""
        with self._lock:
            if self._step_and_cache is None:
                model, dtype = self.model, self._dtype
                num_blocks = blocks_that_fit(model.config, dtype, BLOCK_LEN, None, model.device)
                context_blocks = math.ceil(self.context_len / BLOCK_LEN)
                num_blocks = min(num_blocks, max(MAX_BLOCKS, context_blocks))
                if model.device.type == "cuda":  # its memory is taken at once, and training may need the rest
                    num_blocks = min(num_blocks, max(MIN_CONTEXTS, max_running) * context_blocks)
                self._step_and_cache = (make_step(model, dtype, num_blocks), BlockCache(num_blocks, BLOCK_LEN))
        model_step, cache = self._step_and_cache
        scheduler = Scheduler(
            model_step, self.tool, max_running=max_running, max_prefill_tokens=PREFILL_TOKENS, cache=cache, draw=draw
        )
        try:
            yield _Run(scheduler, self._lock)
        finally:
            with self._lock:
                scheduler.cancel_all("cancelled")


class _Run:
    """Completions on a scheduler whose step and cache are shared."""

    def __init__(self, scheduler: Scheduler, lock: threading.Lock) -> None:
        self._scheduler = scheduler
        self._lock = lock
        self._errors: list[str] = []

    def submit(self, tokens: list[int], params: SamplingParams, key: int = 0) -> RowState:
        request = GenerationRequest(tokens=tokens, params=params, rng_key=key, on_event=self._on_event)
        return self._scheduler.submit(request)

    def step(self) -> bool:
        """Append a token to each row. Returns False if none is left. Raises `UserError` if no token can be drawn."""
        with self._lock:
            is_running = self._scheduler.step()
        if self._errors:
            raise UserError(self._errors[0])
        return is_running

    def _on_event(self, event: TokenEvent | FinishEvent) -> None:
        if isinstance(event, FinishEvent) and event.reason == "error":
            self._errors.append(event.message)


def _keys_of_prompts(num_prompts: int, params: SamplingParams, seeds: Sequence[int] | None) -> RNGKeys:
    """Return the keys of the random numbers of each prompt's samples, (num_prompts, num_samples)."""
    if seeds is None:
        keys = rng_keys(params.draw_seed(), num_prompts * params.num_samples)
    else:
        assert len(seeds) == num_prompts, f"{len(seeds)} seeds for {num_prompts} prompts"
        keys = np.concatenate([rng_keys(seed, params.num_samples) for seed in seeds] or [rng_keys(0, 0)])
    return keys.reshape(num_prompts, params.num_samples)
