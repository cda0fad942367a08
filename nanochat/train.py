"""The training loop: optimizer steps, with events (checkpoints, evaluations, samples) in between.

`run_loop` is the loop of every training stage. `train` runs it on batches of tokens, for pretraining, midtraining and
supervised fine-tuning, which differ in their data only; `nanochat.rl.loop` runs it on rollouts.

The package `nanochat.training` holds the settings, logs, events and setup of training runs.

Letters in shape comments: B rows of a micro-batch, T tokens of a row.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import Protocol

import torch
from torch import Tensor

from nanochat.common import UserError, print0
from nanochat.dataloader import MicroBatch
from nanochat.gpt import GPT
from nanochat.runtime import Runtime
from nanochat.system.signals import StopSignal, agreed_stop, stop_requests

Metrics = dict[str, float]
Forward = Callable[..., Tensor]  # a model, compiled or not
MAX_SKIPPED_STEPS = 5  # in a row, after which a run ends
WARM_UP_STEPS = 10  # of a process, after which `run_loop` exempts the objects alive from garbage collection


class StepOptimizer(Protocol):
    """The part of an `Optimizer` that the loop uses."""

    runtime: Runtime

    def overlap_next_backward(self) -> None:
        """Announce the last backward pass of a step: gradients may be reduced while it still runs."""
        ...

    def reduce_gradients(self) -> Tensor:
        """Sum up the gradients over the processes; return the gradient's norm before clipping, a 0-dim tensor."""
        ...

    def update(self, lr_multiplier: float, momentum: float, /) -> None:
        """Update the weights from the gradients that were reduced."""
        ...

    def zero_grad(self) -> None:
        """Drop all gradients."""
        ...

    def weights_norm(self) -> Tensor:
        """Return the norm of all weights, a 0-dim tensor, not finite if a weight is not."""
        ...


@dataclass
class LoopState:
    """Everything a run needs to continue after a step, besides weights and optimizer state. Saved in meta.json."""

    step: int = 0  # optimizer steps taken, with those that were skipped
    progress: float = 0.0  # share of the run that is done, 0 to 1
    seconds: float = 0.0  # time spent in steps, before and after resuming
    cursor: dict[str, int] | None = None  # position in the training data after the last step
    history: list[dict[str, float]] = field(default_factory=list)  # points to plot: {"step": ..., name: value, ...}
    recent: list[float] = field(default_factory=list)  # losses of the steps since the last point in `history`
    stopped: int = 0  # number of the signal that stopped the run early, or 0
    skipped: int = 0  # steps that were not applied (`is_applied`)
    skipped_in_a_row: int = 0  # those of them since the last step that was applied

    def count_step(self, is_applied: bool) -> None:
        """Count a step."""
        self.step += 1
        self.skipped += not is_applied
        self.skipped_in_a_row = 0 if is_applied else self.skipped_in_a_row + 1


@dataclass(frozen=True)
class Rates:
    """The scheduled values of one step: arguments of `Optimizer.step`."""

    lr_multiplier: float
    momentum: float


@dataclass(frozen=True)
class Event:
    """Work done every `every` steps (-1: never between the first and the last), and after the last step if `at_end`.

    `run` returns metrics to log and may not steer the loop. An event with `saves` writes the checkpoint and belongs
    first in the list of events. When a signal stops the run early, only this event runs; the other events of that step
    run after the run is resumed.
    """

    every: int
    run: Callable[[LoopState], Mapping[str, float]]
    at_end: bool = True
    saves: bool = False

    def is_due(self, state: LoopState, is_last: bool) -> bool:
        """Return True if the event runs after this step. `is_last`: no step follows."""
        if state.stopped:
            return self.saves
        return (is_last and self.at_end) or (self.every > 0 and state.step % self.every == 0)


def is_applied(results: Iterable[float]) -> bool:
    """Return True if a step with these results, such as loss and gradient norm, changes the weights.

    A step whose loss or gradient norm is not finite is skipped: weights and optimizer state stay as they were.
    """
    return all(map(math.isfinite, results))


