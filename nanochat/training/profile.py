"""Profile of training steps: which kind of work takes the time of a step (`--profile=N`).

    python -m scripts.base_train --depth=12 --profile=5
    python -m scripts.chat_rl --profile=3

After a few steps to warm up, N steps are traced by torch's profiler and a table is printed. On a CPU it adds up the
time of torch's operations; on CUDA that of the kernels, and the time in which no kernel ran. "of the limit" compares
the FLOPs that the work takes, and the bytes that it moves at least, with the rate of a large matrix product and the
bandwidth of a large copy, which are measured before the trace.

Compiled kernels that fuse several kinds of work count as the first of their kinds in `KINDS`.

A step of RL has two phases. The rollouts, completions and their rewards, are a row of the table; all other rows are the
update, and evaluations and checkpoints that fall into the traced steps. On CUDA that row has the kernels of the
rollouts, and the host waits those of both phases. A last line has the time of both phases by the clock.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, record_function

from nanochat.common import print0
from nanochat.dataloader import MicroBatch
from nanochat.gpt import GPT
from nanochat.muon import NUM_ITERATIONS
from nanochat.optim import Optimizer
from nanochat.system.speed import matrix_rate, memory_bandwidth, silence_profiler, synchronize
from nanochat.train import WARM_UP_STEPS, Event, Forward, LoopState, Metrics

Rollouts = TypeVar("Rollouts")

PREFIX = "nanochat: "  # of the regions below in a trace
OPTIMIZER = "optimizer"
DATA = "data"
ROLLOUTS = "rollouts"
FORWARD = "forward"
WAITS = "host waits"
OTHER = "other"
MATRIX = "matrix products"
ATTENTION = "attention"
ELEMENTWISE = "elementwise"

# Kinds of work, by the lower-case name of an operation of torch or of a kernel. The first match counts.
KINDS: Mapping[str, re.Pattern[str]] = {
    "communication": re.compile(r"nccl|gloo|c10d|all_?reduce|reduce_?scatter|all_?gather|broadcast_"),
    ATTENTION: re.compile(r"flash|fmha|attention|sdpa"),
    "loss": re.compile(r"loss|log_?softmax|cross_?entropy|logsumexp|tanh"),
    MATRIX: re.compile(
        r"aten::(add)?mm\b|aten::(b|badd|addb)mm\b|_scaled_mm|linear_pointwise|gemm|gemv|cutlass|cublas|nvjet|xmma"
        r"|splitk|triton_tem_|micro_?kernel"
    ),
    DATA: re.compile(r"memcpy htod"),
    WAITS: re.compile(r"aten::item|_local_scalar_dense|memcpy dtoh|synchronize"),
    ELEMENTWISE: re.compile(r"triton_|cpp_fused|cpp_kernel"),  # before copies: a fused kernel may be called after one
    "casts and copies": re.compile(
        r"_to_copy|aten::(to|clone|contiguous|cat|copy_)\b|copy_kernel|catarray|memcpy|memset"
    ),
}
ANY_OPERATION = re.compile(r"aten::|kernel|void |autograd::")
ROWS = (
    *(ROLLOUTS, MATRIX, ATTENTION, ELEMENTWISE, "loss", OPTIMIZER),
    *("casts and copies", "communication", DATA, WAITS, OTHER),
)


@dataclass(frozen=True)
class Span:
    """A stretch of time in which an operation or a kernel ran, without that of the operations inside of it.

    `names`: its name and those of the operations that it is part of, from the inside out. Times are in microseconds.
    """

    names: Sequence[str]
    start: float
    end: float
    self_time: float


@dataclass(frozen=True)
class Limits:
    """Work of a step, and the speed of the device: FLOP/s and bytes per second."""

    flops: Mapping[str, float]  # by kind
    num_bytes: Mapping[str, float]
    matrix_rate: float
    bandwidth: float

    def seconds(self, kind: str) -> float | None:
        """Return the least time that this kind of work can take in a step; None if it is not known."""
        if kind not in self.flops and kind not in self.num_bytes:
            return None
        return self.flops.get(kind, 0.0) / self.matrix_rate + self.num_bytes.get(kind, 0.0) / self.bandwidth


def kind_of(names: Iterable[str]) -> str:
    """Return the kind of work of an operation, given its name and those of the operations around it, inside out.

    >>> kind_of(["aten::mm", "aten::linear", "nanochat: forward"]), kind_of(["aten::mm", "nanochat: optimizer"])
    ('matrix products', 'optimizer')
    >>> kind_of(["triton_poi_fused_relu_square_1"])
    'elementwise'
    """
    names = list(names)
    for region in (ROLLOUTS, OPTIMIZER, DATA):
        if PREFIX + region in names:
            return region
    for name in names:
        for kind, pattern in KINDS.items():
            if pattern.search(name.lower()):
                return kind
    return ELEMENTWISE if any(ANY_OPERATION.search(name) for name in names) else OTHER


def step_limits(model: GPT, tokens: float, rate: float, bandwidth: float, sequence_len: float | None = None) -> Limits:
    """Return the work of a step on `tokens` tokens: of the model and of an optimizer that is not sharded.

    `sequence_len`: T below, the length of a row; None: the model's whole context.

    Products: 6 FLOPs for each weight and token. Attention: 12 T C for each layer and token, halved because the kernels
    skip what causality hides. Optimizer: the products of Muon's iterations (arXiv 2502.16982), and weights, gradients
    and state read once, and weights and state written once.
    """
    config = model.config
    num_weights = model.num_params() - model.embed.weight.numel()
    iteration_flops = num_bytes = 0.0
    for group in model.param_groups():
        state_copies = 1 if group.kind == "matrix" else 2
        for _, param in group.params:
            num_bytes += param.nbytes * (3 + 2 * state_copies)
            if group.kind == "matrix":
                short, long = sorted(param.shape)
                iteration_flops += NUM_ITERATIONS * (4 * short * short * long + 2 * short**3)
    attention = 6.0 * config.n_layer * config.n_embd * (sequence_len or config.sequence_len) * tokens
    return Limits(
        {MATRIX: 6.0 * num_weights * tokens, ATTENTION: attention, OPTIMIZER: iteration_flops},
        {OPTIMIZER: num_bytes},
        rate,
        bandwidth,
    )


def time_by_kind(spans: Iterable[Span], seconds: float, is_device: bool) -> dict[str, float]:
    """Return the seconds of each kind of work in a trace of `seconds` seconds.

    `is_device`: the spans are kernels, several of which may run at a time. The time in which none runs is that of host
    waits.
    """
    spans = sorted(spans, key=lambda span: span.start)
    times = dict.fromkeys(ROWS, 0.0)
    for span in spans:
        times[kind_of(span.names)] += span.self_time / 1e6
    if is_device:
        busy = 0.0
        end = float("-inf")
        for span in spans:
            busy += max(0.0, span.end - max(span.start, end))
            end = max(end, span.end)
        times[WAITS] += max(0.0, seconds - busy / 1e6)
    else:
        times[OTHER] += max(0.0, seconds - sum(times.values()))
    return times


def table(times: Mapping[str, float], num_steps: int, seconds: float, limits: Limits) -> str:
    """Return the times of a trace of `num_steps` steps as a table of one step."""
    lines = [f"{'profile of a step':<20} {'ms':>10} {'of the step':>12} {'of the limit':>13}"]
    for kind in ROWS:
        if not times.get(kind):
            continue
        least = limits.seconds(kind)
        share = "" if least is None else f"{least * num_steps / times[kind]:.1%}"
        lines.append(f"{kind:<20} {1000 * times[kind] / num_steps:10.2f} {times[kind] / seconds:12.1%} {share:>13}")
    lines.append(f"{'step':<20} {1000 * seconds / num_steps:10.2f}")
    rate, bandwidth = limits.matrix_rate / 1e12, limits.bandwidth / 1e9
    lines.append(f"limits: {rate:.2f} TFLOP/s in a large matrix product, {bandwidth:.0f} GB/s in a large copy")
    return "\n".join(lines)


# --- traces -----------------------------------------------------------------------------------------------------------


def host_spans(events: Iterable[Any]) -> list[Span]:
    """Return the operations in a trace of torch's profiler."""
    spans = []
    for event in events:
        if event.device_type.name != "CPU" or event.is_async:
            continue
        names = []
        around = event
        while around is not None:
            names.append(around.name)
            around = around.cpu_parent
        spans.append(Span(names, event.time_range.start, event.time_range.end, event.self_cpu_time_total))
    return spans


