"""Checkpoints: saved atomically, listed, and loaded as models.

    $NANOCHAT_BASE_DIR/base_checkpoints/d20/step_000400/
        model.safetensors       weights, by parameter name
        optimizer.safetensors   unsharded optimizer state, from which any number of processes can resume
        meta.json               format, arch, step, model config, settings, loop state, tokenizer and data hashes

A checkpoint is written into a hidden folder, flushed to disk and then renamed, so that a crash at any time leaves the
previous checkpoint intact. If a step is saved again, its old checkpoint is kept as `step_000400.old` until the new one
is complete. "Last" means the latest in time (`serial`), not the highest step: a run may have been started again in the
same folder. No pickle is involved.

Functions and command lines name a checkpoint by three values. `source` is its stage (base, mid, sft or rl). The model
tag is the name of its run's folder, by default `d` and the depth: `d20` has 20 layers. The third value is its step.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypedDict

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from nanochat.common import UserError, base_dir, print0
from nanochat.gpt import GPT, GPTConfig
from nanochat.runtime import Runtime
from nanochat.tokenizer import Tokenizer, get_tokenizer

FORMAT = 1
ARCH = "classic"  # `arch` in meta.json: the model of nanochat/gpt.py; checkpoints of any other are refused
CHECKPOINT_DIRS = {  # by stage
    "base": "base_checkpoints",
    "mid": "mid_checkpoints",
    "sft": "chatsft_checkpoints",
    "rl": "chatrl_checkpoints",
}
STEP_DIR_PATTERN = re.compile(r"step_(\d{6,})(\.old)?")


class ModelMeta(TypedDict):
    """The fields of meta.json that describe the model."""

    model_config: dict[str, int]  # fields of GPTConfig
    compute_dtype: str
    torch_version: str
    tokenizer_hash: str


class RunMeta(ModelMeta, total=False):
    """The fields of meta.json that a run writes. Only the model's are required: imported models lack others."""

    settings: dict[str, Any]  # fields of the script's config
    data_hash: str
    device_batch_size: int
    world_size: int
    rollout_dtype: str  # in which an RL run generates
    loop: dict[str, Any]  # fields of LoopState
    imported_from: str


class CheckpointMeta(RunMeta):
    """All fields of meta.json."""

    format: int
    arch: str
    step: int
    serial: int  # 1, 2, ... in the order in which the checkpoints of a run's folder were written


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk whose meta.json has been read."""

    path: Path
    meta: CheckpointMeta

    @property
    def step(self) -> int:
        """Number of optimizer steps taken."""
        return int(self.meta["step"])

    @property
    def serial(self) -> int:
        """Position in the order in which the checkpoints of the folder were written: 1, 2, ..."""
        return int(self.meta["serial"])

    def load_weights(self) -> dict[str, Tensor]:
        """Read the model's weights to the CPU."""
        return load_tensors(self.path / "model.safetensors")

    def load_optimizer_state(self) -> dict[str, Tensor]:
        """Read the optimizer's state to the CPU."""
        return load_tensors(self.path / "optimizer.safetensors")


# --- finding checkpoints ----------------------------------------------------------------------------------------------


def run_dir(source: str, tag: str) -> Path:
    """Return the folder of a run's checkpoints. `source`: its stage (base, mid, sft or rl). `tag`: its tag, as d20."""
    if source not in CHECKPOINT_DIRS:
        raise UserError(f"no stage {source!r}: choose one of {', '.join(CHECKPOINT_DIRS)}")
    return base_dir() / CHECKPOINT_DIRS[source] / tag


def list_steps(folder: Path) -> dict[int, Path]:
    """Return the path of each complete checkpoint in a run's folder by its step, in ascending order."""
    path_of: dict[int, Path] = {}
    for path in sorted(folder.glob("step_*"), reverse=True):  # step_000400 follows step_000400.old and replaces it
        match = STEP_DIR_PATTERN.fullmatch(path.name)
        if match and (path / "meta.json").is_file():
            path_of[int(match.group(1))] = path
    return dict(sorted(path_of.items()))


