"""The shared loop: what a step computes, when events run, how a run ends."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nanochat.dataloader import MicroBatch
from nanochat.gpt import GPT
from nanochat.optim import Optimizer, build_optimizer
from nanochat.runtime import Runtime
from nanochat.train import Event, LoopState, Metrics, Rates, step, stop_requests, train, warm_up
from tests.support.models import random_model

ROWS, T, V = 8, 6, 20


def tiny_model() -> GPT:
    return random_model(T, V, seed=1)


def tiny_optimizer(model: GPT) -> Optimizer:
    return build_optimizer(model, Runtime(0, 0, 1, torch.device("cpu"), torch.float32, 0))


def rows_of(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Inputs and targets (ROWS, T); some rows are hardly trained on, one not at all."""
    generator = torch.Generator().manual_seed(seed)
    inputs, targets = torch.randint(V, (2, ROWS, T), generator=generator)
    targets[0, 1:], targets[1], targets[5, :3] = -1, -1, -1
    return inputs, targets


def micro_batches(count: int, seed: int = 0, progress: float = 0.0) -> list[MicroBatch]:
    """One step's rows in `count` parts."""
    inputs, targets = (part.chunk(count) for part in rows_of(seed))
    return [
        MicroBatch(
            inputs[i], targets[i], progress, {"tokens": seed * count + i + 1, "epoch": 0, "document": 0, "skip": 0}
        )
        for i in range(count)
    ]


def batches_of(steps: int, count: int = 1) -> Iterator[MicroBatch]:
    for i in range(steps):
        yield from micro_batches(count, i, i / steps)


class Log:
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[int, Metrics]] = []

    def __call__(self, state: LoopState, metrics: Metrics) -> None:
        self.told.append((state.step, metrics))

    def all(self, name: str) -> list[float]:
        return [metrics[name] for _, metrics in self.told if name in metrics]


def run(
    steps: int, events: list[Event] | None = None, count: int = 1, state: LoopState | None = None, **changes: Any
) -> tuple[LoopState, Log]:
    model, log = tiny_model(), Log()
    arguments: dict[str, Any] = {
        "schedule": lambda progress: Rates(1 - progress, 0.9),
        "events": events or [],
        "num_micro_steps": count,
        "log": log,
        "state": state or LoopState(),
    }
    batches = changes.pop("batches", None) or batches_of(steps, count)
    end = train(model, tiny_optimizer(model), batches, **{**arguments, **changes})
    return end, log


# --- a step -----------------------------------------------------------------------------------------------------------


def gradients_of_a_step(monkeypatch: pytest.MonkeyPatch, count: int) -> tuple[dict[str, Tensor], float]:
    """What the optimizer gets to see, and the loss that is logged."""
    model, seen = tiny_model(), {}
    optimizer = tiny_optimizer(model)

    def spy(*_: float) -> Tensor:
        seen.update({name: param.grad.clone() for name, param in model.named_parameters() if param.grad is not None})
        return torch.zeros(())

    monkeypatch.setattr(optimizer, "step", spy)
    loss, _, _ = step(model, optimizer, micro_batches(count), Rates(1.0, 0.9), lambda: 0)
    return seen, loss


