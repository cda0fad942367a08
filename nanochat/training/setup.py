"""What every training script does around the loop: compile, resume, save, evaluate, report, say how to go on."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import torch

from nanochat.checkpoint_manager import (
    Checkpoint,
    build_model,
    check_tokenizer,
    default_tag,
    open_checkpoint,
    restore_model,
    run_dir,
    save_checkpoint,
)
from nanochat.common import UserError, base_dir, print0
from nanochat.core_eval import core_metric, evaluate_task
from nanochat.data.shards import open_split
from nanochat.dataloader import document_eval_rows
from nanochat.eval.core_bundle import find_bundle, read_bundle
from nanochat.eval.core_scorer import ModelScorer
from nanochat.eval.core_tables import core_name
from nanochat.eval.samples import write_samples
from nanochat.gpt import GPT, GPTConfig
from nanochat.loss_eval import bits_per_byte
from nanochat.optim import Optimizer, OptimSettings, build_optimizer
from nanochat.report import log_section
from nanochat.runtime import Runtime
from nanochat.tokenizer import Tokenizer
from nanochat.train import Event, Forward, LoopState, Metrics, warm_up
from nanochat.training.log import curves

MIN_COMPILED_STEPS = 100  # a shorter run ends before compiling has paid
MANY_PASSES = 8  # over the training text: beyond about four, repeated text teaches less (arXiv 2305.16264)


def compile_model(
    model: GPT, mode: str, num_steps: int, batch_size: int, runtime: Runtime, sequence_len: int | None = None
) -> Forward:
    """The compiled model, or the model itself where compiling is off, does not pay, or fails (with a notice).

    `mode`: auto, on or off. `sequence_len`: tokens of a row, if not the whole context. All processes decide alike.
    """
    if mode == "off" or (mode == "auto" and (runtime.device.type == "mps" or num_steps < MIN_COMPILED_STEPS)):
        return model
    if runtime.device.type == "cpu" and not any(map(shutil.which, ("c++", "g++", "clang++"))):
        print0("No C++ compiler: training runs uncompiled, about a quarter slower.")
        return model
    print0("Compiling the model (the first time takes up to a minute) ...")
    compiled: Forward = torch.compile(model, dynamic=False)
    try:
        warm_up(compiled, model, batch_size, sequence_len or model.config.sequence_len)
        failure = None
    except Exception as error:  # whatever a compiler may raise
        failure = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
    if runtime.any_rank(failure is not None):
        print0(f"Compiling failed, so training runs uncompiled: {failure or 'on another process'}")
        return model
    return compiled


def saver(
    folder: Path, model: GPT, optimizer: Optimizer, meta: dict[str, Any], keep_last: int
) -> Callable[[LoopState], Metrics]:
    """An event's `run` that writes a checkpoint; `meta` is meta.json besides the loop state."""
    runtime = optimizer.runtime

    def save(state: LoopState) -> Metrics:
        optimizer_state = optimizer.state_dict()  # gathered: every process takes part
        failure = None
        if runtime.is_main:
            whole = {**meta, "world_size": runtime.world_size, "loop": asdict(state)}
            try:
                path = save_checkpoint(folder, state.step, model.state_dict(), optimizer_state, whole, keep_last)
                print0(f"Saved {path}")
            except UserError as error:
                failure = str(error)
        failure = runtime.broadcast(failure)  # the others wait here; they fail alike instead of waiting for ever
        if failure:
            raise UserError(failure)
        return {}

    return save


def first_checkpoint(made: str, config: Any, tokenizer: Tokenizer) -> Checkpoint:
    """The checkpoint that a run begins with: that of `config.source` or, if it goes on, of the stage that it makes.

    Without a model tag the deepest model is taken. Raises `UserError` if there is none. `config` is the script's.
    """
    source, step = (made, config.resume_from_step) if config.resuming else (config.source, config.source_step)
    checkpoint = open_checkpoint(run_dir(source, config.model_tag or default_tag(source)), step)
    check_tokenizer(checkpoint, tokenizer)
    if config.resuming:
        check_resumable(checkpoint)
    return checkpoint


