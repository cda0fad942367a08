"""Resuming a run: the checkpoint to start or resume from, settings changed since then, and the command that resumes.

    python -m scripts.base_train --depth=12 --resume

A resumed run gives the same weights as a run that was never stopped: on a CPU to the last bit, on CUDA up to rounding,
because there the gradients of the embedding and of attention are summed in an order that differs from run to run.

Processes that torchrun starts again (`--max-restarts`) resume by themselves, from the last checkpoint that they wrote,
and so does a run that is started again with the same `$NANOCHAT_RUN_ID`.
"""

from __future__ import annotations

import math
import os
import platform
import shlex
from collections.abc import Mapping
from dataclasses import Field, asdict, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypedDict, TypeVar

import psutil

from nanochat.checkpoint_manager import (
    Checkpoint,
    check_tokenizer,
    default_tag,
    list_checkpoints,
    open_checkpoint,
    run_dir,
)
from nanochat.common import StoppedBySignal, UserError, print0, write_json_atomic
from nanochat.configurator import with_current_names
from nanochat.data.packing import PackingCursor
from nanochat.dataloader import StreamCursor
from nanochat.gpt import GPTConfig
from nanochat.runtime import Runtime
from nanochat.system.json_files import check_type, read_json
from nanochat.system.json_text import short_repr
from nanochat.tokenizer import Tokenizer
from nanochat.train import LoopState

# Names of metrics in the history of earlier versions' checkpoints -> present names.
RENAMED_METRICS = {"lr_scale": "lr_multiplier"}
# In a run's folder: written when torchrun first started the run, with the launchers and the last checkpoint's serial.
LAUNCH_FILE = "launch.json"
# Of the positions in the data that are saved: documents, conversations, prompts.
CURSOR_KEYS = (StreamCursor.__dataclass_fields__.keys(), PackingCursor.__dataclass_fields__.keys(), {"prompts"})
NEEDED_TO_RESUME = ("settings", "data_hash", "world_size", "loop")  # fields of meta.json


class LaunchFile(TypedDict, total=False):
    """Content of `LAUNCH_FILE`. Earlier versions wrote no `launchers`."""

    last_serial: int
    launchers: list[str]  # as `launcher_id`


