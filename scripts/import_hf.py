"""Import a folder that scripts.export_hf or transformers has written as a checkpoint.

    python -m scripts.import_hf d20-hf                        # a base model d20, to chat with or to train further
    python -m scripts.import_hf d20-sft -i sft -g imported    # as another stage, under another name

The commands are the same on a machine with one GPU, on one with eight and on a laptop: the import runs on the CPU. The
folder holds config.json, tokenizer.json and model.safetensors (or several such files and model.safetensors.index.json)
of transformers' architecture `nanochat`. The tokenizer is saved in the base folder ($NANOCHAT_BASE_DIR), which must not
hold another one. The folder has no optimizer state: the imported run cannot be resumed, but later stages can start from
it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypedDict

import torch
from safetensors import SafetensorError
from torch import Tensor

from nanochat.checkpoint_manager import CHECKPOINT_DIRS, RunMeta, list_steps, run_dir, save_checkpoint
from nanochat.checkpoints.run_lock import lock_run, run_locks
from nanochat.checkpoints.tensors import find_weight_fault, load_tensors, tensor_shapes
from nanochat.common import UserError, base_dir, print0
from nanochat.configurator import Settings, cli, setting
from nanochat.export.hf_model import check_hf_shapes, from_hf_config, from_hf_weights
from nanochat.export.hf_tokenizer import from_hf_tokenizer
from nanochat.gpt import GPTConfig
from nanochat.runtime import DTYPES
from nanochat.system.json_files import check_type, read_json
from nanochat.system.json_text import short_repr
from nanochat.tokenizer import TOKENIZER_FILE, Tokenizer

REMEDY = "export or download it again"
MAX_FACT = 1 << 40  # of a number that config.json records about the exported checkpoint


@dataclass(frozen=True)
class Config(Settings):
    folder: Path | None = setting(None, "folder to import", positional=True)
    source: str = setting("base", "stage to import it as", short="i", choices=tuple(CHECKPOINT_DIRS))
    model_tag: str | None = setting(
        None, "name of the imported model; default: d<number of layers>", short="g", names="name"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.folder is None:
            raise UserError("the folder to import is missing: name it, as in python -m scripts.import_hf FOLDER")


class Index(TypedDict):
    """Content of model.safetensors.index.json."""

    weight_map: dict[str, str]  # name of a weight -> name of its file


class Origin(TypedDict, total=False):
    """The facts about its checkpoint that an export records in config.json."""

    compute_dtype: str
    total_batch_size: int
    step: int


@contextmanager
def name_in_errors(path: Path) -> Iterator[Path]:
    """Yield `path`; errors that are raised in the block become UserErrors that name it."""
    try:
        yield path
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error


def file_of(folder: Path, name: object) -> Path:
    """Return the path of a file of the folder. Raises UserError unless the name is plain and the file is in the folder.

    A link must stay in the folder, or lead to the store of the hub's cache, whose snapshots consist of links.
    """
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.+=-]{0,199}", name):
        raise UserError(f"weight_map names {short_repr(name)}: must be the plain name of a file in the folder")
    path = folder / name
    if path.is_symlink():
        target = path.resolve()
        store = folder.resolve().parent.parent / "blobs"
        if target.parent not in (folder.resolve(), store):
            raise UserError(f"{path} is a symbolic link to {target}, out of the folder: copy the file")
    return path


def read_weights(folder: Path, config: GPTConfig) -> dict[str, Tensor]:
    """Read the weights of one file, or of all files in an index. Raises UserError that names the file at fault.

    `config`: of the model, which their shapes must be of.
    """
    index = folder / "model.safetensors.index.json"
    names = ["model.safetensors"]
    if not (folder / names[0]).exists() and index.exists():
        content = read_json(index)
        with name_in_errors(index):
            check_type(content, Index, "")
            if not content["weight_map"]:
                raise UserError("weight_map must give the file of each weight")
            names = sorted(set(content["weight_map"].values()))
            for name in names:
                file_of(folder, name)
    paths = [file_of(folder, name) for name in names]
    shapes: dict[str, tuple[int, ...]] = {}
    for path in paths:
        shapes |= tensor_shapes(path, REMEDY)
    with name_in_errors(folder):
        check_hf_shapes(shapes, config)  # before files of any size are mapped
    weights: dict[str, Tensor] = {}
    for path in paths:
        weights |= load_tensors(path, remedy=REMEDY)
    return weights


def install_tokenizer(tokenizer: Tokenizer) -> None:
    """Save the tokenizer in the base folder. Raises UserError if another one is there."""
    folder = base_dir() / "tokenizer"
    if not (folder / TOKENIZER_FILE).exists():
        tokenizer.save(folder)
    elif Tokenizer.from_directory(folder).hash() != tokenizer.hash():
        raise UserError(f"{folder} holds another vocabulary than the model: set NANOCHAT_BASE_DIR to another folder")


def read_origin(content: Mapping[str, Any]) -> Origin:
    """Return what config.json records about the exported checkpoint, without values that cannot be true."""
    origin = content.get("origin")
    facts: Origin = {}
    if not isinstance(origin, dict):
        return facts
    if isinstance(dtype := origin.get("compute_dtype"), str) and dtype in DTYPES:
        facts["compute_dtype"] = dtype
    if type(batch_size := origin.get("total_batch_size")) is int and 0 < batch_size < MAX_FACT:
        facts["total_batch_size"] = batch_size
    if type(step := origin.get("step")) is int and 0 <= step < MAX_FACT:
        facts["step"] = step
    return facts


@run_locks()
def main(config: Config) -> Path:
    """Write the checkpoint and return its path."""
    assert config.folder is not None, "__post_init__ has checked it"
    path = file_of(config.folder, "config.json")
    content = read_json(path)
    with name_in_errors(path):
        shape = from_hf_config(content)
    path = file_of(config.folder, "tokenizer.json")
    tokenizer_content = read_json(path)
    with name_in_errors(path):
        tokenizer = from_hf_tokenizer(tokenizer_content)
        if tokenizer.get_vocab_size() != shape.vocab_size:
            raise UserError(f"it has {tokenizer.get_vocab_size()} tokens, the model {shape.vocab_size}")
    hf_weights = read_weights(config.folder, shape)
    with name_in_errors(config.folder):
        weights = from_hf_weights(hf_weights, shape)
        if fault := find_weight_fault(weights):
            raise UserError(f"its weights are {fault[1]} ({fault[0]}): there is no use for such a model")
    folder = run_dir(config.source, config.model_tag or f"d{shape.n_layer}")
    if list_steps(folder):
        raise UserError(f"{folder} holds checkpoints already: choose another name with --model_tag")
    lock_run(folder)
    origin = read_origin(content)
    install_tokenizer(tokenizer)
    settings = {"total_batch_size": origin["total_batch_size"]} if "total_batch_size" in origin else {}
    meta: RunMeta = {
        "model_config": asdict(shape),
        "compute_dtype": origin.get("compute_dtype", "float32"),
        "torch_version": torch.__version__,
        "tokenizer_hash": tokenizer.hash(),
        "data_hash": "",  # not trained on data of this base folder, so it cannot be resumed
        "settings": settings,  # for the next stage
        "imported_from": str(config.folder),
    }
    path = save_checkpoint(folder, origin.get("step", 0), weights, {}, meta)
    print0(f"Imported {config.folder} as {path}")
    return path


if __name__ == "__main__":
    cli(Config, main, __doc__)
