"""Export a checkpoint as a folder that Hugging Face transformers loads, and upload it to the hub on request.

    python -m scripts.export_hf --out=d20-hf                         # the deepest base model, its last step
    python -m scripts.export_hf -i sft -g d20 -s 700 --out=d20-sft   # another stage, model and step
    python -m scripts.export_hf -i sft --out=d20-sft --push=ME/d20   # asks before it uploads

The commands are the same on a machine with one GPU, on one with eight and on a laptop: the export runs on the CPU and
loads only the weights. The folder holds model.safetensors, config.json, generation_config.json, tokenizer.json,
tokenizer_config.json, two chat templates (chat_template.jinja to chat, additional_chat_templates/training.jinja to
train with transformers) and a model card; `AutoModelForCausalLM` and `AutoTokenizer` load it (`uv pip install -e
'.[hf]'`). scripts.import_hf is the inverse.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError

from nanochat.checkpoint_manager import (
    CHECKPOINT_DIRS,
    Checkpoint,
    check_tokenizer,
    default_tag,
    open_checkpoint,
    run_dir,
)
from nanochat.checkpoints.tensors import write_tensors
from nanochat.common import UserError, base_dir, print0, write_json_atomic, write_text_atomic
from nanochat.configurator import Settings, cli, setting
from nanochat.export.hf_model import model_card, special_token_ids, to_hf_config, to_hf_weights
from nanochat.export.hf_tokenizer import TEMPLATE_FILES, to_hf_tokenizer, to_hf_tokenizer_config
from nanochat.gpt import GPTConfig
from nanochat.reporting.schema import read_sections
from nanochat.system.credentials import hub_address, is_on_hub
from nanochat.system.files import remove_abandoned, temporary_name
from nanochat.system.json_files import read_json
from nanochat.tokenizer import Tokenizer, get_tokenizer

TEMPORARY = ".export.{}.tmp"  # in a folder whose export is replaced
SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors|model\.safetensors\.index\.json")


@dataclass(frozen=True)
class Config(Settings):
    source: str = setting("base", "stage whose model is exported", short="i", choices=tuple(CHECKPOINT_DIRS))
    model_tag: str | None = setting(
        None, "checkpoint folder to export; default: that of the deepest model", short="g", names="name"
    )
    step: int = setting(-1, "checkpoint to export; -1 = the last", short="s", at_least=0, or_value=-1)
    out: Path | None = setting(None, "folder to write, which must be new or empty (required)")
    overwrite: bool = setting(False, "replace an exported model in that folder; other files stay")
    push: str | None = setting(None, "repository of the hub to upload to, as OWNER/NAME; a new one is private")
    yes: bool = setting(False, "upload without asking")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.out is None:
            raise UserError("--out is missing: name the folder to write")
        if self.push is not None and self.push.count("/") != 1:
            raise UserError(f"push is {self.push!r}: must be OWNER/NAME")


@contextmanager
def atomic_folder(out: Path, overwrite: bool) -> Iterator[Path]:
    """Yield a temporary folder to fill. It becomes `out` at the end, or is removed if an exception is raised.

    If there is an export in `out`, its files are replaced one by one, and others stay. Raises UserError if `out` holds
    something else.
    """
    out = out.absolute()
    temporary = temporary_name(out)
    replaces = False
    old = out.with_name(f".{out.name}.{os.getpid()}.old")
    try:
        if out.exists() and not (out.is_dir() and (not any(out.iterdir()) or (overwrite and is_exported_model(out)))):
            raise UserError(f"{out} is not empty: choose another --out, or --overwrite if an exported model is there")
        replaces = out.is_dir() and any(out.iterdir())
        if replaces:
            for left_by_kill in out.glob(TEMPORARY.format("*")):
                shutil.rmtree(left_by_kill)
            temporary = out / TEMPORARY.format(os.getpid())  # on the same disk, whatever is mounted there
        temporary.mkdir(parents=True)
        yield temporary
        if replaces:
            replace_files(temporary, out)
        else:
            if out.exists():
                os.rename(out, old)
            os.rename(temporary, out)
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot write {out}: {error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if os.path.exists(old) and not os.path.exists(out):  # the second rename failed
            os.rename(old, out)
        shutil.rmtree(old, ignore_errors=True)
        remove_abandoned(out)


def replace_files(new: Path, out: Path) -> None:
    """Move the files of an export over those of an earlier one, config.json last: until then it can be replaced again.

    Only files of an export are touched, and the shards of weights in several files.
    """
    names = sorted(path.relative_to(new) for path in new.rglob("*") if path.is_file())
    for name in names:
        path = out / name
        if path.is_dir() or (name.parent.name and (path.parent.is_symlink() or path.parent.is_file())):
            raise UserError(f"cannot write {path}: a folder, link or file is in its place; remove it")
    names.remove(Path("config.json"))
    for name in names:
        (out / name).parent.mkdir(exist_ok=True)
        os.replace(new / name, out / name)
    for path in out.iterdir():
        if SHARD.fullmatch(path.name) and not path.is_dir():
            path.unlink()
    os.replace(new / "config.json", out / "config.json")


def is_exported_model(folder: Path) -> bool:
    """Return True if the folder holds a model of transformers' architecture `nanochat`, which may be replaced."""
    try:
        content = read_json(folder / "config.json")
    except UserError:
        return False
    return isinstance(content, dict) and content.get("model_type") == "nanochat"


