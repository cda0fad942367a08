"""Score a chat model on the tasks: accuracy with its interval, beside what guessing gives.

    torchrun --standalone --nproc_per_node=8 -m scripts.chat_eval -- -i sft       # eight GPUs
    python -m scripts.chat_eval -i sft                                            # one GPU, or a laptop
    python -m scripts.chat_eval -i rl -a "GSM8K|MMLU" -x 200                      # some tasks, 200 problems of each

A problem that is answered in writing counts as right if any of its `-n` samples is. What is right and what is wrong
goes to `chat_eval/STAGE_TAG.json` in the base folder, so that two models can be compared problem by problem.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

from nanochat.checkpoint_manager import CHECKPOINT_DIRS, default_tag, load_model
from nanochat.common import UserError, base_dir, print0, write_json_atomic
from nanochat.configurator import Settings, cli, setting
from nanochat.engine import Engine
from nanochat.eval.task_eval import CHAT_CORE, chat_core, evaluate_chat_task
from nanochat.eval.task_result import TaskResult
from nanochat.layers.sampling_params import SamplingParams
from nanochat.report import log_section
from nanochat.reporting.markdown import format_duration
from nanochat.runtime import Runtime
from nanochat.serving.chat_session import join, reply
from tasks.common import Task
from tasks.mixture import detect_data_kind
from tasks.registry import canonical_name, get_task

WORLD = ("Facts", "FactChoice", "SpellingBee-quoted", "SpellingBee-unquoted", "WordProblems", "HardProblems")
QUESTIONS = ("Hello! Who are you?", "What is the capital of France?", 'How many r are in "strawberry"?')
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "SpellingBee-quoted": ("SpellingBee", {"quoted": True}),
    "SpellingBee-unquoted": ("SpellingBee", {"quoted": False}),
}


@dataclass(frozen=True)
class Config(Settings):
    source: str = setting("sft", "the stage whose model is scored", short="i", choices=tuple(CHECKPOINT_DIRS))
    tasks: str | None = setting(
        None, 'tasks, with | between them, such as "GSM8K|MMLU"; default: those for the data that is here', short="a"
    )
    max_problems: int = setting(
        -1, "problems of each task, always the same random choice; -1 = all", short="x", at_least=1, also=-1
    )
    batch_size: int = setting(64, "answers written, or prompts scored, at once on one device", short="b", at_least=1)
    max_new_tokens: int = setting(512, "longest answer, in tokens", short="m", at_least=1)
    temperature: float = setting(0.0, "of answers in writing; 0 = always the likeliest token", short="t", at_least=0)
    top_k: int | None = setting(None, "choose among the k likeliest tokens; none = among all", short="k", at_least=1)
    num_samples: int = setting(1, "answers to each problem, of which one must be right", short="n", at_least=1)
    model_tag: str | None = setting(None, "checkpoint folder; default: that of the deepest model", short="g")
    step: int = setting(-1, "checkpoint to score; -1 = the last", short="s", at_least=0, also=-1)
    device: str = setting("auto", "where to run", choices=("auto", "cpu", "cuda", "mps"))
    seed: int = setting(42, "of the answers, where the temperature is above 0")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_samples > 1 and self.temperature == 0:
            raise UserError(
                f"num_samples is {self.num_samples} at temperature 0, where all samples are the same: set a "
                "temperature, such as 0.8, or take one sample"
            )
        self.chosen()

    @property
    def sampling_params(self) -> SamplingParams:
        """The settings of generation."""
        return SamplingParams(self.temperature, self.top_k, self.max_new_tokens, self.num_samples, self.seed)

    @property
    def max_examples(self) -> int | None:
        """Problems of each task; None for all."""
        return None if self.max_problems == -1 else self.max_problems

    def chosen(self) -> list[str]:
        """The tasks that were named, each once, as the registry spells them."""
        variants = {name.lower(): name for name in VARIANTS}
        names = [name.strip() for name in (self.tasks or "").split("|") if self.tasks is not None]
        return list(dict.fromkeys(variants.get(name.lower()) or canonical_name(name) for name in names))


def names_of(config: Config) -> list[str]:
    """The tasks that were asked for, or those that go with the data in the base folder."""
    if config.tasks is not None:
        return config.chosen()
    return list(WORLD if detect_data_kind() == "world" else CHAT_CORE)


def open_task(name: str) -> Task:
    """The test split of a task or a variant of one."""
    known, options = VARIANTS.get(name, (name, {}))
    task = get_task(known, split="test", **options)
    if task.eval_type == "generative" and type(task).evaluate is Task.evaluate:
        raise UserError(f"{name} is to learn from: its answers are not right or wrong, so it has no score")
    return task


def evaluate_all(tasks: dict[str, Task], engine: Engine, runtime: Runtime, config: Config) -> list[TaskResult]:
    """Score one task after the other, and print a row of the table for each as it comes."""
    print0(f"{'task':28} right   95% interval       problems  chance  centred  calls      time")
    scores = []
    for name, task in tasks.items():
        score = evaluate_chat_task(
            task, engine, config.sampling_params, runtime, config.max_examples, config.batch_size
        )
        asked = f" pass@{score.num_samples}" if score.num_samples > 1 else ""  # another measure: under another name
        scores.append(replace(score, name=name + asked))
        print0(row(scores[-1]))
    return scores


def row(score: TaskResult) -> str:
    """A row of the table at the terminal."""
    low, high = score.interval
    calls = f"{score.tool_share:.0%}" if score.num_tool_calls else ""
    return (
        f"{score.name:28} {score.accuracy:6.1%} [{low:6.1%}, {high:6.1%}] {score.num_examples:9,} {score.chance:7.1%} "
        f"{score.centred:8.3f} {calls:>6} {format_duration(score.seconds):>9}"
    )


def talk(engine: Engine, max_tokens: int) -> list[dict[str, Any]]:
    """A conversation for the report: who are you, and a question of each kind; what does not fit is not asked."""
    questions = list(QUESTIONS)
    if detect_data_kind() == "world":
        tasks = map(open_task, ("Facts", "SpellingBee-quoted", "WordProblems"))
        questions[1:] = [task[0]["messages"][-2]["content"] for task in tasks]
    messages: list[dict[str, Any]] = []
    for question in questions:
        asked = [*messages, {"role": "user", "content": question}]
        try:
            answer = join(reply(engine, asked, SamplingParams(temperature=0.0, max_tokens=max_tokens)))
        except UserError:  # the context of this model is shorter than the question
            continue
        messages = [*asked, {"role": "assistant", "content": answer}]
    return [{"messages": messages}] if messages else []


def write_results(config: Config, tag: str, step: int, scores: list[TaskResult], **section: Any) -> None:
    """The report's section, and the file with the result of each problem."""
    core, value = chat_core(scores)
    answers = {score.name: score.answers for score in scores}
    calls = {f"{s.name}: answers with a calculator's result": s.tool_share for s in scores if s.num_tool_calls}
    accuracies = {score.name: score.metric for score in scores}
    log_section(
        f"chat_eval_{config.source}",
        {
            "title": f"Evaluation of the {config.source} model",
            "model": config.source,
            "checkpoint": f"{tag}:{step}",
            "settings": config,
            "metrics": {**accuracies, core: value, **calls},
            "headline": [*accuracies, core],
            "answers": answers,
            **section,
        },
    )
    write_json_atomic(base_dir() / "chat_eval" / f"{config.source}_{tag}.json", answers)


