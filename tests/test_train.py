"""The training loop: the loss of a step, when events run, and how a run ends."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Callable, Iterator
from math import inf, isfinite, nan
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from nanochat.common import UserError
from nanochat.dataloader import MicroBatch
from nanochat.gpt import GPT
from nanochat.optim import Optimizer, build_optimizer
from nanochat.runtime import Runtime
from nanochat.system.signals import STOP_SIGNALS
from nanochat.train import (
    WARM_UP_STEPS,
    Event,
    LoopState,
    Metrics,
    Rates,
    run_loop,
    step,
    train,
    warm_up,
)
from tests.support.models import random_model
from tests.support.processes import Forker

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

    def record() -> Tensor:
        for name, param in model.named_parameters():
            if param.grad is not None:
                gradients[name] = param.grad.clone()
        return torch.zeros(())

    monkeypatch.setattr(optimizer, "reduce_gradients", record)
    monkeypatch.setattr(optimizer, "update", lambda *_: None)
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


# --- steps that are not applied ---------------------------------------------------------------------------------------


class BadGradient(torch.autograd.Function):
    """Identity whose gradient is multiplied by `value`."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, value: float) -> Tensor:  # type: ignore[override]
        ctx.value = value
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return grad * ctx.value, None


class Poisoned:
    """A model whose loss, or its gradient alone, is multiplied by `value` in the calls with these numbers."""

    def __init__(self, model: GPT, calls: set[int], value: float, in_loss: bool = True) -> None:
        self.model = model
        self.calls = calls
        self.value = value
        self.in_loss = in_loss
        self.num_calls = 0

    def __call__(self, *args: Any, **options: Any) -> Tensor:
        self.num_calls += 1
        loss: Tensor = self.model(*args, **options)
        if self.num_calls not in self.calls:
            return loss
        return loss * self.value if self.in_loss else BadGradient.apply(loss, self.value)  # type: ignore[no-any-return]


def copied(model: GPT, optimizer: Optimizer) -> dict[str, Tensor]:
    """Weights and optimizer state."""
    tensors = {**model.state_dict(), **optimizer.state_dict()}
    return {name: tensor.clone() for name, tensor in tensors.items()}


def assert_equal(tensors: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert tensors.keys() == expected.keys()
    assert [name for name in tensors if not torch.equal(tensors[name], expected[name])] == []


BAD_VALUES = [(nan, True), (inf, True), (-inf, True), (nan, False), (inf, False), (1e30, False)]  # 1e30: its square


@pytest.mark.parametrize(("value", "in_loss"), BAD_VALUES)
@pytest.mark.parametrize("count", [1, 4])
def test_a_step_that_is_not_finite_leaves_no_trace(value: float, in_loss: bool, count: int) -> None:
    """Of four steps the third, in its last micro-batch: weights, moments and their step count are as without it."""
    model, other = tiny_model(), tiny_model()
    optimizer, other_optimizer = tiny_optimizer(model), tiny_optimizer(other)
    poisoned = Poisoned(model, {3 * count}, value, in_loss)
    for number in range(4):
        before = copied(model, optimizer)
        loss, norm, _ = step(poisoned, optimizer, micro_batches(count, number), Rates(1.0, 0.9), lambda: 0)
        assert all(param.grad is None for param in model.parameters())
        assert all(bucket.grads.numel() == bucket.buffer.numel() == 0 for bucket in optimizer.buckets)
        if number == 2:
            assert not (isfinite(loss) and isfinite(norm))
            assert_equal(copied(model, optimizer), before)
        else:
            assert isfinite(loss)
            assert isfinite(norm)
            step(other, other_optimizer, micro_batches(count, number), Rates(1.0, 0.9), lambda: 0)
    assert optimizer.num_steps == 3
    assert_equal(copied(model, optimizer), copied(other, other_optimizer))


def skip_on_two_ranks(folder: Path) -> None:
    """Take four steps, whose loss is not finite in the first on rank 0 only, and in the third on rank 1 only.

    Without torchrun: two of these steps, with the rows of both ranks. The tables are large enough to be sharded.
    """
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    runtime = Runtime.start(device="cpu")
    model = random_model(T, 128, n_embd=32, n_layer=3, seed=1)
    optimizer = build_optimizer(model, runtime)
    poisoned = Poisoned(model, {1} if rank == 0 else {3}, nan) if world_size > 1 else model
    norms = []
    for number in range(4) if world_size > 1 else (1, 3):
        inputs, targets = make_rows(number)
        share = slice(rank * ROWS // world_size, (rank + 1) * ROWS // world_size)
        batch = MicroBatch(inputs[share], targets[share], 0.0, {})
        norms.append(step(poisoned, optimizer, [batch], Rates(1.0, 0.9), lambda: 0)[:2])
    weights, state = dict(model.state_dict()), optimizer.state_dict()
    torch.save({"weights": weights, "state": state, "norms": norms}, folder / f"{world_size}_{rank}.pt")
    runtime.finish()


@pytest.mark.slow
@pytest.mark.usefixtures("run_here")
def test_all_processes_skip_the_same_steps(forker: Forker, tmp_path: Path) -> None:
    forker.run_ranks(skip_on_two_ranks, tmp_path, NANOCHAT_DTYPE="float32")
    skip_on_two_ranks(tmp_path)
    first, second, one = (torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("2_0", "2_1", "1_0"))
    assert [isfinite(loss) and isfinite(norm) for loss, norm in first["norms"]] == [False, True, False, True]
    assert [pair for pair in first["norms"] if isfinite(sum(pair))] == [
        pair for pair in second["norms"] if isfinite(sum(pair))
    ]
    assert_equal(first["weights"], second["weights"])
    assert first["state"]["step"] == 2
    for key in ("weights", "state"):
        for name, tensor in one[key].items():
            torch.testing.assert_close(first[key][name], tensor, rtol=1e-3, atol=1e-5)


def diverging_run(calls: set[int], steps: int, **settings: Any) -> tuple[LoopState, Log, list[tuple[str, int]]]:
    """A run that saves every second step, with losses that are not finite in some steps."""
    saves: list[tuple[str, int]] = []
    model = tiny_model()
    state, log = LoopState(), Log()
    arguments: dict[str, Any] = {"schedule": lambda progress: Rates(1 - progress, 0.9), "num_micro_steps": 1}
    train(
        Poisoned(model, calls, nan),
        tiny_optimizer(model),
        batches_of(steps),
        events=[recorded_event(saves, "save", every=2, saves=True)],
        log=log,
        state=state,
        **arguments | settings,
    )
    return state, log, saves


def test_skipped_steps_are_counted_and_named(capsys: pytest.CaptureFixture[str]) -> None:
    """Their number is that of the data: progress goes on. Four in a row are fewer than five."""
    state, log, _ = diverging_run({2, 5, 6, 7, 8}, 10)
    assert (state.step, state.skipped, state.skipped_in_a_row, state.progress) == (10, 5, 0, 1.0)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" (")[0] for line in lines] == [f"step {number} is skipped" for number in (2, 5, 6, 7, 8)]
    assert "loss nan, grad_norm nan" in lines[0]
    assert len(log.values("loss")) == 10


