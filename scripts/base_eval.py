"""Score a base model on CORE: accuracy on each task with its interval and the accuracy of guessing, and their mean.

    torchrun --standalone --nproc_per_node=8 -m scripts.base_eval                 # eight GPUs
    python -m scripts.base_eval --eval_bundle=eval_bundle.zip                     # one GPU
    python -m scripts.base_eval --max-per-task=16                                 # a laptop: a first impression
    python -m scripts.base_eval --hf-path=openai-community/gpt2                   # a model of transformers, or a folder
    python -m scripts.base_eval --compare d20:1000 d20                            # two checkpoints on the same examples
    python -m scripts.base_eval --download_only                                   # only fetch the tasks

The bundle of tasks is `eval_bundle/` or `eval_bundle.zip` in the base folder. If neither is there, the public bundle is
downloaded to that place, once. The table is written to `base_eval/NAME.csv` in the base folder.

`--compare A B` scores two models on the same examples and tests whether they differ. Each is a base checkpoint (`TAG`
or `TAG:STEP`) or a model of transformers: a folder, or `OWNER/NAME` on the hub.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path

from nanochat.common import UserError, base_dir, print0, write_text_atomic
from nanochat.configurator import Settings, cli, setting
from nanochat.core_eval import core_metric, evaluate_task
from nanochat.eval.core_bundle import PUBLIC_BUNDLE, Bundle, describe_file, find_bundle, no_bundle_error, read_bundle
from nanochat.eval.core_prompts import CoreTask
from nanochat.eval.core_tables import (
    COMPARISON_HEADER,
    RESULT_HEADER,
    comparison_csv,
    comparison_row,
    comparison_summary,
    core_gain,
    core_name,
    result_notes,
    result_row,
    results_csv,
    task_gain,
)
from nanochat.eval.eval_model import EvalModel
from nanochat.eval.task_result import TaskResult
from nanochat.report import check_results_writable, log_section
from nanochat.runtime import Runtime


@dataclass(frozen=True)
class Config(Settings):
    eval_bundle: str = setting(
        PUBLIC_BUNDLE,
        "folder, zip file or address of the tasks; an address is downloaded to eval_bundle.zip in the base folder, "
        "unless a bundle is there; empty = only the one that is there",
        names="path",
        or_value="",
    )
    allow_missing: bool = setting(False, "without a bundle, leave CORE out with a notice instead of failing")
    download_only: bool = setting(False, "download the bundle and stop")
    max_per_task: int = setting(
        -1, "examples of each task, always the same random choice; -1 = all", short="x", at_least=1, or_value=-1
    )
    model_tag: str | None = setting(
        None, "checkpoint folder to score; default: that of the deepest model", short="g", names="name"
    )
    step: int = setting(-1, "checkpoint to score; -1 = the last", short="s", at_least=0, or_value=-1)
    hf_path: str | None = setting(
        None, "score a model of transformers instead: a folder, or a name on the hub", names="path"
    )
    compare: str | None = setting(None, "first of two models to compare, A; the second one follows: --compare A B")
    other: str | None = setting(None, "second of two models to compare, B", positional=True)
    device: str = setting("auto", "device to run on", choices=("auto", "cpu", "cuda", "mps"))
    batch_tokens: int = setting(
        -1, "positions in a forward pass on one device; -1 = a default for it", short="b", at_least=1, or_value=-1
    )
    seed: int = setting(42, "for the choice of few-shot examples")

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.compare is None) != (self.other is None):
            raise UserError("two models are compared as --compare A B: name both")
        choices = [self.model_tag is not None or self.step != -1, self.hf_path is not None, self.compare is not None]
        if sum(choices) > 1:
            raise UserError("choose one of --model_tag and --step, --hf_path, or --compare")


def evaluate_on_task(task: CoreTask, model: EvalModel, config: Config, runtime: Runtime) -> TaskResult:
    """Score a model on a task."""
    max_examples = None if config.max_per_task == -1 else config.max_per_task
    return evaluate_task(task, model.scorer, model.tokenizer, model.context_len, runtime, max_examples, config.seed)


def section_name(config: Config) -> str:
    """Return the name of the report's section. Models of transformers have no stage."""
    if config.compare is not None:
        return "core_compare"
    return "base_eval" if config.hf_path is None else "hf_eval"


def csv_path(name: str) -> Path:
    """Return the path of a table in the base folder."""
    return base_dir() / "base_eval" / f"{name}.csv"


def write_csv(name: str, content: str) -> None:
    """Write a table to the base folder."""
    path = csv_path(name)
    write_text_atomic(path, content)
    print0(f"Wrote {path}")


