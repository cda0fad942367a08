"""Turn a checkpoint into a folder that Hugging Face transformers loads, and push it to the hub if asked to.

    python -m scripts.export_hf --out=d20-hf                         # the deepest base model, its last step
    python -m scripts.export_hf -i sft -g d20 -s 700 --out=d20-sft   # another stage, model and step
    python -m scripts.export_hf -i sft --out=d20-sft --push=ME/d20   # asks before it uploads

On one GPU, on eight or on a laptop alike: it runs on the CPU and loads no more than the weights. The folder holds
model.safetensors, config.json, generation_config.json, tokenizer.json, tokenizer_config.json with a chat template, and
a model card; `AutoModelForCausalLM` and `AutoTokenizer` load it (`pip install nanochat[hf]`). scripts.import_hf is the
way back.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file

from nanochat.checkpoint_manager import (
    CHECKPOINT_DIRS,
    Checkpoint,
    check_tokenizer,
    default_tag,
    open_checkpoint,
    run_dir,
)
from nanochat.common import UserError, base_dir, print0, write_json_atomic, write_text_atomic
from nanochat.configurator import Settings, cli, setting
from nanochat.export.hf_model import model_card, special_token_ids, to_hf_config, to_hf_weights
from nanochat.export.hf_tokenizer import to_hf_tokenizer, to_hf_tokenizer_config
from nanochat.gpt import GPTConfig
from nanochat.reporting.schema import read_sections
from nanochat.tokenizer import Tokenizer, get_tokenizer


@dataclass(frozen=True)
class Config(Settings):
    source: str = setting("base", "stage whose model is exported", short="i", choices=tuple(CHECKPOINT_DIRS))
    model_tag: str | None = setting(None, "which model; default: the deepest", short="g")
    step: int = setting(-1, "checkpoint; -1 = the last", short="s", at_least=0, also=-1)
    out: Path | None = setting(None, "folder to write; must be given, and new or empty")
    overwrite: bool = setting(False, "replace the model that was exported there before")
    push: str | None = setting(None, "repository of the hub to upload to, as OWNER/NAME; made private if it is new")
    yes: bool = setting(False, "upload without asking")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.out is None:
            raise UserError("--out is missing: name the folder to write")
        if self.push is not None and self.push.count("/") != 1:
            raise UserError(f"push is {self.push!r}: it must be OWNER/NAME")


@contextmanager
def new_folder(out: Path, overwrite: bool) -> Iterator[Path]:
    """A folder to fill beside `out`, which takes its place when all went well, and is removed if not.

    Raises UserError if something is at `out` that it must not replace.
    """
    out = out.absolute()
    aside, old = (out.with_name(f".{out.name}.{os.getpid()}.{kind}") for kind in ("tmp", "old"))
    try:
        if out.exists() and not (out.is_dir() and (not any(out.iterdir()) or (overwrite and was_exported(out)))):
            raise UserError(f"{out} is not empty: choose another --out, or --overwrite if an exported model is there")
        aside.mkdir(parents=True)
        yield aside
        if out.exists():
            os.rename(out, old)
        os.rename(aside, out)
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot write {out}: {error}") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
        if os.path.exists(old) and not os.path.exists(out):  # the last rename has failed
            os.rename(old, out)
        shutil.rmtree(old, ignore_errors=True)


def was_exported(folder: Path) -> bool:
    """Whether this is a folder of ours, or of the same architecture, that may be replaced."""
    try:
        content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and content.get("model_type") == "nanochat"


def write_model(folder: Path, checkpoint: Checkpoint, tokenizer: Tokenizer, source: str, tag: str) -> None:
    """Write all files of the exported model."""
    meta = checkpoint.meta
    config = GPTConfig(**meta["model_config"])
    if config.vocab_size != tokenizer.get_vocab_size():
        raise UserError(f"the model has {config.vocab_size} tokens, its tokenizer {tokenizer.get_vocab_size()}")
    weights = to_hf_weights(checkpoint.load_weights(), config)
    parameters = sum(weight.numel() for weight in weights.values())
    origin = {"source": source, "tag": tag, "step": checkpoint.step, "compute_dtype": meta["compute_dtype"]}
    origin["total_batch_size"] = meta.get("settings", {}).get("total_batch_size")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    write_json_atomic(folder / "config.json", to_hf_config(config, tokenizer, origin))
    write_json_atomic(folder / "generation_config.json", special_token_ids(tokenizer))
    write_json_atomic(folder / "tokenizer.json", to_hf_tokenizer(tokenizer))
    write_json_atomic(folder / "tokenizer_config.json", to_hf_tokenizer_config(config.sequence_len))
    sections, _ = read_sections(base_dir() / "report")
    write_text_atomic(folder / "README.md", model_card(source, tag, meta, config, parameters, sections))


def push(folder: Path, repository: str) -> None:
    """Upload a folder to the hub, with the token of `hf auth login` or `$HF_TOKEN`."""
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        api.create_repo(repository, private=True, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder, commit_message="Upload a model of nanochat")
    except Exception as error:  # whatever the hub and the network may raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"the upload to {repository} failed ({reason}); {folder} is whole") from error
    print0(f"Uploaded to {repository}")


def agreed(question: str) -> bool:
    """Whether the answer at the terminal is y; Ctrl-D is a no."""
    try:
        return input(question).strip().lower() == "y"
    except EOFError:
        print0()
        return False


def main(config: Config) -> Path:
    """Write the folder, and give its path."""
    assert config.out is not None, "__post_init__ has checked it"
    if config.push and not config.yes and not sys.stdin.isatty():
        raise UserError("--push asks before it uploads, and here is no terminal to ask at: add --yes")
    tag = config.model_tag or default_tag(config.source)
    checkpoint = open_checkpoint(run_dir(config.source, tag), config.step)
    tokenizer = get_tokenizer()
    check_tokenizer(checkpoint, tokenizer)
    with new_folder(config.out, config.overwrite) as folder:
        write_model(folder, checkpoint, tokenizer, config.source, tag)
    print0(f"Exported {checkpoint.path} to {config.out}")
    if config.push and (config.yes or agreed(f"Upload {config.out} to {config.push}? [y/N] ")):
        push(config.out, config.push)
    return config.out


if __name__ == "__main__":
    cli(Config, main, __doc__)
