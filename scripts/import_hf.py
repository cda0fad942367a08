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

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from nanochat.checkpoint_manager import CHECKPOINT_DIRS, RunMeta, list_steps, run_dir, save_checkpoint
from nanochat.common import UserError, base_dir, print0
from nanochat.configurator import Settings, cli, setting
from nanochat.export.hf_model import from_hf_config, from_hf_weights
from nanochat.export.hf_tokenizer import from_hf_tokenizer
from nanochat.runtime import DTYPES
from nanochat.tokenizer import TOKENIZER_FILE, Tokenizer


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


@contextmanager
def name_in_errors(path: Path) -> Iterator[Path]:
    """Yield `path`; errors that are raised in the block become UserErrors that name it."""
    try:
        yield path
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error


def read_json(path: Path) -> Any:
    """Return the content of a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Read the weights of one file, or of all files in an index. Raises UserError that names the file at fault."""
    index = folder / "model.safetensors.index.json"
    names = ["model.safetensors"]
    if not (folder / names[0]).exists() and index.exists():
        with name_in_errors(index):
            content = read_json(index)
            weight_map = content.get("weight_map") if isinstance(content, dict) else None
            if not isinstance(weight_map, dict) or not weight_map:
                raise UserError("weight_map must give the file of each weight")
            if any(Path(str(name)).name != name for name in weight_map.values()):
                raise UserError("weight_map must name files in the same folder")
            names = sorted(set(weight_map.values()))
    weights: dict[str, Tensor] = {}
    for name in names:
        with name_in_errors(folder / name) as path:
            weights |= load_file(path)
    return weights


def install_tokenizer(tokenizer: Tokenizer) -> None:
    """Save the tokenizer in the base folder. Raises UserError if another one is there."""
    folder = base_dir() / "tokenizer"
    if not (folder / TOKENIZER_FILE).exists():
        tokenizer.save(folder)
    elif Tokenizer.from_directory(folder).hash() != tokenizer.hash():
        raise UserError(f"{folder} holds another vocabulary than the model: set NANOCHAT_BASE_DIR to another folder")


def main(config: Config) -> Path:
    """Write the checkpoint and return its path."""
    assert config.folder is not None, "__post_init__ has checked it"
    with name_in_errors(config.folder / "config.json") as path:
        content = read_json(path)
        shape = from_hf_config(content)
    with name_in_errors(config.folder / "tokenizer.json") as path:
        tokenizer = from_hf_tokenizer(read_json(path))
        if tokenizer.get_vocab_size() != shape.vocab_size:
            raise UserError(f"it has {tokenizer.get_vocab_size()} tokens, the model {shape.vocab_size}")
    hf_weights = read_weights(config.folder)
    with name_in_errors(config.folder):
        weights = from_hf_weights(hf_weights, shape)
    folder = run_dir(config.source, config.model_tag or f"d{shape.n_layer}")
    if list_steps(folder):
        raise UserError(f"{folder} holds checkpoints already: choose another name with --model_tag")
    origin = content.get("origin") if isinstance(content.get("origin"), dict) else {}
    dtype = origin.get("compute_dtype")
    batch_size = origin.get("total_batch_size")
    has_batch_size = isinstance(batch_size, int) and batch_size > 0
    install_tokenizer(tokenizer)
    meta: RunMeta = {
        "model_config": asdict(shape),
        "compute_dtype": dtype if dtype in DTYPES else "float32",
        "torch_version": torch.__version__,
        "tokenizer_hash": tokenizer.hash(),
        "data_hash": "",  # not trained on data of this base folder, so it cannot be resumed
        "settings": {"total_batch_size": batch_size} if has_batch_size else {},  # for the next stage
        "imported_from": str(config.folder),
    }
    step = origin.get("step")
    path = save_checkpoint(folder, step if isinstance(step, int) and step >= 0 else 0, weights, {}, meta)
    print0(f"Imported {config.folder} as {path}")
    return path


if __name__ == "__main__":
    cli(Config, main, __doc__)