def evaluate(model: EvalModel, bundle: Bundle, config: Config, runtime: Runtime) -> list[TaskResult]:
    """Score a model, print the table, write it as CSV and into the report."""
    start = time.monotonic()
    check_results_writable(section_name(config), csv_path(model.file_name))
    results = []
    print0(RESULT_HEADER)
    for task in bundle.tasks:
        results.append(evaluate_on_task(task, model, config, runtime))
        print0(result_row(results[-1]))
    name = core_name(bundle)
    score = core_metric(results)
    print0(
        f"{name}: {score.metric['value']:.4f}, standard error {score.standard_error:.4f}; "
        f"guessing alone gives {score.guessing:.4f}"
    )
    notes = result_notes(results, bundle)
    for note in notes:
        print0(note)
    if runtime.is_main:
        write_csv(model.file_name, results_csv(results, name, score))
    is_checkpoint = config.hf_path is None
    scores = {name: score.metric, f"{name}: standard error": score.standard_error}
    scores[f"{name} of guessing alone"] = score.guessing
    log_section(
        section_name(config),
        {
            "title": "Evaluation of the base model" if is_checkpoint else f"Evaluation of {model.name}",
            "model": "base" if is_checkpoint else None,
            "checkpoint": model.name if is_checkpoint else None,
            "settings": config,
            "metrics": {**{result.name: result.metric for result in results}, **scores},
            "headline": [name, f"{name} of guessing alone"],
            "answers": {result.name: result.answers for result in results},
            "notes": [model.note, f"Tasks: {describe_file(bundle.path)}.", *notes],
            "seconds": time.monotonic() - start,
        },
    )
    return results


def compare(a: EvalModel, b: EvalModel, bundle: Bundle, config: Config, runtime: Runtime) -> list[TaskResult]:
    """Score two models, print their differences by task, write them as CSV and into the report.

    Returns the results of A, then those of B.
    """
    start = time.monotonic()
    table_name = f"compare_{a.file_name}_{b.file_name}"
    check_results_writable(section_name(config), csv_path(table_name))
    results_a: list[TaskResult] = []
    results_b: list[TaskResult] = []
    print0(f"A is {a.name}, B is {b.name}", COMPARISON_HEADER, sep="\n")
    for task in bundle.tasks:
        results_a.append(evaluate_on_task(task, a, config, runtime))
        results_b.append(evaluate_on_task(task, b, config, runtime))
        print0(comparison_row(results_a[-1], results_b[-1]))
    name = core_name(bundle)
    notes = [*comparison_summary(results_a, results_b, name)]
    for letter, results in (("A", results_a), ("B", results_b)):
        notes += [f"{letter}: {note}" for note in result_notes(results, replace(bundle, missing=()))]
    notes += result_notes([], bundle)
    for note in notes:
        print0(note)
    if runtime.is_main:
        write_csv(table_name, comparison_csv(results_a, results_b, name))
    gains = {before.name: task_gain(before, after) for before, after in zip(results_a, results_b, strict=True)}
    log_section(
        section_name(config),
        {
            "title": f"{a.name} (A) and {b.name} (B): accuracy of B - A",
            "settings": config,
            "metrics": {name: core_gain(results_a, results_b), **gains},
            "notes": [f"A: {a.note}", f"B: {b.note}", *notes],
            "seconds": time.monotonic() - start,
        },
    )
    return results_a + results_b


def fetch_bundle(config: Config, runtime: Runtime | None = None) -> Path | None:
    """Return the path of the bundle, which rank 0 downloads for all processes if it is absent.

    Without a bundle, raises UserError or, with `allow_missing`, prints a line and returns None.
    """
    path = failure = None
    if runtime is None or runtime.is_main:
        try:
            path = find_bundle(config.eval_bundle)
            failure = None if path else str(no_bundle_error(config.eval_bundle))
        except UserError as error:
            failure = str(error)
    if runtime is not None:
        path, failure = runtime.broadcast((path, failure))
    if failure and not config.allow_missing:
        raise UserError(failure)
    if failure:
        print0(f"CORE is not measured: {failure}")
    return path


def main(config: Config) -> list[TaskResult]:
    """Score a model, or two. Returns the result of each task; of two models, A's results come first."""
    if config.download_only:
        fetch_bundle(config)
        return []
    check_results_writable(section_name(config))
    runtime = Runtime.start(config.seed, config.device)
    results: list[TaskResult] = []
    if path := fetch_bundle(config, runtime):
        results = evaluate_models(read_bundle(path), config, runtime)
    runtime.finish()
    return results


def evaluate_models(bundle: Bundle, config: Config, runtime: Runtime) -> list[TaskResult]:
    """Load and score the model, or the two models, that the settings name."""
    if config.compare is not None and config.other is not None:
        a = EvalModel.from_name(config.compare, runtime, config.batch_tokens)
        b = EvalModel.from_name(config.other, runtime, config.batch_tokens)
        return compare(a, b, bundle, config, runtime)
    if config.hf_path is not None:
        return evaluate(EvalModel.from_hf(config.hf_path, runtime, config.batch_tokens), bundle, config, runtime)
    model = EvalModel.from_checkpoint(runtime, config.batch_tokens, config.model_tag, config.step)
    return evaluate(model, bundle, config, runtime)


if __name__ == "__main__":
    cli(Config, main, __doc__)
