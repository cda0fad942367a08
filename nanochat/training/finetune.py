"""Midtraining and supervised fine-tuning: a run on conversations, around the loop."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from nanochat.checkpoint_manager import Checkpoint, model_meta, run_dir
from nanochat.common import StoppedBySignal, UserError, print0
from nanochat.data.packing import conversation_batches, conversation_eval_rows, count_rows
from nanochat.dataloader import MicroBatch
from nanochat.gpt import GPT
from nanochat.loss_eval import sum_nats
from nanochat.report import log_section
from nanochat.runtime import Runtime
from nanochat.tokenizer import Tokenizer, get_tokenizer
from nanochat.train import Event, LoopState, Metrics, train
from nanochat.training.batch_size import accumulation_steps, batch_size_of
from nanochat.training.finetune_settings import FineTuning
from nanochat.training.log import TrainLog, curves
from nanochat.training.setup import begin, checkpoint_to_resume, compile_model, first_checkpoint, resume_command, saver
from tasks.common import Task, TaskSequence
from tasks.mixture import EntryDescription, build_mixture, detect_data_kind, format_description

HELD_OUT = "held-out loss (nats per trained token)"
UNKNOWN_BATCH = 524288  # tokens of a step after an imported model that does not say it: base_train's default
PART = "val_loss/"  # and a task's name: the metric of that part of the mixture


@dataclass(frozen=True)
class Stage:
    """Which of the two it is."""

    script: str  # mid_train or chat_sft: also the name of the report's section
    title: str
    model: str  # what it makes: mid or sft


@dataclass(frozen=True)
class Data:
    """The conversations of a run: to train on, held out of each part of the mixture, and what the parts are."""

    train: Task
    held_out: Sequence[Task]
    parts: list[EntryDescription]

    def hash(self, tokenizer: Tokenizer) -> str:
        """Tells other data from this: its parts, and some conversations from all over it."""
        count = len(self.train)
        some = [tokenizer.render_conversation(self.train[index * count // 64])[0] for index in range(min(count, 64))]
        return hashlib.sha256(json.dumps([count, self.parts, some], default=str).encode("utf-8")).hexdigest()


def load_data(stage: Stage, config: FineTuning) -> Data:
    """The mixture that the settings ask for. Raises `UserError` for what cannot be had, or holds nothing."""
    train, held_out, parts = build_mixture(
        stage.model,
        detect_data_kind() if config.kind == "auto" else config.kind,
        conversations=config.conversations,
        mixture_file=config.mixture,
        allow_missing=config.allow_missing,
        seed=config.seed,
    )
    print0(f"{len(train):,} conversations: {format_description(parts)}")
    return Data(train, held_out.tasks if isinstance(held_out, TaskSequence) else [held_out], parts)


def settled(config: FineTuning, origin: Checkpoint) -> FineTuning:
    """The settings with what they leave open decided by the model that the run begins with."""
    context = int(origin.meta["model_config"]["sequence_len"])
    before: dict[str, Any] = origin.meta["settings"]
    sequence_len = config.max_seq_len if config.max_seq_len != -1 else context
    if config.resuming:
        sequence_len = before["max_seq_len"] if config.max_seq_len == -1 else sequence_len
        for name, value in (("max_seq_len", sequence_len), ("seed", config.seed)):
            if value != before[name]:  # other rows: no conversation could be told from one that was trained on
                raise UserError(f"{name} is {value}, but {origin.path} had {before[name]}: resume with that")
    if sequence_len > context:
        raise UserError(f"max_seq_len is {sequence_len}, but the model's context holds {context} tokens")
    total = config.total_batch_size if config.total_batch_size != -1 else before.get("total_batch_size", UNKNOWN_BATCH)
    if config.total_batch_size == -1 and "total_batch_size" not in before:
        print0(f"{origin.path} does not say its total_batch_size: it is {total:,} tokens now")
    rows = 1 if config.device_batch_size == "auto" else int(config.device_batch_size)
    accumulation_steps(total, rows, sequence_len, int(os.environ.get("WORLD_SIZE", "1")))
    return replace(config, model_tag=origin.path.parent.name, max_seq_len=sequence_len, total_batch_size=total)


def loss_evaluator(
    model: GPT, data: Data, tokenizer: Tokenizer, runtime: Runtime, config: FineTuning, batch_size: int
) -> Callable[[LoopState], Metrics]:
    """An event's `run` that measures the loss on held-out conversations, in all and of each part of the mixture."""
    count = sum(map(len, data.held_out))
    rows = [
        (
            task.name,
            *conversation_eval_rows(
                task, tokenizer, config.max_seq_len, config.eval_tokens * len(task) // max(1, count)
            ),
        )
        for task in data.held_out
    ]

    def measure(_: LoopState) -> Metrics:
        nats: dict[str, float] = {}
        tokens: dict[str, int] = {}
        for name, inputs, targets in rows:
            loss, number = sum_nats(model, inputs, targets, batch_size, runtime)
            nats[name], tokens[name] = nats.get(name, 0.0) + loss, tokens.get(name, 0) + number
        total = sum(nats.values()) / max(1, sum(tokens.values()))
        return {"val_loss": total} | {f"{PART}{name}": nats[name] / tokens[name] for name in nats if tokens[name]}

    return measure