@pytest.mark.parametrize("count", [1, 2, 4, 8])
def test_micro_batches_change_nothing(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Gradient and logged loss of a step are those of all its trained tokens at once, by autograd on the formula."""
    model = tiny_model()
    inputs, targets = rows_of()
    trained = targets.flatten() != -1
    expected = F.cross_entropy(model(inputs).flatten(0, 1)[trained], targets.flatten()[trained])
    expected.backward()
    found, loss = gradients_of_a_step(monkeypatch, count)
    assert loss == pytest.approx(expected.item(), rel=1e-6)
    for name, param in model.named_parameters():
        torch.testing.assert_close(found[name], param.grad, rtol=1e-4, atol=1e-7)


def test_a_mean_of_means_would_be_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows are such that the test above can fail."""
    model = tiny_model()
    means = [model(batch.inputs, batch.targets).item() for batch in micro_batches(4)]
    _, loss = gradients_of_a_step(monkeypatch, 4)
    assert abs(sum(means) / 4 - loss) > 0.05


def test_a_step_with_nothing_to_learn() -> None:
    """Loss 0 and gradients 0, not NaN."""
    model = tiny_model()
    batch = MicroBatch(torch.zeros(2, T, dtype=torch.int64), torch.full((2, T), -1), 0.0, {})
    loss, norm, _ = step(model, tiny_optimizer(model), [batch], Rates(1.0, 0.9), lambda: 0)
    assert (loss, norm) == (0.0, 0.0)
    assert all(param.isfinite().all() for param in model.parameters())


def test_gradients_do_not_leak_into_the_next_step() -> None:
    model = tiny_model()
    optimizer = tiny_optimizer(model)
    step(model, optimizer, micro_batches(2), Rates(1.0, 0.9), lambda: 0)
    assert all(param.grad is None for param in model.parameters())
    warm_up(model, model, 2, T)
    assert all(param.grad is None for param in model.parameters())


# --- the loop ---------------------------------------------------------------------------------------------------------


def test_state_and_log() -> None:
    state, log = run(4, count=2)
    assert (state.step, state.progress, state.stopped) == (4, 1.0, 0)
    assert state.cursor is not None
    assert state.cursor["tokens"] == 8
    assert log.all("lr_multiplier") == [1, 0.75, 0.5, 0.25]
    assert [number for number, _ in log.told] == [1, 2, 3, 4]
    assert state.seconds == pytest.approx(sum(log.all("step_seconds")))
    assert all(norm > 0 for norm in log.all("grad_norm"))
    losses, again = log.all("loss"), run(4, count=1)[1].all("loss")
    assert losses == pytest.approx(again, rel=1e-4)


def test_learns() -> None:
    same = [batch for _ in range(40) for batch in micro_batches(2)]
    log = run(40, count=2, batches=iter(same))[1]
    assert log.all("loss")[-1] < 0.5 < 2 < log.all("loss")[0]


def test_no_batches() -> None:
    state, log = run(0, [Event(1, pytest.fail)])
    assert (state.step, log.told) == (0, [])


def noted(calls: list[tuple[str, int]], name: str, **settings: Any) -> Event:
    def note(state: LoopState) -> dict[str, float]:
        calls.append((name, state.step))
        return {name: 1.0}

    return Event(run=note, **settings)


def test_events() -> None:
    """Due every so many steps and at the end, once when both fall together, in their order, after the step's log."""
    calls: list[tuple[str, int]] = []
    events = [
        noted(calls, "save", every=-1, saves=True),
        noted(calls, "bpb", every=2),
        noted(calls, "samples", every=3, at_end=False),
        noted(calls, "never", every=-1, at_end=False),
    ]
    _, log = run(5, events)
    assert calls == [("bpb", 2), ("samples", 3), ("bpb", 4), ("save", 5), ("bpb", 5)]
    assert [(number, *metrics)[:2] for number, metrics in log.told if "loss" not in metrics] == [
        (number, name) for name, number in calls
    ]
    order = [next(iter(metrics)) for number, metrics in log.told if number == 2]
    assert order == ["loss", "bpb"]
    calls.clear()
    run(4, events)
    assert calls == [("bpb", 2), ("samples", 3), ("save", 4), ("bpb", 4)]


def ask_to_stop(at: int, signal_number: int = signal.SIGTERM) -> Callable[[float], Rates]:
    """A schedule in whose step `at` the signal arrives."""
    steps = iter(range(1, 1000))

    def schedule(progress: float) -> Rates:
        if next(steps) == at:
            os.kill(os.getpid(), signal_number)
        return Rates(1 - progress, 0.9)

    return schedule


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_after_the_step(signal_number: int) -> None:
    """It saves; the other events wait until the run goes on; what was in place before for the signals is again."""
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    calls: list[tuple[str, int]] = []
    events = [noted(calls, "save", every=-1, saves=True), noted(calls, "bpb", every=1)]
    state, log = run(5, events, schedule=ask_to_stop(2, signal_number))
    assert (state.step, state.progress, state.stopped) == (2, 0.4, signal_number)
    assert len(log.all("loss")) == 2
    assert calls == [("bpb", 1), ("save", 2)]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_an_exception_restores_the_signals() -> None:
    before = signal.getsignal(signal.SIGINT)

    def fail(_: LoopState) -> Metrics:
        assert signal.getsignal(signal.SIGINT) is not before
        raise ArithmeticError("an evaluation failed")

    with pytest.raises(ArithmeticError):
        run(3, [Event(1, fail)])
    assert signal.getsignal(signal.SIGINT) is before


def test_a_second_ctrl_c_interrupts() -> None:
    with stop_requests() as stop:
        assert not stop()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop() == signal.SIGTERM
        os.kill(os.getpid(), signal.SIGINT)  # the first of its kind
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
