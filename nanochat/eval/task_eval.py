"""Scores a chat model on a task: by which answer letter it finds likeliest, or by what it writes.

Letters in shape comments: B problems of a batch, T tokens of its longest prompt, C width, V vocabulary.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from nanochat.common import UserError
from nanochat.engine import Completion, Engine
from nanochat.layers.padding import pad_right
from nanochat.reporting.schema import Section, proportion
from nanochat.reporting.significance import mean_metric
from nanochat.runtime import Runtime
from nanochat.tokenization.chat_format import Conversation
from nanochat.tokenizer import Tokenizer
from tasks.common import Task

CHAT_CORE = ("ARC-Easy", "ARC-Challenge", "MMLU", "GSM8K", "HumanEval", "SpellingBee")


@dataclass(frozen=True)
class TaskResult:
    """What a model made of a task. `right` has an entry for each problem, in the task's order."""

    name: str
    right: list[int]  # how many of its samples were right
    num_samples: int
    chance: float  # the accuracy of guessing
    tool_calls: int  # answers for which the calculator gave a result, of num x num_samples
    num_cut: int  # problems whose beginning did not fit into the context
    problems: str  # hash of the problems: scores with the same one can be compared problem by problem
    seconds: float

    @property
    def num(self) -> int:
        """Number of problems."""
        return len(self.right)

    @property
    def correct(self) -> list[bool]:
        """Whether each problem is solved: by any of its samples (pass@k, k = num_samples)."""
        return [count > 0 for count in self.right]

    @property
    def accuracy(self) -> float:
        """Share of the problems that are solved; 0 if there are none."""
        return sum(self.correct) / max(1, self.num)

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95% interval of the accuracy."""
        low, high = proportion(sum(self.correct), self.num)["interval"]
        return low, high

    @property
    def centred(self) -> float:
        """The accuracy on a scale on which guessing is 0 and everything right is 1."""
        return self.centre(self.accuracy)

    def centre(self, share: float) -> float:
        """A share of right answers, on the scale of `centred`."""
        return (share - self.chance) / (1 - self.chance)

    @property
    def metric(self) -> Section:
        """The accuracy as a metric of the report."""
        return {**proportion(sum(self.correct), self.num), "chance": self.chance}

    @property
    def answers(self) -> Section:
        """What was right, problem by problem, as the report has it."""
        return {"problems": self.problems, "correct": "".join(str(int(solved)) for solved in self.correct)}

    @property
    def tool_share(self) -> float:
        """Share of the answers that used the calculator."""
        return self.tool_calls / max(1, self.num * self.num_samples)


@dataclass(frozen=True)
class Asking:
    """How problems are answered."""

    num_samples: int  # answers to each
    max_tokens: int  # of an answer in writing
    temperature: float = 1.0
    top_k: int | None = None
    batch_size: int = 256  # answers that are written, or prompts that are scored, at once on a device

    def answers(
        self, engine: Engine, prompts: Sequence[list[int]], seed: int | Sequence[int]
    ) -> list[list[Completion]]:
        """For each prompt its answers. Raises `UserError` as the engine does."""
        return engine.answers(
            prompts, self.num_samples, self.max_tokens, self.temperature, self.top_k, seed, self.batch_size
        )


@dataclass
class _Problem:
    place: int  # among all that are evaluated
    conversation: Conversation
    prompt: list[int]
    is_cut: bool
    right: int = field(default=0)
    tool_calls: int = field(default=0)


def evaluate(
    task: Task,
    engine: Engine,
    asking: Asking,
    runtime: Runtime,
    max_problems: int | None = None,
    seed: int = 42,
) -> TaskResult:
    """Score the model on a task, or on `max_problems` of it, chosen at random; every process gets the same score.

    A categorical task has one answer a problem, the likeliest letter. A prompt that is too long loses its beginning.
    Raises `UserError` for letters that are no single tokens.
    """
    start = time.monotonic()
    by_letter = task.eval_type == "categorical"
    context = engine.model.config.sequence_len
    # An answer in writing needs room, but in a short context the question needs it more.
    longest = context if by_letter else context - min(asking.max_tokens, context // 4)
    rows = choose_rows(len(task), max_problems)
    mine = [
        _problem(place, task[rows[place]], engine.tokenizer, longest)
        for place in range(runtime.rank, len(rows), runtime.world_size)
    ]
    mine.sort(key=lambda problem: len(problem.prompt))  # prompts of one length in a batch: little padding
    scored = _choose(mine, task, engine, asking.batch_size) if by_letter else _write(mine, task, engine, asking, seed)
    with tqdm(total=len(mine), desc=task.name, leave=False, disable=None if runtime.is_main else True) as bar:
        for count in scored:
            bar.update(count)
    facts = _gather(mine, len(rows), runtime)
    num_samples = 1 if by_letter else asking.num_samples
    return TaskResult(name=task.name, num_samples=num_samples, **facts, seconds=time.monotonic() - start)


def chat_core(scores: Sequence[TaskResult]) -> tuple[str, Section]:
    """ChatCORE with its 95% interval, if its six tasks are there; else the mean of what is, under another name."""
    by_name = {score.name: score for score in scores}
    if by_name.keys() >= set(CHAT_CORE):
        name, chosen = "ChatCORE", [by_name[name] for name in CHAT_CORE]
    else:
        name, chosen = f"mean of centred accuracies over {len(scores)} tasks", list(scores)
    mean = mean_metric(
        [{"value": score.centred, "interval": [score.centre(end) for end in score.interval]} for score in chosen]
    )
    return name, {**mean, "n": sum(score.num for score in chosen)}


def choose_rows(length: int, most: int | None) -> Sequence[int]:
    """At most `most` (None: all) of `length` rows, always the same ones: one at random from each of `most` sections.

    So no subject is left out where rows are sorted by it, and no kind is preferred where every third is of that kind.
    """
    if most is None or most >= length:
        return range(length)
    ends = [index * length // most for index in range(most + 1)]
    rows: list[int] = np.random.default_rng(42).integers(ends[:-1], ends[1:]).tolist()
    return rows


def _problem(place: int, conversation: Conversation, tokenizer: Tokenizer, longest: int) -> _Problem:
    """A conversation's prompt; one that is too long keeps `<|bos|>` and its end, where the question stands."""
    prompt = tokenizer.render_for_completion(conversation)
    is_cut = len(prompt) > longest
    return _Problem(place, conversation, [prompt[0], *prompt[1 - longest :]] if is_cut else prompt, is_cut)