def run_loop(
    take_step: Callable[[], Metrics],
    is_done: Callable[[], bool],
    *,
    events: Sequence[Event],
    optimizer: StepOptimizer,
    stop: StopSignal,
    log: Callable[[LoopState, Metrics], None],
    state: LoopState,
    should_evaluate_first: bool,
    should_check_weights: bool,
    should_end: Callable[[LoopState], bool] | None = None,
) -> LoopState:
    """Alternate steps and events until `is_done` or until a signal asks for a stop. Updates and returns `state`.

    `take_step` takes one optimizer step, updates `state.progress`, `state.cursor` and `state.stopped`, and returns the
    step's metrics, which are all finite unless the step was skipped. The loop counts and times the steps and logs all
    metrics. `should_evaluate_first`: events that do not save also run before the first step. `should_check_weights`:
    after every step, for steps that sample from the model; else before each checkpoint and after a skipped step.
    `should_end`: asked after the events of a step; True ends the run there, without those that are due at the end.

    Raises `UserError`, on all processes, if the training has diverged (`raise_if_diverged`).
    """
    runtime = optimizer.runtime
    last_saved = state.step  # the last step with a checkpoint from which the run can be resumed
    # When a run resumes, the events that follow the checkpoint of its last step have not run yet.
    pending = [event for event in events if not event.saves] if state.step or should_evaluate_first else []
    last_warm_up_step = state.step + WARM_UP_STEPS
    with frozen_heap() as freeze:
        while True:
            is_last = is_done()
            for event in pending:
                if event.is_due(state, is_last):
                    if event.saves:
                        raise_if_diverged(state, optimizer, last_saved, is_last)
                        last_saved = last_saved if state.skipped_in_a_row else state.step
                    log(state, dict(event.run(state)))
                    if is_last and not state.stopped:  # a signal during this event; no step follows that would see it
                        signal_number = stop()
                        state.stopped = agreed_stop(signal_number, runtime.any_rank(signal_number > 0))
            if state.stopped or is_last or (should_end and should_end(state)):
                return state
            start = time.perf_counter()
            metrics = take_step()
            state.count_step(is_applied(metrics.values()))
            elapsed = time.perf_counter() - start
            state.seconds += elapsed
            log(state, {**metrics, "step_seconds": elapsed})
            if state.skipped_in_a_row:
                reason = ", ".join(f"{name} {value}" for name, value in metrics.items() if not math.isfinite(value))
                print0(f"step {state.step} is skipped ({reason}): the weights stay as they were")
            if state.skipped_in_a_row or should_check_weights:
                raise_if_diverged(state, optimizer, last_saved)
            if state.step == last_warm_up_step:
                freeze()
            pending = list(events)


def raise_if_diverged(state: LoopState, optimizer: StepOptimizer, last_saved: int, is_last: bool = False) -> None:
    """Raise `UserError` if training cannot go on from these weights, or (`is_last`) no step of the run was applied.

    It cannot if a weight is not finite or so large that its square overflows, which a finite gradient and a learning
    rate that is far too high lead to, or if `MAX_SKIPPED_STEPS` steps in a row were skipped. `last_saved`: step of the
    checkpoint to go back to, or 0. Waits for the device.
    """
    if not math.isfinite(optimizer.weights_norm().item()):
        cause = f"the weights after step {state.step - state.skipped_in_a_row} are not finite, or too large"
    elif state.skipped_in_a_row >= MAX_SKIPPED_STEPS or (is_last and state.skipped == state.step > 0):
        cause = f"the last {state.skipped_in_a_row} steps had a loss or gradient that is not finite"
    else:
        return
    way_out = f"resume from the last good checkpoint (--resume_from_step={last_saved})" if last_saved else "start again"
    raise UserError(
        f"the training has diverged at step {state.step}: {cause}. Lower the learning rates (--init_lr_frac is a "
        f"factor on all of them) and {way_out}"
    )


@contextmanager
def frozen_heap() -> Iterator[Callable[[], None]]:
    """Context manager in which a call of the yielded function exempts all objects alive from garbage collection.

    A full collection visits every object of the program, half a million of them once the compiler is loaded. It takes
    half a second, at a random step, while the other processes wait for this one.
    """

    def freeze() -> None:
        gc.collect()  # what is garbage now would be kept until the end
        gc.freeze()

    try:
        yield freeze
    finally:
        gc.unfreeze()