class ResumableConfig(Protocol):
    """Config of a script that can resume a run: a dataclass with these settings among others."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    @property
    def resume(self) -> bool: ...
    @property
    def resume_from_step(self) -> int: ...


class TrainingConfig(ResumableConfig, Protocol):
    """Config of a script that trains: what `Runtime.start` needs."""

    @property
    def seed(self) -> int: ...
    @property
    def device(self) -> str: ...


class SourceConfig(TrainingConfig, Protocol):
    """Config of a script that starts from a checkpoint of another stage: mid_train, chat_sft, chat_rl."""

    @property
    def source(self) -> str: ...
    @property
    def source_step(self) -> int: ...
    @property
    def model_tag(self) -> str | None: ...


R = TypeVar("R", bound=TrainingConfig)
S = TypeVar("S", bound=SourceConfig)


def is_resuming(config: ResumableConfig) -> bool:
    """Return True if the script is to resume a run."""
    return config.resume or config.resume_from_step != -1


# --- runs that are started again --------------------------------------------------------------------------------------


def resume_after_restart(config: R, folder: Path) -> R:
    """Return the config with `resume` set if the run in `folder` was begun by the same torchrun or has the same run id.

    Only a checkpoint of that run counts: the folder may also hold those of an earlier one. Without one the run begins
    as it did at first. Collective where torchrun may restart.
    """
    config = resume_run_of_id(config, folder)
    return resume_launch(config, folder) if int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")) else config


def resume_run_of_id(config: R, folder: Path) -> R:
    """Return the config with `resume` set if the last checkpoint in `folder` has the run id of this process."""
    if not run_id() or is_resuming(config):
        return config
    checkpoints = list_checkpoints(folder, skip_unreadable=True)
    if not checkpoints or checkpoints[-1].meta.get("run_id") != run_id():
        return config
    print0(f"Resuming the run that was stopped after {checkpoints[-1].path.name}")
    return replace(config, resume=True)


def run_id() -> str:
    """Return `$NANOCHAT_RUN_ID`, which is the same if a run that was stopped is started again; empty if it is not set.

    dev/run_steps.sh sets it. Each checkpoint records it.
    """
    return os.environ.get("NANOCHAT_RUN_ID", "")


def resume_launch(config: R, folder: Path) -> R:
    """Return the config with `resume` set if torchrun has restarted the processes of the run in `folder`. Collective.

    torchrun's own count of restarts would not do: each machine has its own, which is 0 on one that joins later.
    """
    runtime = Runtime.start(config.seed, config.device)
    checkpoints = list_checkpoints(folder, skip_unreadable=True) if runtime.is_main else []
    serial = checkpoints[-1].serial if checkpoints else 0
    file = folder / LAUNCH_FILE
    launch = read_launch(file)
    launchers = runtime.gather(launcher_id())
    if not runtime.any_rank(launcher_id() in launch["launchers"]):
        if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
            print0("NOTICE: set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1, or restarts by torchrun fail (pytorch #135712)")
        if runtime.is_main:
            write_json_atomic(file, {"last_serial": serial, "launchers": sorted(set(launchers))})
        return config
    if runtime.is_main:  # one of them may have joined now
        write_json_atomic(file, {**launch, "launchers": sorted({*launch["launchers"], *launchers})})
    if not runtime.broadcast(runtime.is_main and serial > launch["last_serial"]):
        print0("Restarted by torchrun before the first checkpoint: the run begins again")
        return config
    print0("Restarted by torchrun: resuming from the last checkpoint")
    return replace(config, resume=True, resume_from_step=-1)


def read_launch(file: Path) -> LaunchFile:
    """Return the content of `LAUNCH_FILE`; that of a folder without any launch if there is none.

    Raises `UserError` for a damaged file: to begin again would be to lose what a restart should resume.
    """
    if not file.exists():
        return {"last_serial": 0, "launchers": []}
    try:
        content = read_json(file)
        check_type(content, LaunchFile, "")
    except UserError as error:
        raise UserError(f"{file}: {error} (remove it, and resume with --resume)") from error
    return {"last_serial": content.get("last_serial", 0), "launchers": content.get("launchers", [])}


def launcher_id() -> str:
    """Return a text that identifies torchrun, the parent of this process, among all processes of all machines.

    On Linux its start is counted from the machine's: unlike a time of day, this does not change if the clock is set.
    """
    parent = os.getppid()
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        ticks = Path(f"/proc/{parent}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19]
    except (OSError, UnicodeDecodeError):
        boot, ticks = platform.node(), str(psutil.Process(parent).create_time())
    return f"{boot} {parent} {ticks}"


def resume_stage_after_restart(stage: str, config: S) -> S:
    """Return the config of a stage that starts from another one, as `resume_after_restart` does."""
    tag = config.model_tag or default_tag(stage if is_resuming(config) else config.source)
    resumed = resume_after_restart(config, run_dir(stage, tag))
    return config if resumed is config else replace(resumed, model_tag=tag)


# --- checkpoints ------------------------------------------------------------------------------------------------------


def starting_checkpoint(stage: str, config: SourceConfig, tokenizer: Tokenizer) -> Checkpoint:
    """Return the checkpoint that a run of `stage` starts with: its own if it resumes, else one of `config.source`.

    Without a model tag the deepest model is taken. Raises `UserError` if there is no such checkpoint, or if it cannot
    be used with this tokenizer.
    """
    if is_resuming(config):
        source = stage
        step = config.resume_from_step
    else:
        source = config.source
        step = config.source_step
    checkpoint = open_checkpoint(run_dir(source, config.model_tag or default_tag(source)), step)
    check_tokenizer(checkpoint, tokenizer)
    if is_resuming(config):
        check_resumable(checkpoint)
    return checkpoint


def checkpoint_to_resume(
    folder: Path, tokenizer: Tokenizer, data_hash: str, shape: GPTConfig | None, config: ResumableConfig
) -> Checkpoint | None:
    """Return the checkpoint of step `config.resume_from_step` (-1: the last) in `folder`; None for a new run.

    Raises `UserError` if it was imported, or if the tokenizer, the data or the model's `shape` (None: not given by the
    settings) differ from those of the training run. Other settings may differ; each change is printed.
    """
    if not is_resuming(config):
        return None
    checkpoint = open_checkpoint(folder, config.resume_from_step)
    check_tokenizer(checkpoint, tokenizer)
    check_resumable(checkpoint)
    if checkpoint.meta["data_hash"] != data_hash:
        raise UserError(f"{checkpoint.path} was trained on other data than is there now: restore that data to resume")
    saved_shape = asdict(checkpoint.shape)
    present_shape = asdict(shape) if shape else saved_shape
    changes = [
        f"{name} {saved_shape[name]} -> {present_shape[name]}"
        for name in saved_shape
        if saved_shape[name] != present_shape[name]
    ]
    if changes:
        raise UserError(
            f"{checkpoint.path} is a model of another shape ({', '.join(changes)}): resume with its own settings"
        )
    for change in changed_settings(checkpoint.meta["settings"], config):
        print0(f"Setting changed since checkpoint {checkpoint.path.name}: {change}")
    return checkpoint


def first_serial(
    folder: Path, checkpoint: Checkpoint | None, advice: str = "moving it elsewhere keeps it apart"
) -> int:
    """Return the number that a run's checkpoints have in common: the serial of the first. `--keep_last` needs it.

    `checkpoint`: the one that the run resumes from. A new run (None) in a folder with checkpoints prints a notice, with
    the `advice` how to keep them apart.
    """
    if checkpoint is not None:
        return checkpoint.meta.get("first_serial", 0)
    earlier = list_checkpoints(folder, skip_unreadable=True)
    if not earlier:
        return 1
    print0(
        f"NOTICE: {folder} holds {len(earlier)} checkpoint{'s' * (len(earlier) > 1)} of an earlier run, the last of "
        f"step {earlier[-1].step}: this run begins anew and replaces steps of the same number; --resume goes on with "
        f"it, {advice}"
    )
    return earlier[-1].serial + 1


def check_resumable(checkpoint: Checkpoint) -> None:
    """Raise `UserError` if the checkpoint was imported from another program."""
    if "imported_from" in checkpoint.meta:
        raise UserError(
            f"{checkpoint.path} was imported, without an optimizer state, and cannot be resumed: start a new run from "
            "it with mid_train, chat_sft or chat_rl, with its stage as --source"
        )
    if missing := [key for key in NEEDED_TO_RESUME if key not in checkpoint.meta]:
        raise UserError(f"{checkpoint.path} cannot be resumed: its meta.json has no {missing[0]}")


def restore_loop_state(checkpoint: Checkpoint) -> LoopState:
    """Return the loop state of a checkpoint, without the signal that stopped the run."""
    try:
        loop = checkpoint.meta["loop"]
        check_type(loop, LoopState, "loop")
        if missing := [key for key in ("step", "progress", "history", "cursor") if key not in loop]:
            raise UserError(f"loop.{missing[0]} is missing")
        if any("step" not in row for row in loop["history"]):
            raise UserError("a row of loop.history has no step")
        if (cursor := loop["cursor"]) and not any(cursor.keys() == keys for keys in CURSOR_KEYS):
            raise UserError(f"loop.cursor has the keys {short_repr(', '.join(cursor))[1:-1]}: a position has others")
        if min([loop["step"], *(cursor or {}).values()]) < 0:
            raise UserError("a number of loop.step and loop.cursor is negative")
    except UserError as error:
        raise UserError(f"{checkpoint.path / 'meta.json'} is damaged: {error}") from error
    state = LoopState(**checkpoint.meta["loop"] | {"stopped": 0})
    state.history = [{RENAMED_METRICS.get(name, name): row[name] for name in row} for row in state.history]
    return state


def run_length(state: LoopState, num_steps: int, is_exact: bool, per_step: int, num_done: int) -> tuple[int, int]:
    """Return steps and units (tokens, rows, prompts) of the whole run, whose steps so far may have had other sizes.

    `num_steps` and `per_step`: steps of a run from the start, and units of a step, by the present settings. `is_exact`:
    the run has this number of steps; otherwise it has `num_steps * per_step` units. `num_done`: units up to `state`. A
    run that is longer already is not continued, and a notice says so.

    >>> run_length(LoopState(step=4), num_steps=10, is_exact=True, per_step=256, num_done=4 * 512)
    (10, 3584)
    >>> run_length(LoopState(step=4), num_steps=10, is_exact=False, per_step=256, num_done=4 * 512)
    (6, 2560)
    """
    remaining = num_steps - state.step if is_exact else math.ceil((num_steps * per_step - num_done) / per_step)
    if remaining < 0:
        print0(f"NOTICE: step {state.step} is beyond the end of the run by these settings: nothing is left to train")
    remaining = max(0, remaining)
    return state.step + remaining, num_done + remaining * per_step


# --- settings ---------------------------------------------------------------------------------------------------------


def changed_settings(saved: Mapping[str, Any], config: ResumableConfig) -> list[str]:
    """Return `name: old -> new` for each setting that differs from its saved value, except for `resume...` settings."""
    saved = with_current_names(type(config), saved)
    present = asdict(config)
    return [
        f"{name}: {saved[name]} -> {present[name]}"
        for name in present
        if name in saved and saved[name] != present[name] and not name.startswith("resume")
    ]


def resume_command(module: str, config: ResumableConfig) -> str:
    """Return the command line that resumes this run with its settings; under torchrun, a torchrun command line."""
    flags = [
        f"--{field.name}={value}"
        for field in fields(config)
        if (value := getattr(config, field.name)) != field.default and not field.name.startswith("resume")
    ]
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return shlex.join(["python", "-m", module, *flags, "--resume"])

    num_nodes = int(os.environ["GROUP_WORLD_SIZE"])
    # With several nodes, "..." is a placeholder for the rendezvous flags, which only the user knows.
    rendezvous = ["--standalone"] if num_nodes == 1 else [f"--nnodes={num_nodes}", "..."]
    launcher = ["torchrun", *rendezvous, f"--nproc_per_node={os.environ['LOCAL_WORLD_SIZE']}"]
    return shlex.join([*launcher, "-m", module, "--", *flags, "--resume"])


def raise_if_stopped(state: LoopState, num_steps: int, module: str, config: ResumableConfig) -> None:
    """Raise `StoppedBySignal`, with the command that resumes the run, if a signal stopped it early."""
    if state.stopped:
        command = resume_command(module, config)
        raise StoppedBySignal(state.stopped, f"Stopped at step {state.step} of {num_steps}. To resume: {command}")