def read_meta(path: Path) -> CheckpointMeta:
    """Read the meta.json of a checkpoint. Raises `UserError` if it is damaged or of an unknown format."""
    try:
        meta: CheckpointMeta = json.loads((path / "meta.json").read_text(encoding="utf-8"))
        version = (meta["format"], meta["arch"])
        if version == (FORMAT, ARCH):
            for key in ("step", "serial"):
                int(meta[key])  # raises if it is missing or no number
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path / 'meta.json'} cannot be read ({error!r}): remove {path}") from error
    if version != (FORMAT, ARCH):
        raise UserError(f"{path} has format {version[0]}, arch {version[1]!r}; this version reads {FORMAT}, {ARCH!r}")
    return meta


def list_checkpoints(folder: Path, skip_unreadable: bool = False) -> list[Checkpoint]:
    """Return all checkpoints of a run's folder in the order in which they were written."""
    checkpoints = []
    for path in list_steps(folder).values():
        try:
            checkpoints.append(Checkpoint(path, read_meta(path)))
        except UserError:
            if not skip_unreadable:
                raise
    return sorted(checkpoints, key=lambda checkpoint: checkpoint.serial)


def list_tags(source: str) -> list[str]:
    """Return the model tags of a stage that have a checkpoint, the deepest model last (d4 before d12)."""
    folder = run_dir(source, "")
    tags = [path.name for path in folder.glob("*") if list_steps(path)]
    return sorted(tags, key=lambda tag: (int(tag[1:]) if re.fullmatch(r"d\d+", tag) else -1, tag))


def default_tag(source: str) -> str:
    """Return the tag of the stage's deepest model. Raises `UserError` if the stage has no checkpoint."""
    tags = list_tags(source)
    if not tags:
        raise UserError(f"no {source} checkpoint in {run_dir(source, '')}: run that stage first")
    return tags[-1]


def open_checkpoint(folder: Path, step: int = -1) -> Checkpoint:
    """Return the checkpoint of a step (-1: the last one written) in a run's folder. Raises `UserError` if absent."""
    steps = list_steps(folder)
    if not steps:
        raise UserError(f"no checkpoint in {folder}: train one first, or name another run with --model_tag")
    if step == -1:
        return list_checkpoints(folder)[-1]
    if step not in steps:
        raise UserError(f"no checkpoint of step {step} in {folder}: there are {', '.join(map(str, steps))}")
    return Checkpoint(steps[step], read_meta(steps[step]))


# --- saving -----------------------------------------------------------------------------------------------------------


def save_checkpoint(
    folder: Path,
    step: int,
    weights: Mapping[str, Tensor],
    optimizer_state: Mapping[str, Tensor],
    meta: RunMeta,
    keep_last: int = -1,
) -> Path:
    """Write the checkpoint of a step and remove all but the `keep_last` newest ones (-1: keep all). On rank 0 only.

    `meta`: content of meta.json besides format, arch, step and serial. Raises `UserError` if the disk is full or
    writing fails for another reason; the earlier checkpoints stay intact.
    """
    final = folder / f"step_{step:06d}"
    temporary = folder / f".{final.name}.tmp"
    try:
        remove_leftovers(folder)
        earlier = list_checkpoints(folder, skip_unreadable=True)
        serial = earlier[-1].serial + 1 if earlier else 1
        temporary.mkdir(parents=True)
        save_tensors(temporary / "model.safetensors", weights)
        save_tensors(temporary / "optimizer.safetensors", optimizer_state)
        with open(temporary / "meta.json", "w", encoding="utf-8") as file:
            json.dump({"format": FORMAT, "arch": ARCH, "step": step, "serial": serial, **meta}, file, indent=2)
            file.flush()
            os.fsync(file.fileno())
        fsync_dir(temporary)
        move_into_place(temporary, final)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)  # frees the full disk
        raise UserError(f"cannot save {final} ({error}); the earlier checkpoints are intact") from error
    if keep_last > 0:
        for old in list_checkpoints(folder, skip_unreadable=True)[:-keep_last]:
            remove_checkpoint(old.path)
    return final


def remove_leftovers(folder: Path) -> None:
    """Remove the incomplete or replaced checkpoints of a run that was killed while it saved."""
    for incomplete in folder.glob(".step_*.tmp"):
        shutil.rmtree(incomplete)
    for old in folder.glob("step_*.old"):
        if old.with_suffix("").exists():
            remove_checkpoint(old)


