"""The loop that pretraining, midtraining and fine-tuning share. What differs is data: it arrives as arguments."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from nanochat.dataloader import MicroBatch
from nanochat.gpt import GPT
from nanochat.optim import Optimizer

Metrics = dict[str, float]
Forward = Callable[..., Tensor]  # a model, compiled or not


@dataclass
class LoopState:
    """Where a run stands between two steps: all that must survive, besides weights and optimizer, to continue it."""

    step: int = 0  # steps taken
    progress: float = 0.0  # of the run, 0 to 1
    seconds: float = 0.0  # spent in steps, earlier sessions included
    cursor: dict[str, int] | None = None  # where the data goes on
    history: list[dict[str, float]] = field(default_factory=list)  # what is plotted: {"step": ..., name: value, ...}
    recent: list[float] = field(default_factory=list)  # losses of the steps since the history's last point
    stopped: int = 0  # the signal that asked for an end before the end, 0 = none


@dataclass(frozen=True)
class Rates:
    """What the schedule sets for one step: arguments of `Optimizer.step`."""

    lr_scale: float
    momentum: float


@dataclass(frozen=True)
class Event:
    """Work for once in a while: every `every` steps (-1: never on the way), and after the last step if `at_end`.

    `saves`: it writes the checkpoint. It comes first in the list, and runs also when the run is asked to stop early;
    then the others wait until the run is resumed. `run` returns metrics to log; it may not steer the loop.
    """

    every: int
    run: Callable[[LoopState], Mapping[str, Any]]
    at_end: bool = True
    saves: bool = False

    def due(self, state: LoopState, ended: bool) -> bool:
        """Whether it is time, after a step; `ended`: no step follows."""
        if state.stopped:
            return self.saves
        return (ended and self.at_end) or (self.every > 0 and state.step % self.every == 0)


def train(
    model: Forward,
    optimizer: Optimizer,
    batches: Iterator[MicroBatch],
    *,
    schedule: Callable[[float], Rates],
    events: Sequence[Event],
    num_micro_steps: int,
    log: Callable[[LoopState, Metrics], None],
    state: LoopState,
) -> LoopState:
    """Take steps of `num_micro_steps` micro-batches until the batches end or SIGINT or SIGTERM asks for a stop.

    The loss of a step is the sum over its trained tokens in all micro-batches and processes, divided by their number:
    neither micro-batching nor the number of processes changes it. Returns the state, which is also updated in place.
    """
    with stop_requests() as stop:
        upcoming = list(islice(batches, num_micro_steps))
        # A checkpoint is older than the other events of its step: a run that starts from one begins with those.
        waiting = [event for event in events if state.step and not event.saves]
        while True:
            for event in waiting:
                if event.due(state, ended=not upcoming):
                    log(state, dict(event.run(state)))
                    if not upcoming and not state.stopped:  # no step will ask again
                        asked = stop()
                        state.stopped = agreed_stop(asked, optimizer.runtime.any_rank(asked > 0))
            if state.stopped or not upcoming:
                return state
            start = time.perf_counter()
            rates = schedule(upcoming[0].progress)
            loss, norm, state.stopped = step(model, optimizer, upcoming, rates, stop)
            state.step += 1
            state.cursor = upcoming[-1].cursor
            upcoming = list(islice(batches, num_micro_steps))
            state.progress = upcoming[0].progress if upcoming else 1.0
            elapsed = time.perf_counter() - start
            state.seconds += elapsed
            log(state, {"loss": loss, "grad_norm": norm, "lr_scale": rates.lr_scale, "step_seconds": elapsed})
            waiting = list(events)


def step(
    model: Forward,
    optimizer: Optimizer,
    micro_batches: Sequence[MicroBatch],
    rates: Rates,
    stop: Callable[[], int],
) -> tuple[float, float, int]:
    """One optimizer step. Returns its loss, the gradient's norm, and the signal that asked a process to stop, or 0."""
    runtime = optimizer.runtime
    device = runtime.device
    trained = runtime.all_reduce(torch.stack([(batch.targets != -1).sum() for batch in micro_batches]).sum())
    scale = runtime.world_size / trained.clamp(min=1)  # the optimizer takes the mean over the processes
    total = torch.zeros((), device=device)
    for batch in micro_batches:
        loss = model(batch.inputs, batch.targets, loss_reduction="sum")
        (loss * scale).backward()
        total += loss.detach()
    # One reduction carries the loss and the wish to stop: all processes stop after the same step.
    asked = stop()
    total, stops = runtime.all_reduce(torch.stack([total, torch.tensor(float(asked), device=device)]))
    norm = optimizer.step(rates.lr_scale, rates.momentum)
    optimizer.zero_grad()
    return (total / trained.clamp(min=1)).item(), norm.item(), agreed_stop(asked, stops.item() > 0)


def warm_up(forward: Forward, model: GPT, batch_size: int, sequence_len: int) -> None:
    """A forward and backward pass on nothing, whose gradients are dropped."""
    zeros = torch.zeros(batch_size, sequence_len, dtype=torch.int64, device=model.device)
    forward(zeros, zeros, loss_reduction="sum").backward()
    model.zero_grad(set_to_none=True)


def agreed_stop(mine: int, any_process: bool) -> int:
    """The signal to stop for, if any process was asked to: this one's own, else what a launcher sends."""
    return (mine or signal.SIGTERM) if any_process else 0


@contextmanager
def stop_requests() -> Iterator[Callable[[], int]]:
    """Within it SIGINT and SIGTERM only change what the function it yields returns: 0, then the first that came.

    A second SIGINT interrupts at once.
    """
    received: list[int] = []

    def note(number: int, _frame: object) -> None:
        if signal.SIGINT in received and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not received and os.environ.get("RANK", "0") == "0":  # print is not safe here: it may be interrupted itself
            os.write(2, b"\nStopping soon, with a checkpoint. Ctrl-C again stops at once, without.\n")
        received.append(number)

    previous = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: received[0] if received else 0
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
