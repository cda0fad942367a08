"""Evaluation of a chat model on tasks: by the most likely answer letter, or by the completions that it generates.

Letters in shape comments: B problems of a batch, T tokens of its longest prompt, C width, V vocabulary.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from nanochat.common import UserError
from nanochat.engine import Completion, Engine
from nanochat.eval.task_result import TaskResult
from nanochat.layers.attention import varied_shapes
from nanochat.layers.padding import pad_right
from nanochat.layers.sampling_params import SamplingParams
from nanochat.reporting.schema import Metric
from nanochat.reporting.significance import mean_metric
from nanochat.runtime import Runtime, exact_float32
from nanochat.tokenization.chat_format import Conversation
from nanochat.tokenizer import Tokenizer
from tasks.common import Task

CHAT_CORE = ("ARC-Easy", "ARC-Challenge", "MMLU", "GSM8K", "HumanEval", "SpellingBee")


@dataclass
class _Problem:
    """An example of a task as a prompt, and its results once it has been evaluated."""

    index: int  # among all examples that are evaluated, in all processes
    conversation: Conversation
    prompt: list[int]
    is_cut: bool
    num_correct: int = 0
    num_tool_calls: int = 0


def evaluate_chat_task(
    task: Task,
    engine: Engine,
    params: SamplingParams,
    runtime: Runtime,
    max_examples: int | None = None,
    batch_size: int = 256,
) -> TaskResult:
    """Evaluate all examples of a task, or a fixed random choice of `max_examples`. All processes return the same.

    A categorical task takes the most likely letter as the only answer and does not use `params`. `batch_size`:
    completions that are generated, or prompts that are scored, at once on one device. A prompt that is too long loses
    its beginning. Raises `UserError` for a letter that is not a single token.
    """
    start = time.monotonic()
    is_categorical = task.eval_type == "categorical"
    context = engine.model.config.sequence_len
    max_prompt_len = context if is_categorical else context - params.reserved_tokens(context)
    rows = choose_rows(len(task), max_examples)
    problems = [
        _make_problem(index, task[rows[index]], engine.tokenizer, max_prompt_len)
        for index in range(runtime.rank, len(rows), runtime.world_size)
    ]
    problems.sort(key=lambda problem: len(problem.prompt))  # similar lengths in a batch: little padding
    if is_categorical:
        batch_sizes = _score_letters(problems, task, engine, batch_size)
    else:
        batch_sizes = _score_completions(problems, task, engine, params, batch_size)
    with tqdm(total=len(problems), desc=task.name, leave=False, disable=None if runtime.is_main else True) as bar:
        for num_scored in batch_sizes:
            bar.update(num_scored)
    return TaskResult(
        name=task.name,
        num_samples=1 if is_categorical else params.num_samples,
        **_gather(problems, len(rows), runtime),
        seconds=time.monotonic() - start,
    )


def chat_core(results: Sequence[TaskResult]) -> tuple[str, Metric]:
    """Return the name and value of ChatCORE, with its 95% interval: the mean centred accuracy of its six tasks.

    If one of the six is missing, the mean over all results is returned, under another name.
    """
    by_name = {result.name: result for result in results}
    if by_name.keys() >= set(CHAT_CORE):
        name = "ChatCORE"
        included = [by_name[task_name] for task_name in CHAT_CORE]
    else:
        name = f"mean of centred accuracies over {len(results)} tasks"
        included = list(results)
    mean = mean_metric(
        [
            {"value": result.centred, "interval": [result.centre(bound) for bound in result.interval]}
            for result in included
        ]
    )
    return name, {**mean, "n": sum(result.num_examples for result in included)}


def choose_rows(num_rows: int, max_rows: int | None) -> Sequence[int]:
    """Choose `max_rows` (None: all) of `num_rows` rows, always the same: a random one of each of `max_rows` sections.

    Sections keep the choice representative where rows are sorted by subject; the random offset keeps it so where kinds
    of examples alternate.
    """
    if max_rows is None or max_rows >= num_rows:
        return range(num_rows)
    bounds = [index * num_rows // max_rows for index in range(max_rows + 1)]
    rows: list[int] = np.random.default_rng(42).integers(bounds[:-1], bounds[1:]).tolist()
    return rows


def _make_problem(index: int, conversation: Conversation, tokenizer: Tokenizer, max_prompt_len: int) -> _Problem:
    """Render the prompt; one that is too long keeps `<|bos|>` and its end, which has the question."""
    prompt = tokenizer.render_for_completion(conversation)
    is_cut = len(prompt) > max_prompt_len
    if is_cut:
        prompt = [prompt[0], *prompt[1 - max_prompt_len :]]
    return _Problem(index, conversation, prompt, is_cut)


@torch.inference_mode()
def _score_letters(problems: Sequence[_Problem], task: Task, engine: Engine, batch_size: int) -> Iterator[int]:
    """Score each problem by the most likely of its own letters. Yields the size of each batch when it is done."""
    model = engine.model
    tokenizer = engine.tokenizer
    token_ids = letter_ids(tokenizer, {letter for problem in problems for letter in problem.conversation["letters"]})
    for start in range(0, len(problems), batch_size):
        batch = problems[start : start + batch_size]
        lengths = torch.tensor([len(problem.prompt) for problem in batch], device=model.device)
        idx = pad_right([problem.prompt for problem in batch], fill=0, device=model.device)  # (B, T)
        with varied_shapes(model.device), exact_float32():
            hidden = model.hidden_states(idx)  # (B, T) -> (B, T, C)
            last = hidden[torch.arange(len(batch), device=model.device), lengths - 1]  # (B, C)
            # In float32: in bf16 the logits of two letters would often be equal.
            logits = model.logits(last.float())[:, list(token_ids.values())].tolist()  # (B, V) -> (B, letters)
        for problem, row in zip(batch, logits, strict=True):
            letter_logits = dict(zip(token_ids, row, strict=True))
            letter = max(problem.conversation["letters"], key=letter_logits.__getitem__)
            problem.num_correct = int(task.evaluate(problem.conversation, letter))
        yield len(batch)


def letter_ids(tokenizer: Tokenizer, letters: set[str]) -> dict[str, int]:
    """Return the token id of each answer letter. Raises `UserError` for a letter that is not a single token."""
    token_ids = {}
    for letter in sorted(letters):
        tokens = tokenizer.encode(letter)
        if len(tokens) != 1:
            raise UserError(
                f"the answer {letter!r} is {len(tokens)} tokens: the logits of single tokens are compared, so rename "
                "it to a letter from A to Z"
            )
        token_ids[letter] = tokens[0]
    return token_ids


def _score_completions(
    problems: Sequence[_Problem], task: Task, engine: Engine, params: SamplingParams, batch_size: int
) -> Iterator[int]:
    """Score each problem by `params.num_samples` completions. Yields the number of problems of each batch when done."""
    seed = params.draw_seed()
    problems_per_batch = max(1, batch_size // params.num_samples)
    output_start = engine.tokenizer.encode_special("<|output_start|>")
    for start in range(0, len(problems), problems_per_batch):
        batch = problems[start : start + problems_per_batch]
        prompts = [problem.prompt for problem in batch]
        batch_params = replace(params, seed=seed + batch[0].index)  # different in every batch and process
        completions = engine.generate_many(prompts, batch_params, batch_size=batch_size)
        for problem, samples in zip(batch, completions, strict=True):
            for completion in samples:
                text = completion_text(completion, engine.tokenizer)
                problem.num_correct += task.evaluate(problem.conversation, text)
                # The mask counts: the model could sample <|output_start|> itself.
                is_tool_used = (output_start, 0) in zip(completion.tokens, completion.mask, strict=True)
                problem.num_tool_calls += is_tool_used
        yield len(batch)


def completion_text(completion: Completion, tokenizer: Tokenizer) -> str:
    """Return the text that a task evaluates: without the end token, other special tokens spelled by name."""
    return tokenizer.decode(completion.tokens[:-1] if completion.has_ended else completion.tokens)


def _gather(problems: Sequence[_Problem], num_examples: int, runtime: Runtime) -> dict[str, Any]:
    """Combine the results of all processes into fields of `TaskResult`.

    Each process fills the columns of its own problems and leaves 0 in the others; the sum is the whole table.
    """
    table = torch.zeros(5, num_examples, dtype=torch.int64)
    for problem in problems:
        num_letters = len(problem.conversation.get("letters", ()))
        content = json.dumps(problem.conversation, sort_keys=True, default=str)
        digest = int.from_bytes(hashlib.sha256(content.encode()).digest()[:8], "big", signed=True)
        column = [problem.num_correct, problem.num_tool_calls, int(problem.is_cut), num_letters, digest]
        table[:, problem.index] = torch.tensor(column)
    num_correct, num_tool_calls, is_cut, num_letters, digests = runtime.all_reduce(table.to(runtime.device)).tolist()
    chance = math.fsum(1 / number for number in num_letters if number) / max(1, num_examples)
    return {
        "num_correct": num_correct,
        "num_tool_calls": sum(num_tool_calls),
        "num_cut": sum(is_cut),
        "chance": chance,
        "baseline": chance,
        "examples_hash": hashlib.sha256(json.dumps(digests).encode()).hexdigest()[:16],
    }
