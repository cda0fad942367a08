"""Score a base model on CORE's tasks, which ask without a conversation: accuracy with its interval, beside guessing.

    torchrun --standalone --nproc_per_node=8 -m scripts.base_eval                 # eight GPUs
    python -m scripts.base_eval --eval_bundle=eval_bundle.zip                     # one GPU
    python -m scripts.base_eval --max-per-task=16                                 # a laptop: a first impression

The bundle of tasks is looked for in the base folder, as `eval_bundle/` or `eval_bundle.zip`. The table goes to
`base_eval/TAG_STEP.csv` there.
"""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from nanochat.checkpoint_manager import list_tags, load_model
from nanochat.common import UserError, base_dir, print0, write_text_atomic
from nanochat.configurator import cli, setting
from nanochat.core_eval import BATCH_TOKENS, ModelScorer, TaskResult, core, core_name, evaluate_task
from nanochat.eval_bundle import Bundle, find_bundle, read_bundle
from nanochat.markdown import duration
from nanochat.report import log_section
from nanochat.runtime import Runtime


@dataclass(frozen=True)
class Config:
    eval_bundle: str | None = setting(None, "folder or zip file of the tasks; default: eval_bundle in the base folder")
    max_per_task: int = setting(-1, "examples of each task, always the same random choice; -1 = all", short="x")
    model_tag: str | None = setting(None, "checkpoint folder to score; default: that of the deepest model", short="g")
    step: int = setting(-1, "checkpoint to score; -1 = the last", short="s")
    device: str = setting("auto", "where to run", choices=("auto", "cpu", "cuda", "mps"))
    batch_tokens: int = setting(BATCH_TOKENS, "positions in a forward pass on one device", short="b")
    seed: int = setting(42, "of the choice of solved examples in a prompt")

    def __post_init__(self) -> None:
        if self.batch_tokens < 1:
            raise UserError(f"batch_tokens is {self.batch_tokens}: it must be at least 1")
        if self.max_per_task < 1 and self.max_per_task != -1:
            raise UserError(f"max_per_task is {self.max_per_task}: it must be at least 1, or -1 for all")


def open_bundle(config: Config) -> Bundle:
    """The bundle that was asked for, or that of the base folder."""
    path = find_bundle(config.eval_bundle)
    if path is None:
        place = config.eval_bundle or base_dir() / "eval_bundle"
        raise UserError(
            f"no evaluation bundle at {place}: put it there, as a folder or a zip file with core.yaml, "
            "eval_meta_data.csv and eval_data, or say with --eval_bundle where it is"
        )
    return read_bundle(path)


def line(result: TaskResult) -> str:
    """A row of the table at the terminal."""
    low, high = result.metric["interval"]
    return (
        f"{result.label:34} {result.accuracy:6.1%} [{low:6.1%}, {high:6.1%}] {result.num:7,} {result.guess:9.1%} "
        f"{result.baseline:9.1%} {result.centre(result.accuracy):8.3f} {duration(result.seconds):>9}"
    )


def as_csv(results: Sequence[TaskResult], name: str, found: dict[str, Any], floor: float) -> str:
    """The table as a file."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = ("accuracy", "low_95", "high_95", "n", "guessing", "baseline", "centred", "cut")
    writer.writerow(["task", *names])
    for result in results:
        centred = result.centre(result.accuracy)
        numbers = (result.accuracy, *result.metric["interval"], result.num, result.guess, result.baseline, centred)
        writer.writerow([result.label, *(f"{number:.6g}" for number in numbers), result.num_cut])
    low, high = found["interval"]
    writer.writerow([name, "", f"{low:.6g}", f"{high:.6g}", found["n"], "", "", f"{found['value']:.6g}", ""])
    writer.writerow(["guessing alone", "", "", "", "", "", "", f"{floor:.6g}", ""])
    return text.getvalue()


def notes_on(results: Sequence[TaskResult], bundle: Bundle) -> list[str]:
    """What a reader of the score should know."""
    notes = []
    if bundle.missing:
        notes.append(f"Tasks without data, which the score leaves out: {', '.join(bundle.missing)}.")
    for result in results:
        if result.num_cut:
            notes.append(
                f"{result.label}: {result.num_cut} of {result.num} prompts were too long for the context and lost "
                "their beginning."
            )
    return notes


def main(config: Config) -> list[TaskResult]:
    """Score, print the table, write it as CSV and into the report."""
    start = time.monotonic()
    bundle = open_bundle(config)  # what is wrong with it is said before a model is loaded
    runtime = Runtime.start(config.seed, config.device)
    tag = config.model_tag or "".join(list_tags("base")[-1:])
    model, tokenizer, meta = load_model("base", runtime, model_tag=tag or None, step=config.step)
    runtime = replace(runtime, compute_dtype=model.compute_dtype)
    scorer = ModelScorer(model, config.batch_tokens)
    most = None if config.max_per_task == -1 else config.max_per_task
    print0(f"{'task':34} {'right':>6} {'95% interval':>16} {'n':>7} {'guessing':>9} {'baseline':>9} {'centred':>8}")
    results = []
    for task in bundle.tasks:
        results.append(evaluate_task(task, scorer, tokenizer, model.config.sequence_len, runtime, most, config.seed))
        print0(line(results[-1]))
    name, (found, error, floor) = core_name(bundle), core(results)
    print0(f"{name}: {found['value']:.4f}, standard error {error:.4f}; guessing alone gives {floor:.4f}")
    notes = notes_on(results, bundle)
    for note in notes:
        print0(note)
    if runtime.is_main:
        path = base_dir() / "base_eval" / f"{tag}_{meta['step']:06d}.csv"
        write_text_atomic(path, as_csv(results, name, found, floor))
        print0(f"Wrote {path}")
    scores = {name: found, f"{name}: standard error": error, f"{name} of guessing alone": floor}
    log_section(
        "base_eval",
        {
            "title": "Evaluation of the base model",
            "model": "base",
            "settings": config,
            "metrics": {**{result.label: result.metric for result in results}, **scores},
            "headline": [name, f"{name} of guessing alone"],
            "answers": {result.label: result.answers for result in results},
            "notes": [f"Checkpoint {tag} of step {meta['step']}, computing in {runtime.dtype_name}.", *notes],
            "seconds": time.monotonic() - start,
        },
    )
    runtime.finish()
    return results


if __name__ == "__main__":
    cli(Config, main, __doc__)
