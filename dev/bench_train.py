"""Training speed here, as a share of the speed of this machine's own matrix products in the same minute.

    python -m dev.bench_train                                             # the model of dev/runcpu.sh
    python -m dev.bench_train --compile=off --steps=10 --plain=false
    python -m dev.bench_train --depth=20 --head_dim=128 --vocab_size=65536 --max_seq_len=2048 --device_batch_size=16 \
        --total_batch_size=65536 --products=8192                          # one GPU of speedrun.sh
    NANOCHAT_DTYPE=float32 python -m dev.bench_train

Steps of the model, steps of its plain twin (dev/plain_gpt.py), square matrix products in the dtype of the run, and
copies of a large tensor are measured in turn, so that other programs on the machine slow all of them; medians are
printed. A step is that of the training loop, with batches from the loader's thread. Its parts are forward and
backward, the optimizer, and the rest: waiting for a batch and reading the loss. On CUDA, times are those of events.

The peak memory of a step is what it allocates besides weights and optimizer state.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from itertools import accumulate, islice
from typing import Any

import torch
from torch import Tensor

from dev.plain_gpt import PlainGPT
from nanochat.checkpoint_manager import build_model
from nanochat.common import print0
from nanochat.configurator import Settings, cli, setting
from nanochat.dataloader import MicroBatch, prefetch
from nanochat.gpt import GPTConfig
from nanochat.optim import Optimizer, build_optimizer
from nanochat.runtime import Runtime
from nanochat.system.speed import matrix_rate, memory_bandwidth, silence_profiler, synchronize
from nanochat.train import Forward, Rates, step
from nanochat.training.batch_size import accumulation_steps
from nanochat.training.log import peak_flops
from nanochat.training.memory import format_bytes
from nanochat.training.setup import compile_model

REPEATS = 3  # products and copies measured after a step
WARM_UP_STEPS = 2


@dataclass(frozen=True)
class Config(Settings):
    device: str = setting("auto", "device to measure on", choices=("auto", "cpu", "cuda", "mps"))
    depth: int = setting(4, "layers of the model")
    head_dim: int = setting(64, "size of an attention head")
    vocab_size: int = setting(2048, "tokens of the vocabulary")
    max_seq_len: int = setting(256, "tokens of context")
    device_batch_size: int = setting(32, "rows of a micro-batch", at_least=1)
    total_batch_size: int = setting(8192, "tokens of an optimizer step")
    compile: str = setting("on", "compile the model", choices=("on", "off"))
    steps: int = setting(20, "steps to measure", at_least=1)
    products: int = setting(2048, "rows and columns of the matrices in the products", at_least=1)
    copied: int = setting(1 << 28, "bytes of the tensor that is copied", at_least=1)
    plain: bool = setting(True, "measure the plain twin too")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.model_config()
        self.num_micro_steps()

    def model_config(self) -> GPTConfig:
        """Return the shape of the model."""
        return GPTConfig.from_depth(
            self.depth, vocab_size=self.vocab_size, sequence_len=self.max_seq_len, head_dim=self.head_dim
        )

    def num_micro_steps(self) -> int:
        """Return the number of micro-batches in a step."""
        return accumulation_steps(self.total_batch_size, self.device_batch_size, self.max_seq_len, world_size=1)


@dataclass(frozen=True)
class Times:
    """Seconds of one step and of two of its parts, and the device's FLOP/s and bytes per second after it."""

    step: float
    forward_backward: float
    optimizer: float
    product_rate: float
    bandwidth: float

    @property
    def rest(self) -> float:
        """Seconds of the step outside of the two parts."""
        return self.step - self.forward_backward - self.optimizer


class Stopwatch:
    """Marks points in time: on CUDA by events, which do not make the host wait; elsewhere when all work is done."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def mark(self) -> Any:
        """Return the present point in the device's work."""
        if self.device.type != "cuda":
            synchronize(self.device)
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, start: Any, end: Any) -> float:
        """Return the seconds between two marks."""
        if self.device.type != "cuda":
            return float(end - start)
        end.synchronize()
        return float(start.elapsed_time(end)) / 1000


