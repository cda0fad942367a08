"""Midtraining and supervised fine-tuning: a training run on conversations, given a stage and its settings."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, TypeVar

from nanochat.checkpoint_manager import Checkpoint, RunMeta, model_meta, run_dir
from nanochat.checkpoints.run_lock import lock_run, run_locks
from nanochat.common import UserError, print0, run_without_output
from nanochat.data.packing import (
    CHUNK_SIZE,
    conversation_batches,
    conversation_eval_rows,
    count_rows,
    render_conversations,
)
from nanochat.gpt import GPT
from nanochat.loss_eval import Forward, sum_nats
from nanochat.report import check_results_writable, log_section
from nanochat.runtime import Runtime
from nanochat.system.environment import process_numbers
from nanochat.tokenizer import Tokenizer, get_tokenizer
from nanochat.train import Event, LoopState, Metrics, train
from nanochat.training.batch_size import BatchFitter, accumulation_steps
from nanochat.training.checkpoint_saver import CheckpointSaver
from nanochat.training.early_stopping import is_exhausted, return_to_best
from nanochat.training.log import TrainLog
from nanochat.training.profile import StepProfiler
from nanochat.training.report import CURVES, curves, note_on_best, notes_on_steps
from nanochat.training.resume import (
    checkpoint_to_resume,
    first_serial,
    is_resuming,
    raise_if_stopped,
    resume_stage_after_restart,
    run_id,
    run_length,
    starting_checkpoint,
)
from nanochat.training.settings import FineTuningSettings, optim_settings, scheduled_rates
from nanochat.training.setup import build_or_restore, compile_model, should_compile, use_fp8
from tasks.common import Task, TaskSequence
from tasks.customjson import CustomJSON
from tasks.mixture import EntryDescription, build_mixture, detect_data_kind, format_description

DEFAULT_TOTAL_BATCH_SIZE = 524288  # of base_train; for imported models, which do not record theirs
HELD_OUT_LOSS = "held-out loss (nats per trained token)"
PART_LOSS = "val_loss/"  # prefix of the metric of one part of the mixture; the part's name follows
MAX_COUNTED = 1 << 15  # conversations of a file that `print_untrainable` reads
NUM_HASHED = 64  # conversations that `ConversationData.hash` reads

C = TypeVar("C", bound=FineTuningSettings)


@dataclass(frozen=True)
class Stage:
    """A stage that trains on conversations."""

    name: str  # of the checkpoints it writes: mid or sft
    script: str  # mid_train or chat_sft, also the name of the report's section
    title: str  # of the report's section


@dataclass(frozen=True)
class ConversationData:
    """Conversations to train on, the held-out ones of each part of the mixture, and descriptions of the parts."""

    train: Task
    held_out: Sequence[Task]
    parts: list[EntryDescription]

    def hash(self, tokenizer: Tokenizer) -> str:
        """Return a hash of the parts and of `NUM_HASHED` conversations spread over the data, as tokens."""
        size = len(self.train)
        indices = [number * size // NUM_HASHED for number in range(min(size, NUM_HASHED))]
        samples = [tokenizer.render_conversation(self.train[index])[0] for index in indices]
        return hashlib.sha256(json.dumps([size, self.parts, samples], default=str).encode("utf-8")).hexdigest()


@run_locks()
def fine_tune(stage: Stage, config: FineTuningSettings) -> LoopState:
    """Train a model on conversations and return the final loop state.

    Raises `StoppedBySignal` if a signal ended the run early.
    """
    run_without_output()
    tokenizer = get_tokenizer()
    config = resume_stage_after_restart(stage.name, config)
    origin = starting_checkpoint(stage.name, config, tokenizer)
    check_results_writable(stage.script)
    config = resolve_settings(config, origin)
    folder = run_dir(stage.name, origin.path.parent.name)
    lock_run(folder)
    data = load_data(stage, config)
    data_hash = data.hash(tokenizer)
    checkpoint = checkpoint_to_resume(folder, tokenizer, data_hash, None, config)
    print_untrainable(data.train, tokenizer, config.max_seq_len)

    runtime = Runtime.start(config.seed, config.device)
    model, optimizer, state = build_or_restore(checkpoint, origin, optim_settings(config), runtime)
    runtime = optimizer.runtime
    if config.fp8:
        use_fp8(model, runtime, config.max_seq_len)
    model.checkpoint_activations = config.checkpoint_activations
    num_steps, num_rows = run_length(
        state,
        count_steps(data, tokenizer, config),
        config.num_iterations > 0,
        per_step=config.total_batch_size // config.max_seq_len,
        num_done=state.cursor["rows"] if state.cursor else 0,
    )
    log = TrainLog(runtime, state, num_steps, config.total_batch_size, model)
    log.output.start_wandb(config.run, config)
    profiler = StepProfiler(config.profile, model, optimizer, config.total_batch_size)
    fitter = BatchFitter(
        model,
        runtime,
        config.total_batch_size,
        config.max_seq_len,
        is_compiled=should_compile(config.compile, num_steps, runtime),
        compile_for=lambda rows: compile_model(model, config.compile, num_steps, rows, runtime, config.max_seq_len),
    )
    batch_size, forward = fitter.resolve(config.device_batch_size, checkpoint)
    meta: RunMeta = {
        **model_meta(model, runtime, tokenizer),
        "settings": asdict(config),
        "device_batch_size": batch_size,
        "data_hash": data_hash,
        "run_id": run_id(),
        "first_serial": first_serial(folder, checkpoint),
    }
    if config.grounded:
        meta["grounded"] = True
    saver = CheckpointSaver(folder, model, optimizer, meta, config.keep_last, keep_best=config.patience != -1)
    events = [  # the checkpoint first: an evaluation that fails must not cost the run
        Event(config.save_every, saver, saves=True),
        Event(config.eval_every, held_out_loss_evaluator(forward, data, tokenizer, runtime, config, batch_size)),
        *profiler.events(),
    ]
    batches = conversation_batches(
        data.train,
        tokenizer,
        runtime,
        batch_size,
        config.max_seq_len,
        num_epochs=config.num_epochs,
        num_rows=num_rows if config.num_iterations > 0 else None,  # None: as many as the passes take
        cursor=state.cursor,
    )
    with closing(batches), closing(log), saver, profiler, fitter.explained_out_of_memory(batch_size):
        train(
            profiler.forward(forward),
            profiler.optimizer(optimizer),
            profiler.batches(batches),
            schedule=partial(scheduled_rates, config, num_steps=num_steps),
            events=events,
            num_micro_steps=accumulation_steps(
                config.total_batch_size, batch_size, config.max_seq_len, runtime.world_size
            ),
            log=log,
            state=state,
            should_end=lambda state: is_exhausted(state.history, config.patience),
        )
    runtime.finish()
    raise_if_stopped(state, num_steps, f"scripts.{stage.script}", config)
    kept_step = None
    if config.patience != -1 and runtime.is_main:
        kept_step = return_to_best(folder, state.history, meta["first_serial"], config.keep_last)
    report_fine_tuning(stage, config, data, model, runtime, state, kept_step)
    return state


def resolve_settings(config: C, origin: Checkpoint) -> C:
    """Return the settings with model tag, row length and batch size filled in from the run's starting checkpoint.

    Raises `UserError` if rows would be longer than the context, if a run that resumes would have other rows than
    before, or if the batch does not divide.
    """
    context = int(origin.meta["model_config"]["sequence_len"])
    saved: dict[str, Any] = origin.meta.get("settings", {})

    sequence_len = config.max_seq_len if config.max_seq_len != -1 else context
    if is_resuming(config):
        if config.max_seq_len == -1:
            sequence_len = saved.get("max_seq_len", context)
        # The saved position in the data counts rows, which depend on these two settings.
        for name, value in (("max_seq_len", sequence_len), ("seed", config.seed)):
            if value != saved.get(name):
                raise UserError(f"{name} is {value}, but {origin.path} had {saved.get(name)}: resume with that")
    if sequence_len > context:
        raise UserError(f"max_seq_len is {sequence_len}, but the model's context holds {context} tokens")

    total_batch_size = config.total_batch_size
    if total_batch_size == -1:
        total_batch_size = saved.get("total_batch_size", DEFAULT_TOTAL_BATCH_SIZE)
        if "total_batch_size" not in saved:
            print0(f"{origin.path} does not record its total_batch_size: using {total_batch_size:,} tokens")
    rows = 1 if config.device_batch_size == "auto" else int(config.device_batch_size)
    accumulation_steps(total_batch_size, rows, sequence_len, process_numbers()[2])
    return replace(
        config, model_tag=origin.path.parent.name, max_seq_len=sequence_len, total_batch_size=total_batch_size
    )


# --- data -------------------------------------------------------------------------------------------------------------


def load_data(stage: Stage, config: FineTuningSettings) -> ConversationData:
    """Load the mixture that the settings name. Raises `UserError` for data that is missing or empty."""
    train_data, held_out, parts = build_mixture(
        stage.name,
        detect_data_kind() if config.kind == "auto" else config.kind,
        conversations=config.conversations,
        mixture_file=config.mixture,
        allow_missing=config.allow_missing,
        seed=config.seed,
    )
    print0(f"{len(train_data):,} conversations: {format_description(parts)}")
    held_out_parts = held_out.tasks if isinstance(held_out, TaskSequence) else [held_out]
    return ConversationData(train_data, held_out_parts, parts)


def print_untrainable(conversations: Task, tokenizer: Tokenizer, sequence_len: int) -> None:
    """Print a line for each of the user's own files with conversations of which no answer fits into a row."""
    tasks = conversations.tasks if isinstance(conversations, TaskSequence) else [conversations]
    for task in dict.fromkeys(tasks):  # one that is used several times is in the list several times
        if task.name != CustomJSON.name:
            continue
        indices = range(min(len(task), MAX_COUNTED))
        num_rendered = sum(
            len(render_conversations(task, indices[start : start + CHUNK_SIZE], tokenizer, sequence_len))
            for start in range(0, len(indices), CHUNK_SIZE)
        )
        if num_left_out := len(indices) - num_rendered:
            print0(
                f"NOTICE: {num_left_out:,} of {len(indices):,} conversations of {task.name} are not trained on: none "
                f"of their answers begins within {sequence_len:,} tokens"
            )


