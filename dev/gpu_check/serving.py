"""Serving on the device: the scheduler on the step in torch, against passes over whole texts, and its speed."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch

from dev.gpu_check.check import Check
from dev.gpu_check.generation import MAX_GAP, largest_gap, prompts
from dev.gpu_check.models import TOKENIZER, model_to_time, random_model
from dev.gpu_check.versions import LIMITS
from nanochat.engine import Completion
from nanochat.gpt import GPTConfig
from nanochat.inference.generation_request import FinishEvent, GenerationRequest, TokenEvent
from nanochat.inference.scheduler import Scheduler
from nanochat.inference.tool_use import Tool
from nanochat.inference.torch_step import TorchStep
from nanochat.layers.sampling_params import SamplingParams
from nanochat.runtime import exact_float32
from nanochat.steps.make_step import BLOCK_LEN


class NoCalls(Tool):
    """A tool that computes nothing: the ids of a model with random weights are not all in the tokenizer."""

    def output(self, call: list[int]) -> list[int]:  # noqa: ARG002
        """Return no tokens to force."""
        return []


def check_serving(check: Check) -> None:
    """Completions of the scheduler against passes over whole texts; how many are equal in company and alone; speed."""
    for is_grouped in (False, True):
        config = GPTConfig(128, 512, n_layer=2, n_head=4, n_kv_head=2 if is_grouped else 4, n_embd=128)
        for dtype in MAX_GAP:
            with exact_float32():
                compare_serving(check, f"{str(dtype).removeprefix('torch.')}{', grouped' * is_grouped}", config, dtype)
    check_serving_speed(check)


def compare_serving(check: Check, case: str, config: GPTConfig, dtype: torch.dtype) -> None:
    """Compare greedy completions of requests that run together, in chunks and few blocks, with whole passes."""
    model = random_model(config, check.device, dtype)
    token_ids = [*prompts(config.vocab_size), *prompts(config.vocab_size)]
    max_tokens = 8 if check.is_dry_run else 48
    step = TorchStep(model, num_blocks=40)
    together = complete(Scheduler(step, NoCalls(TOKENIZER), max_prefill_tokens=16), token_ids, max_tokens)
    alone = [complete(Scheduler(step, NoCalls(TOKENIZER)), [tokens], max_tokens)[0] for tokens in token_ids]
    for name, completions in (("in company", together), ("alone", alone)):
        gap = max(largest_gap(model, tokens, done) for tokens, done in zip(token_ids, completions, strict=True))
        check.expect(f"scheduler against whole passes, {name}, {case}", gap, MAX_GAP[dtype])
    num_equal = sum(a.tokens == b.tokens for a, b in zip(together, alone, strict=True))
    check.record(f"completions equal in company and alone, {case}", share=num_equal / len(alone))


def complete(scheduler: Scheduler, token_ids: Sequence[list[int]], max_tokens: int) -> list[Completion]:
    """Return the greedy completions of prompts that are submitted together."""
    params = SamplingParams(temperature=0.0, max_tokens=max_tokens)
    requests = [GenerationRequest(tokens=ids, params=params, rng_key=0, on_event=_ignore) for ids in token_ids]
    states = [scheduler.submit(request) for request in requests]
    while scheduler.step():
        pass
    return [Completion(state.tokens, state.mask, state.has_ended) for state in states]


def check_serving_speed(check: Check) -> None:
    """Speed of the scheduler with d20 in bf16 and 1, 32 and 256 rows, prompts of 64 tokens."""
    config = GPTConfig.from_depth(
        1 if check.is_dry_run else 20, vocab_size=512 if check.is_dry_run else 65536, sequence_len=512
    )
    model = model_to_time(config, check.device)
    bandwidth = check.earlier("versions", LIMITS).get("copy_gb_per_s")
    weight_bytes = 2 * (model.num_params() - model.embed.weight.numel())
    num_steps = 16 if check.is_dry_run else 96
    for num_rows in (1, 32) if check.is_dry_run else (1, 32, 256):
        check.reset_peak_memory()
        step = TorchStep(model, num_blocks=num_rows * (64 + num_steps + BLOCK_LEN) // BLOCK_LEN + 8)
        scheduler = Scheduler(step, NoCalls(TOKENIZER), max_running=num_rows)
        params = SamplingParams(temperature=1.0, top_k=50, max_tokens=num_steps)
        for row in range(num_rows):
            tokens = [1 + row % 200, *[2] * 63]
            scheduler.submit(GenerationRequest(tokens=tokens, params=params, rng_key=row, on_event=_ignore))
        while scheduler.num_running < num_rows or scheduler.stats()["prefilling"] or scheduler.stats()["waiting"]:
            if not scheduler.step():  # all prompts are read
                break
        scheduler.step()
        check.synchronize()
        start, before = time.perf_counter(), scheduler.stats()
        while scheduler.step():
            pass
        check.synchronize()
        seconds = time.perf_counter() - start
        num_done = scheduler.stats()["generated_tokens"] - before["generated_tokens"]
        steps = max(1, scheduler.stats()["steps"] - before["steps"])
        values = {"share_of_bandwidth": weight_bytes * steps / seconds / (bandwidth * 1e9)} if bandwidth else {}
        check.record(
            f"serving, {num_rows} rows",
            ms_per_step=1000 * seconds / steps,
            tokens_per_s=num_done / seconds,
            steps=steps,
            peak_gb=check.peak_memory_gb(),
            **values,
        )


def _ignore(_: TokenEvent | FinishEvent) -> None:
    """Take an event of which the tokens are read from the request's state."""
