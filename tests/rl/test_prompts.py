"""Prompts: weights of tasks, the prompts of each step, and the hash by which runs recognise them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nanochat.common import UserError
from nanochat.data.shards import write_dataset
from nanochat.rl import prompts as prompts_module
from nanochat.rl.prompts import Prompt, PromptSampler, derive_seed, load_prompts, open_task, parse_task_weights
from tests.support.rl import ONE_PROCESS, bandit, numbers
from tests.support.talks import TOKENIZER


def make_sampler(seed: int = 1) -> PromptSampler:
    return PromptSampler({"A": numbers(6), "B": numbers(5)}, {"A": 0.75, "B": 0.25}, TOKENIZER, seed)


def questions(prompts: Sequence[Prompt]) -> list[tuple[str, str]]:
    return [(prompt.task_label, prompt.conversation["messages"][0]["content"]) for prompt in prompts]


def test_prompts_of_a_step() -> None:
    """Weights hold in each step; an epoch has every row once, in its own order; ranks and resuming change nothing."""
    sampler = make_sampler()
    steps = [sampler.prompts_of_step(step, 8, ONE_PROCESS) for step in range(5)]
    for prompts in steps:
        assert Counter(prompt.task_label for prompt in prompts) == {"A": 6, "B": 2}
    epochs = [[question for label, question in questions(prompts) if label == "A"] for prompts in steps]
    assert all(sorted(epoch) == list("012345") for epoch in epochs)
    assert len(set(map(tuple, epochs))) > 1
    of_task_b = [question for prompts in steps for label, question in questions(prompts) if label == "B"]
    assert sorted(of_task_b[:5]) == sorted(of_task_b[5:]) == list("01234")
    assert len({prompt.seed for prompts in steps for prompt in prompts}) == 40
    assert make_sampler().prompts_of_step(4, 8, ONE_PROCESS) == steps[4]
    assert make_sampler(seed=2).prompts_of_step(4, 8, ONE_PROCESS) != steps[4]
    ranks = [replace(ONE_PROCESS, rank=rank, world_size=3) for rank in range(3)]
    shares = [make_sampler().prompts_of_step(3, 8, runtime) for runtime in ranks]
    assert [shares[index % 3][index // 3] for index in range(8)] == steps[3]


def test_a_task_without_examples() -> None:
    with pytest.raises(UserError, match="A has no examples"):
        PromptSampler({"A": numbers(0)}, {"A": 1.0}, TOKENIZER, 0)


def test_hash() -> None:
    """Other tasks, weights or seeds have another hash; that of the first version's checkpoints has not changed."""
    assert make_sampler().hash() == "b1e581c26cbc88f1c4fcd719cd58755ba68ac09be75202e9d949b9169e301385"
    hashes = {
        make_sampler().hash(),
        make_sampler(seed=2).hash(),
        PromptSampler({"A": numbers(6), "B": numbers(5)}, {"A": 0.5, "B": 0.5}, TOKENIZER, 1).hash(),
        PromptSampler({"A": numbers(6)}, {"A": 1.0}, TOKENIZER, 1).hash(),
        PromptSampler({"A": numbers(7)}, {"A": 1.0}, TOKENIZER, 1).hash(),
    }
    assert len(hashes) == 5


def test_seeds_depend_on_the_key() -> None:
    seeds = [derive_seed(42, "A", 0), derive_seed(42, "A", 1), derive_seed(42, "B", 0), derive_seed(43, "A", 0)]
    assert len(set(seeds)) == 4
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize(
    ("text", "weights"),
    [("A", {"A": 1.0}), ("A:3|B", {"A": 0.75, "B": 0.25}), (" A:0.5 | B:0.5 ", {"A": 0.5, "B": 0.5})],
)
def test_weights(text: str, weights: dict[str, float]) -> None:
    assert parse_task_weights(text) == weights


def test_options_of_a_task(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, str, dict[str, Any]]] = []
    monkeypatch.setattr(prompts_module, "get_task", lambda name, split, **options: calls.append((name, split, options)))
    open_task("Hard(shape=pair_2_1, seed=3)", "test", stop=5)
    open_task("Hard", "train")
    assert calls == [("Hard", "test", {"shape": "pair_2_1", "seed": 3, "stop": 5}), ("Hard", "train", {})]


@pytest.mark.parametrize(
    ("source", "tasks", "labels"),
    [
        ("storyworld", None, ["HardProblems", "WordProblems"]),
        ("files", None, ["GSM8K"]),
        ("storyworld", "Bandit:2|Other", ["Bandit", "Other"]),
    ],
)
def test_default_tasks(
    base_dir: Path, monkeypatch: pytest.MonkeyPatch, source: str, tasks: str | None, labels: list[str]
) -> None:
    """Without the setting, the tasks suit the base data; the held-out examples are as many as the setting says."""
    calls: list[tuple[str, str, int | None]] = []

    def get_task(name: str, split: str, stop: int | None = None) -> Any:
        calls.append((name, split, stop))
        return bandit()

    monkeypatch.setattr(prompts_module, "get_task", get_task)
    write_dataset(["text"] * 9, ["text"], base_dir / "base_data", source=source)
    sampler, held_out = load_prompts(tasks, TOKENIZER, seed=3, eval_examples=7)
    assert list(sampler.tasks) == list(held_out) == labels
    expected = [(label, "train", None) for label in labels] + [(label, "test", 7) for label in labels]
    assert calls == expected
