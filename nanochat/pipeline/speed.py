"""Speed of training on this machine, measured in seconds: what a run is sized by.

python -m nanochat.pipeline.speed      # writes speed.json in the base folder
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import torch

from nanochat.checkpoint_manager import build_model
from nanochat.common import UserError, base_dir, check_writable, print0, write_json_atomic
from nanochat.configurator import Settings, cli, setting
from nanochat.gpt import GPTConfig
from nanochat.pipeline.sizing import CONTEXT, HEAD_DIM, flops_per_token
from nanochat.runtime import Runtime
from nanochat.system.json_files import check_type, read_json
from nanochat.system.speed import timed
from nanochat.train import warm_up

DEPTH, VOCAB_SIZE = 4, 2048  # of the model that is measured, about as large as those of a CPU
ROWS = {"cuda": 64}  # of a micro-batch; elsewhere 4
REPEATS = 3
USEFUL_SHARE = 0.85  # the rest of a step is the optimizer's


@dataclass(frozen=True)
class Config(Settings):
    device: str = setting("auto", "device to measure", choices=("auto", "cpu", "cuda", "mps"))


class Speed(TypedDict):
    """Content of speed.json."""

    device: str  # cpu, cuda or mps
    flops_per_second: float


def measure_speed(runtime: Runtime) -> float:
    """Return the FLOP/s of an uncompiled training step of a small model on the runtime's device."""
    shape = GPTConfig.from_depth(DEPTH, vocab_size=VOCAB_SIZE, sequence_len=CONTEXT, head_dim=HEAD_DIM)
    model = build_model(shape, runtime)
    rows = ROWS.get(runtime.device.type, 4)
    seconds = [
        timed(lambda: warm_up(model, model, rows, CONTEXT), torch.device(runtime.device)) for _ in range(REPEATS + 1)
    ]
    num_flops = flops_per_token(DEPTH, VOCAB_SIZE) * rows * CONTEXT
    return USEFUL_SHARE * num_flops / statistics.median(seconds[1:])  # the first one chooses its kernels


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
    speed: Speed = {"device": runtime.device.type, "flops_per_second": measure_speed(runtime)}
    write_json_atomic(speed_path(), speed)
    print0(f"Training computes {speed['flops_per_second'] / 1e9:,.0f} GFLOP/s on {runtime.device.type}")
    runtime.finish()
    return speed


if __name__ == "__main__":
    cli(Config, main, __doc__)
