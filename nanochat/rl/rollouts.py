"""Rollouts: several completions of each prompt, their rewards and advantages, and the rows to train on.

Letters in shape comments: B rows of a micro-batch, T tokens of its longest row.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nanochat.checkpoint_manager import Checkpoint
from nanochat.common import print0
from nanochat.engine import Completion, Engine
from nanochat.eval.task_eval import completion_text
from nanochat.layers.padding import pad_right
from nanochat.layers.sampling_params import SamplingParams
from nanochat.rl.prompts import Prompt
from nanochat.runtime import DTYPES, Runtime
from nanochat.steps.make_step import generation_dtype
from nanochat.tokenizer import RenderedConversation

RewardFunction = Callable[[Prompt, str], float]  # (prompt, text of a completion) -> reward


@dataclass(frozen=True)
class RolloutGroup:
    """The completions of one prompt and their rewards.

    With three correct completions and a wrong one, the mean reward is 0.75, and the wrong completion has the largest
    advantage in absolute value:

    >>> prompt = Prompt("GSM8K", {"messages": []}, [], 0)
    >>> RolloutGroup(prompt, [], rewards=[1.0, 1.0, 1.0, 0.0]).advantages()
    [0.25, 0.25, 0.25, -0.75]
    """

    prompt: Prompt
    completions: list[Completion]
    rewards: list[float]

    @property
    def is_informative(self) -> bool:
        """True if the rewards differ; otherwise all advantages are 0 and the group has no gradient."""
        return len(set(self.rewards)) > 1

    def advantages(self) -> list[float]:
        """Return each completion's reward minus the group's mean reward."""
        mean = math.fsum(self.rewards) / len(self.rewards)
        return [reward - mean for reward in self.rewards]


def rollout(
    engine: Engine, prompts: Sequence[Prompt], params: SamplingParams, reward: RewardFunction, batch_size: int = 256
) -> list[RolloutGroup]:
    """Sample `params.num_samples` completions for each prompt and score them. Return one group per prompt, in order.

    The completions of a prompt do not depend on the other prompts. A prompt that fills the context gets no
    completion, and a notice is printed. `batch_size`: completions sampled at once, which changes speed and memory only.
    """
    context = engine.model.config.sequence_len
    fitting = [prompt for prompt in prompts if len(prompt.token_ids) < context]
    for prompt in prompts:
        if len(prompt.token_ids) >= context:
            print0(
                f"A prompt of {prompt.task_label} has {len(prompt.token_ids)} tokens, the context {context}: left out"
            )
    token_ids = [prompt.token_ids for prompt in fitting]
    seeds = [prompt.seed for prompt in fitting]
    sampled = iter(engine.generate_many(token_ids, params, seeds=seeds, batch_size=batch_size))
    groups = []
    for prompt in prompts:
        completions = next(sampled) if len(prompt.token_ids) < context else []
        texts = [completion_text(completion, engine.tokenizer) for completion in completions]
        groups.append(RolloutGroup(prompt, completions, [reward(prompt, text) for text in texts]))
    return groups


def resolve_rollout_dtype(checkpoint: Checkpoint | None, runtime: Runtime) -> torch.dtype:
    """Return the dtype in which a run generates: chosen for this machine, or that of the run that `checkpoint` resumes.

    The choice depends on a measurement. It is therefore recorded, so that a resumed run repeats the same completions.
    """
    if checkpoint is None:
        return generation_dtype(runtime, runtime.compute_dtype)
    name = checkpoint.meta.get("rollout_dtype", runtime.dtype_name)
    if name != runtime.dtype_name:
        print0(f"Generating in {name}, as the run did so far; training computes in {runtime.dtype_name}.")
    return DTYPES[name]


# --- rows to train on -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RolloutBatch:
    """A micro-batch of one process. A row is a prompt with a completion, or a conversation of the SFT mix.

    Equal completions of equal prompts share one row, whose weight is the sum of their advantages.
    """

    inputs: Tensor  # (B, T) int64
    targets: Tensor  # (B, T) int64, -1 = not trained on: prompt, tool output or padding
    weights: Tensor  # (B,) float32, factor on the loss of the row's tokens: an advantage, or the SFT weight
    num_completions: Tensor  # (B,) float32, completions that share the row; 0 for an SFT row


def rollout_batches(
    groups: Sequence[RolloutGroup],
    sft_rows: Sequence[RenderedConversation],
    sft_weight: float,
    batch_size: int,
    device: torch.device,
) -> Iterator[RolloutBatch]:
    """Yield micro-batches of up to `batch_size` rows of similar length: informative groups, and the SFT rows.

    `sft_weight`: factor on the loss of each token of the SFT rows.

    The target of a position is the next token, so the mask is shifted to the left by one:

        prompt [1, 2], completion [3, 4], its mask [1, 0]  ->  inputs [1, 2, 3], targets [-1, 3, -1]
    """
    advantages: dict[tuple[tuple[int, ...], tuple[int, ...]], list[float]] = {}  # (ids, mask) -> of all completions
    for group in groups:
        if group.is_informative:
            prompt_ids = group.prompt.token_ids
            for completion, advantage in zip(group.completions, group.advantages(), strict=True):
                ids = (*prompt_ids, *completion.tokens)
                mask = (0,) * len(prompt_ids) + tuple(completion.mask)
                advantages.setdefault((ids, mask), []).append(advantage)

    rows = [(ids, mask, math.fsum(values), float(len(values))) for (ids, mask), values in advantages.items()]
    rows += [(tuple(ids), tuple(mask), sft_weight, 0.0) for ids, mask in sft_rows]
    rows.sort(key=lambda row: len(row[0]))  # similar lengths in a micro-batch: little padding
    for start in range(0, len(rows), batch_size):
        chunk = rows[start : start + batch_size]
        trained_ids = [
            [token_id if is_trained else -1 for token_id, is_trained in zip(ids, mask, strict=True)]
            for ids, mask, *_ in chunk
        ]
        yield RolloutBatch(
            inputs=pad_right([ids[:-1] for ids, *_ in chunk], fill=0, device=device),
            targets=pad_right([ids[1:] for ids in trained_ids], fill=-1, device=device),
            weights=torch.tensor([weight for *_, weight, _ in chunk]).to(device),
            num_completions=torch.tensor([count for *_, count in chunk]).to(device),
        )


# --- statistics -------------------------------------------------------------------------------------------------------


def count_outcomes(groups: Sequence[RolloutGroup], task_labels: Sequence[str], runtime: Runtime) -> dict[str, float]:
    """Return counts and sums over the groups of all processes, from which `step_metrics` are computed.

    "sampled" counts the tokens that the model sampled; "tokens" also those of tool outputs.
    """
    counts = dict.fromkeys(("groups", "informative", "completions", "sampled", "tokens", "tool", "ended"), 0.0)
    for label in task_labels:
        counts[f"{label} completions"] = 0.0
    for label in task_labels:
        counts[f"{label} reward"] = 0.0

    for group in groups:
        label = group.prompt.task_label
        counts["groups"] += 1
        counts["informative"] += group.is_informative
        counts["completions"] += len(group.completions)
        counts[f"{label} completions"] += len(group.completions)
        counts[f"{label} reward"] += math.fsum(group.rewards)
        for completion in group.completions:
            counts["sampled"] += sum(completion.mask)
            counts["tokens"] += len(completion.tokens)
            counts["tool"] += 0 in completion.mask  # the tool was called and returned something
            counts["ended"] += completion.has_ended

    totals = runtime.all_reduce(torch.tensor(list(counts.values()), device=runtime.device))
    return dict(zip(counts, totals.tolist(), strict=True))


def step_metrics(counts: Mapping[str, float], task_labels: Sequence[str]) -> dict[str, float]:
    """Return the metrics of a step: mean rewards, share of informative groups ("signal"), means per completion."""
    num_completions = max(1.0, counts["completions"])
    rewards = {
        f"{label} reward": counts[f"{label} reward"] / counts[f"{label} completions"]
        for label in task_labels
        if counts[f"{label} completions"]
    }
    return {
        "reward": sum(counts[f"{label} reward"] for label in task_labels) / num_completions,
        **rewards,
        "signal": counts["informative"] / max(1.0, counts["groups"]),
        "length": counts["tokens"] / num_completions,
        "tool": counts["tool"] / num_completions,
        "ended": counts["ended"] / num_completions,
    }
