"""chat_rl: it finds the right policy, resumes exactly, and refuses impossible settings."""

from __future__ import annotations

import json
import math
import re
import signal
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch

from nanochat.checkpoint_manager import load_model, open_checkpoint
from nanochat.common import StoppedBySignal, UserError
from nanochat.configurator import parse
from nanochat.engine import Engine
from nanochat.gpt import GPT
from nanochat.rl import loop, prompts, rollouts
from nanochat.tokenizer import Tokenizer
from scripts import chat_rl
from scripts.chat_rl import Config, main
from tasks.common import Task, make_conversation
from tests.support.rl import (
    END,
    ONE_PROCESS,
    are_equal,
    bandit,
    load_rl_weights,
    reward_all_equally,
    reward_ascii,
    save_sft_model,
    without_times,
)
from tests.support.talks import TOKENIZER

RUN: dict[str, Any] = {
    "tasks": "Bandit",
    "device": "cpu",
    "examples_per_step": 4,
    "num_samples": 256,
    "max_new_tokens": 2,
    "num_iterations": 40,
    "init_lr_frac": 1.0,
    "warmdown_ratio": 0.2,
    "eval_every": -1,
    "eval_samples": 4,
    "device_batch_size": 256,
}
SHORT = {"num_samples": 8, "num_iterations": 6, "warmdown_ratio": 1.0, "eval_samples": 2}

TASKS: dict[str, Callable[[], Task]] = {"Bandit": bandit, "Indifferent": lambda: bandit(reward_all_equally)}