@torch.inference_mode()
def _choose(problems: Sequence[_Problem], task: Task, engine: Engine, batch_size: int) -> Iterator[int]:
    """Score by letters: of each problem's own, the likeliest first token of the answer. Yields the batches' sizes."""
    model, tokenizer = engine.model, engine.tokenizer
    ids = letter_ids(tokenizer, {letter for problem in problems for letter in problem.conversation["letters"]})
    for first in range(0, len(problems), batch_size):
        batch = problems[first : first + batch_size]
        lengths = torch.tensor([len(problem.prompt) for problem in batch], device=model.device)
        idx = pad_right([problem.prompt for problem in batch], fill=0, device=model.device)  # (B, T)
        hidden = model.hidden(idx)  # (B, T) -> (B, T, C)
        last = hidden[torch.arange(len(batch), device=model.device), lengths - 1]  # (B, C)
        # In float32: bf16's steps are so coarse that letters would often draw.
        logits = model.logits(last.float())[:, list(ids.values())].tolist()  # (B, V), of which the letters
        for problem, row in zip(batch, logits, strict=True):
            likely = dict(zip(ids, row, strict=True))
            letter = max(problem.conversation["letters"], key=likely.__getitem__)
            problem.right = int(task.evaluate(problem.conversation, letter))
        yield len(batch)


def letter_ids(tokenizer: Tokenizer, letters: set[str]) -> dict[str, int]:
    """The token with which an answer of each letter begins. Raises `UserError` for a letter of several tokens."""
    found = {}
    for letter in sorted(letters):
        tokens = tokenizer.encode(letter)
        if len(tokens) != 1:
            raise UserError(
                f"the answer {letter!r} is {len(tokens)} tokens: letters are compared by a single one, so rename it "
                "to a letter from A to Z"
            )
        found[letter] = tokens[0]
    return found


def _write(problems: Sequence[_Problem], task: Task, engine: Engine, asking: Asking, seed: int) -> Iterator[int]:
    """Score by what is written, some problems at a time. Yields their numbers."""
    chunk = max(1, asking.batch_size // asking.num_samples)
    output_start = engine.tokenizer.encode_special("<|output_start|>")
    for first in range(0, len(problems), chunk):
        batch = problems[first : first + chunk]
        prompts = [problem.prompt for problem in batch]
        written = asking.answers(
            engine, prompts, seed + batch[0].place
        )  # no two chunks, nor processes, draw the same numbers
        for problem, answers in zip(batch, written, strict=True):
            for answer in answers:
                problem.right += task.evaluate(problem.conversation, text_of(answer, engine.tokenizer))
                forced = zip(answer.tokens, answer.mask, strict=True)
                problem.tool_calls += (output_start, 0) in forced  # a model could write that token itself
        yield len(batch)


def text_of(answer: Completion, tokenizer: Tokenizer) -> str:
    """What a task judges: the answer's text without the end token, special tokens by their names."""
    return tokenizer.decode(answer.tokens[:-1] if answer.ended else answer.tokens)


def _gather(mine: Sequence[_Problem], num: int, runtime: Runtime) -> dict[str, Any]:
    """What all processes found: each fills in its own problems and leaves 0 elsewhere, so the sum is everybody's."""
    table = torch.zeros(5, num, dtype=torch.int64)
    for problem in mine:
        letters = len(problem.conversation.get("letters", ()))
        content = json.dumps(problem.conversation, sort_keys=True, default=str)
        digest = int.from_bytes(hashlib.sha256(content.encode()).digest()[:8], "big", signed=True)
        row = [problem.right, problem.tool_calls, int(problem.is_cut), letters, digest]
        table[:, problem.place] = torch.tensor(row)
    right, tool_calls, cut, letters, digests = runtime.sum(table.to(runtime.device)).tolist()
    return {
        "right": right,
        "tool_calls": sum(tool_calls),
        "num_cut": sum(cut),
        "chance": math.fsum(1 / number for number in letters if number) / max(1, num),
        "problems": hashlib.sha256(json.dumps(digests).encode()).hexdigest()[:16],
    }
