"""Evaluation on the device against the CPU: bits per byte and CORE's options; and its speed."""

from __future__ import annotations

import random
import time

import torch

from dev.gpu_check.check import Check
from dev.gpu_check.models import TOKENIZER, model_to_time, random_model
from dev.gpu_check.parity import CPU
from nanochat.core_eval import core_metric, evaluate_task
from nanochat.eval.core_prompts import CoreExample, CoreTask, encode_example
from nanochat.eval.core_scorer import ModelScorer
from nanochat.gpt import GPTConfig
from nanochat.loss_eval import bits_per_byte

MAX_LOSS_ERROR = {torch.float32: 1e-4, torch.bfloat16: 0.05}  # nats per token
MAX_BPB_ERROR = {torch.float32: 1e-5, torch.bfloat16: 0.01}  # relative


def check_evaluation(check: Check) -> None:
    """Bits per byte and CORE against the CPU with a small model; speed of bits per byte with d12."""
    config = GPTConfig(256, TOKENIZER.get_vocab_size(), n_layer=2, n_head=2, n_kv_head=2, n_embd=128)
    rows = torch.randint(config.vocab_size, (6, 129), generator=torch.Generator().manual_seed(2))
    rows[:, 100:] = -1
    token_bytes = torch.tensor(TOKENIZER.token_bytes())
    reference = random_model(config, CPU, torch.float32)
    cpu_runtime = type(check.runtime())(0, 0, 1, CPU, torch.float32, 42)
    expected_bpb = bits_per_byte(reference, rows, token_bytes, 4, cpu_runtime)
    tasks = core_tasks(4 if check.is_dry_run else 32)
    expected_losses = option_losses(ModelScorer(reference), tasks, config.sequence_len)
    for dtype in MAX_LOSS_ERROR:
        name = str(dtype).removeprefix("torch.")
        model = random_model(config, check.device, dtype)
        bpb = bits_per_byte(model, rows, token_bytes, 4, check.runtime(dtype))
        check.expect(f"bits per byte, {name}", abs(bpb / expected_bpb - 1), MAX_BPB_ERROR[dtype])
        losses = option_losses(ModelScorer(model), tasks, config.sequence_len)
        error = max(abs(loss - expected) for loss, expected in zip(losses, expected_losses, strict=True))
        check.expect(f"losses of CORE's options, {name}", error, MAX_LOSS_ERROR[dtype], options=len(losses))
        time_core(check, name, ModelScorer(model), tasks, config.sequence_len)
    time_bits_per_byte(check)


def core_tasks(num_examples: int) -> list[CoreTask]:
    """Return a task of each type, with texts of many lengths."""
    rng = random.Random(3)

    def words() -> str:
        return " ".join(rng.choice(("red", "a", "house", "seven", "is")) for _ in range(rng.randint(1, 9)))

    choices = tuple(
        CoreExample(((text := words(), f" {words()}"), (text, f" {words()}")), 1) for _ in range(num_examples)
    )
    schemas = tuple(CoreExample(((words(), text := f" {words()}"), (words(), text)), 0) for _ in range(num_examples))
    plain = tuple(CoreExample(((words(), f" {words()}"),)) for _ in range(num_examples))
    return [
        CoreTask("choices", "multiple_choice", 2, " ", 0.5, choices),
        CoreTask("schemas", "schema", 0, " ", 0.5, schemas),
        CoreTask("words", "language_modeling", 1, " ", 0.0, plain),
    ]


def option_losses(scorer: ModelScorer, tasks: list[CoreTask], context_len: int) -> list[float]:
    """Return the losses of all options of all tasks, in the order of the examples."""
    losses = []
    for task in tasks:
        prompts = [task.prompts(index, 42) for index in range(len(task.examples))]
        encoded = [encode_example(prompt, TOKENIZER, context_len, index) for index, prompt in enumerate(prompts)]
        scored = {example.index: scores for example, scores in scorer(encoded)}
        losses += [score.loss for index in range(len(encoded)) for score in scored[index]]
    return losses


def time_core(check: Check, name: str, scorer: ModelScorer, tasks: list[CoreTask], context_len: int) -> None:
    """Record CORE and the speed of a second evaluation of the same tasks."""
    runtime = check.runtime(scorer.model.compute_dtype)
    start = time.perf_counter()
    results = [evaluate_task(task, scorer, TOKENIZER, context_len, runtime) for task in tasks]
    seconds = time.perf_counter() - start
    num_examples = sum(result.num_examples for result in results)
    check.record(
        f"CORE of a random model, {name}",
        core=core_metric(results).metric["value"],
        examples_per_s=num_examples / seconds,
    )


def time_bits_per_byte(check: Check) -> None:
    """Record the speed of bits per byte with d12 in bf16, and its peak memory."""
    if check.is_dry_run:
        config = GPTConfig.from_depth(2, vocab_size=256, sequence_len=32, head_dim=32)
    else:
        config = GPTConfig.from_depth(12, vocab_size=65536, sequence_len=2048)
    model = model_to_time(config, check.device)
    num_rows = 4 if check.is_dry_run else 64
    rows = torch.randint(config.vocab_size, (num_rows, config.sequence_len + 1))
    token_bytes = torch.ones(config.vocab_size, dtype=torch.int64)
    for batch_size in (2,) if check.is_dry_run else (16, 32):
        bits_per_byte(model, rows[:batch_size], token_bytes, batch_size, check.runtime())  # warms up
        check.reset_peak_memory()
        start = time.perf_counter()
        bits_per_byte(model, rows, token_bytes, batch_size, check.runtime())
        speed = num_rows * config.sequence_len / (time.perf_counter() - start)
        check.record(f"bits per byte, d12, {batch_size} rows", tokens_per_s=speed, peak_gb=check.peak_memory_gb())
