"""Speed of the loaders alone, and what a training loop on GPUs loses by waiting for them.

    python -m dev.bench_loader                                  # data and tokenizer of $NANOCHAT_BASE_DIR
    NANOCHAT_HUB_DIR=../shared/data/hub python -m dev.bench_loader --stages=mid,sft --kind=web
    python -m dev.bench_loader --demand=140000 --world_size=1   # one GPU

A run on N GPUs has N loaders, and each of them prepares the rows of all. So each must make as many tokens per second as
all GPUs train on: about 1.1 million for d20 on eight H100 (`demand`). Three things are measured for each stage:

- the loader alone, in tokens per second (padding included) on one core and on all, and per second of processor time;
- its parts, for the stages that train on conversations, in microseconds of processor time for a conversation;
- a simulated training loop that uses this loader. A step launches `kernels` small operations and then sleeps until a
  GPU that takes `demand` tokens per second would have run them. The share of its time that the loop waits for a batch,
  and how much longer its steps are than without a loader, which includes waiting for Python's lock. Conversations are
  rendered in a thread and in a process (`nanochat/data/batch_process.py`).

Where a task has fewer rows than the default mixture takes of it, its rows are repeated, so that the mixture has its
usual proportions.
"""

from __future__ import annotations

import itertools
import math
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch

from nanochat.common import UserError, print0
from nanochat.configurator import Settings, cli, setting
from nanochat.data import packing
from nanochat.data.batch_process import batches_in_process
from nanochat.data.shards import open_split
from nanochat.dataloader import MicroBatch, StreamCursor, TokenStream, prefetch, token_batches
from nanochat.runtime import Runtime
from nanochat.tokenization.render_batch import SpanTable
from nanochat.tokenizer import Tokenizer, get_tokenizer
from tasks.common import Task, TaskMixture
from tasks.mixture import MIXTURES, build_mixture, detect_data_kind

CPU = torch.device("cpu")
STAGES = ("base", "mid", "sft")
WARM_UP_STEPS = 3

T = TypeVar("T")


@dataclass(frozen=True)
class Config(Settings):
    stages: str = setting("base,mid,sft", "stages, separated by commas")
    kind: str = setting("auto", "mixture to use", choices=("auto", "web", "world"))
    world_size: int = setting(8, "GPUs, each with a loader", at_least=1)
    device_batch_size: int = setting(32, "rows of a micro-batch of one GPU", at_least=1)
    max_seq_len: int = setting(2048, "tokens of a row", at_least=1)
    demand: int = setting(1_100_000, "tokens per second that all GPUs train on", at_least=1)
    kernels: int = setting(1500, "operations that a step launches", at_least=1)
    seconds: float = setting(5.0, "seconds of each measurement")

    def __post_init__(self) -> None:
        super().__post_init__()
        for stage in self.stages.split(","):
            if stage not in STAGES:
                raise UserError(f"stages: {stage!r} is not known: choose from {', '.join(STAGES)}")

    @property
    def global_tokens(self) -> int:
        """Tokens of one micro-batch of all GPUs."""
        return self.world_size * self.device_batch_size * self.max_seq_len

    @property
    def step_seconds(self) -> float:
        """Seconds in which the GPUs train on one micro-batch."""
        return self.global_tokens / self.demand


# --- loaders ----------------------------------------------------------------------------------------------------------


def load_conversations(stage: str, kind: str) -> Task:
    """Return the default mixture of a stage in its usual proportions, from the rows that this machine has."""
    kind = detect_data_kind() if kind == "auto" else kind
    mixture = build_mixture(stage, kind, allow_missing=True)
    num_wanted = {entry.task: entry.rows for entry in MIXTURES[stage, kind]}
    tasks: list[Task] = []
    for task in mixture.train.tasks:
        wanted = num_wanted.get(task.name) or len(task)
        tasks += [task] * max(1, round(wanted / len(task)))
    return TaskMixture(tasks)


def open_loader(data: Task | None, tokenizer: Tokenizer, config: Config) -> Iterator[MicroBatch]:
    """Return the endless batches of rank 0, not prefetched. `data`: conversations, or None for pretraining."""
    runtime = Runtime(0, 0, config.world_size, CPU, torch.float32, 0)
    if data is None:
        stream = TokenStream(open_split("train"), tokenizer, StreamCursor())
        return token_batches(stream, runtime, config.device_batch_size, config.max_seq_len, total_tokens=1)
    rows = packing.packed_rows(data, tokenizer, config.max_seq_len, seed=0)
    return packing.packed_batches(rows, runtime, config.device_batch_size, num_rows=None)


# --- measurements -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Speed:
    """Tokens per second of the clock, and per second of processor time of all threads."""

    wall: float
    cpu: float


def measure_alone(batches: Iterator[MicroBatch], config: Config) -> Speed:
    """Measure a loader after its first batch."""
    next(batches)
    start = time.perf_counter()
    cpu_start = time.process_time()
    count = 0
    while not count or time.perf_counter() - start < config.seconds:
        next(batches)
        count += 1
    tokens = count * config.global_tokens
    return Speed(tokens / (time.perf_counter() - start), tokens / (time.process_time() - cpu_start))


def on_one_core(measure: Callable[[], T]) -> T | None:
    """Run a measurement on one core; return None on a system that cannot bind a thread to a core."""
    if not hasattr(os, "sched_setaffinity"):
        return None
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        return measure()
    finally:
        os.sched_setaffinity(0, cores)