def move_into_place(temporary: Path, final: Path) -> None:
    """Rename a complete checkpoint. An earlier one of this name stays available as `.old` until then."""
    old = final.with_name(f"{final.name}.old")
    if final.exists():  # a folder cannot be renamed onto one that is not empty
        remove_checkpoint(old)
        os.rename(final, old)
    os.rename(temporary, final)
    fsync_dir(final.parent)
    remove_checkpoint(old)


def remove_checkpoint(path: Path) -> None:
    """Remove a checkpoint if it exists. It is renamed first, so that a crash leaves no partial one under its name."""
    if path.exists():
        hidden = path.with_name(f".{path.name}.tmp")
        os.rename(path, hidden)
        shutil.rmtree(hidden, ignore_errors=True)


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors to a safetensors file and flush it to disk."""
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file to the CPU. Raises `UserError` with its path if it is missing or damaged."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{path} cannot be read ({error}): remove its folder to continue from an older checkpoint"
        ) from error


def fsync_dir(folder: Path) -> None:
    """Flush the entries of a folder to disk, on systems that support it."""
    if hasattr(os, "O_DIRECTORY"):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        os.fsync(descriptor)
        os.close(descriptor)


# --- models -----------------------------------------------------------------------------------------------------------


def check_tokenizer(checkpoint: Checkpoint, tokenizer: Tokenizer) -> None:
    """Raise `UserError` if the checkpoint was trained with another tokenizer."""
    if checkpoint.meta["tokenizer_hash"] != tokenizer.hash():
        raise UserError(
            f"{checkpoint.path} was trained with another tokenizer than the one in {base_dir() / 'tokenizer'}: "
            "restore that tokenizer, or train again"
        )


def build_model(config: GPTConfig, runtime: Runtime) -> GPT:
    """Return a newly initialized model on the runtime's device."""
    with torch.device("meta"):
        model = GPT(config, runtime.compute_dtype)
    model.to_empty(device=runtime.device)
    model.init_weights(runtime.seed)
    return model


def restore_model(checkpoint: Checkpoint, runtime: Runtime) -> GPT:
    """Return the model of a checkpoint on the runtime's device, with the compute dtype that it was trained in."""
    runtime = runtime.with_dtype(checkpoint.meta["compute_dtype"])
    with torch.device("meta"):
        model = GPT(GPTConfig(**checkpoint.meta["model_config"]), runtime.compute_dtype)
    model.to_empty(device=runtime.device)
    try:
        model.load_state_dict(checkpoint.load_weights())
    except RuntimeError as error:
        raise UserError(f"{checkpoint.path} does not hold the weights that its meta.json describes") from error
    model.init_rope()
    return model


def load_model(
    source: str,
    device: torch.device | Runtime,
    phase: str = "eval",
    model_tag: str | None = None,
    step: int | None = None,
) -> tuple[GPT, Tokenizer, CheckpointMeta]:
    """Return model, tokenizer and meta.json of a stage's checkpoint.

    `source`: base, mid, sft or rl. `device`: device of the model, or the runtime of a script. `phase`: "eval" or
    "train". `model_tag`: by default the stage's deepest model. `step`: by default (None or -1) the last checkpoint.
    Raises `UserError` if there is no such checkpoint, or if the tokenizer has changed since it was written.
    """
    runtime = device if isinstance(device, Runtime) else Runtime.without_setup(device)
    checkpoint = open_checkpoint(run_dir(source, model_tag or default_tag(source)), -1 if step is None else step)
    tokenizer = get_tokenizer()
    check_tokenizer(checkpoint, tokenizer)
    print0(f"Loading {checkpoint.path}")
    model = restore_model(checkpoint, runtime)
    model.train(phase == "train")
    return model, tokenizer, checkpoint.meta


def model_meta(model: GPT, runtime: Runtime, tokenizer: Tokenizer) -> RunMeta:
    """Return the part of meta.json that describes a model; a run adds the optional fields."""
    return {
        "model_config": asdict(model.config),
        "compute_dtype": runtime.dtype_name,
        "torch_version": torch.__version__,
        "tokenizer_hash": tokenizer.hash(),
    }
