"""Training speed here, as a share of the speed of this machine's own matrix products in the same minute.

    python -m dev.bench_train                                             # the model of dev/runcpu.sh
    python -m dev.bench_train --compile=off --steps=10
    python -m dev.bench_train --depth=20 --head_dim=128 --vocab_size=65536 --max_seq_len=2048 --device_batch_size=32 \
        --total_batch_size=65536 --products=8192                          # one GPU of speedrun.sh
    NANOCHAT_DTYPE=float32 python -m dev.bench_train

Steps and square matrix products, in the dtype of the run, are measured in turn, so that other programs on the machine
slow both; medians are printed. A step is that of the training loop, with batches from the loader's thread. Its parts
are forward and backward, the optimizer, and the rest: waiting for a batch and reading the loss.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from nanochat.checkpoint_manager import build_model
from nanochat.common import print0
from nanochat.configurator import Settings, cli, setting
from nanochat.dataloader import MicroBatch, prefetch
from nanochat.gpt import GPTConfig
from nanochat.optim import Optimizer, build_optimizer
from nanochat.runtime import Runtime
from nanochat.train import Forward, Rates, step
from nanochat.training.batch_size import accumulation_steps
from nanochat.training.setup import compile_model

PRODUCTS_PER_STEP = 3
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
    """Seconds of one step, of two of its parts, and of one matrix product measured after it."""

    step: float
    forward_backward: float
    optimizer: float
    product: float

    @property
    def rest(self) -> float:
        """Seconds of the step outside of the two parts."""
        return self.step - self.forward_backward - self.optimizer


class TimedOptimizer:
    """An optimizer that records when its step began and ended, for `train.step`."""

    def __init__(self, optimizer: Optimizer, now: Callable[[], float]) -> None:
        self.optimizer = optimizer
        self.runtime = optimizer.runtime
        self.now = now
        self.start = 0.0
        self.end = 0.0

    def overlap_next_backward(self) -> None:
        """Announce the last backward pass of a step."""
        self.optimizer.overlap_next_backward()

    def step(self, lr_multiplier: float, momentum: float) -> Tensor:
        """Take the optimizer's step."""
        self.start = self.now()
        norm = self.optimizer.step(lr_multiplier, momentum)
        self.end = self.now()
        return norm

    def zero_grad(self) -> None:
        """Drop all gradients."""
        self.optimizer.zero_grad()


def device_clock(device: torch.device) -> Callable[[], float]:
    """Return a function that waits until the device has finished its work and returns the time in seconds."""

    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        elif device.type == "mps":
            torch.mps.synchronize()
        return time.perf_counter()

    return now


def random_batches(config: Config) -> Iterator[MicroBatch]:
    """Yield micro-batches of random tokens without end."""
    generator = torch.Generator().manual_seed(0)
    size = (config.device_batch_size, config.max_seq_len + 1)
    while True:
        rows = torch.randint(config.vocab_size, size, generator=generator)  # (B, T + 1)
        yield MicroBatch(rows[:, :-1].contiguous(), rows[:, 1:].contiguous(), progress=0.0, cursor={})


def product_seconds(matrix: Tensor, now: Callable[[], float]) -> float:
    """Return the seconds of a product of a square matrix with itself: the median of a few."""
    seconds = []
    for _ in range(PRODUCTS_PER_STEP):
        start = now()
        torch.mm(matrix, matrix)
        seconds.append(now() - start)
    return statistics.median(seconds)


def measure(model: Forward, optimizer: TimedOptimizer, batches: Iterator[MicroBatch], config: Config) -> list[Times]:
    """Measure steps and matrix products in turn, after a few steps to warm up."""
    runtime = optimizer.runtime
    now = optimizer.now
    matrix = torch.randn(config.products, config.products, device=runtime.device).to(runtime.compute_dtype)
    times = []
    for _ in range(WARM_UP_STEPS + config.steps):
        start = now()
        micro_batches = list(islice(batches, config.num_micro_steps()))
        wait = now() - start
        step(model, optimizer, micro_batches, Rates(lr_multiplier=0.1, momentum=0.95), lambda: 0)
        times.append(
            Times(
                step=now() - start,
                forward_backward=optimizer.start - start - wait,
                optimizer=optimizer.end - optimizer.start,
                product=product_seconds(matrix, now),
            )
        )
    return times[WARM_UP_STEPS:]


def main(config: Config) -> dict[str, float]:
    """Measure, print and return the speeds and shares."""
    runtime = Runtime.start(0, config.device)
    model = build_model(config.model_config(), runtime)
    optimizer = TimedOptimizer(build_optimizer(model, runtime), device_clock(runtime.device))
    forward = compile_model(model, config.compile, config.steps, config.device_batch_size, runtime)
    with closing(prefetch(random_batches(config), runtime.device)) as batches:
        times = measure(forward, optimizer, batches, config)

    def median(value: Callable[[Times], float]) -> float:
        return float(statistics.median(map(value, times)))

    step_flops = model.estimate_flops() * config.total_batch_size
    product_flops = 2 * config.products**3
    results = {
        "tokens_per_second": config.total_batch_size / median(lambda t: t.step),
        "flops_per_second": step_flops / median(lambda t: t.step),
        "product_flops_per_second": product_flops / median(lambda t: t.product),
        "fraction": median(lambda t: (step_flops / t.step) / (product_flops / t.product)),
        "forward_backward_fraction": median(lambda t: (step_flops / t.forward_backward) / (product_flops / t.product)),
        "forward_backward": median(lambda t: t.forward_backward / t.step),
        "optimizer": median(lambda t: t.optimizer / t.step),
        "rest": median(lambda t: t.rest / t.step),
    }
    print_results(config, runtime, model.num_params(), results)
    return results


def print_results(config: Config, runtime: Runtime, num_params: int, results: dict[str, float]) -> None:
    """Print the speeds, and the parts of a step as shares of it."""
    print0(f"d{config.depth}, {num_params:,} parameters, {config.total_batch_size:,} tokens a step")
    print0(f"{runtime.device}, {torch.get_num_threads()} thread(s), {runtime.dtype_name}, compile {config.compile}")
    print0(f"training            {results['tokens_per_second']:12,.0f} tokens/s")
    print0(f"training            {results['flops_per_second'] / 1e9:12,.1f} GFLOP/s")
    product_speed = results["product_flops_per_second"] / 1e9
    print0(f"matrix products     {product_speed:12,.1f} GFLOP/s, {config.products} x {config.products}")
    print0(f"training / products {results['fraction']:12.1%}")
    print0(f"forward and backward only / products {results['forward_backward_fraction']:.1%}")
    shares = {name: results[name] for name in ("forward_backward", "optimizer", "rest")}
    print0("of a step: " + ", ".join(f"{name.replace('_', ' + ')} {share:.1%}" for name, share in shares.items()))


if __name__ == "__main__":
    cli(Config, main, __doc__)
