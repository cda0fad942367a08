"""Checkpoints: saved atomically, listed, and loaded as models.

    $NANOCHAT_BASE_DIR/base_checkpoints/d20/step_000400/
        model.safetensors       weights, by parameter name
        optimizer.safetensors   unsharded optimizer state, from which any number of processes can resume
        meta.json               format, arch, step, model config, settings, loop state, tokenizer and data hashes,
                                and the hashes of all files, which are compared when they are read

A checkpoint is written into a hidden folder, flushed to disk and then renamed, so that a crash at any time leaves the
previous checkpoint intact. If a step is saved again, its old checkpoint is kept as `step_000400.old` until the new one
is complete. "Last" means the latest in time (`serial`), not the highest step: a run may have been started again in the
same folder. No pickle is involved.

Weights that are infinite, not a number, or so large that their squares overflow are neither saved nor loaded. Those of
an earlier version that are on disk already do not count as checkpoints when older ones are removed.

Functions and command lines name a checkpoint by three values. `source` is its stage (base, mid, sft or rl). The model
tag is the name of its run's folder, by default `d` and the depth: `d20` has 20 layers. The third value is its step.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor

from nanochat.checkpoints.meta import ARCH, FORMAT, META_FILE, CheckpointMeta, RunMeta, read_meta, seal
from nanochat.checkpoints.tensors import (
    file_facts,
    find_non_finite,
    find_weight_fault,
    load_tensors,
    tensor_shapes,
    write_tensors,
)
from nanochat.common import UserError, base_dir, check_name, print0
from nanochat.gpt import GPT, GPTConfig
from nanochat.runtime import Runtime
from nanochat.system.files import flush_folder, flush_to_disk
from nanochat.tokenizer import TOKENIZER_FILE, Tokenizer, get_tokenizer

__all__ = ["CheckpointMeta", "RunMeta", "load_tensors", "read_meta"]

WEIGHTS_FILE = "model.safetensors"
OPTIMIZER_FILE = "optimizer.safetensors"
CHECKPOINT_DIRS = {  # by stage
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
    meta: CheckpointMeta

    @property
    def step(self) -> int:
        """Number of optimizer steps taken."""
        return int(self.meta["step"])

    @property
    def serial(self) -> int:
        """Position in the order in which the checkpoints of the folder were written: 1, 2, ..."""
        return int(self.meta["serial"])

    @property
    def shape(self) -> GPTConfig:
        """Shape of the model."""
        return GPTConfig(**self.meta["model_config"])

    def load_weights(self) -> dict[str, Tensor]:
        """Read the model's weights to the CPU.

        Raises `UserError` if the file is damaged, holds another model than meta.json describes, or a weight is not
        finite or too large. The sizes in meta.json are believed only after that: nothing is allocated for them before.
        """
        path = self.path / WEIGHTS_FILE
        check_shapes(self.path, self.shape, tensor_shapes(path))
        weights = load_tensors(path, self.meta.get("files", {}).get(WEIGHTS_FILE))
        if fault := find_weight_fault(weights):
            raise UserError(
                f"{self.path} cannot be used: its weights are {fault[1]} ({fault[0]}), because its training diverged; "
                "choose an earlier step, or train again with lower learning rates"
            )
        return weights

    def load_optimizer_state(self) -> dict[str, Tensor]:
        """Read the optimizer's state to the CPU. Raises `UserError` if the file is damaged."""
        return load_tensors(self.path / OPTIMIZER_FILE, self.meta.get("files", {}).get(OPTIMIZER_FILE))

    def has_finite_weights(self) -> bool:
        """Return True if the weights are finite. Those of a checkpoint with hashes are known to be."""
        try:
            return "files" in self.meta or not find_weight_fault(load_tensors(self.path / WEIGHTS_FILE))
        except UserError:
            return False


# --- finding checkpoints ----------------------------------------------------------------------------------------------


def run_dir(source: str, tag: str) -> Path:
    """Return the folder of a run's checkpoints. `source`: its stage (base, mid, sft or rl). `tag`: its tag, as d20."""
    if source not in CHECKPOINT_DIRS:
        raise UserError(f"no stage {source!r}: choose one of {', '.join(CHECKPOINT_DIRS)}")
    if tag:  # empty: the folder of all runs of a stage
        check_name(tag, "model_tag")
    return base_dir() / CHECKPOINT_DIRS[source] / tag


