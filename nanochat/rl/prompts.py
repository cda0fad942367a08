"""Prompts for reinforcement learning: rows of tasks, drawn for each step in proportion to the tasks' weights."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from nanochat.common import UserError
from nanochat.runtime import Runtime
from nanochat.tokenization.chat_format import Conversation
from nanochat.tokenizer import Tokenizer
from tasks.common import Task
from tasks.mixture import detect_data_kind
from tasks.registry import get_task

# Default tasks by kind of base data: text from the web, or the embedded story world.
DEFAULT_TASKS = {"web": "GSM8K", "world": "HardProblems:0.6|WordProblems:0.4"}
NUM_HASHED = 64  # prompts that `PromptSampler.hash` reads

_LABEL = re.compile(r"(?P<name>[\w-]+)(\((?P<options>[^()]*)\))?")


def parse_task_weights(text: str) -> dict[str, float]:
    """Parse `LABEL:WEIGHT|LABEL:WEIGHT|...` into label -> weight; the weights are scaled to a sum of 1.

    A label is a task's name, with options in parentheses if needed. The default weight is 1. Raises `UserError` for any
    other text.

    >>> parse_task_weights("HardProblems(shape=pair_2_1):3|SpellingBee")
    {'HardProblems(shape=pair_2_1)': 0.75, 'SpellingBee': 0.25}
    """
    weights: dict[str, float] = {}
    for entry in text.split("|"):
        label, _, number = entry.strip().partition(":")
        try:
            weight = float(number or 1)
        except ValueError:
            weight = math.nan
        if not _LABEL.fullmatch(label) or label in weights or not 0 < weight < math.inf:
            raise UserError(
                f"tasks is {text!r}: {entry!r} is not NAME, NAME:WEIGHT or NAME(OPTION=VALUE):WEIGHT, "
                "each once, each weight above 0"
            )
        weights[label] = weight
    total = math.fsum(weights.values())
    return {label: weight / total for label, weight in weights.items()}


def open_task(label: str, split: str, **slice_options: int) -> Task:
    """Open the task of a label such as `HardProblems(shape=pair_2_1)`. `slice_options`: start, stop, step."""
    match = _LABEL.fullmatch(label)
    assert match, f"{label} is not a task's label"
    options: dict[str, int | str] = dict(slice_options)
    for option in (match["options"] or "").split(",") if match["options"] else ():
        name, _, value = option.partition("=")
        options[name.strip()] = int(value) if value.strip().isdecimal() else value.strip()
    return get_task(match["name"], split, **options)


def derive_seed(*key: int | str) -> int:
    """Return a seed, from 0 to 2**63 - 1, that depends on the key only."""
    digest = hashlib.blake2b(":".join(map(str, key)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


@dataclass(frozen=True)
class Prompt:
    """A row of a task as one prompt of a step."""

    task_label: str
    conversation: Conversation
    token_ids: list[int]  # the conversation up to the start of the completion
    seed: int  # of the completions


class PromptSampler:
    """Sampler of each step's prompts: tasks in proportion to their weights, each with a new order of rows every epoch.

    The prompts of a step depend on the seed and the step's number only, not on the number of processes or on resuming.
    """

    def __init__(
        self, tasks: Mapping[str, Task], weights: Mapping[str, float], tokenizer: Tokenizer, seed: int
    ) -> None:
        for label, task in tasks.items():
            if not len(task):
                raise UserError(f"the task {label} has no examples: leave it out of --tasks")
        self.tasks = tasks
        self.weights = weights
        self.tokenizer = tokenizer
        self.seed = seed
        self._num_drawn = dict.fromkeys(weights, 0)
        self._draws: list[tuple[str, int]] = []  # for each prompt of the run: its task, and its number in that task

    def prompts_of_step(self, step: int, num_prompts: int, runtime: Runtime, first: int = 0) -> list[Prompt]:
        """Return this process's prompts of a step with `num_prompts` in all: with N processes, every N-th prompt.

        `first`: number of the first prompt of step 0. It is not 0 in a run whose earlier steps had more or fewer.
        """
        indices = range(first + step * num_prompts, first + (step + 1) * num_prompts)
        self._draw_tasks(indices.stop)
        return [self._prompt(index) for index in indices[runtime.rank :: runtime.world_size]]

    def reward(self, prompt: Prompt, text: str) -> float:
        """Return the reward of a completion."""
        return self.tasks[prompt.task_label].reward(prompt.conversation, text)

    def hash(self) -> str:
        """Return a hash of tasks, sizes, weights, and the first `NUM_HASHED` prompts of the run."""
        sizes = {label: (weight, len(self.tasks[label])) for label, weight in self.weights.items()}
        self._draw_tasks(NUM_HASHED)
        # Spelled as in the first checkpoints, whose runs compare this hash when they resume.
        prompts = ", ".join(
            f"Problem(task={prompt.task_label!r}, conversation={prompt.conversation!r}, "
            f"prompt={prompt.token_ids!r}, seed={prompt.seed!r})"
            for prompt in map(self._prompt, range(NUM_HASHED))
        )
        return hashlib.sha256(f"[{sizes!r}, [{prompts}]]".encode()).hexdigest()

    def _draw_tasks(self, num_prompts: int) -> None:
        """Choose the tasks of the first `num_prompts` prompts: each time the task that is furthest below its share."""
        while len(self._draws) < num_prompts:
            number = len(self._draws) + 1
            label = max(self.weights, key=lambda label: self.weights[label] * number - self._num_drawn[label])
            self._draws.append((label, self._num_drawn[label]))
            self._num_drawn[label] += 1

    def _prompt(self, index: int) -> Prompt:
        label, number = self._draws[index]
        task = self.tasks[label]
        epoch, position = divmod(number, len(task))
        row = int(_shuffled_rows(len(task), derive_seed(self.seed, label, epoch))[position])
        conversation = task[row]
        token_ids = self.tokenizer.render_for_completion(conversation)
        return Prompt(label, conversation, token_ids, derive_seed(self.seed, index))


@lru_cache(maxsize=16)
def _shuffled_rows(num_rows: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).permutation(num_rows)


def load_prompts(
    tasks: str | None, tokenizer: Tokenizer, seed: int, eval_examples: int
) -> tuple[PromptSampler, dict[str, Task]]:
    """Return the sampler of training prompts, and label -> the first `eval_examples` held-out examples of each task.

    `tasks`: labels and weights, as in `parse_task_weights`; None = those of `DEFAULT_TASKS` that suit the base data.
    """
    weights = parse_task_weights(tasks or DEFAULT_TASKS[detect_data_kind()])
    sampler = PromptSampler({label: open_task(label, "train") for label in weights}, weights, tokenizer, seed)
    return sampler, {label: open_task(label, "test", stop=eval_examples) for label in weights}
