"""Export a checkpoint as one GGUF file, which llama.cpp, Ollama, LM Studio and others run without Python.

    python -m scripts.export_gguf -i sft --out=d20.gguf                    # the deepest chat model, weights in bf16
    python -m scripts.export_gguf -i sft -g d20 --out=d20.gguf --type=q8_0 # half the size, hardly a difference
    python -m scripts.export_gguf -i base --out=base.gguf --form=gemma3    # with the soft cap, for exact sampling

The commands are the same on a machine with one GPU, on one with eight and on a laptop: the export runs on the CPU and
loads only the weights. It needs the package gguf: `uv pip install -e '.[gguf]'`. What an engine computes otherwise than
nanochat is printed, and written into the file (key `nanochat.limits`). `python -m scripts.chat_cli --gguf=d20.gguf`
chats with the file through llama.cpp, `python -m dev.check_gguf` compares it with its checkpoint.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nanochat.checkpoint_manager import CHECKPOINT_DIRS, check_tokenizer, default_tag, open_checkpoint, run_dir
from nanochat.common import UserError, check_file_writable, print0
from nanochat.configurator import Settings, cli, setting
from nanochat.export.gguf_file import OTHER_FILE, WEIGHT_TYPES, GGUFOptions, import_gguf, write_gguf
from nanochat.export.gguf_forms import FORMS
from nanochat.tokenizer import get_tokenizer


@dataclass(frozen=True)
class Config(Settings):
    source: str = setting("base", "stage whose model is exported", short="i", choices=tuple(CHECKPOINT_DIRS))
    model_tag: str | None = setting(
        None, "checkpoint folder to export; default: that of the deepest model", short="g", names="name"
    )
    step: int = setting(-1, "checkpoint to export; -1 = the last", short="s", at_least=0, or_value=-1)
    out: Path | None = setting(None, "file to write, NAME.gguf (required)")
    type: str = setting(
        "bf16", "type of the weights: f32 is exact, q8_0 half of bf16, q4_0 small and worse", choices=WEIGHT_TYPES
    )
    form: str = setting(
        "apertus", "architecture; gemma3: a third larger, with the soft cap of the logits", choices=tuple(FORMS)
    )
    allow_other_digits: bool = setting(
        False, "accept that engines cut numbers of three and more digits otherwise than in training"
    )
    overwrite: bool = setting(False, "replace the file if it is there")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.out is None:
            raise UserError("--out is missing: name the file to write, as in --out=d20.gguf")
        if self.out.suffix != ".gguf":
            raise UserError(f"out is {self.out}: must end in .gguf, by which engines know the format")


def main(config: Config) -> Path:
    """Write the file, print what is not exact in it, and return its path."""
    assert config.out is not None, "__post_init__ has checked it"
    import_gguf()
    if config.out.exists() and not config.overwrite:
        raise UserError(f"{config.out} exists: choose another --out, or --overwrite it")
    check_file_writable(config.out, OTHER_FILE)
    tag = config.model_tag or default_tag(config.source)
    checkpoint = open_checkpoint(run_dir(config.source, tag), config.step)
    tokenizer = get_tokenizer()
    check_tokenizer(checkpoint, tokenizer)
    shape = checkpoint.shape
    if shape.vocab_size != tokenizer.get_vocab_size():
        raise UserError(f"the model has {shape.vocab_size} tokens, its tokenizer {tokenizer.get_vocab_size()}")
    about = {
        "general.name": f"nanochat {tag} {config.source}",
        "general.description": f"trained with nanochat: {config.source} {tag}, step {checkpoint.step}",
        "nanochat.source": config.source,
        "nanochat.tag": tag,
        "nanochat.step": checkpoint.step,
    }
    options = GGUFOptions(config.type, config.form, config.allow_other_digits)
    limits = write_gguf(config.out, checkpoint.load_weights(), shape, tokenizer, options, about)
    megabytes = config.out.stat().st_size / 1e6
    print0(f"Exported {checkpoint.path} to {config.out} ({megabytes:,.1f} MB, {config.type}, {config.form})")
    print0("It computes what nanochat does, up to rounding, but:", *(f"- {limit}" for limit in limits), sep="\n")
    return config.out


if __name__ == "__main__":
    cli(Config, main, __doc__)