def count_steps(data: ConversationData, tokenizer: Tokenizer, config: FineTuningSettings) -> int:
    """Return the number of steps: `num_iterations`, or those of `num_epochs` passes (estimated for large data)."""
    if config.num_iterations > 0:
        return config.num_iterations
    num_rows = count_rows(data.train, tokenizer, config.max_seq_len) * config.num_epochs
    return math.ceil(num_rows * config.max_seq_len / config.total_batch_size)


# --- evaluation and report --------------------------------------------------------------------------------------------


def held_out_loss_evaluator(
    forward: Forward,
    data: ConversationData,
    tokenizer: Tokenizer,
    runtime: Runtime,
    config: FineTuningSettings,
    batch_size: int,
) -> Callable[[LoopState], Metrics]:
    """Return an event's `run` that measures the loss on held-out conversations, overall and for each part."""
    num_conversations = sum(map(len, data.held_out))
    parts = []
    for task in data.held_out:
        max_tokens = config.eval_tokens * len(task) // max(1, num_conversations)
        inputs, targets = conversation_eval_rows(task, tokenizer, config.max_seq_len, max_tokens)
        parts.append((task.name, inputs, targets))

    def measure(_: LoopState) -> Metrics:
        nats: dict[str, float] = {}
        num_tokens: dict[str, int] = {}
        for name, inputs, targets in parts:  # two parts may have one name
            part_nats, part_tokens = sum_nats(forward, inputs, targets, batch_size, runtime)
            nats[name] = nats.get(name, 0.0) + part_nats
            num_tokens[name] = num_tokens.get(name, 0) + part_tokens
        total = sum(nats.values()) / max(1, sum(num_tokens.values()))
        losses = {f"{PART_LOSS}{name}": nats[name] / num_tokens[name] for name in nats if num_tokens[name]}
        return {"val_loss": total, **losses}

    return measure


