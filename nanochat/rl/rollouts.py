"""Reinforcement learning without its loop: problems in their order, answers, rewards, advantages, rows to train on.

Each problem is answered several times. An answer's advantage is its reward less the mean of its group, the answers to
the same problem; the loss is the sum of advantage x -log p over the sampled tokens of the step, divided by their
number: REINFORCE with a group baseline (arXiv 2402.03300 without the ratio, the KL term and the standard deviation).
The number counts all sampled tokens of the step, in all processes, also those of groups whose rewards are all equal.
Their advantage is 0, so that they need not be trained on, and leaving them out changes nothing.

Letters in shape comments: B rows of a micro-batch, T tokens of its longest.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from nanochat.common import UserError, print0
from nanochat.data.packing import RenderedConversation
from nanochat.engine import Completion, Engine
from nanochat.eval.task_eval import completion_text
from nanochat.layers.padding import pad_right
from nanochat.layers.sampling_params import SamplingParams
from nanochat.runtime import Runtime
from nanochat.tokenization.chat_format import Conversation
from nanochat.tokenizer import Tokenizer
from tasks.common import Task
from tasks.registry import get_task

_LABEL = re.compile(r"(?P<name>[\w-]+)(\((?P<options>[^()]*)\))?")


def parse_weights(text: str) -> dict[str, float]:
    """Tasks and their shares, which are scaled to add up to 1.

    >>> parse_weights("HardProblems(shape=pair_2_1):3|SpellingBee")
    {'HardProblems(shape=pair_2_1)': 0.75, 'SpellingBee': 0.25}
    """
    weights: dict[str, float] = {}
    for entry in text.split("|"):
        name, _, number = entry.strip().partition(":")
        try:
            weight = float(number or 1)
        except ValueError:
            weight = math.nan
        if not _LABEL.fullmatch(name) or name in weights or not 0 < weight < math.inf:
            raise UserError(
                f"tasks is {text!r}: {entry!r} is not NAME, NAME:WEIGHT or NAME(OPTION=VALUE):WEIGHT, "
                "each once, each weight above 0"
            )
        weights[name] = weight
    total = math.fsum(weights.values())
    return {name: weight / total for name, weight in weights.items()}


def open_task(label: str, split: str, **rows: int) -> Task:
    """The task of a label such as `HardProblems(shape=pair_2_1)`; `rows`: more of its options."""
    match = _LABEL.fullmatch(label)
    assert match, f"{label} is no label of a task"
    options: dict[str, int | str] = dict(rows)
    for option in (match["options"] or "").split(",") if match["options"] else ():
        name, _, value = option.partition("=")
        options[name.strip()] = int(value) if value.strip().isdecimal() else value.strip()
    return get_task(match["name"], split, **options)


def seed_of(*key: int | str) -> int:
    """A seed that depends on the key only, from 0 to 2**63 - 1."""
    digest = hashlib.blake2b(":".join(map(str, key)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


# --- problems ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Problem:
    """What is asked once: a row of a task, the ids up to where the answer begins, and the seed of its answers."""

    task: str
    conversation: Conversation
    prompt: list[int]
    seed: int


Scorer = Callable[[Problem, str], float]  # of a problem and the text of an answer


class PromptSampler:
    """The problems of all steps: tasks by their weights, the rows of each in a random order, a new one every epoch.

    What a step asks depends on the seed and on its number only: not on the number of processes, nor on a resume.
    """

    def __init__(
        self, tasks: Mapping[str, Task], weights: Mapping[str, float], tokenizer: Tokenizer, seed: int
    ) -> None:
        for name, task in tasks.items():
            if not len(task):
                raise UserError(f"the task {name} has no problems")
        self.tasks, self.weights, self.tokenizer, self.seed = tasks, weights, tokenizer, seed
        self._drawn = dict.fromkeys(weights, 0)
        self._draws: list[tuple[str, int]] = []  # of each problem so far: its task, and how many of that came before

    def of_step(self, step: int, num_problems: int, runtime: Runtime) -> list[Problem]:
        """This process's share of a step's problems: every N-th, of N processes."""
        numbers = range(step * num_problems, (step + 1) * num_problems)
        self._draw(numbers.stop)
        return [self._problem(number) for number in numbers[runtime.rank :: runtime.world_size]]

    def reward(self, problem: Problem, text: str) -> float:
        """What an answer is worth."""
        return self.tasks[problem.task].reward(problem.conversation, text)

    def hash(self) -> str:
        """Tells other problems from these: tasks, weights, and the first questions."""
        sizes = {name: (weight, len(self.tasks[name])) for name, weight in self.weights.items()}
        self._draw(64)
        return hashlib.sha256(repr([sizes, [self._problem(n) for n in range(64)]]).encode()).hexdigest()

    def _draw(self, count: int) -> None:
        """Choose the tasks up to this problem: always the one that is furthest behind its share."""
        while len(self._draws) < count:
            number = len(self._draws) + 1
            name = max(self.weights, key=lambda name: self.weights[name] * number - self._drawn[name])
            self._draws.append((name, self._drawn[name]))
            self._drawn[name] += 1

    def _problem(self, number: int) -> Problem:
        name, before = self._draws[number]
        epoch, position = divmod(before, len(self.tasks[name]))
        row = int(_order(len(self.tasks[name]), seed_of(self.seed, name, epoch))[position])
        return make_problem(name, self.tasks[name][row], self.tokenizer, seed_of(self.seed, number))


@lru_cache(maxsize=16)
def _order(length: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).permutation(length)


def make_problem(name: str, conversation: Conversation, tokenizer: Tokenizer, seed: int) -> Problem:
    """A row of a task as a problem."""
    return Problem(name, conversation, tokenizer.render_for_completion(conversation), seed)


# --- answers ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RolloutGroup:
    """The answers to one problem and their rewards."""

    problem: Problem
    answers: list[Completion]
    rewards: list[float]

    @property
    def has_signal(self) -> bool:
        """Whether one answer is better than another: else there is nothing to learn here."""
        return len(set(self.rewards)) > 1

    def advantages(self) -> list[float]:
        """Each reward less their mean."""
        mean = math.fsum(self.rewards) / len(self.rewards)
        return [reward - mean for reward in self.rewards]


def ask(
    engine: Engine, problems: Sequence[Problem], params: SamplingParams, score: Scorer, batch_size: int = 256
) -> list[RolloutGroup]:
    """Have each problem answered `params.num_samples` times and score the answers. In the problems' order.

    What is answered to one does not depend on the others. A problem that fills the context has no answers, and is said.
    """
    context = engine.model.config.sequence_len
    fitting = [problem for problem in problems if len(problem.prompt) < context]
    for problem in problems:
        if len(problem.prompt) >= context:
            print0(f"A problem of {problem.task} has {len(problem.prompt)} tokens, the context {context}: left out")
    prompts = [problem.prompt for problem in fitting]
    seeds = [problem.seed for problem in fitting]
    completions = engine.generate_many(prompts, params, seeds=seeds, batch_size=batch_size)
    found = dict(zip(map(id, fitting), completions, strict=True))
    groups = []
    for problem in problems:
        answers = found.get(id(problem), [])
        texts = [completion_text(answer, engine.tokenizer) for answer in answers]
        groups.append(RolloutGroup(problem, answers, [score(problem, text) for text in texts]))
    return groups


# --- rows to train on -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RolloutBatch:
    """Rows of one process. A row stands for all answers that say the same: `advantages` are their sums.

    A worked conversation is a row as well, with its weight for an advantage and 0 copies.
    """

    inputs: Tensor  # (B, T) int64
    targets: Tensor  # (B, T) int64, -1 = prompt, tool output or padding: not trained on
    advantages: Tensor  # (B,) float32
    copies: Tensor  # (B,) float32, the number of those answers


def micro_batches(
    groups: Sequence[RolloutGroup],
    worked: Sequence[RenderedConversation],
    weight: float,
    batch_size: int,
    device: torch.device,
) -> Iterator[RolloutBatch]:
    """The answers of groups with signal, and worked conversations, each token of which counts `weight`.

    `batch_size` rows at a time, of similar length; none is left out.
    """
    answers: dict[tuple[tuple[int, ...], tuple[int, ...]], list[float]] = {}
    for group in groups:
        if group.has_signal:
            prompt = group.problem.prompt
            for answer, advantage in zip(group.answers, group.advantages(), strict=True):
                key = (*prompt, *answer.tokens), (0,) * len(prompt) + tuple(answer.mask)
                answers.setdefault(key, []).append(advantage)
    rows = [(ids, mask, math.fsum(parts), float(len(parts))) for (ids, mask), parts in answers.items()]
    rows += [(tuple(ids), tuple(mask), weight, 0.0) for ids, mask in worked]
    rows.sort(key=lambda row: len(row[0]))  # similar lengths: little padding
    for start in range(0, len(rows), batch_size):
        part = rows[start : start + batch_size]
        inputs = pad_right([ids[:-1] for ids, *_ in part], fill=0)
        trained_ids = [[i if m else -1 for i, m in zip(ids, mask, strict=True)] for ids, mask, *_ in part]
        targets = pad_right([ids[1:] for ids in trained_ids], fill=-1)
        advantages, copies = (torch.tensor([row[place] for row in part]) for place in (2, 3))
        yield RolloutBatch(*(tensor.to(device) for tensor in (inputs, targets, advantages, copies)))


# --- figures ----------------------------------------------------------------------------------------------------------


def tally(groups: Sequence[RolloutGroup], names: Sequence[str], runtime: Runtime) -> dict[str, float]:
    """Counts over all processes: what the figures of a step are made of. `names`: of all tasks."""
    counts = dict.fromkeys(("groups", "signal", "answers", "sampled", "tokens", "tool", "ended"), 0.0)
    counts |= {f"{name} {what}": 0.0 for name in names for what in ("answers", "reward")}
    for group in groups:
        counts["groups"] += 1
        counts["signal"] += group.has_signal
        counts["answers"] += len(group.answers)
        counts[f"{group.problem.task} answers"] += len(group.answers)
        counts[f"{group.problem.task} reward"] += math.fsum(group.rewards)
        for answer in group.answers:
            counts["sampled"] += sum(answer.mask)
            counts["tokens"] += len(answer.tokens)
            counts["tool"] += 0 in answer.mask  # it was used, and had something to say
            counts["ended"] += answer.has_ended
    return dict(
        zip(
            counts, runtime.all_reduce(torch.tensor(list(counts.values()), device=runtime.device)).tolist(), strict=True
        )
    )


def figures(counts: Mapping[str, float], names: Sequence[str]) -> dict[str, float]:
    """What is told of a step: mean rewards, share of groups with signal, length of answers, shares of answers."""
    answers = max(1.0, counts["answers"])
    rewards = {f"{n} reward": counts[f"{n} reward"] / counts[f"{n} answers"] for n in names if counts[f"{n} answers"]}
    return {
        "reward": sum(counts[f"{name} reward"] for name in names) / answers,
        **rewards,
        "signal": counts["signal"] / max(1.0, counts["groups"]),
        "length": counts["tokens"] / answers,
        "tool": counts["tool"] / answers,
        "ended": counts["ended"] / answers,
    }
