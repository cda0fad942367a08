"""Serving on the device: the scheduler against passes over whole texts, its speed, and that of a peer."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from dev.gpu_check.check import Check, Skipped
from dev.gpu_check.generation import MAX_GAP, largest_gap, prompts
from dev.gpu_check.kernels import triton_step_class
from dev.gpu_check.models import TOKENIZER, model_to_time, random_model
from dev.gpu_check.versions import LIMITS
from nanochat.engine import Completion
from nanochat.export.hf_model import to_hf_config
from nanochat.gpt import GPT, GPTConfig
from nanochat.inference.generation_request import FinishEvent, GenerationRequest, TokenEvent
from nanochat.inference.model_step import ModelStep
from nanochat.inference.scheduler import Scheduler
from nanochat.inference.tool_use import Tool
from nanochat.inference.torch_step import TorchStep
from nanochat.layers.sampling_params import SamplingParams
from nanochat.runtime import exact_float32
from nanochat.steps.make_step import BLOCK_LEN

if TYPE_CHECKING:
    from nanochat.steps.triton_step import TritonStep

StepClass: TypeAlias = "type[TorchStep] | type[TritonStep]"
PROMPT_LEN = 64
NUM_STEPS = 96  # tokens of each completion


class NoCalls(Tool):
    """A tool that computes nothing: the ids of a model with random weights are not all in the tokenizer."""

    def output(self, call: list[int]) -> list[int]:  # noqa: ARG002
        """Return no tokens to force."""
        return []


def check_serving(check: Check) -> None:
    """Completions of the scheduler against passes over whole texts, and in company against alone, with either step."""
    for is_grouped in (False, True):
        config = GPTConfig(128, 512, n_layer=2, n_head=4, n_kv_head=2 if is_grouped else 4, n_embd=128)
        for dtype in MAX_GAP:
            case = f"{str(dtype).removeprefix('torch.')}{', grouped' * is_grouped}"
            kinds: list[StepClass] = [TorchStep]
            if check.is_dry_run:
                check.record(f"TritonStep, {case}", skipped="the interpreter is slow: see the part kernels")
            else:
                kinds.append(triton_step_class(check, dtype, config))
            for kind in kinds:
                with exact_float32():
                    compare_serving(check, f"{kind.__name__}, {case}", random_model(config, check.device, dtype), kind)


def compare_serving(check: Check, case: str, model: GPT, kind: StepClass) -> None:
    """Compare completions of requests that run together, in chunks and few blocks, with whole passes and with others.

    The greedy ones with whole passes; greedy and sampled ones with those of requests that run alone.
    """
    token_ids = [*prompts(model.config.vocab_size), *prompts(model.config.vocab_size)]
    max_tokens = 8 if check.is_dry_run else 48
    step = kind(model, num_blocks=40)
    for params in (SamplingParams(0.0, max_tokens=max_tokens), SamplingParams(1.0, 50, max_tokens, top_p=0.95)):
        way = "sampled" if params.temperature else "greedy"
        together = complete(Scheduler(step, NoCalls(TOKENIZER), max_prefill_tokens=16), token_ids, params)
        alone = [complete(Scheduler(step, NoCalls(TOKENIZER)), [tokens], params)[0] for tokens in token_ids]
        if not params.temperature:
            for name, completions in (("in company", together), ("alone", alone)):
                gap = max(largest_gap(model, ids, done) for ids, done in zip(token_ids, completions, strict=True))
                check.expect(f"scheduler against whole passes, {name}, {case}", gap, MAX_GAP[model.compute_dtype])
        num_equal = sum(a.tokens == b.tokens for a, b in zip(together, alone, strict=True))
        name = f"{way} completions equal in company and alone, {case}"
        if kind is TorchStep:
            check.record(name, share=num_equal / len(alone))
        else:
            check.expect_equal(name, num_equal, len(alone))


def complete(scheduler: Scheduler, token_ids: Sequence[list[int]], params: SamplingParams) -> list[Completion]:
    """Return the completions of prompts that are submitted together."""
    requests = [GenerationRequest(tokens=ids, params=params, rng_key=0, on_event=_ignore) for ids in token_ids]
    states = [scheduler.submit(request) for request in requests]
    while scheduler.step():
        pass
    return [Completion(state.tokens, state.mask, state.has_ended) for state in states]


# --- speed ------------------------------------------------------------------------------------------------------------


def check_serving_speed(check: Check) -> None:
    """Speed of the scheduler with d20 in bf16 and 1, 32 and 256 rows: kernels captured and eager, and torch."""
    config = config_to_time(check)
    model = model_to_time(config, check.device)
    kinds: dict[str, Callable[[int], ModelStep]] = {}
    try:
        kind = triton_step_class(check, torch.bfloat16, config)
        kinds["Triton, captured"] = lambda num_blocks: kind(model, num_blocks)
        kinds["Triton, eager"] = lambda num_blocks: kind(model, num_blocks, is_captured=False)
    except Skipped as skipped:
        check.record("Triton", skipped=str(skipped))
    kinds["torch"] = lambda num_blocks: TorchStep(model, num_blocks)
    for name, make in kinds.items():
        for num_rows in (1, 2) if check.is_dry_run else (1, 32, 256):
            time_serving(check, f"{name}, {rows_text(num_rows)}", model, make, num_rows)


def config_to_time(check: Check) -> GPTConfig:
    """Return the shape of d20, or a tiny one."""
    if check.is_dry_run:
        return GPTConfig(64, 100, n_layer=1, n_head=1, n_kv_head=1, n_embd=32)
    return GPTConfig.from_depth(20, vocab_size=65536, sequence_len=512)


def rows_text(num_rows: int) -> str:
    """Return "1 row", "2 rows"."""
    return f"{num_rows} row{'s' * (num_rows > 1)}"


def time_serving(check: Check, name: str, model: GPT, make: Callable[[int], ModelStep], num_rows: int) -> None:
    """Record the speed of decoding `num_rows` sampled completions, their prompts read and the first steps done."""
    check.reset_peak_memory()
    num_steps = 4 if check.is_dry_run else NUM_STEPS
    prompt_len = 4 if check.is_dry_run else PROMPT_LEN
    step = make(num_rows * (prompt_len + num_steps + BLOCK_LEN) // BLOCK_LEN + 8)
    scheduler = Scheduler(step, NoCalls(TOKENIZER), max_running=num_rows)
    params = SamplingParams(temperature=1.0, top_k=50, max_tokens=num_steps)
    for row in range(num_rows):
        tokens = [1 + row % 90, *[2] * (prompt_len - 1)]
        scheduler.submit(GenerationRequest(tokens=tokens, params=params, rng_key=row, on_event=_ignore))
    while scheduler.num_running < num_rows or scheduler.stats()["prefilling"] or scheduler.stats()["waiting"]:
        if not scheduler.step():  # all prompts are read
            break
    scheduler.step()  # captures a graph
    check.synchronize()
    start, before = time.perf_counter(), scheduler.stats()
    for _ in range(num_steps // 2):  # before the first rows end, and with them their bucket
        scheduler.step()
    check.synchronize()
    seconds = time.perf_counter() - start
    num_done = scheduler.stats()["generated_tokens"] - before["generated_tokens"]
    steps = max(1, scheduler.stats()["steps"] - before["steps"])
    bandwidth = check.earlier("versions", LIMITS).get("copy_gb_per_s")
    weight_bytes = 2 * (model.num_params() - model.embed.weight.numel())
    values = {"share_of_bandwidth": weight_bytes * steps / seconds / (bandwidth * 1e9)} if bandwidth else {}
    check.record(
        name,
        ms_per_step=1000 * seconds / steps,
        tokens_per_s=num_done / seconds,
        steps=steps,
        peak_gb=check.peak_memory_gb(),
        **values,
    )
    scheduler.cancel_all("cancelled")


def check_peer(check: Check) -> None:
    """Speed of transformers' continuous batching with d20 in bf16 and 256 rows, beside that of the kernels."""
    if check.is_dry_run:
        raise Skipped("continuous batching needs a GPU")
    try:
        import transformers
    except ImportError:
        raise Skipped("transformers is not installed") from None
    hf: Any = transformers
    fields = to_hf_config(config_to_time(check), TOKENIZER, {})
    with check.device:
        config = hf.AutoConfig.for_model(**fields)
        model = hf.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa")
    inputs = [[1 + row % 200, *[2] * (PROMPT_LEN - 1)] for row in range(256)]

    def seconds(num_tokens: int) -> float:
        options = hf.GenerationConfig(max_new_tokens=num_tokens, do_sample=False, eos_token_id=-1, pad_token_id=0)
        check.synchronize()
        start = time.perf_counter()
        model.generate_batch(inputs, options, progress_bar=False, persistent_manager=True)
        check.synchronize()
        return time.perf_counter() - start

    seconds(2)  # warms up
    short, long = seconds(2), seconds(2 + NUM_STEPS)
    speed = len(inputs) * NUM_STEPS / (long - short)
    ours = check.earlier("serving-speed", f"Triton, captured, {rows_text(256)}").get("tokens_per_s")
    values = {"kernels_are_faster_by": ours / speed} if ours else {}
    check.record("transformers, 256 rows", tokens_per_s=speed, ms_per_step=1000 * (long - short) / NUM_STEPS, **values)


def _ignore(_: TokenEvent | FinishEvent) -> None:
    """Take an event of which the tokens are read from the request's state."""
