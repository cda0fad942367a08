"""Log of a training run: a progress bar or lines of text, the history to plot, optionally Weights & Biases."""

from __future__ import annotations

import math
import re
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from tqdm import tqdm

from nanochat.common import UserError, print0
from nanochat.configurator import Settings
from nanochat.gpt import GPT
from nanochat.layers.attention import describe_kernels
from nanochat.reporting.markdown import format_duration
from nanochat.runtime import Runtime
from nanochat.train import LoopState

MAX_HISTORY_POINTS = 500  # of a curve; each point is the mean of the steps since the one before it
SECONDS_BETWEEN_LINES = 5.0
NO_RUN = "dummy"  # name of a run that is not sent to Weights & Biases

# Dense bf16 matrix products, FLOP/s, from the vendors' data sheets. The first key that occurs in the device's name
# is used, so more specific names come first.
PEAK_FLOPS = {
    "B200": 2250e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "A100": 312e12,
    "A10G": 70e12,
    "L40S": 362e12,
    "L4": 121e12,
    "RTX 4090": 165.2e12,
    "RTX 3090": 71e12,
}


def peak_flops(runtime: Runtime) -> float | None:
    """Return the peak bf16 FLOP/s of all devices of the run; None if the device is not in `PEAK_FLOPS`."""
    if runtime.device.type != "cuda":
        return None
    device_name = torch.cuda.get_device_name(runtime.device)
    for name, flops in PEAK_FLOPS.items():
        # Whole words only: an L40 is not an L4. The laptop and D variants of an RTX 4090 are slower.
        if re.search(rf"\b{name}\b(?! Laptop| D\b)", device_name):
            return flops * runtime.world_size
    return None


class ProgressOutput:
    """Display of a run's steps: a bar on a terminal, else lines of text; and Weights & Biases once it is started.

    All processes call its methods; only the main process prints and sends.
    """

    def __init__(self, runtime: Runtime, state: LoopState, num_steps: int) -> None:
        print0(f"{runtime.world_size} process(es) on {runtime.device.type}, computing in {runtime.dtype_name}")
        if runtime.device.type == "cuda":  # the other devices choose no kernel by use
            print0(f"Attention kernels: {describe_kernels(runtime.device, runtime.compute_dtype)}")
        self.num_steps = num_steps
        self.is_main = runtime.is_main
        self.last_line_time = float("-inf")
        self.wandb: Any = None
        self.bar: tqdm[Any] | None = None
        if runtime.is_main and sys.stderr.isatty():
            self.bar = tqdm(total=num_steps, initial=state.step, unit="step", dynamic_ncols=True)

    def start_wandb(self, run: str, config: Settings) -> None:
        """Send metrics to Weights & Biases from now on, unless `run` is "dummy". Raises `UserError` without wandb."""
        if run == NO_RUN or not self.is_main:
            return
        try:
            import wandb
        except ImportError as error:
            raise UserError(f"--run={run} needs wandb: pip install wandb, or leave the flag out") from error
        self.wandb = wandb.init(project="nanochat", name=run, config=asdict(config))

    def show_step(self, state: LoopState, summary: str, details: str, seconds_left: float) -> None:
        """Show a step: `summary` in the bar, or both texts in a line unless the last line is only seconds old."""
        if self.bar is not None:
            self.bar.set_postfix_str(summary, refresh=False)
            self.bar.update()
            return
        is_quiet = time.monotonic() - self.last_line_time <= SECONDS_BETWEEN_LINES
        if is_quiet and state.progress < 1 and not state.stopped:
            return
        self.last_line_time = time.monotonic()
        step = f"step {state.step:>{len(str(self.num_steps))}}/{self.num_steps}"
        print0(f"{step}  {summary}  {details}  {format_duration(seconds_left)} left")

    def send(self, state: LoopState, metrics: Mapping[str, float]) -> None:
        """Send metrics of the current step to Weights & Biases, if it was started."""
        if self.wandb is not None:
            self.wandb.log(dict(metrics), step=state.step)

    def close(self) -> None:
        """Finish the bar and the Weights & Biases run."""
        if self.bar is not None:
            self.bar.close()
        if self.wandb is not None:
            self.wandb.finish()


class TrainLog:
    """Log of a run with a loss: called with the loop state and the metrics of a step or event, on all processes."""

    def __init__(self, runtime: Runtime, state: LoopState, num_steps: int, tokens_per_step: int, model: GPT) -> None:
        print0(f"{model.num_params():,} parameters, {num_steps} steps of {tokens_per_step:,} tokens")
        self.output = ProgressOutput(runtime, state, num_steps)
        self.tokens_per_step = tokens_per_step
        self.flops_per_token = model.estimate_flops()
        self.peak_flops = peak_flops(runtime)
        self.steps_per_point = math.ceil(num_steps / MAX_HISTORY_POINTS)

    def __call__(self, state: LoopState, metrics: Mapping[str, float]) -> None:
        """Log the metrics of a step, which include a "loss", or of an event. Adds points to `state.history`."""
        if not metrics:
            return
        if "loss" in metrics:
            self._log_step(state, metrics)
        else:
            state.history.append({"step": state.step, **metrics})
            print0(f"step {state.step}: " + ", ".join(f"{name} {value:.4f}" for name, value in metrics.items()))
            self.output.send(state, metrics)

    def _log_step(self, state: LoopState, metrics: Mapping[str, float]) -> None:
        tokens_per_second = self.tokens_per_step / metrics["step_seconds"]
        all_metrics = {**metrics, "tokens_per_second": tokens_per_second}
        summary = f"loss {metrics['loss']:.4f}  {tokens_per_second:,.0f} tok/s"
        if self.peak_flops:
            mfu = tokens_per_second * self.flops_per_token / self.peak_flops
            all_metrics["mfu"] = mfu
            summary += f"  MFU {mfu:.1%}"

        if not state.skipped_in_a_row:
            state.recent.append(metrics["loss"])
        if state.recent and (state.step % self.steps_per_point == 0 or state.progress >= 1):
            point = {
                "step": state.step,
                "loss": sum(state.recent) / len(state.recent),
                "lr_multiplier": metrics["lr_multiplier"],
                "tokens_per_second": tokens_per_second,
            }
            state.history.append(point)
            state.recent.clear()

        details = f"lr x{metrics['lr_multiplier']:.2f}  norm {metrics['grad_norm']:.3f}"
        seconds_left = state.seconds / max(state.progress, 1e-9) * (1 - state.progress)
        self.output.show_step(state, summary, details, seconds_left)
        self.output.send(state, all_metrics)

    def close(self) -> None:
        """Finish the output."""
        self.output.close()