class TimedOptimizer:
    """An optimizer that marks when its step began and ended, for `train.step`."""

    def __init__(self, optimizer: Optimizer, stopwatch: Stopwatch) -> None:
        self.optimizer = optimizer
        self.runtime = optimizer.runtime
        self.stopwatch = stopwatch
        self.start: Any = None
        self.end: Any = None

    def overlap_next_backward(self) -> None:
        """Announce the last backward pass of a step."""
        self.optimizer.overlap_next_backward()

    def reduce_gradients(self) -> Tensor:
        """Begin the optimizer's step."""
        self.start = self.stopwatch.mark()
        return self.optimizer.reduce_gradients()

    def update(self, lr_multiplier: float, momentum: float) -> None:
        """End the optimizer's step."""
        self.optimizer.update(lr_multiplier, momentum)
        self.end = self.stopwatch.mark()

    def zero_grad(self) -> None:
        """Drop all gradients."""
        self.optimizer.zero_grad()

    def weights_norm(self) -> Tensor:
        """Return the norm of the weights."""
        return self.optimizer.weights_norm()


@dataclass(frozen=True)
class Variant:
    """A way to train a model of the given shape: forward pass, optimizer of its own weights, FLOPs of a token."""

    forward: Forward
    optimizer: TimedOptimizer
    flops_per_token: int
    num_params: int


def build_variant(config: Config, runtime: Runtime, is_plain: bool) -> Variant:
    """Build the model as it is trained, or its plain twin with weights of its own."""
    model = build_model(config.model_config(), runtime)
    optimizer = TimedOptimizer(build_optimizer(model, runtime), Stopwatch(runtime.device))
    if not is_plain:
        forward = compile_model(model, config.compile, config.steps, config.device_batch_size, runtime)
    else:
        plain = PlainGPT(model)
        forward = plain if config.compile == "off" else torch.compile(plain.__call__, dynamic=False)
    return Variant(forward, optimizer, model.estimate_flops(), model.num_params())


def random_batches(config: Config) -> Iterator[MicroBatch]:
    """Yield micro-batches of random tokens without end."""
    generator = torch.Generator().manual_seed(0)
    size = (config.device_batch_size, config.max_seq_len + 1)
    while True:
        rows = torch.randint(config.vocab_size, size, generator=generator)  # (B, T + 1)
        yield MicroBatch(rows[:, :-1].contiguous(), rows[:, 1:].contiguous(), progress=0.0, cursor={})


def take_step(variant: Variant, batches: Iterator[MicroBatch], config: Config) -> tuple[float, float, float]:
    """Take a step; return the seconds of the step, of forward and backward, and of the optimizer."""
    stopwatch = variant.optimizer.stopwatch
    start = stopwatch.mark()
    micro_batches = list(islice(batches, config.num_micro_steps()))
    begin = stopwatch.mark()
    step(variant.forward, variant.optimizer, micro_batches, Rates(lr_multiplier=0.1, momentum=0.95), lambda: 0)
    end = stopwatch.mark()
    optimizer = variant.optimizer
    return (
        stopwatch.seconds(start, end),
        stopwatch.seconds(begin, optimizer.start),
        stopwatch.seconds(optimizer.start, optimizer.end),
    )


def measure(variants: Mapping[str, Variant], batches: Iterator[MicroBatch], config: Config) -> dict[str, list[Times]]:
    """Measure steps of all variants, matrix products and copies in turn, after a few steps to warm up."""
    times: dict[str, list[Times]] = {name: [] for name in variants}
    for _ in range(WARM_UP_STEPS + config.steps):
        for name, variant in variants.items():
            seconds = take_step(variant, batches, config)
            runtime = variant.optimizer.runtime
            rate = matrix_rate(runtime.device, runtime.compute_dtype, config.products, REPEATS)
            times[name].append(Times(*seconds, rate, memory_bandwidth(runtime.device, config.copied, REPEATS)))
    return {name: measured[WARM_UP_STEPS:] for name, measured in times.items()}


