"""CORE: how far a base model is above guessing, on average over the tasks of a bundle (DCLM, arXiv 2406.11794).

Many prompts are scored at once, of like length; what the options of an example share is computed once; the head is
applied only where a continuation is predicted.

Letters in shape comments: E examples of a batch, B their options, P tokens that an example's options share, T tokens
after these, N predicted tokens, C width, V vocabulary.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypedDict

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from nanochat.common import UserError, base_dir
from nanochat.eval.core_bundle import CoreTask, find_bundle, read_bundle
from nanochat.eval.task_eval import choose_rows
from nanochat.eval.task_result import TaskResult
from nanochat.gpt import GPT
from nanochat.inference.kv_cache import KVCache
from nanochat.layers.padding import pad_right
from nanochat.reporting.schema import Z95, Section
from nanochat.runtime import Runtime
from nanochat.tokenization.encoders import TextEncoder, encode_continuation

BATCH_TOKENS = 16384  # positions of a forward pass, padding and what is cached included
CPU_BATCH_TOKENS = 4096  # the same on a CPU
HEAD_ROWS = 256  # logits of so many tokens at a time
TIE = 1e-5  # nats: losses as close as this differ by rounding, and the first option has it


@dataclass
class Prompt:
    """An example as token ids: `options` are its (ids, how many of the last ones are the continuation)."""

    place: int  # among all that are scored
    options: list[tuple[list[int], int]]
    is_cut: bool

    @cached_property
    def shared(self) -> int:
        """How many tokens all options begin with, up to the last one before a continuation."""
        if len(self.options) == 1:
            return 0
        first = [ids[: len(ids) - count - 1] for ids, count in self.options]
        columns = enumerate(zip(*first, strict=False))
        return next((place for place, column in columns if len(set(column)) > 1), min(map(len, first)))

    @property
    def longest(self) -> int:
        """Tokens of the longest option that the model reads: the last one is only predicted."""
        return max(len(ids) for ids, _ in self.options) - 1


@dataclass(frozen=True)
class OptionScore:
    """`loss`: mean over the tokens of the continuation, in nats; `exact`: each of them was the likeliest."""

    loss: float
    exact: bool


Scorer = Callable[[Sequence[Prompt]], Iterator[tuple[Prompt, list[OptionScore]]]]  # in any order


def core(results: Sequence[TaskResult]) -> tuple[Section, float, float]:
    """CORE as a metric of the report, its standard error, and the CORE of guessing, which need not be 0."""
    count = len(results)
    value = math.fsum(result.centred for result in results) / count
    error = math.hypot(*(result.standard_error for result in results)) / count
    floor = math.fsum(result.centre(result.chance) for result in results) / count
    interval = [value - Z95 * error, value + Z95 * error]
    return {"value": value, "n": sum(result.num_examples for result in results), "interval": interval}, error, floor


def evaluate_task(
    task: CoreTask,
    scorer: Scorer,
    tokenizer: TextEncoder,
    context: int,
    runtime: Runtime,
    max_examples: int | None = None,
    seed: int = 42,
) -> TaskResult:
    """Score all examples of a task, or `max_examples` of it, always the same ones; all processes get the same result.

    `context`: tokens that the model can read. `seed`: of the choice of solved examples in a prompt. Raises UserError,
    in all processes alike, if a loss is not finite: nothing can be decided then.
    """
    start = time.monotonic()
    rows = choose_rows(len(task.examples), max_examples)
    mine = [
        tokenize(task.prompts(rows[place], seed), tokenizer, context, place)
        for place in range(runtime.rank, len(rows), runtime.world_size)
    ]
    table = torch.zeros(3, len(rows), dtype=torch.int64)  # each process fills in its own examples: the sum is all
    with tqdm(total=len(mine), desc=task.label, leave=False, disable=None if runtime.is_main else True) as bar:
        for prompt, scores in scorer(mine):
            finite = all(math.isfinite(score.loss) for score in scores)
            right = finite and decide(task.kind, scores, task.examples[rows[prompt.place]].gold)
            table[:, prompt.place] = torch.tensor([right, prompt.is_cut, not finite])
            bar.update()
    correct, cut, bad = runtime.all_reduce(table.to(runtime.device)).tolist()
    if any(bad):
        ways = "score an earlier checkpoint, or the same one in NANOCHAT_DTYPE=float32"
        raise UserError(f"{task.label}: the model gives no finite loss on {sum(bad)} of {len(rows)} examples: {ways}")
    chosen = [task.examples[row] for row in rows]
    guessing = task.guessing
    return TaskResult(
        name=task.label,
        num_correct=correct,
        chance=math.fsum(guessing[row] for row in rows) / len(rows),
        baseline=task.baseline,
        num_cut=sum(cut),
        examples_hash=hashlib.sha256(repr(chosen).encode("utf-8", "surrogatepass")).hexdigest()[:16],
        seconds=time.monotonic() - start,
    )


def decide(kind: str, scores: Sequence[OptionScore], gold: int) -> bool:
    """Whether an example is right: the gold option has the lowest loss (the first one, in a tie), or is exact."""
    if kind == "language_modeling":
        return scores[0].exact
    lowest = min(score.loss for score in scores)
    return next(place for place, score in enumerate(scores) if score.loss <= lowest + TIE) == gold


def tokenize(texts: Sequence[tuple[str, str]], tokenizer: TextEncoder, context: int, place: int) -> Prompt:
    """Token ids of an example's options, behind `<|bos|>`.

    If the longest does not fit, all lose as many tokens after `<|bos|>`; a continuation that does not fit by itself
    is scored by its end.
    """
    heads = dict.fromkeys(head for head, _ in texts)
    encoded = dict(zip(heads, tokenizer.encode(list(heads)), strict=True))
    pairs = [encode_continuation(tokenizer, head, encoded[head], end) for head, end in texts]
    over = max(len(head) + len(end) for head, end in pairs) - context  # with <|bos|>, without the last token
    options = []
    for head, end in pairs:
        end = end[-context:]
        options.append(([tokenizer.get_bos_token_id(), *head[max(0, over) :], *end], len(end)))
    return Prompt(place, options, over > 0)


def batch_tokens_for(device: torch.device) -> int:
    """Positions of a forward pass that suit a device: on a CPU few, for what stays in its cache is quicker."""
    return CPU_BATCH_TOKENS if device.type == "cpu" else BATCH_TOKENS


@dataclass(frozen=True)
class ModelScorer:
    """Scores prompts with our model, at most `batch_tokens` positions at a time (but at least one example).

    `batch_tokens` = -1: what suits the model's device.
    """

    model: GPT
    batch_tokens: int = -1

    def __call__(self, prompts: Sequence[Prompt]) -> Iterator[tuple[Prompt, list[OptionScore]]]:
        """Scores of each prompt's options, the longest prompts first: what does not fit into memory fails at once."""
        for batch in self._batches(sorted(prompts, key=lambda prompt: -prompt.longest)):
            scores = iter(self._score(batch))
            for prompt in batch:
                yield prompt, [next(scores) for _ in prompt.options]

    def _batches(self, prompts: Sequence[Prompt]) -> Iterator[list[Prompt]]:
        """Prompts that fit into the context side by side, where each takes the most columns of any."""
        most = batch_tokens_for(self.model.device) if self.batch_tokens == -1 else self.batch_tokens
        batch: list[Prompt] = []
        shared = rest = rows = 0
        for prompt in prompts:
            new_shared, new_rest = max(shared, prompt.shared), max(rest, prompt.longest - prompt.shared)
            new_rows, width = rows + len(prompt.options), new_shared + new_rest
            too_many = new_rows * width + (len(batch) + 1) * new_shared > most
            if batch and (too_many or width > self.model.config.sequence_len):
                yield batch
                batch, rows = [], 0
                new_shared, new_rest = prompt.shared, prompt.longest - prompt.shared
                new_rows = len(prompt.options)
            batch.append(prompt)
            shared, rest, rows = new_shared, new_rest, new_rows
        if batch:
            yield batch

    @torch.inference_mode()
    def _score(self, batch: Sequence[Prompt]) -> list[OptionScore]:
        """Scores of all options of a batch, one prompt after the other."""
        shared = [prompt.shared for prompt in batch]
        options = [
            (ids[skip:], count) for prompt, skip in zip(batch, shared, strict=True) for ids, count in prompt.options
        ]
        cache = self._read_shared(batch, shared) if any(shared) else None
        hidden = self.model.hidden_states(
            pad_right([ids[:-1] for ids, _ in options], 0, device=self.model.device), cache
        )  # (B, T) -> (B, T, C)
        rows = [row for row, (_, count) in enumerate(options) for _ in range(count)]
        columns = [column - 1 for ids, count in options for column in range(len(ids) - count, len(ids))]
        targets = torch.tensor(
            [ids[column + 1] for ids, column in zip((options[r][0] for r in rows), columns, strict=True)]
        )
        losses, exact = self._predict(hidden[rows, columns], targets.to(hidden.device))  # (N, C), (N,) -> (N,), (N,)
        counts = [count for _, count in options]
        return [
            OptionScore(loss.mean().item(), bool(hits.all()))
            for loss, hits in zip(losses.split(counts), exact.split(counts), strict=True)
        ]

    def _read_shared(self, batch: Sequence[Prompt], shared: Sequence[int]) -> KVCache:
        """A cache with what each example's options share, once for each option."""
        model = self.model
        once = KVCache(model.config, len(batch), model.compute_dtype, model.device)
        begins = [prompt.options[0][0][:skip] for prompt, skip in zip(batch, shared, strict=True)]
        model.hidden_states(pad_right(begins, 0, device=model.device), once)  # (E, P)
        counts = [len(prompt.options) for prompt in batch]
        cache = KVCache(model.config, sum(counts), model.compute_dtype, model.device)
        cache.reserve([skip for skip, count in zip(shared, counts, strict=True) for _ in range(count)])
        row = 0
        for place, count in enumerate(counts):
            cache.copy_prefix(row, count, once, place)
            row += count
        return cache

    def _predict(self, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Loss of each target, (N,) on the CPU, and whether it is the likeliest token."""
        losses, exact = [], []
        for first in range(0, len(targets), HEAD_ROWS):
            some, wanted = hidden[first : first + HEAD_ROWS], targets[first : first + HEAD_ROWS]
            logits = self.model.logits(some.float())  # in float32: bf16's steps are so coarse that options would draw
            losses.append(F.cross_entropy(logits, wanted, reduction="none").cpu())
            hits = logits.gather(-1, wanted[:, None])[:, 0] == logits.amax(-1)
            rows = hits.nonzero()[:, 0]  # few: argmax, which says who is first in a draw, takes ten times as long
            hits[rows] = logits[rows].argmax(-1) == wanted[rows]
            exact.append(hits.cpu())
        return torch.cat(losses), torch.cat(exact)


class CoreScores(TypedDict):
    """Result of `evaluate_model`: accuracies by task, the same centred (0 = guessing, 1 = all right), and their mean."""

    results: dict[str, float]
    centered_results: dict[str, float]
    core_metric: float


def evaluate_model(
    model: GPT, tokenizer: TextEncoder, device: torch.device | str, max_per_task: int = 500
) -> CoreScores:
    """Score a model on CORE with the evaluation bundle of the base folder; `max_per_task`: examples of a task, -1 = all.

    Under torchrun the examples are shared out among the processes, and all get the same scores. Raises `UserError` if
    there is no bundle.
    """
    path = find_bundle()
    if path is None:
        raise UserError(f"no evaluation bundle at {base_dir() / 'eval_bundle'}: put its folder or zip file there")
    runtime = Runtime.current(device)
    scorer = ModelScorer(model)
    max_examples = None if max_per_task == -1 else max_per_task
    context = model.config.sequence_len
    tasks = read_bundle(path).tasks
    results = [evaluate_task(task, scorer, tokenizer, context, runtime, max_examples) for task in tasks]
    return {
        "results": {result.name: result.accuracy for result in results},
        "centered_results": {result.name: result.centred for result in results},
        "core_metric": core(results)[0]["value"],
    }