def device_spans(events: Iterable[Any]) -> list[Span]:
    """Return the kernels in a trace of torch's profiler, each with the region in which it ran, if any.

    The profiler repeats the regions on the device's time line.
    """
    on_device = [event for event in events if event.device_type.name == "CUDA"]
    regions = [event for event in on_device if event.name.startswith(PREFIX)]
    annotations = {event.name for event in events if getattr(event, "is_user_annotation", False)}
    spans = []
    for event in on_device:
        if event in regions or event.name in annotations:
            continue
        start, end = event.time_range.start, event.time_range.end
        middle = (start + end) / 2
        around = [region.name for region in regions if region.time_range.start <= middle <= region.time_range.end]
        spans.append(Span([event.name, *around], start, end, end - start))
    return spans


# --- training ---------------------------------------------------------------------------------------------------------


class ProfiledOptimizer:
    """An optimizer whose steps are a region of the trace; everything else is that of the optimizer."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer

    def __getattr__(self, name: str) -> Any:
        return getattr(self.optimizer, name)

    def reduce_gradients(self) -> Tensor:
        """Take the first half of the optimizer's step."""
        with record_function(PREFIX + OPTIMIZER):
            return self.optimizer.reduce_gradients()

    def update(self, lr_multiplier: float, momentum: float) -> None:
        """Take the second half of the optimizer's step."""
        with record_function(PREFIX + OPTIMIZER):
            self.optimizer.update(lr_multiplier, momentum)


