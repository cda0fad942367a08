"""The loss of reinforcement learning: gradients equal the formula, by hand, on one process and on two."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from nanochat.gpt import GPT
from nanochat.optim import Optimizer, build_optimizer
from nanochat.rl import loop, prompts
from nanochat.rl.loop import policy_gradient_step
from nanochat.rl.rollouts import RolloutGroup
from nanochat.rl.sft_mix import SFTRows
from nanochat.runtime import Runtime
from nanochat.train import Rates
from scripts.chat_rl import Config, main
from tasks.common import make_conversation
from tests.support.models import random_model
from tests.support.processes import Forker
from tests.support.rl import (
    GROUPS,
    NO_SFT_ROWS,
    ONE_PROCESS,
    SHAPE,
    are_equal,
    bandit,
    make_group,
    reward_ascii,
    save_sft_model,
    tiny_model,
    without_times,
)
from tests.support.talks import TOKENIZER

# --- the gradient -----------------------------------------------------------------------------------------------------


def gradient_by_hand(model: GPT, groups: Sequence[RolloutGroup]) -> dict[str, Tensor]:
    """The formula, a completion and a token at a time: -sum of (reward - mean) x log p / number of sampled tokens."""
    total = torch.zeros(())
    num_sampled = 0
    for group in groups:
        mean = sum(group.rewards) / len(group.rewards)
        for completion, reward in zip(group.completions, group.rewards, strict=True):
            for index, (token, mask) in enumerate(zip(completion.tokens, completion.mask, strict=True)):
                if mask:
                    tokens_before = torch.tensor([group.prompt.token_ids + completion.tokens[:index]])
                    log_probs = torch.log_softmax(model(tokens_before)[0, -1], dim=-1)
                    total = total - (reward - mean) * log_probs[token]
                    num_sampled += 1
    names, params = zip(*model.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(total / num_sampled, params), strict=True))


def gradient_of_step(
    model: GPT, groups: Sequence[RolloutGroup], batch_size: int, sft_rows: SFTRows = NO_SFT_ROWS
) -> dict[str, Tensor]:
    """The gradients that `policy_gradient_step` passes to the optimizer."""
    optimizer = build_optimizer(model, ONE_PROCESS)
    gradients: dict[str, Tensor] = {}

    def record() -> Tensor:
        for name, param in model.named_parameters():
            if param.grad is not None:
                gradients[name] = param.grad.clone()
        return torch.zeros(())

    optimizer.reduce_gradients = record  # type: ignore[method-assign]
    optimizer.update = lambda *_: None  # type: ignore[method-assign]
    policy_gradient_step(model, optimizer, groups, sft_rows, Rates(1.0, 0.9), lambda: 0, ["A", "B"], batch_size)
    return gradients


@pytest.mark.parametrize("batch_size", [1, 3, 6, 100])  # 11 different completions: 11, 4, 2 and 1 micro-batches
def test_the_gradient_is_the_formula(batch_size: int) -> None:
    model = tiny_model()
    expected = gradient_by_hand(model, GROUPS)
    gradients = gradient_of_step(model, GROUPS, batch_size)
    assert gradients.keys() == expected.keys()
    for name in expected:
        assert expected[name].abs().max() > 1e-4
        torch.testing.assert_close(gradients[name], expected[name], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_sft_rows_add_their_mean_loss(batch_size: int) -> None:
    model = tiny_model()
    conversations = [
        make_conversation("x", "bbbb"),
        make_conversation("y", [{"type": "python", "text": "1"}, {"type": "text", "text": "c"}]),
    ]
    rows = [TOKENIZER.render_conversation(conversation) for conversation in conversations]
    total = torch.zeros(())
    num_trained = 0
    for ids, mask in rows:
        for index in range(1, len(ids)):
            if mask[index]:
                log_probs = torch.log_softmax(model(torch.tensor([ids[:index]]))[0, -1], dim=-1)
                total = total - log_probs[ids[index]]
                num_trained += 1
    names, params = zip(*model.named_parameters(), strict=True)
    supervised = dict(zip(names, torch.autograd.grad(total / num_trained, params), strict=True))
    expected = gradient_by_hand(model, GROUPS)
    gradients = gradient_of_step(model, GROUPS, batch_size, SFTRows(rows, num_trained))
    for name in expected:
        torch.testing.assert_close(gradients[name], expected[name] + supervised[name], rtol=1e-4, atol=1e-7)


def test_groups_without_a_signal_count() -> None:
    """Their tokens are among those that the sum is divided by; without them the step would be longer."""
    model = tiny_model()
    of_all, of_first = (gradient_of_step(model, groups, 4)["head.weight"] for groups in (GROUPS, GROUPS[:1]))
    num_sampled = [sum(sum(completion.mask) for completion in group.completions) for group in GROUPS]
    assert num_sampled == [17, 6, 6, 10]
    of_two = gradient_of_step(model, [GROUPS[0], GROUPS[1]], 4)["head.weight"]
    torch.testing.assert_close(of_two * (17 + 6), of_first * 17, rtol=1e-4, atol=1e-7)
    assert not torch.allclose(of_all, of_first)


def test_prompt_and_tool_output_carry_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradient of the last hidden states is 0 where the next token was not sampled, and nowhere else."""
    model = tiny_model()
    all_states: list[Tensor] = []

    def keep_gradient(*args: Any, **kwargs: Any) -> Tensor:
        states = GPT.hidden_states(model, *args, **kwargs)
        states.retain_grad()
        all_states.append(states)
        return states

    monkeypatch.setattr(model, "hidden_states", keep_gradient)
    group = make_group("A", "hi", [("abXYc.", 1.0), ("d.", 0.0)])
    gradient_of_step(model, [group], 1)
    norms = [states.grad.abs().sum(-1).flatten() for states in all_states if states.grad is not None]
    trained = [[5, 6], [5, 6, 9, 10]]  # positions before the sampled tokens; the prompt has 6
    assert [torch.nonzero(norm).flatten().tolist() for norm in norms] == trained


