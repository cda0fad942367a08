"""Score a base model on CORE's tasks, which ask without a conversation: accuracy with its interval, beside guessing.

    torchrun --standalone --nproc_per_node=8 -m scripts.base_eval                 # eight GPUs
    python -m scripts.base_eval --eval_bundle=eval_bundle.zip                     # one GPU
    python -m scripts.base_eval --max-per-task=16                                 # a laptop: a first impression
    python -m scripts.base_eval --hf-path=openai-community/gpt2                   # a model of transformers, or a folder
    python -m scripts.base_eval --compare d20:1000 d20                            # two checkpoints, side by side

The bundle of tasks is looked for in the base folder, as `eval_bundle/` or `eval_bundle.zip`; one whose address is given
is downloaded to there. The table goes to `base_eval/NAME.csv` in the base folder.

`--compare A B` scores two models on the same examples and says how sure the difference is. Each is `TAG` or `TAG:STEP`,
a base checkpoint, or a model of transformers: a folder, or `OWNER/NAME` on the hub.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

from nanochat.common import UserError, base_dir, print0, write_text_atomic
from nanochat.configurator import Settings, cli, setting
from nanochat.core_eval import core_metric, evaluate_task
from nanochat.eval.core_bundle import Bundle, find_bundle, read_bundle
from nanochat.eval.core_prompts import CoreTask
from nanochat.eval.core_tables import (
    HEADER,
    PAIR_HEADER,
    as_csv,
    core_gain,
    core_name,
    gain_of,
    line,
    notes_on,
    pair_csv,
    pair_line,
    pair_summary,
)
from nanochat.eval.eval_model import EvalModel
from nanochat.eval.task_result import TaskResult
from nanochat.report import log_section
from nanochat.runtime import Runtime


@dataclass(frozen=True)
class Config(Settings):
    eval_bundle: str | None = setting(
        None, "folder, zip file or address of the tasks; default: eval_bundle in the base folder"
    )
    max_per_task: int = setting(
        -1, "examples of each task, always the same random choice; -1 = all", short="x", at_least=1, also=-1
    )
    model_tag: str | None = setting(None, "checkpoint folder to score; default: that of the deepest model", short="g")
    step: int = setting(-1, "checkpoint to score; -1 = the last", short="s", at_least=0, also=-1)
    hf_path: str | None = setting(None, "score a model of transformers instead: a folder, or a name on the hub")
    compare: str | None = setting(None, "first of two models to compare, A; the second one follows: --compare A B")
    other: str | None = setting(None, "the second one, B", positional=True)
    device: str = setting("auto", "where to run", choices=("auto", "cpu", "cuda", "mps"))
    batch_tokens: int = setting(
        -1, "positions in a forward pass on one device; -1 = what suits it", short="b", at_least=1, also=-1
    )
    seed: int = setting(42, "of the choice of solved examples in a prompt")

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.compare is None) != (self.other is None):
            raise UserError("two models are compared as --compare A B: name both")
        ways = [self.model_tag is not None or self.step != -1, self.hf_path is not None, self.compare is not None]
        if sum(ways) > 1:
            raise UserError("choose one of --model_tag and --step, --hf_path, or --compare")


def open_bundle(config: Config) -> Bundle:
    """The bundle that was asked for, or that of the base folder."""
    path = find_bundle(config.eval_bundle)
    if path is None:
        place = config.eval_bundle or base_dir() / "eval_bundle"
        raise UserError(
            f"no evaluation bundle at {place}: put it there, as a folder or a zip file with core.yaml, "
            "eval_meta_data.csv and eval_data, or say with --eval_bundle where it is: a folder, a zip file, or the "
            "address of one (https://...) to download"
        )
    return read_bundle(path)


def score(task: CoreTask, candidate: EvalModel, config: Config, runtime: Runtime) -> TaskResult:
    """What a model makes of a task."""
    most = None if config.max_per_task == -1 else config.max_per_task
    return evaluate_task(task, candidate.scorer, candidate.tokenizer, candidate.context_len, runtime, most, config.seed)


def write_csv(name: str, content: str) -> None:
    """Write a table into the base folder."""
    path = base_dir() / "base_eval" / f"{name}.csv"
    write_text_atomic(path, content)
    print0(f"Wrote {path}")


def evaluate(candidate: EvalModel, bundle: Bundle, config: Config, runtime: Runtime) -> list[TaskResult]:
    """Score a model, print the table, write it as CSV and into the report."""
    start, results = time.monotonic(), []
    print0(HEADER)
    for task in bundle.tasks:
        results.append(score(task, candidate, config, runtime))
        print0(line(results[-1]))
    name, (found, error, floor) = core_name(bundle), core_metric(results)
    print0(f"{name}: {found['value']:.4f}, standard error {error:.4f}; guessing alone gives {floor:.4f}")
    notes = notes_on(results, bundle)
    for note in notes:
        print0(note)
    if runtime.is_main:
        write_csv(candidate.file_name, as_csv(results, name, found, floor))
    scores = {name: found, f"{name}: standard error": error, f"{name} of guessing alone": floor}
    ours = config.hf_path is None
    log_section(
        "base_eval" if ours else "hf_eval",  # another's model does not stand among ours
        {
            "title": "Evaluation of the base model" if ours else f"Evaluation of {candidate.name}",
            "model": "base" if ours else None,
            "checkpoint": candidate.name if ours else None,
            "settings": config,
            "metrics": {**{result.name: result.metric for result in results}, **scores},
            "headline": [name, f"{name} of guessing alone"],
            "answers": {result.name: result.answers for result in results},
            "notes": [candidate.note, *notes],
            "seconds": time.monotonic() - start,
        },
    )
    return results


def compare(a: EvalModel, b: EvalModel, bundle: Bundle, config: Config, runtime: Runtime) -> list[TaskResult]:
    """Score two models, print their differences task by task, write them as CSV and into the report."""
    start = time.monotonic()
    before: list[TaskResult] = []
    after: list[TaskResult] = []
    print0(f"A is {a.name}, B is {b.name}", PAIR_HEADER, sep="\n")
    for task in bundle.tasks:
        before.append(score(task, a, config, runtime))
        after.append(score(task, b, config, runtime))
        print0(pair_line(before[-1], after[-1]))
    name = core_name(bundle)
    notes = [*pair_summary(before, after, name)]
    for who, results in (("A", before), ("B", after)):
        notes += [f"{who}: {note}" for note in notes_on(results, replace(bundle, missing=()))]
    notes += notes_on([], bundle)
    for note in notes:
        print0(note)
    if runtime.is_main:
        write_csv(f"compare_{a.file_name}_{b.file_name}", pair_csv(before, after, name))
    gains = {one.name: gain_of(one, two) for one, two in zip(before, after, strict=True)}
    log_section(
        "core_compare",
        {
            "title": f"{a.name} (A) and {b.name} (B): accuracy of B - A",
            "settings": config,
            "metrics": {name: core_gain(before, after), **gains},
            "notes": [f"A: {a.note}", f"B: {b.note}", *notes],
            "seconds": time.monotonic() - start,
        },
    )
    return before + after


def main(config: Config) -> list[TaskResult]:
    """Score a model, or two: those of A come first."""
    bundle = open_bundle(config)  # what is wrong with it is said before a model is loaded
    runtime = Runtime.start(config.seed, config.device)
    if config.compare is not None and config.other is not None:
        a, b = (EvalModel.from_name(name, runtime, config.batch_tokens) for name in (config.compare, config.other))
        results = compare(a, b, bundle, config, runtime)
    elif config.hf_path is not None:
        results = evaluate(EvalModel.from_hf(config.hf_path, runtime, config.batch_tokens), bundle, config, runtime)
    else:
        ours = EvalModel.from_checkpoint(runtime, config.batch_tokens, config.model_tag, config.step)
        results = evaluate(ours, bundle, config, runtime)
    runtime.finish()
    return results


if __name__ == "__main__":
    cli(Config, main, __doc__)
