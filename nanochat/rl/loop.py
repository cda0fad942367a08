"""Reinforcement learning: the loss, one optimizer step on rollouts, and the loop.

The loss is REINFORCE with a group baseline:

    loss = -1/N x sum over completions i and their sampled tokens t of  A_i x log p(token_it | prompt, tokens before it)
    A_i  = reward_i - mean reward of the completions of the same prompt

N is the number of sampled tokens of the step, in all groups of all processes. This is GRPO (arXiv 2402.03300) on fresh
samples, hence without the probability ratio, and without the KL term and the division by the standard deviation.
Groups whose rewards are all equal are not informative (A = 0): their tokens count in N, but they need no forward pass.
Prompts and tool outputs are not sampled and carry no gradient.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from nanochat.gpt import GPT
from nanochat.layers.attention import varied_shapes
from nanochat.optim import Optimizer
from nanochat.rl.rollouts import RolloutGroup, count_outcomes, rollout_batches, step_metrics
from nanochat.rl.sft_mix import SFTRows
from nanochat.runtime import Runtime
from nanochat.system.signals import StopSignal, agreed_stop, stop_requests
from nanochat.train import Event, LoopState, Metrics, Rates, is_applied, run_loop


def reinforce(
    model: GPT,
    optimizer: Optimizer,
    collect: Callable[[int], tuple[list[RolloutGroup], SFTRows]],
    *,
    schedule: Callable[[float], Rates],
    events: Sequence[Event],
    num_steps: int,
    task_labels: Sequence[str],
    batch_size: int,
    log: Callable[[LoopState, Metrics], None],
    state: LoopState,
) -> LoopState:
    """Take `num_steps` steps, or fewer if a signal asks for a stop. Updates and returns `state`.

    `collect` returns this process's rollouts and SFT rows of a step, given its number. The events that do not save
    also run before the first step, to evaluate the initial model. `batch_size`: rows of a micro-batch.
    """
    state.progress = min(1.0, state.step / num_steps)  # of this run, which may be longer than the one resumed
    with stop_requests() as stop:

        def take_step() -> Metrics:
            start = time.perf_counter()
            rates = schedule(state.progress)
            groups, sft_rows = collect(state.step)
            rollout_seconds = time.perf_counter() - start
            metrics, state.stopped = policy_gradient_step(
                model, optimizer, groups, sft_rows, rates, stop, task_labels, batch_size
            )
            state.progress = (state.step + 1) / num_steps
            return {**metrics, "rollout_seconds": rollout_seconds}

        return run_loop(
            take_step,
            is_done=lambda: state.step >= num_steps,
            events=events,
            optimizer=optimizer,
            stop=stop,
            log=log,
            state=state,
            should_evaluate_first=True,
            should_check_weights=True,
        )


def policy_gradient_step(
    model: GPT,
    optimizer: Optimizer,
    groups: Sequence[RolloutGroup],
    sft_rows: SFTRows,
    rates: Rates,
    stop: StopSignal,
    task_labels: Sequence[str],
    batch_size: int,
) -> tuple[Metrics, int]:
    """Take one optimizer step on this process's groups; return its metrics and the signal to stop for (0: none).

    `task_labels`: labels of all tasks of the run. If no process has an informative group or an SFT row, the step leaves
    the weights and the optimizer's momentum unchanged. So does a step with a metric that is not finite: it is skipped.
    """
    runtime = optimizer.runtime
    counts = count_outcomes(groups, task_labels, runtime)
    entropy_sums = accumulate_gradients(model, groups, sft_rows, counts["sampled"], batch_size, runtime)
    has_gradient = bool(counts["informative"] or sft_rows.num_tokens)  # on some process
    # One reduction carries the two sums and the request to stop, so that all processes stop after the same step.
    signal_number = stop()
    sums = runtime.all_reduce(torch.cat([entropy_sums, entropy_sums.new_full((1,), signal_number)]))
    norm = reduce_gradients(model, optimizer) if has_gradient else sums.new_zeros(())
    nats, num_tokens, num_stops, grad_norm = torch.cat([sums, norm[None]]).tolist()
    metrics = {**step_metrics(counts, task_labels), "lr_multiplier": rates.lr_multiplier, "grad_norm": grad_norm}
    if has_gradient:
        metrics["entropy"] = nats / max(1.0, num_tokens)
        if is_applied(metrics.values()):
            optimizer.update(rates.lr_multiplier, rates.momentum)
        optimizer.zero_grad()
    return metrics, agreed_stop(signal_number, num_stops > 0)


def reduce_gradients(model: GPT, optimizer: Optimizer) -> Tensor:
    """Sum up the gradients over the processes, some of which may have no rows to train on; return the norm."""
    for param in model.parameters():
        if param.grad is None:
            param.grad = torch.zeros_like(param)
    return optimizer.reduce_gradients()


def accumulate_gradients(
    model: GPT,
    groups: Sequence[RolloutGroup],
    sft_rows: SFTRows,
    num_sampled: float,
    batch_size: int,
    runtime: Runtime,
) -> Tensor:
    """Add the gradients of the loss, and of the mean loss on the SFT rows, to the parameters.

    `num_sampled`: N of the formula above. Returns two sums of this process over the sampled tokens that are trained on:
    -log p and 1, shape (2,). Their quotient estimates the entropy of the policy in nats per token.
    """
    scale = runtime.world_size / max(1.0, num_sampled)  # the optimizer averages gradients over the processes
    # `scale` divides by `num_sampled`; this factor turns the SFT rows' part of the loss into a mean over their tokens.
    sft_weight = num_sampled / max(1, sft_rows.num_tokens)
    entropy_sums = torch.zeros(2, device=runtime.device)
    # `batch.weights`: A_i, or `sft_weight` for an SFT row. Equal completions of a prompt share a row with their sum.
    for batch in rollout_batches(groups, sft_rows.rows, sft_weight, batch_size, runtime.device):
        with varied_shapes(runtime.device):
            losses = model(batch.inputs, batch.targets, loss_reduction="none")  # -log p: (B, T), 0 where not trained on
        ((batch.weights[:, None] * losses).sum() * scale).backward()  # (B, 1) * (B, T) -> ()
        num_completions = batch.num_completions[:, None]  # (B,) -> (B, 1): counts a shared row once per completion
        entropy_sums[0] += (num_completions * losses.detach()).sum()
        entropy_sums[1] += (num_completions * (batch.targets != -1)).sum()
    return entropy_sums