def main(config: Config) -> list[TaskResult]:
    """Score, print the table, write the report's section and the result of each problem."""
    start = time.monotonic()
    tasks = {name: open_task(name) for name in names_of(config)}  # what cannot be had is said before a model is loaded
    runtime = Runtime.start(config.seed, config.device)
    tag = config.model_tag or default_tag(config.source)
    model, tokenizer, meta = load_model(config.source, runtime, model_tag=tag, step=config.step)
    runtime = replace(runtime, compute_dtype=model.compute_dtype)
    engine = Engine(model, tokenizer)
    scores = evaluate_all(tasks, engine, runtime, config)
    core, value = chat_core(scores)
    low, high = value["interval"]
    print0(f"{core}: {value['value']:.4f} [{low:.4f}, {high:.4f}]")
    notes = [f"Checkpoint {tag} of step {meta['step']}, computing in {runtime.dtype_name}."]
    for score in scores:
        if score.num_cut:
            notes.append(
                f"{score.name}: {score.num_cut} of {score.num_examples} prompts were too long for the context and lost "
                "their beginning."
            )
            print0(notes[-1])
    if runtime.is_main:
        samples = talk(engine, min(128, config.max_new_tokens)) if config.source != "base" else []
        write_results(config, tag, meta["step"], scores, notes=notes, samples=samples, seconds=time.monotonic() - start)
    runtime.finish()
    return scores


if __name__ == "__main__":
    cli(Config, main, __doc__)
