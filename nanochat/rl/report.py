"""Report section of a reinforcement learning run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nanochat.configurator import Settings
from nanochat.reporting.schema import log_section, proportion
from nanochat.runtime import Runtime
from nanochat.train import LoopState
from nanochat.training.report import curves, notes_on_steps

CURVES = {  # metric -> name and unit of its curve
    "signal": ("groups with better and worse answers", "share of groups"),
    "tool": ("answers in which the tool was used", "share of answers"),
    "ended": ("answers that ended", "share of answers"),
    "length": ("answers", "tokens"),
    "entropy": ("surprise at its own tokens", "nats per token"),
}


def report_rl(settings: Settings, runtime: Runtime, state: LoopState, num_held_out: Mapping[str, int]) -> None:
    """Write chat_rl's section of the report. `num_held_out`: label of each task -> number of evaluated examples."""
    evaluations = [row for row in state.history if any(f"{label} pass@1" in row for label in num_held_out)]
    first, last = evaluations[0], evaluations[-1]
    metrics: dict[str, Any] = {"steps": state.step, "seconds per step": state.seconds / state.step}
    notes = notes_on_steps(state)
    for label, num_examples in num_held_out.items():
        for name in [name for name in last if name.startswith(f"{label} pass@")]:
            # The interval of one sample per example: at least as wide as that of several.
            metrics[name] = proportion(round(last[name] * num_examples), num_examples) | {"value": last[name]}
        metrics[f"{label}, answers that use the tool"] = last[f"{label} tool"]
        if first["step"] != last["step"]:
            values = (f"{row[f'{label} pass@1']:.3f} after step {row['step']}" for row in (first, last))
            notes.append(f"{label}: pass@1 {', '.join(values)}.")

    labels = {f"{label} reward": (label, "mean reward") for label in num_held_out}
    labels |= {f"{label} pass@1": (f"{label}, held out", "pass@1") for label in num_held_out}
    log_section(
        "chat_rl",
        {
            "title": "Reinforcement learning",
            "model": "rl",
            "notes": notes,
            "settings": settings,
            "environment": runtime.report_fields,
            "metrics": metrics,
            "headline": [],  # the accuracies at the top of the report are chat_eval's
            "curves": curves(state.history, labels | CURVES),
            "seconds": state.seconds,
        },
    )
