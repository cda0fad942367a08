"""Report section of a pretraining run, and the curves of any training run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from nanochat.common import print0
from nanochat.configurator import Settings
from nanochat.gpt import GPT
from nanochat.report import log_section
from nanochat.runtime import Runtime
from nanochat.train import LoopState

MANY_EPOCHS = 8  # beyond about four passes, repeated text improves a model less than new text (arXiv 2305.16264)

CURVES = {  # metric -> name and unit of its curve
    "loss": ("training loss", "nats per token"),
    "val_loss": ("held-out loss", "nats per token"),
    "val_bpb": ("validation", "bits per byte"),
    "lr_multiplier": ("learning rate", "share of the peak"),
    "tokens_per_second": ("speed", "tokens per second"),
}


def curves(history: Sequence[Mapping[str, float]], labels: Mapping[str, tuple[str, str]]) -> dict[str, dict[str, Any]]:
    """Return name -> curve of a run's history by step, in the report's format; metrics without points are left out.

    `labels`: metric -> name and unit of its curve.

    >>> curves([{"step": 1, "loss": 3.0}, {"step": 2, "val_bpb": 1.5}], CURVES)["training loss"]
    {'x': [1], 'y': [3.0], 'xlabel': 'step', 'ylabel': 'nats per token'}
    """
    result: dict[str, dict[str, Any]] = {}
    for metric, (name, unit) in labels.items():
        rows = [row for row in history if metric in row]
        if rows:
            steps = [row["step"] for row in rows]
            values = [row[metric] for row in rows]
            result[name] = {"x": steps, "y": values, "xlabel": "step", "ylabel": unit}
    return result


def notes_on_steps(state: LoopState) -> list[str]:
    """Return the note on steps that were skipped, if there are any."""
    skipped = f"{state.skipped:,} of {state.step:,} steps were skipped: their loss or gradient was not finite."
    return [skipped] if state.skipped else []


def note_on_best(state: LoopState, kept_step: int) -> str:
    """Return the note on the checkpoint that a run with patience ends with."""
    num_epochs = (state.cursor or {}).get("epoch", 0)
    return (
        f"The run took {state.step:,} steps, {num_epochs + 1} passes over its data at most. The checkpoint that it "
        f"ends with is the best on held-out data: that of step {kept_step:,}."
    )


def report_pretraining(
    settings: Settings, model: GPT, runtime: Runtime, state: LoopState, kept_step: int | None = None
) -> None:
    """Write base_train's section of the report.

    `settings`: the script's config. `kept_step`: of a run with patience, the step of the checkpoint that it ends with;
    bits per byte and training loss are those of this step.
    """
    last_step = kept_step or math.inf
    latest = {name: value for row in state.history if row["step"] <= last_step for name, value in row.items()}
    notes = notes_on_steps(state)
    num_tokens = (state.cursor or {})["tokens"]
    num_epochs = (state.cursor or {}).get("epoch", 0)
    if kept_step:
        notes.append(note_on_best(state, kept_step))
    elif num_epochs >= MANY_EPOCHS:
        notes.append(
            f"The run read its training text {num_epochs} times. A model memorizes text that is repeated so often; the "
            "validation curve shows from which step on. More text or fewer steps would give a better model."
        )
        print0(notes[-1])
    log_section(
        "base_train",
        {
            "title": "Pretraining",
            "notes": notes,
            "settings": settings,
            "environment": runtime.report_fields,
            "metrics": {
                "parameters": model.num_params(),
                "training tokens": num_tokens,
                "training FLOPs": num_tokens * model.estimate_flops(),
                "validation bits per byte": latest.get("val_bpb"),
                "training loss (nats per token)": latest.get("loss"),
                "tokens per second": num_tokens / state.seconds,
            },
            "headline": ["validation bits per byte"],
            "curves": curves(state.history, CURVES),
            "seconds": state.seconds,
        },
    )
