"""Generation on the device: the engine against generation without a cache, tool use, and the speed of decoding."""

from __future__ import annotations

import time

import torch

from dev.gpu_check.check import Check, relative_error
from dev.gpu_check.models import SPECIAL, TOKENIZER, calculator_model, model_to_time, random_model
from dev.gpu_check.parity import CPU
from dev.gpu_check.versions import LIMITS
from nanochat.engine import Completion, Engine
from nanochat.gpt import GPT, GPTConfig
from nanochat.layers.sampling_params import SamplingParams
from nanochat.runtime import exact_float32

PROMPT_LENS = (1, 17, 40, 40, 5)
# Largest difference between the logit of a token that greedy decoding chose with a cache and the largest logit of a
# pass over the whole text: logits are below 15, and bf16 rounds the residual stream to 8 bits.
MAX_GAP = {torch.float32: 1e-3, torch.bfloat16: 0.3}


def check_generation(check: Check) -> None:
    """The engine against generation without a cache, float32 and bf16, grouped queries; calculator calls."""
    for is_grouped in (False, True):
        config = GPTConfig(128, 512, n_layer=2, n_head=4, n_kv_head=2 if is_grouped else 4, n_embd=128)
        for dtype in MAX_GAP:
            case = f"{str(dtype).removeprefix('torch.')}{', grouped queries' if is_grouped else ''}"
            with exact_float32():
                compare_generation(check, case, config, dtype)
    for dtype in MAX_GAP:
        with exact_float32():
            check_calculator(check, dtype)


def prompts(vocab_size: int) -> list[list[int]]:
    """Return random prompts of the lengths `PROMPT_LENS`."""
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(vocab_size, (length,), generator=generator).tolist() for length in PROMPT_LENS]


def compare_generation(check: Check, case: str, config: GPTConfig, dtype: torch.dtype) -> None:
    """Compare prefill logits with the CPU's, and greedy completions with passes over whole texts."""
    model = random_model(config, check.device, dtype)
    reference = random_model(config, CPU, torch.float32)
    max_tokens = 8 if check.is_dry_run else 48
    token_ids = prompts(config.vocab_size)
    idx = torch.tensor([token_ids[2]])
    with torch.no_grad():
        error = relative_error(model(idx.to(check.device)), reference(idx))
    check.expect(f"logits, {case}", error, 1e-4 if dtype == torch.float32 else 0.03)

    params = SamplingParams(temperature=0.0, max_tokens=max_tokens)
    engine = Engine(model, TOKENIZER)
    together = [completion for [completion] in engine.generate_many(token_ids, params)]
    alone = [completion for ids in token_ids for [completion] in engine.generate_many([ids], params)]
    for name, completions in (("padded batch", together), ("one row", alone)):
        gap = max(largest_gap(model, ids, done) for ids, done in zip(token_ids, completions, strict=True))
        check.expect(f"cache against whole passes, {name}, {case}", gap, MAX_GAP[dtype])
    if dtype == torch.float32:  # in bf16 rounding may decide between two tokens
        naive = list(model.generate(token_ids[1], max_tokens, temperature=0.0))
        check.expect_equal(f"tokens, {case}", alone[1].tokens, naive[: len(alone[1].tokens)])
    num_equal = sum(a.tokens == b.tokens for a, b in zip(together, alone, strict=True))
    check.record(f"completions equal in a batch and alone, {case}", share=num_equal / len(alone))


@torch.no_grad()
def largest_gap(model: GPT, prompt: list[int], completion: Completion) -> float:
    """Return how far the logits of the completion's tokens are below the largest one, in a pass over the whole text."""
    idx = torch.tensor([prompt + completion.tokens], device=model.device)
    logits = model(idx)[0, len(prompt) - 1 : -1]  # (T, V)
    chosen = logits.gather(1, idx[0, len(prompt) :, None])[:, 0]
    is_sampled = torch.tensor(completion.mask, device=model.device) == 1  # the tool's tokens are not the model's choice
    return float(((logits.amax(1) - chosen) * is_sampled).max())


def check_calculator(check: Check, dtype: torch.dtype) -> None:
    """Compare the tokens and mask of a calculator call with the known ones, with both methods of the engine."""
    model, tokens, mask = calculator_model(check.device, dtype)
    engine = Engine(model, TOKENIZER)
    prompt = [SPECIAL["<|bos|>"], ord("?")]
    params = SamplingParams(temperature=0.0, num_samples=2, max_tokens=24)
    name = str(dtype).removeprefix("torch.")
    [completions] = engine.generate_many([prompt], params)
    check.expect_equal(f"calculator, generate_many, {name}", completions, [Completion(tokens, mask, True)] * 2)
    columns = list(engine.stream(prompt, params))
    expected = [([token] * 2, [bit] * 2) for token, bit in zip(tokens, mask, strict=True)]
    check.expect_equal(f"calculator, stream, {name}", columns, expected)


# --- speed ------------------------------------------------------------------------------------------------------------


def check_decode_speed(check: Check) -> None:
    """Speed of decoding with d20 in bf16: 1, 32 and 256 rows, and 32 rows with prompts of different lengths."""
    depth = 1 if check.is_dry_run else 20
    config = GPTConfig.from_depth(depth, vocab_size=512 if check.is_dry_run else 65536, sequence_len=512)
    model = model_to_time(config, check.device)
    engine = Engine(model, TOKENIZER)
    weight_bytes = 2 * (model.num_params() - model.embed.weight.numel())  # read in each step, in bf16
    bandwidth = check.earlier("versions", LIMITS).get("copy_gb_per_s")
    for batch_size in (1, 32) if check.is_dry_run else (1, 32, 256):
        milliseconds, num_tokens, peak = time_decoding(check, engine, [[1] * 64], batch_size)
        values = {}
        if bandwidth:
            values["share_of_bandwidth"] = weight_bytes / (milliseconds / 1000) / (bandwidth * 1e9)
        speed = batch_size * 1000 / milliseconds
        check.record(
            f"decode, {batch_size} rows",
            ms_per_step=milliseconds,
            tokens_per_s=speed,
            steps=num_tokens,
            peak_gb=peak,
            **values,
        )
    varied = [[1] * (16 + 7 * row) for row in range(32)]
    milliseconds, num_tokens, peak = time_decoding(check, engine, varied, 1)
    check.record(
        "decode, 32 rows of different lengths",
        ms_per_step=milliseconds,
        tokens_per_s=32 * 1000 / milliseconds,
        steps=num_tokens,
        peak_gb=peak,
    )


def time_decoding(
    check: Check, engine: Engine, token_ids: list[list[int]], num_samples: int
) -> tuple[float, int, float]:
    """Return the milliseconds of a step, the number of steps and the peak memory. The prefill is not counted."""
    num_steps = 4 if check.is_dry_run else 128
    times = []
    check.reset_peak_memory()
    for max_tokens in (2, 2, num_steps):  # the first one warms up, the second one has the prefill's time
        params = SamplingParams(temperature=1.0, top_k=50, max_tokens=max_tokens, num_samples=num_samples, seed=1)
        check.synchronize()
        start = time.perf_counter()
        engine.generate_many(token_ids, params)
        check.synchronize()
        times.append(time.perf_counter() - start)
    return (times[2] - times[1]) * 1000 / (num_steps - 2), num_steps, check.peak_memory_gb()
