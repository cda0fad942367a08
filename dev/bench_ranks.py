"""Speed of several processes on a CPU, compared with one process on one core in the same minutes.

    python -m dev.bench_ranks                      # two processes, one core each; the model of dev/bench_train.py
    python -m dev.bench_ranks --ranks=4 --depth=8 --max_seq_len=512 --rounds=9
    NANOCHAT_DTYPE=float32 python -m dev.bench_ranks --compile=off

Four ways to take the same optimizer steps are measured in turn, so that other programs on the machine slow all of them:

    one core     one process on one core
    ranks        `--ranks` processes on one core each, joined by gloo, which reduce gradients during the backward pass
    no overlap   the same, but all reductions start after the backward pass
    threads      one process on as many cores, one thread each

The table has the tokens per second of each, and its median speed relative to `one core` of the same round.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import Any

import torch

from nanochat.checkpoint_manager import build_model
from nanochat.common import UserError
from nanochat.configurator import Settings, cli, setting
from nanochat.dataloader import MicroBatch
from nanochat.gpt import GPTConfig
from nanochat.optim import build_optimizer
from nanochat.runtime import Runtime
from nanochat.train import Rates, step
from nanochat.training.batch_size import accumulation_steps
from nanochat.training.setup import MIN_COMPILED_STEPS, compile_model

TIMEOUT = 600.0  # seconds for a round of one way, compilation included


@dataclass(frozen=True)
class Config(Settings):
    ranks: int = setting(2, "processes, and cores that are used", at_least=2)
    rounds: int = setting(7, "times that each way is measured", at_least=1)
    steps: int = setting(3, "optimizer steps of a measurement", at_least=1)
    depth: int = setting(4, "layers of the model")
    head_dim: int = setting(64, "size of an attention head")
    vocab_size: int = setting(2048, "tokens of the vocabulary")
    max_seq_len: int = setting(256, "tokens of context")
    device_batch_size: int = setting(16, "rows of a micro-batch")
    total_batch_size: int = setting(8192, "tokens of an optimizer step, over all processes")
    compile: str = setting("on", "compile the model", choices=("on", "off"))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ranks > len(usable_cores()):
            raise UserError(f"ranks is {self.ranks}, but only {len(usable_cores())} cores can be used")
        for world_size in (1, self.ranks):
            accumulation_steps(self.total_batch_size, self.device_batch_size, self.max_seq_len, world_size)


@dataclass(frozen=True)
class Way:
    """One way to take a step."""

    world_size: int
    cores: int  # of each process
    overlaps: bool = True


def ways(ranks: int) -> dict[str, Way]:
    """Return the ways by name; the others are compared with the first."""
    several = Way(world_size=ranks, cores=1)
    return {
        "one core": Way(world_size=1, cores=1),
        "ranks": several,
        "no overlap": replace(several, overlaps=False),
        "threads": Way(world_size=1, cores=ranks),
    }


def usable_cores() -> list[int]:
    """Return the numbers of the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def work(config: Config, way: Way, environment: Mapping[str, str], orders: Connection) -> None:
    """Run in a process of its own: for each order, take the steps of a measurement and answer with the seconds."""
    os.environ.update(environment)
    rank = int(environment["RANK"])
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, usable_cores()[rank * way.cores : (rank + 1) * way.cores])
    torch.set_num_threads(way.cores)
    runtime = Runtime.start(device="cpu")
    torch.set_num_threads(way.cores)
    shape = GPTConfig.from_depth(
        config.depth, vocab_size=config.vocab_size, sequence_len=config.max_seq_len, head_dim=config.head_dim
    )
    model = build_model(shape, runtime)
    optimizer = build_optimizer(model, runtime)
    if not way.overlaps:
        optimizer.overlap_next_backward = lambda: None  # type: ignore[method-assign]
    rows = config.device_batch_size
    forward = compile_model(model, config.compile, MIN_COMPILED_STEPS, rows, runtime)
    generator = torch.Generator().manual_seed(rank)
    tokens = torch.randint(config.vocab_size, (rows, config.max_seq_len + 1), generator=generator)
    count = accumulation_steps(config.total_batch_size, rows, config.max_seq_len, way.world_size)
    batches = [MicroBatch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous(), 0.0, {})] * count
    while orders.recv():
        runtime.barrier()
        start = time.perf_counter()
        for _ in range(config.steps):
            step(forward, optimizer, batches, Rates(1.0, 0.9), lambda: 0)
        orders.send(time.perf_counter() - start)
    runtime.finish()


@contextmanager
def started(config: Config, way: Way) -> Iterator[Callable[[], float]]:
    """Context manager that starts the processes of a way. The function takes a measurement: seconds of the slowest."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")  # its processes need not import torch again
    processes, connections = [], []
    for rank in range(way.world_size):
        variables: dict[str, Any] = {
            "RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": way.world_size, "LOCAL_WORLD_SIZE": way.world_size,
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": way.cores,
        }  # fmt: skip
        ours, theirs = context.Pipe()
        environment = {name: str(value) for name, value in variables.items()}
        process = context.Process(target=work, args=(config, way, environment, theirs), daemon=True)
        process.start()
        theirs.close()
        processes.append(process)
        connections.append(ours)

    def measure() -> float:
        for connection in connections:
            connection.send(True)
        seconds: list[float] = []
        for connection in connections:
            if not connection.poll(TIMEOUT):
                raise UserError(f"a process took longer than {TIMEOUT:.0f} seconds")
            seconds.append(connection.recv())
        return max(seconds)

    try:
        yield measure
        for connection in connections:
            connection.send(False)
        for process in processes:
            process.join(TIMEOUT)
    finally:
        for process in processes:
            process.kill()


def main(config: Config) -> dict[str, dict[str, float]]:
    """Measure, print the table, and return tokens per second and relative speed of each way."""
    seconds: dict[str, list[float]] = {}
    with multiway(config) as measures:
        for number in range(config.rounds + 1):
            for name, measure in measures.items():
                taken = measure()
                if number:  # the first round warms up
                    seconds.setdefault(name, []).append(taken)
    results = {}
    num_tokens = config.steps * config.total_batch_size
    first = seconds["one core"]
    print(f"{'':12} {'tokens/s':>10} {'x one core':>11}   lowest to highest of {config.rounds} rounds")
    for name, times in seconds.items():
        ratios = sorted(one / taken for one, taken in zip(first, times, strict=True))
        results[name] = {"tokens_per_second": num_tokens / statistics.median(times), "ratio": statistics.median(ratios)}
        speed, ratio = results[name].values()
        print(f"{name:12} {speed:10,.0f} {ratio:11.2f}   {ratios[0]:.2f} to {ratios[-1]:.2f}")
    return results


@contextmanager
def multiway(config: Config) -> Iterator[dict[str, Callable[[], float]]]:
    """Context manager with a function for each way that takes a measurement. Their processes wait for it idly."""
    with ExitStack() as stack:
        yield {name: stack.enter_context(started(config, way)) for name, way in ways(config.ranks).items()}


if __name__ == "__main__":
    cli(Config, main, __doc__)