def test_weights_wait_for_a_signal() -> None:
    """Without a signal nothing moves the weights, not even the momentum of earlier steps."""
    model = tiny_model()
    optimizer = build_optimizer(model, ONE_PROCESS)
    rates = Rates(1.0, 0.9)
    policy_gradient_step(model, optimizer, GROUPS, NO_SFT_ROWS, rates, lambda: 0, ["A", "B"], 4)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    metrics, _ = policy_gradient_step(model, optimizer, [GROUPS[1]], NO_SFT_ROWS, rates, lambda: 0, ["A", "B"], 4)
    assert are_equal(dict(model.state_dict()), before)
    assert metrics["signal"] == 0


# --- several processes ------------------------------------------------------------------------------------------------


def record_two_steps(folder: Path) -> None:
    """Take two steps of a run with three prompts; save the mean gradients of each step and the history."""
    plain_reduce = Optimizer.reduce_gradients
    gradients = []

    def record(self: Optimizer) -> Tensor:
        mean = {name: param.grad.clone() for name, param in named_parameters(self) if param.grad is not None}
        if self.runtime.world_size > 1:
            for gradient in mean.values():
                dist.all_reduce(gradient)
                gradient /= self.runtime.world_size
        gradients.append(mean)
        return plain_reduce(self)

    config = Config(
        tasks="Bandit",
        device="cpu",
        examples_per_step=3,
        num_samples=5,
        max_new_tokens=4,
        num_iterations=2,
        init_lr_frac=1.0,
        warmdown_ratio=0.2,
        eval_every=-1,
        eval_samples=4,
        device_batch_size=256,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Optimizer, "reduce_gradients", record)
        patch.setattr(prompts, "get_task", lambda *_, **__: bandit(reward_ascii))
        state = main(config)
    if int(os.environ.get("RANK", "0")) == 0:
        history = [without_times(row) for row in state.history]
        torch.save({"gradients": gradients, "history": history}, folder / "result.pt")


def named_parameters(optimizer: Optimizer) -> list[tuple[str, torch.nn.Parameter]]:
    return [pair for bucket in optimizer.buckets for pair in zip(bucket.names, bucket.params, strict=True)]


@pytest.mark.slow
def test_two_processes_take_the_same_step(forker: Forker, run_here: Path, tmp_path: Path) -> None:
    """Three prompts on two processes: equal completions and metrics, gradients equal to rounding."""
    save_sft_model(run_here)
    forker.run_ranks(record_two_steps, tmp_path)
    two_processes = torch.load(tmp_path / "result.pt", weights_only=True)
    save_sft_model(run_here)
    record_two_steps(tmp_path)
    one_process = torch.load(tmp_path / "result.pt", weights_only=True)
    assert len(one_process["gradients"]) == 2
    for expected, gradients in zip(one_process["gradients"], two_processes["gradients"], strict=True):
        assert expected.keys() == gradients.keys()
        for name in expected:
            torch.testing.assert_close(gradients[name], expected[name], rtol=1e-4, atol=1e-6)
    histories = [[row for row in run["history"] if "reward" in row] for run in (one_process, two_processes)]
    assert len(histories[0]) == 2
    for expected_row, row in zip(*histories, strict=True):
        assert row == pytest.approx(expected_row, rel=1e-4)


def skip_on_two_ranks(folder: Path) -> None:
    """Take three steps, the second with a gradient that is not finite on rank 1 only; save what each step leaves."""
    runtime = Runtime.start(device="cpu")
    model = random_model(SHAPE.sequence_len, n_embd=32, n_layer=3)
    optimizer = build_optimizer(model, runtime)
    plain = loop.accumulate_gradients
    states = []
    for number in range(3):

        def poisoned(*args: Any, number: int = number) -> Tensor:
            sums = plain(*args)
            if number == 1 and runtime.rank == 1:
                model.head.weight.grad[0, 0] = float("nan")  # type: ignore[index]
            return sums

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loop, "accumulate_gradients", poisoned)
            groups = GROUPS[runtime.rank :: runtime.world_size]
            metrics, _ = policy_gradient_step(
                model, optimizer, groups, NO_SFT_ROWS, Rates(1.0, 0.9), lambda: 0, ["A", "B"], 4
            )
        tensors = {**model.state_dict(), **optimizer.state_dict()}
        states.append(({name: tensor.clone() for name, tensor in tensors.items()}, metrics["grad_norm"]))
    torch.save(states, folder / f"rank{runtime.rank}.pt")
    runtime.finish()


@pytest.mark.slow
def test_all_processes_skip_the_same_step(forker: Forker, tmp_path: Path) -> None:
    forker.run_ranks(skip_on_two_ranks, tmp_path, NANOCHAT_DTYPE="float32")
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    assert [math.isfinite(norm) for _, norm in first] == [math.isfinite(norm) for _, norm in second]
    assert [math.isfinite(norm) for _, norm in first] == [True, False, True]
    for states in (first, second):
        assert are_equal(states[0][0], states[1][0])
        assert not are_equal(states[1][0], states[2][0])
    assert int(first[2][0]["step"]) == 2
    assert are_equal(second[2][0], {name: first[2][0][name] for name in second[2][0]})
