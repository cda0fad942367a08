"""Checkpoints: a folder for each, which appears whole or not at all.

    <base folder>/base_checkpoints/d20/step_000400/
        model.safetensors       weights, by parameter name
        optimizer.safetensors   the whole optimizer state, unsharded: any number of processes can go on from it
        meta.json               format, arch, step, model config, settings, loop state, tokenizer and data hashes

Everything is written into a hidden folder beside it, flushed to the disk and renamed; a kill in between leaves the last
checkpoint as it was. Where a step is saved again, the old one is called `step_000400.old` until the new one stands.
The last checkpoint is the one that was written last, which need not be that of the highest step: a run may have been
begun anew in the same folder. Nothing is read by pickle.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from nanochat.common import UserError, base_dir, print0
from nanochat.gpt import GPT, GPTConfig
from nanochat.runtime import Runtime
from nanochat.tokenizer import Tokenizer, get_tokenizer

FORMAT = 1
ARCH = "classic"
CHECKPOINT_DIRS = {
    "base": "base_checkpoints",
    "mid": "mid_checkpoints",
    "sft": "chatsft_checkpoints",
    "rl": "chatrl_checkpoints",
}
STEP_DIR_PATTERN = re.compile(r"step_(\d{6,})(\.old)?")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk whose meta.json has been read."""

    path: Path
    meta: dict[str, Any]

    @property
    def step(self) -> int:
        """Optimizer steps taken."""
        return int(self.meta["step"])

    @property
    def serial(self) -> int:
        """Which one it was of all that have been written into its folder: 1, 2, ..."""
        return int(self.meta["serial"])

    def load_weights(self) -> dict[str, Tensor]:
        """The model's weights, on the CPU."""
        return load_tensors(self.path / "model.safetensors")

    def load_optimizer_state(self) -> dict[str, Tensor]:
        """The optimizer's state, on the CPU."""
        return load_tensors(self.path / "optimizer.safetensors")


def run_dir(source: str, tag: str) -> Path:
    """Where the checkpoints of a run stand. `source`: base, mid, sft or rl."""
    if source not in CHECKPOINT_DIRS:
        raise UserError(f"no stage {source!r}: choose one of {', '.join(CHECKPOINT_DIRS)}")
    return base_dir() / CHECKPOINT_DIRS[source] / tag


def list_steps(folder: Path) -> dict[int, Path]:
    """Steps that have a whole checkpoint in this folder, in order, and where; what else lies there is overlooked."""
    found: dict[int, Path] = {}
    for path in sorted(folder.glob("step_*"), reverse=True):  # step_000400 after step_000400.old, which it replaces
        match = STEP_DIR_PATTERN.fullmatch(path.name)
        if match and (path / "meta.json").is_file():
            found[int(match.group(1))] = path
    return dict(sorted(found.items()))


