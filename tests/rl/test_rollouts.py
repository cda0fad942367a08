"""Rollouts: completions are complete and independent of their batch; rows train on sampled tokens and nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from nanochat import runtime as runtime_module
from nanochat.checkpoint_manager import Checkpoint
from nanochat.engine import Engine
from nanochat.inference import native_step
from nanochat.layers.sampling_params import SamplingParams
from nanochat.rl.prompts import PromptSampler
from nanochat.rl.rollouts import (
    RolloutGroup,
    count_outcomes,
    resolve_rollout_dtype,
    rollout,
    rollout_batches,
    step_metrics,
)
from tests.support.rl import CPU, END, GROUPS, ONE_PROCESS, bandit, make_group, make_prompt, tiny_model
from tests.support.talks import TOKENIZER


def test_targets() -> None:
    """Sampled tokens, the end token included, are targets; prompt, tool output and padding are not."""
    (batch,) = rollout_batches([make_group("A", "hi", [("abXYc.", 1.0), ("d.", 0.0)])], [], 0.0, 4, CPU)
    bos, user_start, user_end, assistant_start = map(
        TOKENIZER.encode_special, ("<|bos|>", "<|user_start|>", "<|user_end|>", "<|assistant_start|>")
    )
    prompt = [bos, user_start, ord("h"), ord("i"), user_end, assistant_start]
    assert batch.inputs.tolist() == [
        [*prompt, ord("d"), 0, 0, 0, 0],
        [*prompt, *map(ord, "abXYc")],
    ]
    assert batch.targets.tolist() == [
        [-1] * 5 + [ord("d"), END, -1, -1, -1, -1],
        [-1] * 5 + [ord("a"), ord("b"), -1, -1, ord("c"), END],
    ]
    assert batch.weights.tolist() == [-0.5, 0.5]


def test_no_completion_is_lost() -> None:
    """15 completions are all trained on, whether or not the batch sizes of sampling and training divide them."""
    engine = Engine(tiny_model(), TOKENIZER)
    prompts = [make_prompt("A", question, seed) for seed, question in enumerate("abc")]
    params = SamplingParams(num_samples=5, max_tokens=4)
    groups = rollout(engine, prompts, params, lambda _, text: len(text) + 1.0, batch_size=7)
    assert [group.prompt for group in groups] == prompts
    assert [len(group.completions) for group in groups] == [5, 5, 5]
    assert [len(set(map(str, group.completions))) for group in groups] == [5, 5, 5]

    groups = [RolloutGroup(group.prompt, group.completions, [1.0, 0, 0, 0, 0]) for group in groups]
    num_sampled = sum(sum(completion.mask) for group in groups for completion in group.completions)
    for batch_size in (1, 4, 15, 16):
        batches = list(rollout_batches(groups, [], 0.0, batch_size, CPU))
        assert sum(batch.num_completions.sum().item() for batch in batches) == 15
        assert sum((batch.targets != -1).sum().item() for batch in batches) == num_sampled


def test_rewards_are_those_of_the_text() -> None:
    engine = Engine(tiny_model(), TOKENIZER)
    params = SamplingParams(num_samples=3, max_tokens=4)
    [group] = rollout(engine, [make_prompt("A", "a")], params, lambda prompt, text: len(prompt.task_label + text))
    for completion, reward in zip(group.completions, group.rewards, strict=True):
        tokens = completion.tokens[:-1] if completion.has_ended else completion.tokens
        assert reward == 1 + len(TOKENIZER.decode(tokens))


def test_completions_do_not_depend_on_the_other_prompts() -> None:
    engine = Engine(tiny_model(), TOKENIZER)
    params = SamplingParams(num_samples=3, max_tokens=6)
    sampler = PromptSampler({"Bandit": bandit()}, {"Bandit": 1.0}, TOKENIZER, seed=5)
    prompts = sampler.prompts_of_step(2, 7, ONE_PROCESS)
    together = rollout(engine, prompts, params, lambda *_: 0.0, batch_size=4)
    alone = [rollout(engine, [prompt], params, lambda *_: 0.0, batch_size=4)[0] for prompt in prompts]
    assert alone == together
    assert together[0].completions != together[2].completions, "the same question at another index has another seed"


def test_a_prompt_that_fills_the_context(capsys: pytest.CaptureFixture[str]) -> None:
    engine = Engine(tiny_model(), TOKENIZER)
    prompts = [make_prompt("A", question) for question in ("x" * 40, "y")]
    groups = rollout(engine, prompts, SamplingParams(num_samples=2, max_tokens=3), lambda *_: 1.0)
    assert [len(group.completions) for group in groups] == [0, 2]
    assert "A has 44 tokens, the context 32" in capsys.readouterr().out
    assert count_outcomes(groups, ["A"], ONE_PROCESS)["completions"] == 2
    assert not list(rollout_batches(groups, [], 0.0, 2, CPU))


def test_the_dtype_of_a_resumed_run_is_recorded(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """A new run chooses for the machine. A resumed one repeats its dtype even if the machine now measures another."""
    monkeypatch.setattr(native_step, "is_available", lambda: False)  # torch's products decide
    runtime = replace(ONE_PROCESS, compute_dtype=torch.bfloat16)
    for speedup, chosen in ((0.5, torch.float32), (2.0, torch.bfloat16)):
        monkeypatch.setattr(runtime_module, "measure_bf16_decode_speedup", lambda speedup=speedup: speedup)
        assert resolve_rollout_dtype(None, runtime) == chosen
        for recorded, dtype in (
            ({"rollout_dtype": "float32"}, torch.float32),
            ({"rollout_dtype": "bfloat16"}, torch.bfloat16),
            ({}, torch.bfloat16),  # a checkpoint of an earlier version, which generated in its compute dtype
        ):
            meta: Any = {"compute_dtype": "bfloat16", **recorded}
            capsys.readouterr()
            assert resolve_rollout_dtype(Checkpoint(tmp_path, meta), runtime) == dtype
            assert ("Generating in float32" in capsys.readouterr().out) == (dtype == torch.float32)


def test_step_metrics() -> None:
    """The metrics of the hand-made groups, counted by hand; a task without completions has no mean reward."""
    metrics = step_metrics(count_outcomes(GROUPS, ["A", "B", "C"], ONE_PROCESS), ["A", "B", "C"])
    lengths = [3, 7, 3, 6, 0, 3, 2, 2, 2, 6, 1, 3, 3, 4]
    assert metrics == pytest.approx(
        {
            "reward": (2 + 3 + 1.75 + 0) / 14,
            "A reward": (2 + 1.75) / 8,
            "B reward": (3 + 0) / 6,
            "signal": 3 / 4,
            "length": sum(lengths) / 14,
            "tool": 4 / 14,
            "ended": 10 / 14,
        }
    )
