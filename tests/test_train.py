"""The training loop: the loss of a step, when events run, and how a run ends."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from nanochat.dataloader import MicroBatch
from nanochat.gpt import GPT
from nanochat.optim import Optimizer, build_optimizer
from nanochat.runtime import Runtime
from nanochat.train import (
    WARM_UP_STEPS,
    Event,
    LoopState,
    Metrics,
    Rates,
    run_loop,
    step,
    stop_requests,
    train,
    warm_up,
)
from tests.support.models import random_model

ROWS, T, V = 8, 6, 20
CPU = Runtime(0, 0, 1, torch.device("cpu"), torch.float32, 0)


def tiny_model() -> GPT:
    return random_model(T, V, seed=1)


def tiny_optimizer(model: GPT) -> Optimizer:
    return build_optimizer(model, CPU)


def make_rows(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Inputs and targets (ROWS, T); some rows have few trained tokens, one has none."""
    generator = torch.Generator().manual_seed(seed)
    inputs, targets = torch.randint(V, (2, ROWS, T), generator=generator)
    targets[0, 1:], targets[1], targets[5, :3] = -1, -1, -1
    return inputs, targets


def micro_batches(count: int, seed: int = 0, progress: float = 0.0) -> list[MicroBatch]:
    """The rows of one step in `count` micro-batches."""
    inputs, targets = (rows.chunk(count) for rows in make_rows(seed))
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
    """A log that keeps its calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, Metrics]] = []  # step and metrics

    def __call__(self, state: LoopState, metrics: Metrics) -> None:
        self.calls.append((state.step, metrics))

    def values(self, name: str) -> list[float]:
        return [metrics[name] for _, metrics in self.calls if name in metrics]


def run(
    steps: int, events: list[Event] | None = None, count: int = 1, state: LoopState | None = None, **changes: Any
) -> tuple[LoopState, Log]:
    model = tiny_model()
    log = Log()
    arguments: dict[str, Any] = {
        "schedule": lambda progress: Rates(1 - progress, 0.9),
        "events": events or [],
        "num_micro_steps": count,
        "log": log,
        "state": state or LoopState(),
    }
    batches = changes.pop("batches", None) or batches_of(steps, count)
    final_state = train(model, tiny_optimizer(model), batches, **{**arguments, **changes})
    return final_state, log


# --- a step -----------------------------------------------------------------------------------------------------------


def gradients_of_a_step(monkeypatch: pytest.MonkeyPatch, count: int) -> tuple[dict[str, Tensor], float]:
    """The gradients that a step passes to the optimizer, and the loss that it returns."""
    model = tiny_model()
    optimizer = tiny_optimizer(model)
    gradients: dict[str, Tensor] = {}

    def record(*_: float) -> Tensor:
        for name, param in model.named_parameters():
            if param.grad is not None:
                gradients[name] = param.grad.clone()
        return torch.zeros(())

    monkeypatch.setattr(optimizer, "step", record)
    loss, _, _ = step(model, optimizer, micro_batches(count), Rates(1.0, 0.9), lambda: 0)
    return gradients, loss


@pytest.mark.parametrize("count", [1, 2, 4, 8])
def test_micro_batches_change_nothing(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Gradients and loss of a step are those of the mean over all its trained tokens, by autograd."""
    model = tiny_model()
    inputs, targets = make_rows()
    trained = targets.flatten() != -1
    expected = F.cross_entropy(model(inputs).flatten(0, 1)[trained], targets.flatten()[trained])
    expected.backward()
    gradients, loss = gradients_of_a_step(monkeypatch, count)
    assert loss == pytest.approx(expected.item(), rel=1e-6)
    for name, param in model.named_parameters():
        torch.testing.assert_close(gradients[name], param.grad, rtol=1e-4, atol=1e-7)


def test_a_mean_of_means_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    """With these rows the mean of the micro-batches' means is another loss: the test above can fail."""
    model = tiny_model()
    means = [model(batch.inputs, batch.targets).item() for batch in micro_batches(4)]
    _, loss = gradients_of_a_step(monkeypatch, 4)
    assert abs(sum(means) / 4 - loss) > 0.05