def read_meta(path: Path) -> dict[str, Any]:
    """meta.json of a checkpoint. Raises `UserError` if it is torn, or of a format that this version does not know."""
    try:
        meta: dict[str, Any] = json.loads((path / "meta.json").read_text(encoding="utf-8"))
        found = (meta["format"], meta["arch"])
        if found == (FORMAT, ARCH):
            int(meta["step"]), int(meta["serial"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path / 'meta.json'} cannot be read ({error!r}): remove {path}") from error
    if found != (FORMAT, ARCH):
        raise UserError(f"{path} has format {found[0]}, arch {found[1]!r}; this version reads {FORMAT}, {ARCH!r}")
    return meta


def list_checkpoints(folder: Path, skip_unreadable: bool = False) -> list[Checkpoint]:
    """All checkpoints of a run's folder, the one that was written last at the end."""
    found = []
    for path in list_steps(folder).values():
        try:
            found.append(Checkpoint(path, read_meta(path)))
        except UserError:
            if not skip_unreadable:
                raise
    return sorted(found, key=lambda checkpoint: checkpoint.serial)


def list_tags(source: str) -> list[str]:
    """Tags of a stage that have a checkpoint, the deepest (d12 before d4) last."""
    folder = run_dir(source, "")
    tags = [path.name for path in folder.glob("*") if list_steps(path)]
    return sorted(tags, key=lambda tag: (int(tag[1:]) if re.fullmatch(r"d\d+", tag) else -1, tag))


def default_tag(source: str) -> str:
    """Return the tag to use where none is given: that of the deepest model. Raises `UserError` if there is none."""
    tags = list_tags(source)
    if not tags:
        raise UserError(f"no {source} checkpoint in {run_dir(source, '')}: run that stage first")
    return tags[-1]


def save_checkpoint(
    folder: Path,
    step: int,
    weights: Mapping[str, Tensor],
    optimizer_state: Mapping[str, Tensor],
    meta: Mapping[str, Any],
    keep_last: int = -1,
) -> Path:
    """Write the checkpoint of this step; keep only the `keep_last` newest ones (-1: all). Main process only.

    Raises `UserError`, with the earlier checkpoints as they were, if the disk is full or refuses in another way.
    """
    final = folder / f"step_{step:06d}"
    aside = folder / f".{final.name}.tmp"
    try:
        remove_leftovers(folder)
        earlier = list_checkpoints(folder, skip_unreadable=True)
        serial = earlier[-1].serial + 1 if earlier else 1
        aside.mkdir(parents=True)
        save_tensors(aside / "model.safetensors", weights)
        save_tensors(aside / "optimizer.safetensors", optimizer_state)
        with open(aside / "meta.json", "w", encoding="utf-8") as file:
            json.dump({"format": FORMAT, "arch": ARCH, "step": step, "serial": serial, **meta}, file, indent=2)
            file.flush()
            os.fsync(file.fileno())
        fsync_dir(aside)
        move_into_place(aside, final)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(aside, ignore_errors=True)  # half a checkpoint on a full disk is of no use
        raise UserError(f"cannot save {final} ({error}); the checkpoints before it are as they were") from error
    if keep_last > 0:
        for old in list_checkpoints(folder, skip_unreadable=True)[:-keep_last]:
            remove_checkpoint(old.path)
    return final


def remove_leftovers(folder: Path) -> None:
    """Remove what a run that was killed while it saved has left here, and nothing that is needed."""
    for half in folder.glob(".step_*.tmp"):
        shutil.rmtree(half)
    for old in folder.glob("step_*.old"):
        if old.with_suffix("").exists():
            remove_checkpoint(old)


def move_into_place(aside: Path, final: Path) -> None:
    """Give a whole checkpoint its name. One that had it before is there, as `.old`, until the new one is."""
    old = final.with_name(f"{final.name}.old")
    if final.exists():  # a folder cannot be renamed onto a full one
        remove_checkpoint(old)
        os.rename(final, old)
    os.rename(aside, final)
    fsync_dir(final.parent)
    remove_checkpoint(old)


def remove_checkpoint(path: Path) -> None:
    """Remove a checkpoint, if it is there, so that a kill in between does not leave half of it under its name."""
    if path.exists():
        hidden = path.with_name(f".{path.name}.tmp")
        os.rename(path, hidden)
        shutil.rmtree(hidden, ignore_errors=True)


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors to a safetensors file and wait until it is on the disk."""
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file. Raises `UserError`, which names it, if it is missing or torn."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{path} cannot be read ({error}): remove its folder to go on from an older checkpoint"
        ) from error


def fsync_dir(folder: Path) -> None:
    """Wait until the names in a folder are on the disk, where the system can do that."""
    if hasattr(os, "O_DIRECTORY"):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        os.fsync(handle)
        os.close(handle)


def open_checkpoint(folder: Path, step: int = -1) -> Checkpoint:
    """The checkpoint of a step (-1: the last) in a run's folder. Raises `UserError` if there is none of any use."""
    steps = list_steps(folder)
    if not steps:
        raise UserError(f"no checkpoint in {folder}: train one first, or name another run with --model_tag")
    if step == -1:
        return list_checkpoints(folder)[-1]
    if step not in steps:
        raise UserError(f"no checkpoint of step {step} in {folder}: there are {', '.join(map(str, steps))}")
    return Checkpoint(steps[step], read_meta(steps[step]))


def check_tokenizer(checkpoint: Checkpoint, tokenizer: Tokenizer) -> None:
    """Raise `UserError` unless the checkpoint was trained with this tokenizer."""
    if checkpoint.meta["tokenizer_hash"] != tokenizer.hash():
        raise UserError(
            f"{checkpoint.path} was trained with another tokenizer than the one in {base_dir() / 'tokenizer'}: "
            "put that one back, or train again"
        )


def build_model(config: GPTConfig, runtime: Runtime) -> GPT:
    """A model on the runtime's device with its first weights."""
    with torch.device("meta"):
        model = GPT(config, runtime.compute_dtype)
    model.to_empty(device=runtime.device)
    model.init_weights(runtime.seed)
    return model


def restore_model(checkpoint: Checkpoint, runtime: Runtime) -> GPT:
    """The model of a checkpoint, with its weights, on the runtime's device and in the dtype that it was trained in."""
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
) -> tuple[GPT, Tokenizer, dict[str, Any]]:
    """Return model, tokenizer and meta.json of a stage's checkpoint.

    `source`: base, mid, sft or rl. `device`: where to put the model, or the runtime of a script. `phase`: "eval" or
    "train". Default: the deepest model, and the last step (None or -1). Raises `UserError` if there is no such
    checkpoint, or if the tokenizer has changed since.
    """
    runtime = device if isinstance(device, Runtime) else Runtime.current(device)
    checkpoint = open_checkpoint(run_dir(source, model_tag or default_tag(source)), -1 if step is None else step)
    tokenizer = get_tokenizer()
    check_tokenizer(checkpoint, tokenizer)
    print0(f"Loading {checkpoint.path}")
    model = restore_model(checkpoint, runtime)
    model.train(phase == "train")
    return model, tokenizer, checkpoint.meta


def model_meta(model: GPT, runtime: Runtime, tokenizer: Tokenizer) -> dict[str, Any]:
    """What every stage writes into meta.json about its model."""
    return {
        "model_config": asdict(model.config),
        "compute_dtype": runtime.dtype_name,
        "torch_version": torch.__version__,
        "tokenizer_hash": tokenizer.hash(),
    }
