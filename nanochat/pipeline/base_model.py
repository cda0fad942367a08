"""A start from a base model of another text: it is copied with its tokenizer, and trained further on the documents."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from nanochat.checkpoint_manager import CHECKPOINT_DIRS, Checkpoint, open_checkpoint
from nanochat.common import UserError, print0, write_text_atomic
from nanochat.gpt import GPT, GPTConfig
from nanochat.pipeline.plan import BASE_TEXT_ALONE, PIECE_CHARS, Choices
from nanochat.pipeline.sizing import RunSize, size_run
from nanochat.pipeline.speed import read_speed
from nanochat.system.files import temporary_name
from nanochat.tokenizer import TOKENIZER_FILE, Tokenizer

FURTHER_PASSES = 4  # over the documents: a model that knows the language needs fewer


def prepare(origin: Path, choices: Choices, num_bytes: int, minutes: float) -> RunSize:
    """Copy the base model of the run, write the mixture of its further training, and return the size of the run.

    `origin`: the base folder that holds the model. Raises `UserError` if it has no such model.
    """
    assert choices.base is not None, "only runs that start from a base model call this"
    checkpoint = copy_base_model(origin, choices.folder, choices.base)
    write_text_atomic(choices.text_mixture, BASE_TEXT_ALONE.format(max_chars=PIECE_CHARS))
    speed = read_speed()
    own = size_run(num_bytes, minutes, speed["flops_per_second"], speed["device"])
    return size_further_run(own, checkpoint.shape, num_bytes)


def size_further_run(own: RunSize, shape: GPTConfig, num_bytes: int) -> RunSize:
    """Return the size of a run on the same text in the same time that trains a model of this shape further.

    `own`: the size of a run from nothing.
    """
    import torch

    from nanochat.pipeline.sizing import bytes_per_token, flops_per_token, speed_of_depth

    with torch.device("meta"):
        cost = GPT(shape).estimate_flops()
    ratio = flops_per_token(own.depth, own.vocab_size) / cost
    ratio *= speed_of_depth(shape.n_layer) / speed_of_depth(own.depth)
    text_tokens = num_bytes / bytes_per_token(min(shape.vocab_size, 1 << 16))
    batch = max(1, own.total_batch_size // shape.sequence_len) * shape.sequence_len
    num_tokens = min(own.num_tokens * ratio, FURTHER_PASSES * text_tokens)
    num_steps = max(1, round(num_tokens / batch))
    return replace(
        own,
        vocab_size=shape.vocab_size,
        depth=shape.n_layer,
        max_seq_len=shape.sequence_len,
        total_batch_size=batch,
        num_iterations=num_steps,
        eval_every=max(1, num_steps // 10),
        fine_tuning_steps=max(1, round(own.fine_tuning_steps * ratio * own.total_batch_size / batch)),
        passes=batch * num_steps / text_tokens,
    )


def copy_base_model(origin: Path, folder: Path, tag: str) -> Checkpoint:
    """Copy the last checkpoint of a base model, and its tokenizer, into a run's folder; return the copy.

    Nothing is copied again. Raises `UserError` if there is no such model, or if the run has another tokenizer.
    """
    source = open_checkpoint(origin / CHECKPOINT_DIRS["base"] / tag)
    target = folder / CHECKPOINT_DIRS["base"] / tag / source.path.name
    tokenizer = folder / "tokenizer"
    if not (tokenizer / TOKENIZER_FILE).exists():
        _copy(origin / "tokenizer", tokenizer)
    if Tokenizer.from_directory(tokenizer).hash() != source.meta["tokenizer_hash"]:
        raise UserError(
            f"{folder} has another tokenizer than {source.path} was trained with: name a new folder in "
            "NANOCHAT_BASE_DIR for a run from this model"
        )
    if not target.exists():
        _copy(source.path, target)
        print0(f"Copied {source.path}")
    return open_checkpoint(target.parent, source.step)


def _copy(source: Path, target: Path) -> None:
    """Copy a folder, completely or not at all. Raises `UserError`."""
    temporary = temporary_name(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(source, temporary)
        temporary.rename(target)
    except OSError as error:
        raise UserError(f"cannot copy {source} to {target}: {error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
