"""CORE: accuracy of a base model above guessing, averaged over the tasks of a bundle (DCLM, arXiv 2406.11794).

From a row of the bundle to the metric:

    row         {"query": "Ice is", "choices": ["cold", "hot"], "gold": 0}     nanochat.eval.core_bundle reads it
    texts       ("Ice is", " cold"), ("Ice is", " hot")                        `CoreTask.prompts` (0-shot here)
    ids         [<|bos|>, Ice, is, cold], [<|bos|>, Ice, is, hot]              `encode_example`
    scores      loss 1.2 and 3.4, in nats per token of the continuation        `ModelScorer`
    is_correct  option 0 has the lowest loss and is gold: True                 `is_correct`
    accuracy    0.6, the mean over the task's examples                         `evaluate_task`
    centred     (0.6 - 0.5) / (1 - 0.5) = 0.2: guessing is 0, perfect is 1     `TaskResult.centre`
    CORE        the mean of the centred accuracies over all tasks              `core_metric`

nanochat.eval.core_prompts has an example of each of the three types of task.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Sequence
from typing import NamedTuple, TypedDict

import torch
from tqdm import tqdm

from nanochat.common import UserError
from nanochat.eval.core_bundle import open_bundle
from nanochat.eval.core_prompts import CoreExample, CoreTask, encode_example
from nanochat.eval.core_scorer import ModelScorer, Scorer, is_correct
from nanochat.eval.task_eval import choose_rows
from nanochat.eval.task_result import TaskResult
from nanochat.gpt import GPT
from nanochat.reporting.schema import Z95, Metric
from nanochat.runtime import Runtime
from nanochat.tokenization.encoders import TextEncoder


class CoreScore(NamedTuple):
    """CORE of a model."""

    metric: Metric  # value, n, 95% interval
    standard_error: float
    guessing: float  # CORE of guessing; not exactly 0, because a task's baseline may differ from its chance accuracy


def core_metric(results: Sequence[TaskResult]) -> CoreScore:
    """Average the centred accuracies of the tasks into CORE.

    The standard error is computed for independent tasks: sqrt(sum of their squared standard errors) / count.
    """
    count = len(results)
    value = math.fsum(result.centred for result in results) / count
    standard_error = math.hypot(*(result.standard_error for result in results)) / count
    guessing = math.fsum(result.centre(result.chance) for result in results) / count
    interval = [value - Z95 * standard_error, value + Z95 * standard_error]
    metric: Metric = {"value": value, "n": sum(result.num_examples for result in results), "interval": interval}
    return CoreScore(metric, standard_error, guessing)


def evaluate_task(
    task: CoreTask,
    scorer: Scorer,
    tokenizer: TextEncoder,
    context_len: int,
    runtime: Runtime,
    max_examples: int | None = None,
    seed: int = 42,
) -> TaskResult:
    """Score the examples of a task, or a fixed choice of `max_examples` of them. Every process gets the result.

    `context_len`: context length of the model. `seed`: for the choice of few-shot examples. Raises UserError, in
    all processes alike, if the loss of an option is not finite: options cannot be compared then.
    """
    start = time.monotonic()
    indices = choose_rows(len(task.examples), max_examples)
    encoded = [
        encode_example(task.prompts(indices[position], seed), tokenizer, context_len, position)
        for position in range(runtime.rank, len(indices), runtime.world_size)
    ]
    # Each process fills in the columns of its own examples; the sum over the processes is the whole table.
    table = torch.zeros(3, len(indices), dtype=torch.int64)  # rows: correct, truncated, not finite
    with tqdm(total=len(encoded), desc=task.label, leave=False, disable=None if runtime.is_main else True) as bar:
        for example, scores in scorer(encoded):
            is_finite = all(math.isfinite(score.loss) for score in scores)
            gold = task.examples[indices[example.index]].gold
            correct = is_finite and is_correct(task.task_type, scores, gold)
            table[:, example.index] = torch.tensor([correct, example.is_truncated, not is_finite])
            bar.update()
    num_correct, is_truncated, is_not_finite = runtime.all_reduce(table.to(runtime.device)).tolist()
    if any(is_not_finite):
        raise UserError(
            f"{task.label}: the loss is not finite on {sum(is_not_finite)} of {len(indices)} examples: evaluate an "
            "earlier checkpoint, or this one with NANOCHAT_DTYPE=float32"
        )
    chosen = [task.examples[index] for index in indices]
    guess_probabilities = task.guess_probabilities
    return TaskResult(
        name=task.label,
        num_correct=num_correct,
        chance=math.fsum(guess_probabilities[index] for index in indices) / len(indices),
        baseline=task.baseline,
        num_cut=sum(is_truncated),
        examples_hash=_hash_examples(chosen),
        seconds=time.monotonic() - start,
    )


def _hash_examples(examples: Sequence[CoreExample]) -> str:
    """Return a hash that is equal for equal examples. Reports store it: the text that is hashed must not change."""
    texts = [f"Example(options={example.options!r}, gold={example.gold!r})" for example in examples]
    return hashlib.sha256(f"[{', '.join(texts)}]".encode("utf-8", "surrogatepass")).hexdigest()[:16]


class CoreEvaluation(TypedDict):
    """Result of `evaluate_model`."""

    results: dict[str, float]  # accuracy by task
    centered_results: dict[str, float]  # the same on a scale where guessing is 0 and perfect is 1
    core_metric: float  # the mean of the centred accuracies


def evaluate_model(
    model: GPT, tokenizer: TextEncoder, device: torch.device | str, max_per_task: int = 500
) -> CoreEvaluation:
    """Score a model on CORE with the evaluation bundle in `$NANOCHAT_BASE_DIR`.

    `max_per_task`: examples of each task; -1 = all. Under torchrun the examples are divided among the processes, and
    all get the same scores. Raises UserError if there is no bundle.
    """
    tasks = open_bundle().tasks
    runtime = Runtime.without_setup(device)
    scorer = ModelScorer(model)
    max_examples = None if max_per_task == -1 else max_per_task
    context_len = model.config.sequence_len
    results = [evaluate_task(task, scorer, tokenizer, context_len, runtime, max_examples) for task in tasks]
    return {
        "results": {result.name: result.accuracy for result in results},
        "centered_results": {result.name: result.centred for result in results},
        "core_metric": core_metric(results).metric["value"],
    }