def check_resumable(checkpoint: Checkpoint) -> None:
    """Raise `UserError` for a checkpoint that no run here has made."""
    if "imported_from" in checkpoint.meta:
        raise UserError(
            f"{checkpoint.path} was imported, without an optimizer's state: it cannot be resumed; mid_train, chat_sft "
            "and chat_rl begin a new run from it where --source names its stage"
        )


def checkpoint_to_resume(
    folder: Path, tokenizer: Tokenizer, data_hash: str, shape: GPTConfig | None, config: Any
) -> Checkpoint | None:
    """The checkpoint of the step `config.resume_from_step` (-1: the last); None for a run that begins anew.

    UserError if tokenizer, data or model (its shape, where the settings tell it) are not those it was made with, or if
    it was imported. Other settings may change, and the change is said: `config` is the script's.
    """
    if not config.resuming:
        return None
    checkpoint = open_checkpoint(folder, config.resume_from_step)
    check_tokenizer(checkpoint, tokenizer)
    check_resumable(checkpoint)
    if checkpoint.meta["data_hash"] != data_hash:
        raise UserError(f"{checkpoint.path} was trained on other data than what is here now: put that back to resume")
    found = checkpoint.meta["model_config"]
    asked = asdict(shape) if shape else found
    if changed := [f"{name} {found[name]} -> {asked[name]}" for name in found if found[name] != asked[name]]:
        raise UserError(f"{checkpoint.path} is another model ({', '.join(changed)}): resume with the settings it had")
    for change in changed_settings(checkpoint.meta["settings"], config):
        print0(f"Not as when {checkpoint.path.name} was written: {change}")
    return checkpoint


def begin(
    checkpoint: Checkpoint | None, first: GPTConfig | Checkpoint, settings: OptimSettings, runtime: Runtime
) -> tuple[GPT, Optimizer, LoopState]:
    """Model, optimizer and loop state of a checkpoint; without one, a new model of a shape, or one of another stage.

    Of another stage's checkpoint nothing but the weights is taken over: its learning rate has come down to 0.
    The optimizer's runtime has the model's dtype. Nothing else of a run is random: no step draws a number, and
    samples have seeds of their own.
    """
    origin = checkpoint or first
    model = build_model(origin, runtime) if isinstance(origin, GPTConfig) else restore_model(origin, runtime)
    optimizer = build_optimizer(model, replace(runtime, compute_dtype=model.compute_dtype), settings)
    if checkpoint is None:
        return model, optimizer, LoopState()
    optimizer.load_state_dict(checkpoint.load_optimizer_state())
    state = LoopState(**checkpoint.meta["loop"] | {"stopped": 0})
    print0(f"Resuming {checkpoint.path}, {state.progress:.1%} of the run done")
    return model, optimizer, state


def bpb_evaluator(
    model: GPT, tokenizer: Tokenizer, runtime: Runtime, max_tokens: int, batch_size: int
) -> Callable[[LoopState], Metrics]:
    """An event's `run` that measures bits per byte on the first `max_tokens` of the validation shard."""
    rows, num_tokens = document_eval_rows(open_split("val"), tokenizer, model.config.sequence_len, max_tokens)
    if num_tokens < max_tokens:
        print0(f"The validation shard has {num_tokens:,} tokens: --eval_tokens={max_tokens:,} are not there")
    token_bytes = torch.tensor(tokenizer.token_bytes())
    return lambda _: {"val_bpb": bits_per_byte(model, rows, token_bytes, batch_size, runtime)}