@pytest.fixture
def run(run_here: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Function that calls the script with the settings RUN and changes to them."""
    save_sft_model(run_here)

    def get_task(name: str, split: str, **_: int) -> Task:
        assert split in ("train", "test")
        return TASKS[name]()

    monkeypatch.setattr(prompts, "get_task", get_task)
    return lambda **changes: main(Config(**{**RUN, **changes}))


# --- runs -------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_finds_the_right_policy(run: Callable[..., Any], run_here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From one completion in 265 x 265 to nearly all: the letter that the question asks for, then the end token."""
    state = run(eval_every=40, eval_samples=16)
    evaluations = [(row["step"], row["Bandit pass@1"]) for row in state.history if "Bandit pass@1" in row]
    assert [step for step, _ in evaluations] == [0, 40]
    assert evaluations[0][1] < 0.05
    assert evaluations[1][1] > 0.95
    model = load_model("rl", ONE_PROCESS)[0]
    prompt = TOKENIZER.render_for_completion(make_conversation("y", ""))
    assert list(model.generate(prompt, 2, temperature=0)) == [ord("c"), END]
    section = json.loads((run_here / "report" / "chat_rl.json").read_text(encoding="utf-8"))
    assert section["model"] == "rl"
    assert section["metrics"]["Bandit pass@1"]["value"] == evaluations[1][1]
    assert section["metrics"]["Bandit pass@1"]["n"] == 2
    assert len(section["curves"]["Bandit"]["x"]) == 40
    assert section["notes"]
    assert "Bandit: pass@1" in capsys.readouterr().out


@pytest.mark.parametrize("is_signalled", [False, True], ids=["from a step", "after a signal"])
def test_resume_is_exact(
    run: Callable[..., Any], run_here: Path, monkeypatch: pytest.MonkeyPatch, is_signalled: bool
) -> None:
    """6 steps = 3 steps, a checkpoint, and 3 more: weights, optimizer and history are equal to the last bit."""
    monkeypatch.setitem(TASKS, "Bandit", lambda: bandit(reward_ascii))
    folder = run_here / "chatrl_checkpoints" / "d1"
    whole = run(**SHORT, eval_every=2, save_every=3)
    weights = load_rl_weights(run_here)
    weights_after_3 = load_rl_weights(run_here, 3)
    optimizer_state = open_checkpoint(folder).load_optimizer_state()
    assert any((weights[name] != weights_after_3[name]).any() for name in weights)

    if is_signalled:
        plain_step = loop.policy_gradient_step
        calls: list[int] = []

        def signalled(*args: Any, **options: Any) -> Any:
            if len(calls) == 2:
                signal.raise_signal(signal.SIGINT)
            calls.append(1)
            return plain_step(*args, **options)

        with monkeypatch.context() as patch:
            patch.setattr(loop, "policy_gradient_step", signalled)
            with pytest.raises(StoppedBySignal, match=r"step 3 of 6.*chat_rl .*--resume"):
                run(**SHORT, eval_every=2)
        resumed = run(**SHORT, eval_every=2, resume=True)
    else:
        resumed = run(**SHORT, eval_every=2, resume_from_step=3)
    assert are_equal(load_rl_weights(run_here), weights)
    assert are_equal(open_checkpoint(folder).load_optimizer_state(), optimizer_state)
    assert [without_times(row) for row in resumed.history] == [without_times(row) for row in whole.history]


def test_a_run_keeps_the_dtype_of_its_completions(
    run: Callable[..., Any], run_here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The dtype that a new run chooses is recorded, and a resumed run does not choose again."""
    dtypes = []

    def record(model: GPT, tokenizer: Tokenizer, dtype: torch.dtype) -> Engine:
        dtypes.append(dtype)
        return Engine(model, tokenizer)  # bf16 products end the process on some processors

    monkeypatch.setattr(chat_rl, "Engine", record)
    monkeypatch.setattr(rollouts, "generation_dtype", lambda *_: torch.bfloat16)
    run(**SHORT | {"num_iterations": 1})
    assert open_checkpoint(run_here / "chatrl_checkpoints" / "d1").meta["rollout_dtype"] == "bfloat16"
    monkeypatch.setattr(rollouts, "generation_dtype", lambda *_: torch.float32)
    run(**SHORT | {"num_iterations": 2}, resume=True)
    assert open_checkpoint(run_here / "chatrl_checkpoints" / "d1").meta["rollout_dtype"] == "bfloat16"
    assert len(dtypes) >= 4
    assert set(dtypes) == {torch.bfloat16}


def test_a_run_does_not_resume_with_other_prompts(run: Callable[..., Any]) -> None:
    run(**SHORT | {"num_iterations": 1})
    with pytest.raises(UserError, match="other data"):
        run(**SHORT, tasks="Bandit|Indifferent", resume=True)


@pytest.mark.slow
def test_profile(run: Callable[..., Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The table of a run, which takes the same steps as without."""
    monkeypatch.setattr("nanochat.training.profile.matrix_rate", lambda *_: 1e9)
    monkeypatch.setattr("nanochat.training.profile.memory_bandwidth", lambda *_: 1e9)
    monkeypatch.setattr("nanochat.training.profile.WARM_UP_STEPS", 2)
    monkeypatch.setitem(TASKS, "Bandit", lambda: bandit(reward_ascii))  # some completions are right from the start
    histories = [[without_times(row) for row in run(**SHORT, profile=profile).history] for profile in (0, 3)]
    assert histories[0] == histories[1]
    output = capsys.readouterr().out
    for row in ("profile of a step", "rollouts  ", "matrix products  ", "optimizer  ", "limits: ", "phases: rollouts "):
        assert f"\n{row}" in output


def test_equal_rewards_change_nothing(run: Callable[..., Any], run_here: Path) -> None:
    """All rewards equal: the weights stay, and no metric is NaN."""
    state = run(**SHORT, tasks="Indifferent")
    before = open_checkpoint(run_here / "chatsft_checkpoints" / "d1").load_weights()
    assert are_equal(load_rl_weights(run_here), before)
    steps = [row for row in state.history if "reward" in row]
    assert len(steps) == 6
    assert all(value == value for row in steps for value in row.values())
    assert {(row["signal"], row["grad_norm"]) for row in steps} == {(0, 0)}


# --- steps that are not applied ---------------------------------------------------------------------------------------


def reward_nan(conversation: Any, completion: str) -> float:
    return math.nan if reward_ascii(conversation, completion) else 0.0


def test_rewards_that_are_no_numbers(run: Callable[..., Any], run_here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every step is skipped, until the fifth ends the run; the initial model is not saved as a result."""
    monkeypatch.setitem(TASKS, "Bandit", lambda: bandit(reward_nan))
    with pytest.raises(UserError, match=r"diverged at step 5: the last 5 steps .*start again"):
        run(**SHORT)
    assert not list((run_here / "chatrl_checkpoints").rglob("step_*"))


def test_a_gradient_that_is_not_finite_in_one_step(
    run: Callable[..., Any], run_here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The weights of the step before stay, and the run goes on; its history has finite numbers only."""
    monkeypatch.setitem(TASKS, "Bandit", lambda: bandit(reward_ascii))
    plain = loop.accumulate_gradients
    calls: list[int] = []

    def poisoned(model: GPT, *args: Any) -> torch.Tensor:
        sums = plain(model, *args)
        calls.append(1)
        if len(calls) == 2:
            next(model.parameters()).grad.fill_(math.inf)  # type: ignore[union-attr]
        return sums

    monkeypatch.setattr(loop, "accumulate_gradients", poisoned)
    state = run(**SHORT, save_every=1)
    weights = [load_rl_weights(run_here, step) for step in (1, 2, 3)]
    assert are_equal(weights[0], weights[1])
    assert not are_equal(weights[1], weights[2])
    assert (state.step, state.skipped, state.skipped_in_a_row) == (6, 1, 0)
    assert all(math.isfinite(value) for row in state.history for value in row.values())
    assert "step 2 is skipped (grad_norm inf)" in capsys.readouterr().out
    report = json.loads((run_here / "report" / "chat_rl.json").read_text(encoding="utf-8"))
    assert "1 of 6 steps were skipped" in report["notes"][0]


def test_weights_that_are_too_large_are_not_sampled_from(
    run: Callable[..., Any], run_here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run ends before the next step, whose completions would come from logits that are not numbers."""
    monkeypatch.setitem(TASKS, "Bandit", lambda: bandit(reward_ascii))
    with pytest.raises(UserError, match="diverged at step 1: the weights after step 1"):
        run(**SHORT, tasks="Bandit", init_lr_frac=1e30, matrix_lr=1.0, embedding_lr=1.0, unembedding_lr=1.0)
    assert not list((run_here / "chatrl_checkpoints").rglob("step_*"))


# --- resuming with other settings -------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", [{}, {"examples_per_step": 2}, {"examples_per_step": 6}], ids=str)
def test_resuming_with_a_longer_horizon(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, change: dict[str, int]
) -> None:
    """The rates are those of the whole run as it is now: 0.9 in step 5 of 40, not 0 as at the end of the first.

    The prompts go on where they were, also with steps of another size.
    """
    drawn: list[list[int]] = []
    plain = prompts.PromptSampler.prompts_of_step

    def record(self: Any, step: int, num_prompts: int, *args: Any) -> Any:
        first = args[1] if len(args) > 1 else 0
        drawn.append(list(range(first + step * num_prompts, first + (step + 1) * num_prompts)))
        return plain(self, step, num_prompts, *args)

    monkeypatch.setattr(prompts.PromptSampler, "prompts_of_step", record)
    run(**SHORT | {"num_iterations": 4})
    first = run(**SHORT | {"num_iterations": 5}, resume=True, **change)
    assert [row["lr_multiplier"] for row in first.history if "lr_multiplier" in row][4] == pytest.approx(0.2)
    state = run(**SHORT | {"num_iterations": 40}, resume_from_step=4, **change)
    rates = [row["lr_multiplier"] for row in state.history if "lr_multiplier" in row]
    assert rates[4:7] == pytest.approx([0.9, 0.875, 0.85])
    assert list(chain(*drawn[:5])) == list(range(4 * 4 + change.get("examples_per_step", 4)))
    assert list(chain(*drawn[5:])) == list(range(16, 16 + 36 * change.get("examples_per_step", 4)))


@pytest.mark.parametrize("grounded", [True, False])
def test_a_chat_about_documents_stays_grounded(run: Callable[..., Any], run_here: Path, grounded: bool) -> None:
    if grounded:
        save_sft_model(run_here, grounded=True)
    run(**SHORT | {"num_iterations": 1})
    assert open_checkpoint(run_here / "chatrl_checkpoints" / "d1").meta.get("grounded", False) is grounded


# --- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--num_samples=1", "num_samples is 1: it must be at least 2"),
        ("--examples_per_step=0", "examples_per_step is 0"),
        ("--eval_samples=0", "eval_samples is 0"),
        ("--top_k=0", "top_k is 0"),
        ("--temperature=0", "temperature is 0.0"),
        ("--init_lr_frac=inf", "init_lr_frac is inf"),
        ("--matrix_lr=-1", "matrix_lr is -1.0"),
        ("--warmdown_ratio=2", "warmdown_ratio is 2.0"),
        ("--save_every=0", "save_every is 0"),
        ("--source=base", "base"),
        ("--source_step=-2", "source_step is -2"),
        ("--tasks=GSM8K:none", "'GSM8K:none' is not NAME, NAME:WEIGHT"),
        ("--tasks=GSM8K:0", "'GSM8K:0' is not"),
        ("--tasks=A|A", "each once"),
        ("--tasks=A||B", "'' is not NAME"),
        ("--tasks=A(b=1", "'A(b=1' is not NAME"),
    ],
)
def test_refused(flag: str, words: str) -> None:
    with pytest.raises(UserError, match=re.escape(words)):
        parse(Config, [flag])


def test_without_a_model(base_dir: Path) -> None:
    TOKENIZER.save(base_dir / "tokenizer")
    with pytest.raises(UserError, match=r"no sft checkpoint in .*: run that stage first"):
        main(Config())


@pytest.mark.parametrize(
    ("settings", "num_steps"),
    [({}, 1), ({"num_epochs": 24.5}, 4), ({"examples_per_step": 2, "num_epochs": 3}, 3), ({"num_iterations": 7}, 7)],
)
def test_horizon(settings: dict[str, Any], num_steps: int) -> None:
    """As many steps as asked for, or as it takes to use each of the two prompts `num_epochs` times."""
    sampler = prompts.PromptSampler({"Bandit": bandit()}, {"Bandit": 1.0}, TOKENIZER, 0)
    assert Config(**settings).num_steps(sampler) == num_steps
