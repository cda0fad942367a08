"""scripts.memorisation: a model that was trained far too long is told so, and one that was not is not."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from nanochat.configurator import parse
from nanochat.data.shards import open_split, write_dataset
from nanochat.report import read_sections
from scripts import base_train, memorisation
from tests.support.talks import TOKENIZER

FLAGS = [
    *("--depth=2", "--head_dim=32", "--max_seq_len=64", "--total_batch_size=256", "--sample_every=-1"),
    *("--eval_tokens=512", "--core_metric_every=-1", "--device=cpu", "--compile=off", "--device_batch_size=4"),
]


def prepare(folder: Path) -> None:
    """Save a small text of random words from a small dictionary, held-out text of the same words, and a tokenizer."""
    draw = random.Random(1)
    words = ["".join(draw.choices("abcdefgh", k=4)) for _ in range(40)]

    def text(count: int) -> str:
        return " ".join(draw.choices(words, k=count))

    TOKENIZER.save(folder / "tokenizer")
    write_dataset([text(60) for _ in range(4)], [text(60) for _ in range(3)], folder / "base_data", source="words")


def measure(folder: Path, steps: int) -> tuple[dict[str, Any], str]:
    """Train so many steps; return the metrics of the gauge and its words."""
    base_train.main(parse(base_train.Config, [*FLAGS, f"--num_iterations={steps}"]))
    flags = ["--device=cpu", "--num_samples=6", "--max_sample_tokens=40", "--temperature=0.5"]
    metrics = memorisation.main(parse(memorisation.Config, flags))
    return metrics, " ".join(read_sections(folder / "report")[0]["memorisation_base"]["notes"])


@pytest.mark.slow
def test_a_model_that_was_trained_far_too_long(run_here: Path) -> None:
    prepare(run_here)
    metrics, words = measure(run_here, 4)
    assert "nearly as well" in words
    assert "The longest run copied" not in words  # a few tokens
    few = metrics["longest run of samples in the training text (tokens)"]

    metrics, words = measure(run_here, 250)
    assert "learned its text by heart" in words
    assert "The longest run copied into a sample: '" in words
    assert "More text would help most" in words
    assert metrics["validation bits per byte"] > 2.5 * metrics["training bits per byte"]
    assert metrics["longest run of samples in the training text (tokens)"] > max(few, 12)
    share = "share of 8-token windows of {} in the training text"
    assert metrics[share.format("samples")] > metrics[share.format("held-out text")] + 0.3


def test_prompts(base_dir: Path) -> None:
    """Beginnings of documents that end with a word; of few documents, also places within them."""
    write_dataset(
        ["x"],
        [f"document {number} is about words. Then more" * 9 for number in range(4)],
        base_dir / "base_data",
        source="x",
    )
    prompts = memorisation.prompts_of(open_split("val"), 4)
    assert prompts == [f"document {number} is about words. Then" for number in range(4)]
    assert len(memorisation.prompts_of(open_split("val"), 30)) == 30
    assert all(memorisation.prompts_of(open_split("val"), 30))
