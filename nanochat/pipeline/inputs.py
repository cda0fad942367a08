"""Inputs of a run: the documents as they were read, and the size that follows from them."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pyarrow.compute as pc

from nanochat.data.manifest import load_manifest
from nanochat.data.shards import open_split
from nanochat.documents.document import default_documents_path
from nanochat.pipeline import sizing
from nanochat.pipeline.sizing import CONTEXT, GROUNDED_CONTEXT, RunSize, num_params, size_run
from nanochat.pipeline.speed import read_speed

HASH_CHUNK = 1 << 20  # bytes


def documents_hash(folder: Path) -> str:
    """Return a hash of the documents and of the text that is trained on: what all steps after reading depend on."""
    digest = hashlib.sha256(load_manifest(folder / "base_data").hash().encode("ascii"))
    if (path := default_documents_path()).exists():
        with open(path, "rb") as file:
            while chunk := file.read(HASH_CHUNK):
                digest.update(chunk)
    return digest.hexdigest()


def training_bytes() -> int:
    """Return the bytes of the training text."""
    return sum(pc.sum(pc.binary_length(array)).as_py() or 0 for array in open_split("train").iter_arrays())


def size_of_run(num_bytes: int, minutes: float, grounded: bool = False) -> RunSize:
    """Return the settings of a run from its own text, at the speed that was measured."""
    speed = read_speed()
    context = GROUNDED_CONTEXT if grounded else CONTEXT
    return size_run(num_bytes, minutes, speed["flops_per_second"], speed["device"], context)


def overrun_notice(num_bytes: int, minutes: float) -> str | None:
    """Return a line on a run whose minutes are too few for its text beside the training; None if they suffice."""
    needed = sizing.other_seconds(num_bytes) / 60
    training = sizing.training_share(num_bytes, minutes) * (sizing.BASE_SHARE + sizing.FINE_TUNING_SHARE)
    expected = needed + minutes * training
    if expected < 1.1 * minutes:
        return None
    return (
        f"NOTICE: the steps beside the training take about {needed:,.0f} minutes for so much text, and the run about "
        f"{expected:,.0f} instead of {minutes:g}"
    )


def describe_size(size: RunSize, num_bytes: int) -> str:
    """Return a line that says what a run is."""
    text = f"{num_bytes / 1e6:,.1f} MB" if num_bytes >= 1_000_000 else f"{num_bytes / 1e3:,.1f} KB"
    passes = f"{size.passes:.1f} passes over the text" if size.passes >= 1 else f"{size.passes:.2%} of the text"
    return (
        f"{text} of training text: a vocabulary of {size.vocab_size:,} tokens, a model of depth "
        f"{size.depth} with {num_params(size.depth, size.vocab_size):,} parameters, at most {size.num_iterations:,} "
        f"steps of {size.total_batch_size:,} tokens ({passes})"
    )
