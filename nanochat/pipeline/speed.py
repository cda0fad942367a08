"""Speed of training on this machine, measured in seconds: what a run is sized by.

python -m nanochat.pipeline.speed      # writes speed.json in the base folder
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypedDict

import torch

from nanochat.checkpoint_manager import build_model
from nanochat.common import UserError, base_dir, check_writable, print0, write_json_atomic
from nanochat.configurator import Settings, cli, setting
from nanochat.gpt import GPT, GPTConfig
from nanochat.pipeline.sizing import CONTEXT, HEAD_DIM, flops_per_token
from nanochat.runtime import Runtime
from nanochat.system.json_files import check_type, read_json
from nanochat.system.speed import timed
from nanochat.train import warm_up

DEPTH, VOCAB_SIZE = 4, 2048  # of the model that is measured, about as large as those of a CPU
ROWS = {"cuda": 64}  # of a micro-batch; elsewhere 4
REPEATS = 3  # passes of a round
QUIET_SHARE = 0.7  # of the processors: a round that had less is repeated
MAX_SECONDS = 20.0  # of all rounds
USEFUL_SHARE = 0.85  # the rest of a step is the optimizer's


@dataclass(frozen=True)
class Config(Settings):
    device: str = setting("auto", "device to measure", choices=("auto", "cpu", "cuda", "mps"))


class Speed(TypedDict):
    """Content of speed.json."""

    device: str  # cpu, cuda or mps
    flops_per_second: float


class Round(NamedTuple):
    """A measurement: the speed of an uncompiled training step, and the share of the processors that it had."""

    flops_per_second: float
    share: float


def measure_speed(runtime: Runtime) -> Round:
    """Return the speed of a small model on the runtime's device: of the first quiet round, or of the fastest one.

    A program that takes the processors for a second would otherwise decide the size of the whole run.
    """
    shape = GPTConfig.from_depth(DEPTH, vocab_size=VOCAB_SIZE, sequence_len=CONTEXT, head_dim=HEAD_DIM)
    model = build_model(shape, runtime)
    end = time.monotonic() + MAX_SECONDS
    measure_round(model, 1)  # chooses its kernels
    rounds = [measure_round(model, REPEATS)]
    while rounds[-1].share < QUIET_SHARE and time.monotonic() < end:
        rounds.append(measure_round(model, REPEATS))
    return rounds[-1] if rounds[-1].share >= QUIET_SHARE else max(rounds)


def measure_round(model: GPT, num_passes: int) -> Round:
    """Return the median speed of a few passes, and the share of the processors that they had (1 on a GPU)."""
    device = torch.device(model.device)
    rows = ROWS.get(device.type, 4)
    start, processor_start = time.perf_counter(), time.process_time()
    seconds = [timed(lambda: warm_up(model, model, rows, CONTEXT), device) for _ in range(num_passes)]
    possible = (time.perf_counter() - start) * torch.get_num_threads()
    share = (time.process_time() - processor_start) / possible if device.type == "cpu" else 1.0
    num_flops = flops_per_token(DEPTH, VOCAB_SIZE) * rows * CONTEXT
    return Round(USEFUL_SHARE * num_flops / statistics.median(seconds), share)  # the rest of a step: the optimizer


def speed_path() -> Path:
    """Return the path of the measured speed: `$NANOCHAT_BASE_DIR/speed.json`."""
    return base_dir() / "speed.json"


def read_speed() -> Speed:
    """Return the speed that was measured. Raises `UserError` for a file that holds none."""
    content = read_json(speed_path())
    check_type(content, Speed, "")
    if not content["flops_per_second"] > 0:
        raise UserError(f"{speed_path()}: flops_per_second must be above 0; remove the file to measure again")
    result: Speed = content
    return result


def main(config: Config) -> Speed:
    """Measure the speed, write it, and return it."""
    check_writable(base_dir())
    runtime = Runtime.start(device=config.device)
    measured = measure_speed(runtime)
    speed: Speed = {"device": runtime.device.type, "flops_per_second": measured.flops_per_second}
    write_json_atomic(speed_path(), speed)
    print0(f"Training computes {measured.flops_per_second / 1e9:,.1f} GFLOP/s on {runtime.device.type}")
    if measured.share < QUIET_SHARE:
        print0(
            f"NOTICE: training had only {measured.share:.0%} of the processors' time, which other programs use or a "
            f"limit withholds, and the run is sized by that. For a larger model end them, remove {speed_path()}, and "
            "give the same command again"
        )
    runtime.finish()
    return speed


if __name__ == "__main__":
    cli(Config, main, __doc__)
