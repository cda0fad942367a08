"""Turn a folder that scripts.export_hf or transformers has written into a checkpoint of ours.

    python -m scripts.import_hf d20-hf                        # a base model d20, to chat with or to train further
    python -m scripts.import_hf d20-sft -i sft -g imported    # as another stage, under another name

On one GPU, on eight or on a laptop alike: it runs on the CPU. The folder holds config.json, tokenizer.json and
model.safetensors, or several of these and model.safetensors.index.json, of the architecture `nanochat`. The tokenizer
goes to the base folder ($NANOCHAT_BASE_DIR), which must not hold another one. The optimizer's state is not in such a
folder: the imported run cannot be resumed, but the stages after it begin from it.
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
    folder: Path | None = setting(None, "folder of the model", positional=True)
    source: str = setting("base", "stage that it is imported as", short="i", choices=tuple(CHECKPOINT_DIRS))
    model_tag: str | None = setting(None, "name of the imported model; default: d and its layers", short="g")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.folder is None:
            raise UserError("name the folder to import")


@contextmanager
def reading(path: Path) -> Iterator[Path]:
    """What goes wrong with a file is said with its name."""
    try:
        yield path
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error


def read_json(path: Path) -> Any:
    """The content of a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The weights of one file, or of all that an index names. Raises UserError that names the file at fault."""
    index = folder / "model.safetensors.index.json"
    names = ["model.safetensors"]
    if not (folder / names[0]).exists() and index.exists():
        with reading(index):
            content = read_json(index)
            where = content.get("weight_map") if isinstance(content, dict) else None
            if not isinstance(where, dict) or not where or any(Path(str(name)).name != name for name in where.values()):
                raise UserError("weight_map must give the file of each weight")
            names = sorted(set(where.values()))
    found: dict[str, Tensor] = {}
    for name in names:
        with reading(folder / name) as path:
            found |= load_file(path)
    return found


def put_tokenizer(tokenizer: Tokenizer) -> None:
    """Save the tokenizer in the base folder. Raises UserError if another one is there."""
    place = base_dir() / "tokenizer"
    if not (place / TOKENIZER_FILE).exists():
        tokenizer.save(place)
    elif Tokenizer.from_directory(place).hash() != tokenizer.hash():
        raise UserError(f"{place} holds another vocabulary than the model: set NANOCHAT_BASE_DIR to another folder")


def main(config: Config) -> Path:
    """Write the checkpoint, and give its path."""
    assert config.folder is not None, "__post_init__ has checked it"
    with reading(config.folder / "config.json") as path:
        content = read_json(path)
        shape = from_hf_config(content)
    with reading(config.folder / "tokenizer.json") as path:
        tokenizer = from_hf_tokenizer(read_json(path))
        if tokenizer.get_vocab_size() != shape.vocab_size:
            raise UserError(f"it has {tokenizer.get_vocab_size()} tokens, the model {shape.vocab_size}")
    found = read_weights(config.folder)
    with reading(config.folder):
        weights = from_hf_weights(found, shape)
    run = run_dir(config.source, config.model_tag or f"d{shape.n_layer}")
    if list_steps(run):
        raise UserError(f"{run} holds checkpoints already: choose another name with --model_tag")
    origin = content.get("origin") if isinstance(content.get("origin"), dict) else {}
    dtype, size = origin.get("compute_dtype"), origin.get("total_batch_size")
    put_tokenizer(tokenizer)
    meta: RunMeta = {
        "model_config": asdict(shape),
        "compute_dtype": dtype if dtype in DTYPES else "float32",
        "torch_version": torch.__version__,
        "tokenizer_hash": tokenizer.hash(),
        "data_hash": "",  # no run here has made it, so none can resume it
        "settings": {"total_batch_size": size} if isinstance(size, int) and size > 0 else {},  # for the next stage
        "imported_from": str(config.folder),
    }
    step = origin.get("step")
    saved = save_checkpoint(run, step if isinstance(step, int) and step >= 0 else 0, weights, {}, meta)
    print0(f"Imported {config.folder} as {saved}")
    return saved


if __name__ == "__main__":
    cli(Config, main, __doc__)
