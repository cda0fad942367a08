"""Early stopping: the best checkpoint of a run is kept, and the run ends once it no longer improves.

A model that reads little text many times learns it by heart: from some step on, the held-out loss rises while the
training loss still falls. With `--patience=N` each evaluation is of a checkpoint, the best one survives
`--keep_last`, and after N evaluations that are no better the run ends with the best one as the last of its checkpoints,
which all later stages take.

All of it is a function of the history that checkpoints hold, so a resumed run ends where an undisturbed one does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from nanochat.checkpoint_manager import list_checkpoints, prune, remove_checkpoint
from nanochat.common import UserError, print0

# Of an evaluation, and its unit: that of base_train, and that of mid_train and chat_sft.
METRICS = {"val_bpb": "bits per byte", "val_loss": "nats per trained token"}


def check_patience(patience: int, eval_every: int, save_every: int) -> None:
    """Raise `UserError` unless every evaluation of a run with patience is of a step that has a checkpoint."""
    if patience == -1:
        return
    if save_every == -1 or eval_every == -1:
        name, value = ("save_every", save_every) if save_every == -1 else ("eval_every", eval_every)
        raise UserError(f"patience is {patience}, but {name} is {value}: set both save_every and eval_every")
    if math.gcd(eval_every, save_every) != save_every:
        raise UserError(
            f"patience is {patience}, eval_every {eval_every} and save_every {save_every}: eval_every must be a "
            "multiple of save_every, so that each evaluated model has a checkpoint"
        )


def evaluations(history: Sequence[Mapping[str, float]]) -> list[tuple[float, int]]:
    """Return (held-out loss, step) of each evaluation in a run's history, in order. Its unit is in METRICS."""
    return [(row[metric], int(row["step"])) for row in history for metric in METRICS if metric in row]


def best_step(history: Sequence[Mapping[str, float]]) -> int | None:
    """Return the step with the lowest held-out loss, the earliest of equal ones; None before the first evaluation.

    >>> best_step([{"step": 10, "val_bpb": 2.0}, {"step": 20, "val_bpb": 1.5}, {"step": 30, "val_bpb": 1.75}])
    20
    """
    values = evaluations(history)
    return min(values)[1] if values else None


def is_exhausted(history: Sequence[Mapping[str, float]], patience: int) -> bool:
    """Return True if the last `patience` evaluations (-1: never) were no better than the best one before them."""
    values = evaluations(history)
    return patience != -1 and bool(values) and len(values) - 1 - values.index(min(values)) >= patience


def return_to_best(
    folder: Path, history: Sequence[Mapping[str, float]], first_serial: int, keep_last: int = -1
) -> int | None:
    """Remove the run's checkpoints that are newer than its best one, and return the step of the best.

    `first_serial`: of the run, as in `prune`. `keep_last`: checkpoints to keep, the best one included; -1 = all. The
    best is the best of those that are there: a save may have failed.
    Returns None, and removes nothing, if none of them was evaluated.
    """
    value_of = {step: value for value, step in evaluations(history)}
    run = [
        checkpoint
        for checkpoint in list_checkpoints(folder, skip_unreadable=True)
        if checkpoint.meta.get("first_serial", 0) == first_serial
    ]
    evaluated = [checkpoint for checkpoint in run if checkpoint.step in value_of]
    if not evaluated:
        return None
    best = min(evaluated, key=lambda checkpoint: (value_of[checkpoint.step], checkpoint.step))
    for checkpoint in reversed(run):  # the newest first: a run that is killed here resumes from what is left
        if checkpoint.serial > best.serial:
            remove_checkpoint(checkpoint.path)
    if keep_last != -1:  # the one that was the best until the last evaluation is still there
        prune(folder, keep_last, first_serial)
    unit = next(METRICS[metric] for row in history for metric in METRICS if metric in row)
    print0(f"The best checkpoint is that of step {best.step}, with {value_of[best.step]:.4f} {unit}")
    return best.step
