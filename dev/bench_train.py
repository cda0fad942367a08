"""How fast a model trains here, beside what this machine's own matrix products reach in the same minute.

    python -m dev.bench_train                                             # the demonstration's model
    python -m dev.bench_train --compile=off --steps=10
    python -m dev.bench_train --depth=20 --head_dim=128 --vocab_size=65536 --max_seq_len=2048 --device_batch_size=32 \
        --total_batch_size=65536 --products=8192                          # one GPU of the large run
    NANOCHAT_DTYPE=float32 python -m dev.bench_train

Steps and square matrix products in the dtype that the run computes in are measured in turn, so that a machine that
others use too slows both; medians are printed. A step is the training loop's own, with batches from the loader's
thread. Its parts: forward and backward, the optimizer, and the rest (waiting for a batch, reading the loss).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
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

PRODUCTS_AT_A_TIME = 3
WARM_UP_STEPS = 2


@dataclass(frozen=True)
class Config(Settings):
    device: str = setting("auto", "where to measure", choices=("auto", "cpu", "cuda", "mps"))
    depth: int = setting(4, "layers of the model")
    head_dim: int = setting(64, "size of an attention head")
    vocab_size: int = setting(2048, "tokens of the vocabulary")
    max_seq_len: int = setting(256, "tokens of context")
    device_batch_size: int = setting(32, "rows of a micro-batch", at_least=1)
    total_batch_size: int = setting(8192, "tokens of an optimizer step")
    compile: str = setting("on", "compile the model", choices=("on", "off"))
    steps: int = setting(20, "steps to measure", at_least=1)
    products: int = setting(2048, "rows and columns of the matrices that are multiplied", at_least=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.shape()
        accumulation_steps(self.total_batch_size, self.device_batch_size, self.max_seq_len, 1)

    def shape(self) -> GPTConfig:
        """The shape of the model."""
        return GPTConfig.from_depth(
            self.depth, vocab_size=self.vocab_size, sequence_len=self.max_seq_len, head_dim=self.head_dim
        )


@dataclass(frozen=True)
class Times:
    """Seconds of one step and its parts, and of one matrix product measured after it."""

    step: float
    forward_backward: float
    optimizer: float
    product: float


class Clock:
    """Reads the time when the device has done all it was given."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def now(self) -> float:
        """Seconds."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.device.type == "mps":
            torch.mps.synchronize()
        return time.perf_counter()


class TimedOptimizer(Optimizer):
    """An optimizer that notes when its step began and ended."""

    def __init__(self, inner: Optimizer, clock: Clock) -> None:
        super().__init__(inner.buckets, inner.settings, inner.runtime)
        self.clock, self.began, self.ended = clock, 0.0, 0.0

    def step(self, lr_multiplier: float = 1.0, momentum: float = 0.95) -> Tensor:
        """As the optimizer's own."""
        self.began = self.clock.now()
        norm = super().step(lr_multiplier, momentum)
        self.ended = self.clock.now()
        return norm


def random_batches(config: Config) -> Iterator[MicroBatch]:
    """Micro-batches of random tokens, for ever."""
    generator = torch.Generator().manual_seed(0)
    while True:
        size = (config.device_batch_size, config.max_seq_len + 1)
        rows = torch.randint(config.vocab_size, size, generator=generator)  # (B, T + 1)
        yield MicroBatch(rows[:, :-1].contiguous(), rows[:, 1:].contiguous(), 0.0, {})


def product_seconds(matrix: Tensor, clock: Clock) -> float:
    """Seconds of a product of this square matrix with itself: the median of a few."""
    seconds = []
    for _ in range(PRODUCTS_AT_A_TIME):
        start = clock.now()
        torch.mm(matrix, matrix)
        seconds.append(clock.now() - start)
    return statistics.median(seconds)


def measure(model: Forward, optimizer: TimedOptimizer, batches: Iterator[MicroBatch], config: Config) -> list[Times]:
    """Steps and products in turn."""
    runtime, clock = optimizer.runtime, optimizer.clock
    matrix = torch.randn(config.products, config.products, device=runtime.device).to(runtime.compute_dtype)
    micro_steps = config.total_batch_size // (config.device_batch_size * config.max_seq_len)
    found = []
    for _ in range(WARM_UP_STEPS + config.steps):
        start = clock.now()
        upcoming = list(islice(batches, micro_steps))
        waited = clock.now() - start
        step(model, optimizer, upcoming, Rates(lr_multiplier=0.1, momentum=0.95), lambda: 0)
        whole = clock.now() - start
        times = Times(
            step=whole,
            forward_backward=optimizer.began - start - waited,
            optimizer=optimizer.ended - optimizer.began,
            product=product_seconds(matrix, clock),
        )
        found.append(times)
    return found[WARM_UP_STEPS:]


def main(config: Config) -> dict[str, float]:
    """Measure, print, and return what was printed."""
    runtime = Runtime.start(0, config.device)
    model = build_model(config.shape(), runtime)
    optimizer = TimedOptimizer(build_optimizer(model, runtime), Clock(runtime.device))
    forward = compile_model(model, config.compile, config.steps, config.device_batch_size, runtime)
    with closing(prefetch(random_batches(config), runtime.device)) as batches:
        times = measure(forward, optimizer, batches, config)

    def median(name: str) -> float:
        return float(statistics.median(getattr(each, name) for each in times))

    flops = model.estimate_flops() * config.total_batch_size
    product_flops = 2 * config.products**3
    shares = {
        "forward_backward": statistics.median(each.forward_backward / each.step for each in times),
        "optimizer": statistics.median(each.optimizer / each.step for each in times),
        "rest": statistics.median((each.step - each.forward_backward - each.optimizer) / each.step for each in times),
    }
    found = {
        "tokens_per_second": config.total_batch_size / median("step"),
        "flops_per_second": flops / median("step"),
        "product_flops_per_second": product_flops / median("product"),
        "fraction": statistics.median((flops / each.step) / (product_flops / each.product) for each in times),
        "forward_backward_fraction": statistics.median(
            (flops / each.forward_backward) / (product_flops / each.product) for each in times
        ),
        **shares,
    }
    tell(config, runtime, model.num_params(), found)
    return found


def tell(config: Config, runtime: Runtime, num_params: int, found: dict[str, float]) -> None:
    """Print what was found."""
    print0(f"d{config.depth}, {num_params:,} parameters, {config.total_batch_size:,} tokens a step")
    print0(f"{runtime.device}, {torch.get_num_threads()} thread(s), {runtime.dtype_name}, compile {config.compile}")
    print0(f"training            {found['tokens_per_second']:12,.0f} tokens/s")
    print0(f"training            {found['flops_per_second'] / 1e9:12,.1f} GFLOP/s")
    print0(f"matrix products     {found['product_flops_per_second'] / 1e9:12,.1f} GFLOP/s, {config.products} squared")
    print0(f"training / products {found['fraction']:12.1%}")
    print0(f"the same without optimizer and rest {found['forward_backward_fraction']:.1%}")
    parts = {name: found[name] for name in ("forward_backward", "optimizer", "rest")}
    print0("of a step: " + ", ".join(f"{name.replace('_', ' + ')} {share:.1%}" for name, share in parts.items()))


if __name__ == "__main__":
    cli(Config, main, __doc__)