class StepProfiler:
    """Traces `num_steps` steps of a run and prints the table; without steps it changes nothing.

    Create it before the model is compiled, and use it as a context manager around the training. `tokens`: of a step,
    over all processes; None if steps differ, as in RL: then those are counted that an uncompiled model is trained on.
    The main process traces its own work.
    """

    def __init__(self, num_steps: int, model: GPT, optimizer: Optimizer, tokens: int | None) -> None:
        self.num_steps = num_steps
        self.model = model
        self.runtime = optimizer.runtime
        self.tokens = tokens // self.runtime.world_size if tokens is not None else None
        self.counted = [0, 0]  # if `tokens` is None: of the traced steps, tokens, and tokens x length of their row
        self.num_seen = 0
        self.trace: Any = None
        self.start = 0.0
        self.rollout_seconds = 0.0  # of the traced steps
        self.rates = (0.0, 0.0)  # of the device: FLOP/s of products, bytes per second of copies
        if num_steps and tokens is None:
            model.register_forward_pre_hook(self._count)
        if num_steps and self.runtime.device.type == "cpu":
            from torch._inductor import config

            config.cpp.enable_kernel_profile = True  # compiled kernels appear in traces with their names

    def __enter__(self) -> StepProfiler:
        return self

    def __exit__(self, *_: object) -> None:
        """End a trace that the run did not complete, without a table."""
        if self.trace is not None:
            self.trace.__exit__(None, None, None)
            self.trace = None
        if self.num_seen < WARM_UP_STEPS + self.num_steps and self.runtime.is_main and self.num_steps:
            print0(f"No profile: the run ended before its step {WARM_UP_STEPS + self.num_steps}")

    def forward(self, forward: Forward) -> Forward:
        """Return the model's forward pass as a region of the trace."""
        if not self.num_steps:
            return forward

        def in_region(*args: Any, **kwargs: Any) -> Tensor:
            with record_function(PREFIX + FORWARD):
                return forward(*args, **kwargs)

        return in_region

    def optimizer(self, optimizer: Optimizer) -> Any:
        """Return the optimizer, with its steps as a region of the trace."""
        return ProfiledOptimizer(optimizer) if self.num_steps else optimizer

    def batches(self, batches: Iterator[MicroBatch]) -> Iterator[MicroBatch]:
        """Return the micro-batches, with the time that they are waited for as a region of the trace."""
        return self._batches_in_regions(batches) if self.num_steps else batches

    def _batches_in_regions(self, batches: Iterator[MicroBatch]) -> Iterator[MicroBatch]:
        while True:
            with record_function(PREFIX + DATA):
                batch = next(batches, None)
            if batch is None:
                return
            yield batch

    def rollouts(self, collect: Callable[[int], Rollouts]) -> Callable[[int], Rollouts]:
        """Return the function that generates the rollouts of a step, as a region of the trace."""
        if not self.num_steps:
            return collect

        def in_region(step: int) -> Rollouts:
            if self.trace is None:
                return collect(step)
            start = time.perf_counter()
            with record_function(PREFIX + ROLLOUTS):
                collected = collect(step)
            synchronize(self.runtime.device)
            self.rollout_seconds += time.perf_counter() - start
            return collected

        return in_region

    def _count(self, _: object, arguments: tuple[Any, ...]) -> None:
        """Count the tokens of a forward pass of the model, unless it has no gradient."""
        if self.trace is not None and torch.is_grad_enabled():
            num_rows, length = arguments[0].shape
            self.counted[0] += num_rows * length
            self.counted[1] += num_rows * length * length

    def events(self) -> list[Event]:
        """Return the event that starts and ends the trace."""
        return [Event(1, self._after_step)] if self.num_steps and self.runtime.is_main else []

    def _after_step(self, state: LoopState) -> Metrics:
        if state.step == 0:  # RL has its first events before the first step
            return {}
        self.num_seen += 1
        device = self.runtime.device
        if self.num_seen == WARM_UP_STEPS:
            self.rates = (matrix_rate(device, self.runtime.compute_dtype), memory_bandwidth(device))
            activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")
            silence_profiler()
            self.trace = torch.profiler.profile(activities=activities, acc_events=True)  # some versions warn without it
            self.trace.__enter__()
            synchronize(device)
            self.start = time.perf_counter()
        elif self.num_seen == WARM_UP_STEPS + self.num_steps and self.trace is not None:
            synchronize(device)
            seconds = time.perf_counter() - self.start
            trace = self.trace
            self.__exit__()
            print0(self._table(trace.events(), seconds))
        return {}

    def _table(self, events: Iterable[Any], seconds: float) -> str:
        if self.tokens is not None:
            limits = step_limits(self.model, self.tokens, *self.rates)
        else:
            tokens, weighted = self.counted
            limits = step_limits(self.model, tokens / self.num_steps, *self.rates, weighted / max(1, tokens))
        is_device = self.runtime.device.type == "cuda"
        spans = device_spans(events) if is_device else host_spans(events)
        lines = table(time_by_kind(spans, seconds, is_device), self.num_steps, seconds, limits)
        if self.rollout_seconds:
            phases = {ROLLOUTS: self.rollout_seconds, "update": seconds - self.rollout_seconds}
            parts = [f"{name} {1000 * t / self.num_steps:.2f} ms ({t / seconds:.1%})" for name, t in phases.items()]
            lines += f"\nphases: {', '.join(parts)}"
        return lines