def train(
    model: Forward,
    optimizer: StepOptimizer,
    batches: Iterator[MicroBatch],
    *,
    schedule: Callable[[float], Rates],
    events: Sequence[Event],
    num_micro_steps: int,
    log: Callable[[LoopState, Metrics], None],
    state: LoopState,
    should_end: Callable[[LoopState], bool] | None = None,
) -> LoopState:
    """Take steps of `num_micro_steps` micro-batches until `batches` ends, or a signal asks for a stop.

    `schedule` maps the progress of the run, in [0, 1], to the rates of a step. `should_end`: see `run_loop`. Updates
    and returns `state`.
    """
    with stop_requests() as stop:
        micro_batches = list(islice(batches, num_micro_steps))
        state.progress = micro_batches[0].progress if micro_batches else 1.0  # a resumed run may be longer than before

        def take_step() -> Metrics:
            nonlocal micro_batches
            rates = schedule(micro_batches[0].progress)
            loss, grad_norm, state.stopped = step(model, optimizer, micro_batches, rates, stop)
            state.cursor = micro_batches[-1].cursor
            micro_batches = list(islice(batches, num_micro_steps))
            state.progress = micro_batches[0].progress if micro_batches else 1.0
            return {"loss": loss, "grad_norm": grad_norm, "lr_multiplier": rates.lr_multiplier}

        return run_loop(
            take_step,
            is_done=lambda: not micro_batches,
            events=events,
            optimizer=optimizer,
            stop=stop,
            log=log,
            state=state,
            should_evaluate_first=False,
            should_check_weights=False,
            should_end=should_end,
        )


def step(
    model: Forward,
    optimizer: StepOptimizer,
    micro_batches: Sequence[MicroBatch],
    rates: Rates,
    stop: StopSignal,
) -> tuple[float, float, int]:
    """Take one optimizer step; return its loss, the gradient's norm, and the signal to stop for (0: none).

    The step is skipped if loss or norm are not finite (`is_applied`), on all processes alike.
    The loss is the sum of -log p over the trained tokens of all micro-batches and processes, divided by their number:
    neither micro-batching nor the number of processes changes it.
    """
    runtime = optimizer.runtime
    num_trained = runtime.all_reduce(torch.stack([(batch.targets != -1).sum() for batch in micro_batches]).sum())
    scale = runtime.world_size / num_trained.clamp(min=1)  # the optimizer averages gradients over the processes
    loss_sum = torch.zeros((), device=runtime.device)
    for index, batch in enumerate(micro_batches, start=1):
        if index == len(micro_batches):
            optimizer.overlap_next_backward()
        loss = model(batch.inputs, batch.targets, loss_reduction="sum")  # (B, T), (B, T) -> ()
        (loss * scale).backward()
        loss_sum += loss.detach()
    # One reduction carries the loss and the request to stop, so that all processes stop after the same step.
    signal_number = stop()
    loss_sum, num_stops = runtime.all_reduce(torch.stack([loss_sum, torch.full_like(loss_sum, signal_number)]))
    grad_norm = optimizer.reduce_gradients()
    # The only wait for the device in a step: all of its results in one transfer. It precedes the update, because it
    # decides about it; while the device computes the update, the host logs the step and prepares the next one.
    results = torch.stack([loss_sum / num_trained.clamp(min=1), grad_norm, num_stops])  # (3,)
    mean_loss, norm, stops = results.tolist()
    if is_applied((mean_loss, norm)):
        optimizer.update(rates.lr_multiplier, rates.momentum)
    optimizer.zero_grad()
    return mean_loss, norm, agreed_stop(signal_number, stops > 0)


def warm_up(forward: Forward, model: GPT, batch_size: int, sequence_len: int, num_passes: int = 1) -> None:
    """Run forward and backward passes on zeros, (batch_size, sequence_len), and drop the gradients."""
    zeros = torch.zeros(batch_size, sequence_len, dtype=torch.int64, device=model.device)
    for _ in range(num_passes):
        forward(zeros, zeros, loss_reduction="sum").backward()
    model.zero_grad(set_to_none=True)