def write_model(folder: Path, checkpoint: Checkpoint, tokenizer: Tokenizer, source: str, tag: str) -> None:
    """Write all files of the exported model into a folder."""
    meta = checkpoint.meta
    config = GPTConfig(**meta["model_config"])
    if config.vocab_size != tokenizer.get_vocab_size():
        raise UserError(f"the model has {config.vocab_size} tokens, its tokenizer {tokenizer.get_vocab_size()}")
    weights = to_hf_weights(checkpoint.load_weights(), config)
    num_params = sum(weight.numel() for weight in weights.values())
    origin = {"source": source, "tag": tag, "step": checkpoint.step, "compute_dtype": meta["compute_dtype"]}
    origin["total_batch_size"] = meta.get("settings", {}).get("total_batch_size")
    write_tensors(weights, folder / "model.safetensors", metadata={"format": "pt"})
    write_json_atomic(folder / "config.json", to_hf_config(config, tokenizer, origin))
    write_json_atomic(folder / "generation_config.json", special_token_ids(tokenizer))
    write_json_atomic(folder / "tokenizer.json", to_hf_tokenizer(tokenizer))
    write_json_atomic(folder / "tokenizer_config.json", to_hf_tokenizer_config(config.sequence_len))
    for template, name in TEMPLATE_FILES.items():
        write_text_atomic(folder / name, template)
    sections, _ = read_sections(base_dir() / "report")
    write_text_atomic(folder / "README.md", model_card(source, tag, meta, config, num_params, sections))


def push_to_hub(folder: Path, repository: str) -> None:
    """Upload a folder to the hub, with the token of `hf auth login` or `$HF_TOKEN`. Raises UserError if it fails."""
    if not is_on_hub(hub_address()):
        raise UserError(
            f"HF_ENDPOINT is {hub_address()}: a token is sent over https only; the export in {folder} is complete"
        )
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        api.create_repo(repository, private=True, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder, commit_message="Upload a model of nanochat")
    except Exception as error:  # the hub's client and the network raise errors of many kinds
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"the upload to {repository} failed ({reason}); the export in {folder} is complete") from error
    print0(f"Uploaded to {repository}")


def confirm(question: str) -> bool:
    """Ask at the terminal and return True for the answer y. Ctrl-D means no."""
    try:
        print(question, end="", flush=True)  # `input` would write it past the stream that shows its control characters
        return input().strip().lower() == "y"
    except EOFError:
        print0()
        return False


def main(config: Config) -> Path:
    """Write the folder, upload it if `push` is set, and return its path."""
    assert config.out is not None, "__post_init__ has checked it"
    if config.push and not config.yes and not sys.stdin.isatty():
        raise UserError("--push asks for confirmation, but there is no terminal: add --yes to upload without asking")
    tag = config.model_tag or default_tag(config.source)
    checkpoint = open_checkpoint(run_dir(config.source, tag), config.step)
    tokenizer = get_tokenizer()
    check_tokenizer(checkpoint, tokenizer)
    with atomic_folder(config.out, config.overwrite) as folder:
        write_model(folder, checkpoint, tokenizer, config.source, tag)
    print0(f"Exported {checkpoint.path} to {config.out}")
    if config.push and (config.yes or confirm(f"Upload {config.out} to {config.push}? [y/N] ")):
        push_to_hub(config.out, config.push)
    return config.out


if __name__ == "__main__":
    cli(Config, main, __doc__)
