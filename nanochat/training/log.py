"""What a training run tells: a progress bar on a terminal or plain lines in a log, wandb if asked, and the curves."""

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
from nanochat.gpt import GPT
from nanochat.reporting.markdown import format_duration
from nanochat.runtime import Runtime
from nanochat.train import LoopState, Metrics

HISTORY_POINTS = 500  # of each curve at most: a point is the mean of the steps since the last
SECONDS_BETWEEN_LINES = 5.0
NO_RUN = "dummy"  # the name of a run that wandb does not hear of

# Dense bf16 matrix products, FLOP/s, from the makers' data sheets; the first name that is in the device's own, as words
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
    """Peak bf16 FLOP/s of all devices of the run; None where the device is not known."""
    if runtime.device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(runtime.device)
    whole = r"\b{}\b(?! Laptop| D\b)"  # an L40 is no L4, and an RTX 4090 Laptop GPU no RTX 4090
    found = (peak for key, peak in PEAK_FLOPS.items() if re.search(whole.format(key), name))
    return next((peak * runtime.world_size for peak in found), None)


class TrainLog:
    """Call it with the state and the metrics of a step or an event, in every process alike."""

    unit = "tokens"  # what a step is told to consist of

    def __init__(self, runtime: Runtime, state: LoopState, num_steps: int, tokens_per_step: int, model: GPT) -> None:
        self.num_steps, self.tokens_per_step, self.flops_per_token = num_steps, tokens_per_step, model.estimate_flops()
        self.speaks = runtime.is_main
        print0(f"{model.num_params():,} parameters, {num_steps} steps of {tokens_per_step:,} {self.unit}")
        print0(f"{runtime.world_size} process(es) on {runtime.device.type}, computing in {runtime.dtype_name}")
        self.peak = peak_flops(runtime)
        self.every = math.ceil(num_steps / HISTORY_POINTS)
        self.last_line = float("-inf")
        self.wandb: Any = None
        on_terminal = self.speaks and sys.stderr.isatty()
        self.bar = tqdm(total=num_steps, initial=state.step, unit="step", dynamic_ncols=True) if on_terminal else None

    def start_wandb(self, run: str, config: Any) -> None:
        """Send the metrics to Weights & Biases too, unless the run has no name. UserError if wandb is not installed."""
        if run == NO_RUN or not self.speaks:
            return
        try:
            import wandb
        except ImportError as error:
            raise UserError(f"--run={run} needs wandb: pip install wandb, or leave the flag out") from error
        self.wandb = wandb.init(project="nanochat", name=run, config=asdict(config))

    def __call__(self, state: LoopState, metrics: Mapping[str, float]) -> None:
        """Tell of a step (its metrics have a "loss") or of an event (whatever it returns).

        Every process keeps the history, which is the same in all; the main one speaks.
        """
        if not metrics:
            return
        if "loss" in metrics:
            self._step(state, metrics)
        else:
            state.history.append({"step": state.step, **metrics})
            print0(f"step {state.step}: " + ", ".join(f"{name} {value:.4f}" for name, value in metrics.items()))
            self._send(state, metrics)

    def _step(self, state: LoopState, metrics: Mapping[str, float]) -> None:
        rate = self.tokens_per_step / metrics["step_seconds"]
        told = {**metrics, "tokens_per_second": rate}
        if self.peak:
            told["mfu"] = rate * self.flops_per_token / self.peak
        state.recent.append(metrics["loss"])
        if state.step % self.every == 0 or state.progress >= 1:
            mean = sum(state.recent) / len(state.recent)
            lr_scale = metrics["lr_scale"]
            state.history.append({"step": state.step, "loss": mean, "lr_scale": lr_scale, "tokens_per_second": rate})
            state.recent.clear()
        left = state.seconds / max(state.progress, 1e-9) * (1 - state.progress)
        shown = f"loss {metrics['loss']:.4f}  {rate:,.0f} tok/s" + (f"  MFU {told['mfu']:.1%}" if self.peak else "")
        if self.bar is not None:
            self.bar.set_postfix_str(shown, refresh=False)
            self.bar.update()
        elif state.progress >= 1 or state.stopped or time.monotonic() - self.last_line > SECONDS_BETWEEN_LINES:
            self.last_line = time.monotonic()
            print0(
                f"step {state.step:>{len(str(self.num_steps))}}/{self.num_steps}  {shown}  "
                f"lr x{metrics['lr_scale']:.2f}  norm {metrics['grad_norm']:.3f}  {format_duration(left)} left"
            )
        self._send(state, told)

    def _send(self, state: LoopState, metrics: Mapping[str, float]) -> None:
        if self.wandb is not None:
            self.wandb.log(dict(metrics), step=state.step)

    def close(self) -> None:
        """Finish the bar and the wandb run."""
        if self.bar is not None:
            self.bar.close()
        if self.wandb is not None:
            self.wandb.finish()


def curves(history: list[Metrics]) -> dict[str, dict[str, Any]]:
    """The history as the report draws it: one curve for each metric, by step."""
    labels = {
        "loss": ("training loss", "nats per token"),
        "val_loss": ("held-out loss", "nats per token"),
        "val_bpb": ("validation", "bits per byte"),
        "lr_scale": ("learning rate", "share of the peak"),
        "tokens_per_second": ("speed", "tokens per second"),
    }
    found: dict[str, dict[str, Any]] = {}
    for key, (name, unit) in labels.items():
        rows = [row for row in history if key in row]
        if rows:
            xs, ys = [row["step"] for row in rows], [row[key] for row in rows]
            found[name] = {"x": xs, "y": ys, "xlabel": "step", "ylabel": unit}
    return found