def steps_of(data: Data, tokenizer: Tokenizer, config: FineTuning) -> int:
    """Steps of the run: as many as asked for, or as the passes take, which for large data is an estimate."""
    if config.num_iterations > 0:
        return config.num_iterations
    rows = count_rows(data.train, tokenizer, config.max_seq_len) * config.num_epochs
    return math.ceil(rows * config.max_seq_len / config.total_batch_size)


def batches(
    data: Data, tokenizer: Tokenizer, runtime: Runtime, config: FineTuning, batch_size: int, state: LoopState
) -> Generator[MicroBatch, None, None]:
    """The micro-batches of the run that are left."""
    num_rows = None  # the passes decide
    if config.num_iterations > 0:
        num_rows = config.num_iterations * config.total_batch_size // config.max_seq_len
    return conversation_batches(
        data.train,
        tokenizer,
        runtime,
        batch_size,
        config.max_seq_len,
        num_epochs=config.num_epochs,
        num_rows=num_rows,
        cursor=state.cursor,
    )


def fine_tune(stage: Stage, config: FineTuning) -> LoopState:
    """Train, and return where the run ended. Raises `StoppedBySignal` if a signal has ended it early."""
    tokenizer = get_tokenizer()
    origin = first_checkpoint(stage.model, config, tokenizer)
    config = settled(config, origin)
    data = load_data(stage, config)
    data_hash, folder = data.hash(tokenizer), run_dir(stage.model, origin.path.parent.name)
    checkpoint = checkpoint_to_resume(folder, tokenizer, data_hash, None, config)
    runtime = Runtime.start(config.seed, config.device)
    model, optimizer, state = begin(checkpoint, origin, config.optim_settings(), runtime)
    runtime, size, sequence_len = optimizer.runtime, config.total_batch_size, config.max_seq_len
    num_steps = steps_of(data, tokenizer, config)
    log = TrainLog(runtime, state, num_steps, size, model)
    log.start_wandb(config.run, config)
    batch_size = batch_size_of(config.device_batch_size, checkpoint, model, size, runtime, sequence_len)
    facts = {"settings": asdict(config), "device_batch_size": batch_size, "data_hash": data_hash}
    save = saver(folder, model, optimizer, model_meta(model, runtime, tokenizer) | facts, config.keep_last)
    loader = batches(data, tokenizer, runtime, config, batch_size, state)
    with closing(loader), closing(log):
        train(
            compile_model(model, config.compile, num_steps, batch_size, runtime, sequence_len),
            optimizer,
            loader,
            schedule=partial(config.rates, num_steps=num_steps),
            events=[  # the checkpoint first: an evaluation that fails must not cost the run
                Event(config.save_every, save, saves=True),
                Event(config.eval_every, loss_evaluator(model, data, tokenizer, runtime, config, batch_size)),
            ],
            num_micro_steps=accumulation_steps(size, batch_size, sequence_len, runtime.world_size),
            log=log,
            state=state,
        )
    runtime.finish()
    if state.stopped:
        go_on = resume_command(f"scripts.{stage.script}", config)
        raise StoppedBySignal(state.stopped, f"Stopped at step {state.step} of {num_steps}. To go on: {go_on}")
    report(stage, config, data, model, runtime, state)
    return state


def report(stage: Stage, config: FineTuning, data: Data, model: GPT, runtime: Runtime, state: LoopState) -> None:
    """Write the stage's section of the report."""
    used = state.cursor or {}
    notes = [f"Mixture: {format_description(data.parts)}."]
    notes += [f"{part['name']} is {part['file']} (SHA-256 {part['sha256']})." for part in data.parts if "file" in part]
    if used["left_out"]:
        notes.append(f"{used['left_out']:,} conversations had no answer that fits into a row, and were left out.")
    latest = {name: value for row in state.history for name, value in row.items()}
    parts = {name.removeprefix(PART): value for name, value in latest.items() if name.startswith(PART)}
    log_section(
        stage.script,
        {
            "title": stage.title,
            "model": stage.model,
            "notes": notes,
            "settings": config,
            "environment": runtime.report_fields,
            "metrics": {
                "parameters": model.num_params(),
                "conversations": len(data.train),
                "tokens": used["tokens"],
                "trained tokens": used["trained"],
                "padding": 1 - used["tokens"] / (used["rows"] * (config.max_seq_len + 1)),
                "training loss (nats per trained token)": latest["loss"],
                HELD_OUT: latest["val_loss"],
                **{f"held-out loss of {name}": value for name, value in parts.items()},
                "tokens per second": used["tokens"] / state.seconds,
            },
            "headline": [HELD_OUT],
            "curves": curves(state.history),
            "seconds": state.seconds,
        },
    )