def peak_memory(variant: Variant, batches: Iterator[MicroBatch], config: Config) -> int:
    """Return the most bytes that a step allocates at a time."""
    device = variant.optimizer.runtime.device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        take_step(variant, batches, config)
        return int(torch.cuda.max_memory_allocated(device)) - before
    silence_profiler()
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True, acc_events=True) as trace:
        take_step(variant, batches, config)
    assert trace.profiler is not None, "the trace has ended"
    results: Any = trace.profiler.kineto_results
    events = sorted((event for event in results.events() if event.name() == "[memory]"), key=lambda e: e.start_ns())
    return int(max(accumulate(event.nbytes() for event in events)))


def main(config: Config) -> dict[str, float]:
    """Measure, print and return the speeds and shares; those of the plain twin begin with "plain_"."""
    runtime = Runtime.start(0, config.device)
    names = ("trained", "plain") if config.plain else ("trained",)
    variants = {name: build_variant(config, runtime, is_plain=name == "plain") for name in names}
    results: dict[str, float] = {}
    with closing(prefetch(random_batches(config), runtime.device)) as batches:
        for name, times in measure(variants, batches, config).items():
            prefix = "" if name == "trained" else f"{name}_"
            measured = summarize(times, variants[name].flops_per_token * config.total_batch_size, config)
            measured["peak_memory"] = peak_memory(variants[name], batches, config)
            results |= {prefix + key: value for key, value in measured.items()}
    if peak := peak_flops(runtime):
        results["mfu"] = results["flops_per_second"] / peak
    print_results(config, runtime, variants["trained"].num_params, results)
    return results


def summarize(times: list[Times], step_flops: int, config: Config) -> dict[str, float]:
    """Return the medians of the measured steps."""

    def median(value: Callable[[Times], float]) -> float:
        return float(statistics.median(map(value, times)))

    return {
        "tokens_per_second": config.total_batch_size / median(lambda t: t.step),
        "flops_per_second": step_flops / median(lambda t: t.step),
        "product_flops_per_second": median(lambda t: t.product_rate),
        "bandwidth": median(lambda t: t.bandwidth),
        "fraction": median(lambda t: step_flops / t.step / t.product_rate),
        "forward_backward_fraction": median(lambda t: step_flops / t.forward_backward / t.product_rate),
        "forward_backward": median(lambda t: t.forward_backward / t.step),
        "optimizer": median(lambda t: t.optimizer / t.step),
        "rest": median(lambda t: t.rest / t.step),
    }


def print_results(config: Config, runtime: Runtime, num_params: int, results: dict[str, float]) -> None:
    """Print the speeds, and the parts of a step as shares of it."""
    print0(f"d{config.depth}, {num_params:,} parameters, {config.total_batch_size:,} tokens a step")
    print0(f"{runtime.device}, {torch.get_num_threads()} thread(s), {runtime.dtype_name}, compile {config.compile}")
    print0(f"training            {results['tokens_per_second']:12,.0f} tokens/s")
    print0(f"training            {results['flops_per_second'] / 1e9:12,.1f} GFLOP/s")
    product_speed = results["product_flops_per_second"] / 1e9
    print0(f"matrix products     {product_speed:12,.1f} GFLOP/s, {config.products} x {config.products}")
    print0(f"copies              {results['bandwidth'] / 1e9:12,.1f} GB/s read and written")
    print0(f"training / products {results['fraction']:12.1%}")
    if "mfu" in results:
        print0(f"MFU                 {results['mfu']:12.1%} of the data sheet's bf16 rate")
    print0(f"forward and backward only / products {results['forward_backward_fraction']:.1%}")
    shares = {name: results[name] for name in ("forward_backward", "optimizer", "rest")}
    print0("of a step: " + ", ".join(f"{name.replace('_', ' + ')} {share:.1%}" for name, share in shares.items()))
    print0(f"peak memory of a step {format_bytes(results['peak_memory'])}")
    if config.plain:
        speedup = results["tokens_per_second"] / results["plain_tokens_per_second"]
        memory = results["peak_memory"] / results["plain_peak_memory"]
        print0(f"plain twin          {results['plain_tokens_per_second']:12,.0f} tokens/s")
        print0(f"peak memory of its step {format_bytes(results['plain_peak_memory'])}")
        print0(f"trained / plain     {speedup:12.2f} in speed, {memory:.2f} in memory")


if __name__ == "__main__":
    cli(Config, main, __doc__)
