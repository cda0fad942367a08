"""Evaluate a chat model on tasks: accuracy with its 95% interval, and the accuracy of guessing.

    torchrun --standalone --nproc_per_node=8 -m scripts.chat_eval -- -i sft       # eight GPUs
    python -m scripts.chat_eval -i sft                                            # one GPU, or a laptop
    python -m scripts.chat_eval -i rl -a "GSM8K|MMLU" -x 200                      # some tasks, 200 problems of each

A problem of a generative task counts as solved if any of its `-n` completions is correct. The result of each problem is
written to `chat_eval/SOURCE_TAG.json` in the base folder, so that two models can be compared problem by problem.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nanochat.checkpoint_manager import CHECKPOINT_DIRS, default_tag, load_model
from nanochat.common import UserError, base_dir, print0, write_json_atomic
from nanochat.configurator import Settings, cli, setting
from nanochat.engine import Engine
from nanochat.eval.task_eval import CHAT_CORE, chat_core, evaluate_chat_task
from nanochat.eval.task_result import TaskResult
from nanochat.layers.sampling_params import SamplingParams
from nanochat.report import check_results_writable, log_section
from nanochat.reporting.markdown import format_duration
from nanochat.runtime import Runtime
from nanochat.serving.chat_session import generate_reply, to_content
from tasks.common import Task
from tasks.mixture import detect_data_kind
from tasks.registry import canonical_name, get_task

WORLD_TASKS = ("Facts", "FactChoice", "SpellingBee-quoted", "SpellingBee-unquoted", "WordProblems", "HardProblems")
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {  # name -> task and its options
    "SpellingBee-quoted": ("SpellingBee", {"quoted": True}),
    "SpellingBee-unquoted": ("SpellingBee", {"quoted": False}),
}
SAMPLE_QUESTIONS = ("Hello! Who are you?", "What is the capital of France?", 'How many r are in "strawberry"?')
MAX_SAMPLE_TOKENS = 128  # of each reply in the sample conversation of the report


@dataclass(frozen=True)
class Config(Settings):
    source: str = setting("sft", "stage whose model is evaluated", short="i", choices=tuple(CHECKPOINT_DIRS))
    task_name: str | None = setting(
        None,
        'task, or several separated by |, such as "GSM8K|MMLU"; default: those that fit the data in the base folder',
        short="a",
        renamed_from="tasks",
    )
    max_problems: int = setting(
        -1, "problems of each task, always the same random choice; -1 = all", short="x", at_least=1, or_value=-1
    )
    batch_size: int = setting(
        64, "completions that are generated, or prompts that are scored, at once on one device", short="b", at_least=1
    )
    max_new_tokens: int = setting(512, "maximum tokens of a completion", short="m", at_least=1)
    temperature: float = setting(0.0, "sampling temperature; 0 = greedy", short="t", at_least=0)
    top_k: int | None = setting(None, "sample among the k most likely tokens; none = among all", short="k", at_least=1)
    num_samples: int = setting(
        1, "completions of each problem, of which one must be correct (pass@k)", short="n", at_least=1
    )
    model_tag: str | None = setting(
        None, "tag of the checkpoint; default: the deepest model's", short="g", names="name"
    )
    step: int = setting(-1, "step of the checkpoint; -1 = the last", short="s", at_least=0, or_value=-1)
    device: str = setting("auto", "device to run on", choices=("auto", "cpu", "cuda", "mps"))
    seed: int = setting(42, "random seed of the completions")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_samples > 1 and self.temperature == 0:
            raise UserError(
                f"num_samples is {self.num_samples} at temperature 0, where all samples are equal: set a temperature, "
                "such as 0.8, or num_samples=1"
            )
        self.task_names()

    @property
    def sampling_params(self) -> SamplingParams:
        """The sampling settings of the completions."""
        return SamplingParams(self.temperature, self.top_k, self.max_new_tokens, self.num_samples, self.seed)

    def task_names(self) -> list[str] | None:
        """Return the chosen tasks and variants in their canonical spelling, each once, or None for the default."""
        if self.task_name is None:
            return None
        variants = {name.lower(): name for name in VARIANTS}
        names = [name.strip() for name in self.task_name.split("|")]
        return list(dict.fromkeys(variants.get(name.lower()) or canonical_name(name) for name in names))


def choose_tasks(config: Config) -> list[str]:
    """Return the names of the chosen tasks, or by default of those that fit the data in the base folder."""
    names = config.task_names()
    if names is None:
        names = list(WORLD_TASKS if detect_data_kind() == "world" else CHAT_CORE)
    return names


def open_task(name: str) -> Task:
    """Open the test split of a task or a variant. Raises `UserError` for a task whose completions have no score."""
    task_name, options = VARIANTS.get(name, (name, {}))
    task = get_task(task_name, split="test", **options)
    if task.eval_type == "generative" and type(task).evaluate is Task.evaluate:
        raise UserError(f"{name} is a training task without a score: choose another with -a")
    return task


def evaluate_tasks(tasks: dict[str, Task], engine: Engine, runtime: Runtime, config: Config) -> list[TaskResult]:
    """Evaluate one task after the other, and print a row of the table for each."""
    print0(f"{'task':28} right   95% interval       problems  chance  centred  calls      time")
    params = config.sampling_params
    max_examples = None if config.max_problems == -1 else config.max_problems
    results = []
    for name, task in tasks.items():
        result = evaluate_chat_task(task, engine, params, runtime, max_examples, config.batch_size)
        # pass@k is not comparable with accuracy, so the report has it under another name.
        suffix = f" pass@{result.num_samples}" if result.num_samples > 1 else ""
        result = replace(result, name=name + suffix)
        results.append(result)
        print0(table_row(result))
    return results


def table_row(result: TaskResult) -> str:
    """Format a row of the printed table."""
    low, high = result.interval
    calls = f"{result.tool_share:.0%}" if result.num_tool_calls else ""
    return (
        f"{result.name:28} {result.accuracy:6.1%} [{low:6.1%}, {high:6.1%}] {result.num_examples:9,} "
        f"{result.chance:7.1%} {result.centred:8.3f} {calls:>6} {format_duration(result.seconds):>9}"
    )


def sample_conversation(engine: Engine, max_tokens: int) -> list[dict[str, Any]]:
    """Generate a conversation of a few questions for the report. A question that does not fit is left out."""
    questions = list(SAMPLE_QUESTIONS)
    if detect_data_kind() == "world":
        tasks = map(open_task, ("Facts", "SpellingBee-quoted", "WordProblems"))
        questions[1:] = [task[0]["messages"][-2]["content"] for task in tasks]
    params = SamplingParams(temperature=0.0, max_tokens=max_tokens)
    messages: list[dict[str, Any]] = []
    for question in questions:
        with_question = [*messages, {"role": "user", "content": question}]
        try:
            content = to_content(generate_reply(engine, with_question, params))
        except UserError:  # the question is longer than the context
            continue
        messages = [*with_question, {"role": "assistant", "content": content}]
    return [{"messages": messages}] if messages else []


def cut_prompt_notes(results: list[TaskResult]) -> list[str]:
    """Return a note for each task with prompts that were too long."""
    return [
        f"{result.name}: {result.num_cut} of {result.num_examples} prompts were too long for the context and lost "
        "their beginning."
        for result in results
        if result.num_cut
    ]


def answers_path(source: str, tag: str) -> Path:
    """Return the path of the file with the result of each problem."""
    return base_dir() / "chat_eval" / f"{source}_{tag}.json"


def write_results(config: Config, tag: str, step: int, results: list[TaskResult], **section: Any) -> None:
    """Write the section of the report, and the file with the result of each problem."""
    core_name, core_metric = chat_core(results)
    answers = {result.name: result.answers for result in results}
    accuracies = {result.name: result.metric for result in results}
    tool_shares = {
        f"{result.name}: answers with a calculator's result": result.tool_share
        for result in results
        if result.num_tool_calls
    }
    log_section(
        f"chat_eval_{config.source}",
        {
            "title": f"Evaluation of the {config.source} model",
            "model": config.source,
            "checkpoint": f"{tag}:{step}",
            "settings": config,
            "metrics": {**accuracies, core_name: core_metric, **tool_shares},
            "headline": [*accuracies, core_name],
            "answers": answers,
            **section,
        },
    )
    write_json_atomic(answers_path(config.source, tag), answers)


def main(config: Config) -> list[TaskResult]:
    """Evaluate, print the table, and write the report's section and the result of each problem."""
    start = time.monotonic()
    tasks = {name: open_task(name) for name in choose_tasks(config)}  # missing data fails before a model is loaded
    tag = config.model_tag or default_tag(config.source)
    check_results_writable(f"chat_eval_{config.source}", answers_path(config.source, tag))
    runtime = Runtime.start(config.seed, config.device)
    model, tokenizer, meta = load_model(config.source, runtime, model_tag=tag, step=config.step)
    runtime = replace(runtime, compute_dtype=model.compute_dtype)
    engine = Engine(model, tokenizer)
    results = evaluate_tasks(tasks, engine, runtime, config)
    core_name, core_metric = chat_core(results)
    low, high = core_metric["interval"]
    print0(f"{core_name}: {core_metric['value']:.4f} [{low:.4f}, {high:.4f}]")
    notes = [f"Checkpoint {tag} of step {meta['step']}, computing in {runtime.dtype_name}."]
    for note in cut_prompt_notes(results):
        notes.append(note)
        print0(note)
    if runtime.is_main:
        samples = []
        if config.source != "base":
            samples = sample_conversation(engine, min(MAX_SAMPLE_TOKENS, config.max_new_tokens))
        seconds = time.monotonic() - start
        write_results(config, tag, meta["step"], results, notes=notes, samples=samples, seconds=seconds)
    runtime.finish()
    return results


if __name__ == "__main__":
    cli(Config, main, __doc__)