def test_a_step_without_trained_tokens() -> None:
    """Loss and gradient are 0, not NaN."""
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


def test_no_wait_for_a_single_number() -> None:
    """The results of a step leave the device together: `item` and `float` of a tensor would each wait for it."""

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            operators.append(func.name())
            return func(*args, **kwargs or {})

    operators: list[str] = []
    model = tiny_model()
    optimizer = tiny_optimizer(model)
    with Recorder():
        step(model, optimizer, micro_batches(2), Rates(1.0, 0.9), lambda: 0)
    assert "aten::mm" in operators
    assert "aten::_local_scalar_dense" not in operators


def test_the_last_backward_pass_is_announced(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    model = tiny_model()
    optimizer = tiny_optimizer(model)
    monkeypatch.setattr(optimizer, "overlap_next_backward", lambda: calls.append("last"))
    model.register_forward_pre_hook(lambda *_: calls.append("forward"))
    step(model, optimizer, micro_batches(4), Rates(1.0, 0.9), lambda: 0)
    assert calls == ["forward"] * 3 + ["last", "forward"]


# --- the loop ---------------------------------------------------------------------------------------------------------


def test_state_and_log() -> None:
    state, log = run(4, count=2)
    assert (state.step, state.progress, state.stopped) == (4, 1.0, 0)
    assert state.cursor is not None
    assert state.cursor["tokens"] == 8
    assert log.values("lr_multiplier") == [1, 0.75, 0.5, 0.25]
    assert [number for number, _ in log.calls] == [1, 2, 3, 4]
    assert state.seconds == pytest.approx(sum(log.values("step_seconds")))
    assert all(norm > 0 for norm in log.values("grad_norm"))
    losses_of_whole_batches = run(4, count=1)[1].values("loss")
    assert log.values("loss") == pytest.approx(losses_of_whole_batches, rel=1e-4)


def test_learns() -> None:
    repeated = [batch for _ in range(40) for batch in micro_batches(2)]
    log = run(40, count=2, batches=iter(repeated))[1]
    assert log.values("loss")[-1] < 0.5 < 2 < log.values("loss")[0]


def test_no_batches() -> None:
    state, log = run(0, [Event(1, pytest.fail)])
    assert (state.step, log.calls) == (0, [])


def recorded_event(calls: list[tuple[str, int]], name: str, **settings: Any) -> Event:
    """An event that adds its name and the step to `calls`."""

    def record(state: LoopState) -> dict[str, float]:
        calls.append((name, state.step))
        return {name: 1.0}

    return Event(run=record, **settings)


def test_events() -> None:
    """Events run every so many steps and at the end, once if both coincide, in order, after the step is logged."""
    calls: list[tuple[str, int]] = []
    events = [
        recorded_event(calls, "save", every=-1, saves=True),
        recorded_event(calls, "bpb", every=2),
        recorded_event(calls, "samples", every=3, at_end=False),
        recorded_event(calls, "never", every=-1, at_end=False),
    ]
    _, log = run(5, events)
    assert calls == [("bpb", 2), ("samples", 3), ("bpb", 4), ("save", 5), ("bpb", 5)]
    assert [(number, *metrics)[:2] for number, metrics in log.calls if "loss" not in metrics] == [
        (number, name) for name, number in calls
    ]
    order = [next(iter(metrics)) for number, metrics in log.calls if number == 2]
    assert order == ["loss", "bpb"]
    calls.clear()
    run(4, events)
    assert calls == [("bpb", 2), ("samples", 3), ("save", 4), ("bpb", 4)]


def schedule_with_signal(at: int, signal_number: int = signal.SIGTERM) -> Callable[[float], Rates]:
    """A schedule that raises the signal in step `at`."""
    steps = iter(range(1, 1000))

    def schedule(progress: float) -> Rates:
        if next(steps) == at:
            os.kill(os.getpid(), signal_number)
        return Rates(1 - progress, 0.9)

    return schedule


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_after_the_step(signal_number: int) -> None:
    """The checkpoint is saved, the other events wait until the run resumes, and the signal handlers are restored."""
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    calls: list[tuple[str, int]] = []
    events = [recorded_event(calls, "save", every=-1, saves=True), recorded_event(calls, "bpb", every=1)]
    state, log = run(5, events, schedule=schedule_with_signal(2, signal_number))
    assert (state.step, state.progress, state.stopped) == (2, 0.4, signal_number)
    assert len(log.values("loss")) == 2
    assert calls == [("bpb", 1), ("save", 2)]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_no_garbage_collection_of_old_objects_after_warm_up() -> None:
    """Objects that exist after the warm-up are exempt until the run ends, however it ends."""
    counts: list[int] = []

    def record(state: LoopState) -> Metrics:
        counts.append(gc.get_freeze_count())
        if state.step == WARM_UP_STEPS + 2:
            raise ArithmeticError("an evaluation failed")
        return {}

    gc.unfreeze()
    with pytest.raises(ArithmeticError):
        run(WARM_UP_STEPS + 3, [Event(1, record)])
    assert counts[: WARM_UP_STEPS - 1] == [0] * (WARM_UP_STEPS - 1)
    assert len(counts) == WARM_UP_STEPS + 2
    assert min(counts[WARM_UP_STEPS - 1 :]) > 10_000
    assert gc.get_freeze_count() == 0


def test_an_exception_restores_the_handlers() -> None:
    handler = signal.getsignal(signal.SIGINT)

    def fail(_: LoopState) -> Metrics:
        assert signal.getsignal(signal.SIGINT) is not handler
        raise ArithmeticError("an evaluation failed")

    with pytest.raises(ArithmeticError):
        run(3, [Event(1, fail)])
    assert signal.getsignal(signal.SIGINT) is handler


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


# --- the loop without batches -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("should_evaluate_first", [False, True])
@pytest.mark.parametrize("step_before", [0, 2])
def test_events_before_the_first_step(should_evaluate_first: bool, step_before: int) -> None:
    """A resumed run owes the events of its last step, except the checkpoint; a new one may be evaluated first."""
    calls: list[tuple[str, int]] = []
    events = [recorded_event(calls, "save", every=2, saves=True), recorded_event(calls, "evaluate", every=2)]
    state = LoopState(step=step_before)
    log = Log()
    returned = run_loop(
        take_step=lambda: {"reward": 1.0},
        is_done=lambda: state.step >= step_before + 3,
        events=events,
        runtime=CPU,
        stop=lambda: 0,
        log=log,
        state=state,
        should_evaluate_first=should_evaluate_first,
    )
    assert returned is state
    assert state.step == step_before + 3
    assert state.seconds == pytest.approx(sum(log.values("step_seconds")))
    first = [("evaluate", step_before)] if step_before or should_evaluate_first else []
    middle = [("save", step_before + 2), ("evaluate", step_before + 2)]
    assert calls == [*first, *middle, ("save", step_before + 3), ("evaluate", step_before + 3)]
    assert [step for step, metrics in log.calls if "reward" in metrics] == [step_before + i for i in (1, 2, 3)]


def test_a_signal_during_the_last_events() -> None:
    """It is noticed after the event: the run ends as stopped, and the events that follow wait."""
    signals = iter([0, signal.SIGTERM])
    calls: list[tuple[str, int]] = []
    state = LoopState()
    run_loop(
        take_step=dict,
        is_done=lambda: state.step >= 1,
        events=[recorded_event(calls, name, every=-1, saves=name == "save") for name in ("save", "first", "second")],
        runtime=CPU,
        stop=lambda: next(signals),
        log=Log(),
        state=state,
        should_evaluate_first=False,
    )
    assert state.stopped == signal.SIGTERM
    assert calls == [("save", 1), ("first", 1)]
