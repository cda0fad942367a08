"""Events of a training run: bits per byte, CORE and samples of text.

Each function returns events, or the `run` function of an event, which takes the loop state and returns metrics.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from nanochat.common import UserError, base_dir, print0
from nanochat.core_eval import core_metric, evaluate_task
from nanochat.data.shards import open_split
from nanochat.dataloader import document_eval_rows
from nanochat.eval.core_bundle import find_bundle, read_bundle
from nanochat.eval.core_scorer import ModelScorer
from nanochat.eval.core_tables import core_name
from nanochat.eval.samples import generate_samples
from nanochat.gpt import GPT
from nanochat.loss_eval import bits_per_byte
from nanochat.runtime import Runtime
from nanochat.tokenizer import Tokenizer
from nanochat.train import Event, Forward, LoopState, Metrics

MAX_SAMPLE_TOKENS = 48


def bpb_evaluator(
    forward: Forward, tokenizer: Tokenizer, runtime: Runtime, max_tokens: int, batch_size: int, sequence_len: int
) -> Callable[[LoopState], Metrics]:
    """Return an event's `run` that measures bits per byte on the first `max_tokens` of the validation shard.

    `forward` is the model, compiled or not. All batches have the shape (batch_size, sequence_len).
    """
    rows, num_tokens = document_eval_rows(open_split("val"), tokenizer, sequence_len, max_tokens)
    if num_tokens < max_tokens:
        print0(f"The validation shard has only {num_tokens:,} of the --eval_tokens={max_tokens:,} tokens")
    token_bytes = torch.tensor(tokenizer.token_bytes())
    return lambda _: {"val_bpb": bits_per_byte(forward, rows, token_bytes, batch_size, runtime)}


def core_events(every: int, max_per_task: int, model: GPT, tokenizer: Tokenizer, runtime: Runtime) -> list[Event]:
    """Return the event that measures CORE every `every` steps and at the end.

    The list is empty if `every` is -1 or there is no evaluation bundle. `max_per_task`: examples of a task; -1 = all.
    """
    if every == -1:
        return []
    path = find_bundle()
    if path is None:
        print0(f"No evaluation bundle at {base_dir() / 'eval_bundle'}: CORE is not measured.")
        return []
    bundle = read_bundle(path)
    scorer = ModelScorer(model)
    context = model.config.sequence_len
    max_examples = None if max_per_task == -1 else max_per_task

    def measure(_: LoopState) -> Metrics:
        try:
            results = [evaluate_task(task, scorer, tokenizer, context, runtime, max_examples) for task in bundle.tasks]
        except UserError as error:  # a failed evaluation does not end the run
            print0(f"CORE is not measured: {error}")
            return {}
        metric, standard_error, chance = core_metric(results)
        print0(
            f"{core_name(bundle)}: {metric['value']:.4f}, standard error {standard_error:.4f}; "
            f"guessing alone gives {chance:.4f}"
        )
        return {"core": metric["value"]}

    return [Event(every, measure)]


def sample_printer(
    model: GPT, tokenizer: Tokenizer, runtime: Runtime, prompts: Sequence[str]
) -> Callable[[LoopState], Metrics]:
    """Return an event's `run` that prints the model's greedy continuation of each prompt."""

    def print_samples(_: LoopState) -> Metrics:
        if runtime.is_main:
            for sample in generate_samples(model, tokenizer, prompts, max_tokens=MAX_SAMPLE_TOKENS):
                print0(f"  {sample['prompt']} | {' '.join(sample['text'].split())}")
        return {}

    return print_samples