def list_steps(folder: Path) -> dict[int, Path]:
    """Return the path of each complete checkpoint in a run's folder by its step, in ascending order."""
    path_of: dict[int, Path] = {}
    for path in sorted(folder.glob("step_*"), reverse=True):  # step_000400 follows step_000400.old and replaces it
        match = STEP_DIR_PATTERN.fullmatch(path.name)
        if match and (path / "meta.json").is_file():
            path_of[int(match.group(1))] = path
    return dict(sorted(path_of.items()))


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
    keep_step: int | None = None,
) -> Path:
    """Write the checkpoint of a step and remove all but the run's `keep_last` newest (-1: all stay). On rank 0 only.

    `keep_step`: a step whose checkpoint stays, too.

    `meta`: content of meta.json besides format, arch, step, serial and hashes. Raises `UserError` if the disk is full,
    if writing fails for another reason, or if a weight or a part of the optimizer's state is not finite. The earlier
    checkpoints then stay intact.
    """
    final = folder / f"step_{step:06d}"
    temporary = folder / f".{final.name}.tmp"
    fault = find_weight_fault(weights)
    if fault is None and (name := find_non_finite(optimizer_state)):
        fault = name, "not finite"
    if fault is not None:
        raise UserError(
            f"{final} is not saved: {fault[0]} is {fault[1]}, the training has diverged; the earlier checkpoints are "
            "intact: resume from one with lower learning rates"
        )
    try:
        remove_leftovers(folder)
        earlier = list_checkpoints(folder, skip_unreadable=True)
        serial = earlier[-1].serial + 1 if earlier else 1
        temporary.mkdir(parents=True)
        save_tensors(temporary / WEIGHTS_FILE, weights)
        save_tensors(temporary / OPTIMIZER_FILE, optimizer_state)
        files = {name: file_facts(temporary / name) for name in (WEIGHTS_FILE, OPTIMIZER_FILE)}
        text = seal({"format": FORMAT, "arch": ARCH, "step": step, "serial": serial, **meta, "files": files})
        with open(temporary / META_FILE, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            flush_to_disk(file.fileno())
        flush_folder(temporary)
        move_into_place(temporary, final)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)  # frees the full disk
        raise UserError(f"cannot save {final} ({error}); the earlier checkpoints are intact") from error
    if keep_last > 0:
        prune(folder, keep_last, meta.get("first_serial", 0), keep_step)
    return final


def prune(folder: Path, keep_last: int, first_serial: int = 0, keep_step: int | None = None) -> None:
    """Remove the checkpoints of a run that are older than its `keep_last` newest ones with finite weights.

    `first_serial`: of the run. Checkpoints of other runs stay, and do not count; 0: those that name no run. The run's
    checkpoint of step `keep_step` stays.
    """
    num_kept = 0
    checkpoints = list_checkpoints(folder, skip_unreadable=True)
    for checkpoint in reversed([each for each in checkpoints if each.meta.get("first_serial", 0) == first_serial]):
        if num_kept < keep_last and checkpoint.has_finite_weights():
            num_kept += 1
        elif num_kept == keep_last and checkpoint.step != keep_step:
            try:
                remove_checkpoint(checkpoint.path)
            except OSError as error:
                print0(f"NOTICE: {checkpoint.path} cannot be removed ({error})")


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
    flush_folder(final.parent)
    remove_checkpoint(old)


def remove_checkpoint(path: Path) -> None:
    """Remove a checkpoint if it exists. It is renamed first, so that a crash leaves no partial one under its name."""
    if path.exists():
        hidden = path.with_name(f".{path.name}.tmp")
        os.rename(path, hidden)
        shutil.rmtree(hidden, ignore_errors=True)


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors to a safetensors file and flush it to disk."""
    write_tensors({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)
    with open(path, "rb") as file:
        flush_to_disk(file.fileno())


# --- models -----------------------------------------------------------------------------------------------------------


def check_tokenizer(checkpoint: Checkpoint, tokenizer: Tokenizer) -> None:
    """Raise `UserError` if the checkpoint was trained with another tokenizer."""
    needed = checkpoint.meta["tokenizer_hash"]
    if needed != tokenizer.hash():
        restore = "restore that tokenizer"
        if re.fullmatch("[0-9a-f]{64}", needed) and (kept := kept_tokenizer_dir(needed) / TOKENIZER_FILE).is_file():
            restore = f"that one is kept as {kept}, copy it back"
        raise UserError(
            f"{checkpoint.path} was trained with another tokenizer than the one in {base_dir() / 'tokenizer'}: "
            f"{restore}, or train again"
        )


def kept_tokenizer_dir(tokenizer_hash: str) -> Path:
    """Return the folder in which tok_train keeps a tokenizer that it replaces and checkpoints need."""
    return base_dir() / f"tokenizer.{tokenizer_hash[:8]}"


def count_checkpoints_of(tokenizer_hash: str) -> int:
    """Return the number of checkpoints of all stages that were trained with a tokenizer."""
    return sum(
        checkpoint.meta["tokenizer_hash"] == tokenizer_hash
        for source in CHECKPOINT_DIRS
        for tag in list_tags(source)
        for checkpoint in list_checkpoints(run_dir(source, "") / tag, skip_unreadable=True)
    )


def check_shapes(path: Path, config: GPTConfig, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise `UserError` unless the shapes of a checkpoint's weights, by name, are those of a model of this shape."""
    num_layers = len({name.split(".")[1] for name in shapes if name.startswith("blocks.")})
    is_same = num_layers == config.n_layer  # before a model of so many layers is built
    if is_same:
        with torch.device("meta"):
            model = GPT(config)
        is_same = shapes == {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if not is_same:
        raise UserError(
            f"{path} does not hold the weights that its meta.json describes: remove it, or use another step"
        )


def build_model(config: GPTConfig, runtime: Runtime) -> GPT:
    """Return a newly initialized model on the runtime's device."""
    with torch.device("meta"):
        model = GPT(config, runtime.compute_dtype)
    model.materialize(runtime.device)
    model.init_weights(runtime.seed)
    return model


def restore_model(checkpoint: Checkpoint, runtime: Runtime) -> GPT:
    """Return the model of a checkpoint on the runtime's device, with the compute dtype that it was trained in."""
    runtime = runtime.with_dtype(checkpoint.meta["compute_dtype"])
    weights = checkpoint.load_weights()
    with torch.device("meta"):
        model = GPT(checkpoint.shape, runtime.compute_dtype)
    model.materialize(runtime.device)
    model.load_state_dict(weights)
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
