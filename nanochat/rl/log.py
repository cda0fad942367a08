"""Log of a reinforcement learning run."""

from __future__ import annotations

import math
from collections.abc import Mapping

from nanochat.common import print0
from nanochat.gpt import GPT
from nanochat.runtime import Runtime
from nanochat.train import LoopState
from nanochat.training.log import ProgressOutput


class RLLog:
    """Log of a run with rewards: called with the loop state and the metrics of a step or event, on all processes."""

    def __init__(
        self, runtime: Runtime, state: LoopState, num_steps: int, completions_per_step: int, model: GPT
    ) -> None:
        print0(f"{model.num_params():,} parameters, {num_steps} steps of {completions_per_step:,} completions")
        self.output = ProgressOutput(runtime, state, num_steps)
        self.num_steps = num_steps

    def __call__(self, state: LoopState, metrics: Mapping[str, float]) -> None:
        """Log the metrics of a step, which include a "reward", or of an event. Adds them to `state.history`.

        Metrics of events are not printed here: the events print their own lines.
        """
        if not metrics:
            return
        finite = {name: value for name, value in metrics.items() if math.isfinite(value)}  # all, unless it was skipped
        state.history.append({"step": state.step, **finite})
        self.output.send(state, metrics)
        if "reward" not in metrics:
            return
        summary = "  ".join(f"{name} {metrics[name]:.3f}" for name in ("reward", "signal", "tool", "ended"))
        summary += f"  length {metrics['length']:.0f}"
        details = (
            f"lr x{metrics['lr_multiplier']:.4f}  norm {metrics['grad_norm']:.3f}  "
            f"{metrics['step_seconds']:.1f} s ({metrics['rollout_seconds']:.1f} for rollouts)"
        )
        seconds_left = state.seconds / state.step * (self.num_steps - state.step)
        self.output.show_step(state, summary, details, seconds_left)

    def close(self) -> None:
        """Finish the output."""
        self.output.close()