def measure_parts(data: Task, tokenizer: Tokenizer, config: Config) -> dict[str, float]:
    """Return the microseconds of processor time for a conversation in each part of a loader, the least of three runs.

    "tokens" is the number of tokens of a conversation.
    """
    count = min(len(data), packing.CHUNK_SIZE)
    length = config.max_seq_len
    parts: dict[str, float] = {}

    @contextmanager
    def timed(name: str) -> Iterator[None]:
        start = time.process_time()
        yield
        parts[name] = min(parts.get(name, math.inf), (time.process_time() - start) / count * 1e6)

    for _ in range(3):
        with timed("read"):
            conversations = [data[index] for index in range(count)]
        with timed("turns"):
            table = SpanTable.from_conversations(conversations)
        with timed("encode"):
            encoded = tokenizer.encode_arrays(table.texts)
        with timed("assemble"):
            rendered = table.to_arrays(*encoded, tokenizer.special_tokens, length + 1)
        num_tokens = sum(len(ids) for ids, _ in rendered)
        with timed("pack"):
            rows = packing.pack_rows([pair for pair in rendered if len(pair[0])], length, np.random.default_rng(0))
        with timed("collate"):
            for row in rows:
                packing.collate_row(row, length, bos=0)
    return {**parts, "tokens": num_tokens / count}


@dataclass(frozen=True)
class Steps:
    """Mean seconds of a simulated step, and those of it spent waiting for a batch."""

    total: float
    wait: float


def simulate_training(batches: Iterator[MicroBatch], config: Config) -> Steps:
    """Measure the steps of a loop that launches operations, and waits until a GPU has run them."""
    matrix = torch.zeros(64, 64)
    result = torch.empty(64, 64)
    kernel_seconds = config.step_seconds / config.kernels
    totals: list[float] = []
    waits: list[float] = []
    while len(totals) < WARM_UP_STEPS + 2 or sum(totals[WARM_UP_STEPS:]) < config.seconds:
        start = time.perf_counter()
        next(batches)
        waits.append(time.perf_counter() - start)
        gpu_done = 0.0
        for _ in range(config.kernels):
            torch.mm(matrix, matrix, out=result)  # releases Python's lock, as a launch does
            gpu_done = max(gpu_done, time.perf_counter()) + kernel_seconds  # kernels run one after another
        time.sleep(max(0.0, gpu_done - time.perf_counter()))
        totals.append(time.perf_counter() - start)
    return Steps(statistics.mean(totals[WARM_UP_STEPS:]), statistics.mean(waits[WARM_UP_STEPS:]))


# --- output -----------------------------------------------------------------------------------------------------------


def main(config: Config) -> dict[str, dict[str, float]]:
    """Measure, print and return the figures of each stage."""
    tokenizer = get_tokenizer()
    zeros = torch.zeros(config.device_batch_size, config.max_seq_len, dtype=torch.int64)
    alone = simulate_training(itertools.repeat(MicroBatch(zeros, zeros, 0.0, {})), config)
    print0(
        f"rows of {config.max_seq_len:,} tokens, {config.device_batch_size} for each of {config.world_size} GPUs, "
        f"demand {config.demand:,} tokens/s"
    )
    print0(f"a simulated step of {config.kernels:,} operations without a loader: {alone.total * 1e3:.1f} ms")
    results = {}
    for stage in config.stages.split(","):
        data = None if stage == "base" else load_conversations(stage, config.kind)
        print0(f"\n{stage}" + (f": {len(data):,} conversations" if data else ""))
        results[stage] = measure_stage(data, tokenizer, config, alone)
    return results


def measure_stage(data: Task | None, tokenizer: Tokenizer, config: Config, without_loader: Steps) -> dict[str, float]:
    """Measure and print the figures of one stage."""

    def loader() -> Iterator[MicroBatch]:
        return open_loader(data, tokenizer, config)

    results: dict[str, float] = {}
    for name, speed in (
        ("one core", on_one_core(lambda: measure_alone(loader(), config))),
        ("all cores", measure_alone(loader(), config)),
    ):
        if speed:
            results[name] = speed.wall
            print0(f"  alone, {name:20}{speed.wall:14,.0f} tokens/s{speed.cpu:14,.0f} per second of processor time")
    if data is not None:
        parts = measure_parts(data, tokenizer, config)
        tokens = parts.pop("tokens")
        print0(f"  microseconds for a conversation of {tokens:.0f} tokens: " + format_parts(parts))
        results.update(parts)
    ways = {"thread": loader()}
    if data is not None and hasattr(os, "fork"):
        ways["process"] = batches_in_process(loader())
    for name, batches in ways.items():
        with closing(prefetch(batches, CPU)) as prefetched:
            steps = simulate_training(prefetched, config)
        wait = results[f"{name}, wait"] = steps.wait / steps.total
        loss = results[f"{name}, loss"] = steps.total / without_loader.total - 1
        print0(f"  {name:8} waiting {wait:.2%} of the time, steps {loss:+.2%} longer than without a loader")
    return results


def format_parts(parts: dict[str, float]) -> str:
    """Format times and their sum.

    >>> format_parts({"read": 30.2, "pack": 1.0})
    'read 30.2, pack 1.0, sum 31.2'
    """
    return ", ".join(f"{name} {value:.1f}" for name, value in {**parts, "sum": sum(parts.values())}.items())


if __name__ == "__main__":
    cli(Config, main, __doc__)