def report_fine_tuning(
    stage: Stage,
    config: FineTuningSettings,
    data: ConversationData,
    model: GPT,
    runtime: Runtime,
    state: LoopState,
    kept_step: int | None,
) -> None:
    """Write the stage's section of the report. `kept_step`: as in `report_pretraining`."""
    cursor = state.cursor or {}
    notes = [f"Mixture: {format_description(data.parts)}.", *notes_on_steps(state)]
    if kept_step:
        notes.append(note_on_best(state, kept_step))
    notes += [f"{part['name']} is {part['file']} (SHA-256 {part['sha256']})." for part in data.parts if "file" in part]
    if cursor["left_out"]:
        notes.append(f"{cursor['left_out']:,} conversations had no answer that fits into a row, and were left out.")
    last_step = kept_step or math.inf
    latest = {name: value for row in state.history if row["step"] <= last_step for name, value in row.items()}
    part_losses = {name.removeprefix(PART_LOSS): latest[name] for name in latest if name.startswith(PART_LOSS)}
    log_section(
        stage.script,
        {
            "title": stage.title,
            "model": stage.name,
            "notes": notes,
            "settings": config,
            "environment": runtime.report_fields,
            "metrics": {
                "parameters": model.num_params(),
                "conversations": len(data.train),
                "tokens": cursor["tokens"],
                "trained tokens": cursor["trained"],
                "padding": 1 - cursor["tokens"] / (cursor["rows"] * (config.max_seq_len + 1)),
                "training loss (nats per trained token)": latest.get("loss"),
                HELD_OUT_LOSS: latest.get("val_loss"),
                **{f"held-out loss of {name}": loss for name, loss in part_losses.items()},
                "tokens per second": cursor["tokens"] / state.seconds,
            },
            "headline": [HELD_OUT_LOSS],
            "curves": curves(state.history, CURVES),
            "seconds": state.seconds,
        },
    )