def test_five_in_a_row_end_the_run() -> None:
    """With the last checkpoint from before, although another one, of the same weights, was written since."""
    with pytest.raises(UserError, match=r"diverged at step 7: the last 5 steps .*init_lr_frac.*resume_from_step=2\)"):
        diverging_run({3, 4, 5, 6, 7}, 10)
    with pytest.raises(UserError, match=r"diverged at step 5: .* and start again"):
        diverging_run({1, 2, 3, 4, 5}, 10)


def test_a_short_run_without_an_applied_step() -> None:
    """It has no result, and says so instead of saving its initial weights as one."""
    with pytest.raises(UserError, match="diverged at step 3"):
        diverging_run({1, 2, 3}, 3)


@pytest.mark.parametrize("value", [nan, inf, 1e25])
def test_weights_that_are_not_finite_are_not_saved(value: float) -> None:
    """As after a step with a finite gradient and a learning rate that is far too high."""
    model = tiny_model()
    optimizer = tiny_optimizer(model)
    plain_update = optimizer.update

    def update(lr_multiplier: float, momentum: float) -> None:
        plain_update(lr_multiplier, momentum)
        if optimizer.num_steps == 3:
            with torch.no_grad():
                next(model.parameters())[0, 0] = value

    optimizer.update = update  # type: ignore[method-assign]
    saves: list[tuple[str, int]] = []
    with pytest.raises(UserError, match=r"weights after step 3 are not finite, or too large.*resume_from_step=2\)"):
        train(
            model,
            optimizer,
            batches_of(8),
            schedule=lambda _: Rates(1.0, 0.9),
            events=[recorded_event(saves, "save", every=1, saves=True)],
            num_micro_steps=1,
            log=Log(),
            state=LoopState(),
        )
    assert saves == [("save", 1), ("save", 2)]


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


def test_an_end_before_the_last_step() -> None:
    """The run ends after the events of a step; what is due at the end does not run."""
    calls: list[tuple[str, int]] = []
    events = [recorded_event(calls, "save", every=2, saves=True), recorded_event(calls, "bpb", every=2)]
    state, _ = run(
        9, [*events, recorded_event(calls, "late", every=-1)], should_end=lambda _: calls[-1:] == [("bpb", 4)]
    )
    assert state.step == 4
    assert state.progress < 1
    assert calls == [("save", 2), ("bpb", 2), ("save", 4), ("bpb", 4)]


def schedule_with_signal(at: int, signal_number: int = signal.SIGTERM) -> Callable[[float], Rates]:
    """A schedule that raises the signal in step `at`."""
    steps = iter(range(1, 1000))

    def schedule(progress: float) -> Rates:
        if next(steps) == at:
            os.kill(os.getpid(), signal_number)
        return Rates(1 - progress, 0.9)

    return schedule


@pytest.mark.parametrize("signal_number", STOP_SIGNALS)
def test_a_signal_stops_after_the_step(signal_number: int) -> None:
    """The checkpoint is saved, the other events wait until the run resumes, and the signal handlers are restored."""
    handlers = [signal.getsignal(number) for number in STOP_SIGNALS]
    calls: list[tuple[str, int]] = []
    events = [recorded_event(calls, "save", every=-1, saves=True), recorded_event(calls, "bpb", every=1)]
    state, log = run(5, events, schedule=schedule_with_signal(2, signal_number))
    assert (state.step, state.progress, state.stopped) == (2, 0.4, signal_number)
    assert len(log.values("loss")) == 2
    assert calls == [("bpb", 1), ("save", 2)]
    assert [signal.getsignal(number) for number in STOP_SIGNALS] == handlers


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
        optimizer=tiny_optimizer(tiny_model()),
        stop=lambda: 0,
        log=log,
        state=state,
        should_evaluate_first=should_evaluate_first,
        should_check_weights=False,
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
        optimizer=tiny_optimizer(tiny_model()),
        stop=lambda: next(signals),
        log=Log(),
        state=state,
        should_evaluate_first=False,
        should_check_weights=False,
    )
    assert state.stopped == signal.SIGTERM
    assert calls == [("save", 1), ("first", 1)]