def core_events(every: int, max_per_task: int, model: GPT, tokenizer: Tokenizer, runtime: Runtime) -> list[Event]:
    """The event that measures CORE every so many steps and at the end: none if `every` is -1, or without a bundle.

    `max_per_task`: examples of each task; -1 = all.
    """
    path = find_bundle() if every != -1 else None
    if path is None:
        if every != -1:
            print0(f"No evaluation bundle at {base_dir() / 'eval_bundle'}: CORE is not measured.")
        return []
    bundle, scorer = read_bundle(path), ModelScorer(model)
    context, most = model.config.sequence_len, None if max_per_task == -1 else max_per_task

    def measure(_: LoopState) -> Metrics:
        try:
            results = [evaluate_task(task, scorer, tokenizer, context, runtime, most) for task in bundle.tasks]
        except UserError as error:  # a run goes on, as it does when its loss is not finite
            print0(f"CORE is not measured: {error}")
            return {}
        found, doubt, floor = core_metric(results)
        score = f"{found['value']:.4f}, standard error {doubt:.4f}; guessing alone gives {floor:.4f}"
        print0(f"{core_name(bundle)}: {score}")
        return {"core": found["value"]}

    return [Event(every, measure)]


def sampler(
    model: GPT, tokenizer: Tokenizer, runtime: Runtime, prompts: Sequence[str]
) -> Callable[[LoopState], Metrics]:
    """An event's `run` that prints what the model writes after these prompts, always the likeliest token."""

    def show(_: LoopState) -> Metrics:
        if runtime.is_main:
            for sample in write_samples(model, tokenizer, prompts, max_tokens=48):
                print0(f"  {sample['prompt']} | {' '.join(sample['text'].split())}")
        return {}

    return show


def report_training(
    stage: str, title: str, settings: Any, model: GPT, runtime: Runtime, state: LoopState, num_tokens: int
) -> None:
    """Write a training stage's section of the report; `settings` is the script's config."""

    def last(name: str) -> float:
        return next(row[name] for row in reversed(state.history) if name in row)

    notes = []
    if (passes := (state.cursor or {}).get("epoch", 0)) >= MANY_PASSES:
        notes.append(
            f"The run read its training text {passes} times: with so little text a model learns it by heart, and the "
            "validation curve says from when on. More text, or fewer steps, would serve it better."
        )
        print0(notes[0])
    log_section(
        stage,
        {
            "title": title,
            "notes": notes,
            "settings": settings,
            "environment": runtime.report_fields,
            "metrics": {
                "parameters": model.num_params(),
                "training tokens": num_tokens,
                "training FLOPs": num_tokens * model.estimate_flops(),
                "validation bits per byte": last("val_bpb"),
                "training loss (nats per token)": last("loss"),
                "tokens per second": num_tokens / state.seconds,
            },
            "headline": ["validation bits per byte"],
            "curves": curves(state.history),
            "seconds": state.seconds,
        },
    )


def resume_command(module: str, config: Any) -> str:
    """The command line that continues this run, with the settings it had; under torchrun a torchrun line."""
    flags = [
        f"--{field.name}={value}"
        for field in fields(config)
        if (value := getattr(config, field.name)) != field.default and not field.name.startswith("resume")
    ]
    words = ["python"]
    if "TORCHELASTIC_RUN_ID" in os.environ:
        nodes, here = int(os.environ["GROUP_WORLD_SIZE"]), os.environ["LOCAL_WORLD_SIZE"]
        # Several nodes meet at an address that only the one who started them knows: "..." stands for it.
        words = [
            "torchrun",
            *(["--standalone"] if nodes == 1 else [f"--nnodes={nodes}", "..."]),
            f"--nproc_per_node={here}",
        ]
    return shlex.join([*words, "-m", module, *(["--"] if len(words) > 1 else []), *flags, "--resume"])


def changed_settings(before: Mapping[str, Any], config: Any) -> list[str]:
    """`name: old -> new` for each setting that is not as it was when the checkpoint was written."""
    now = asdict(config)
    return [
        f"{name}: {before[name]} -> {now[name]}"
        for name in now
        if name in before and before[name] != now[name] and not name.startswith("resume")
    ]
