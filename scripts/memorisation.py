"""Measure how much of its training text a model knows by heart, and say what to expect of it.

    python -m scripts.memorisation                       # the deepest base model
    python -m scripts.memorisation -i sft -g d4          # another stage
    python -m scripts.memorisation --num_samples=64      # more samples: slower, and closer

It measures bits per byte of training and of held-out text, and what the model copies: it continues the beginnings of
held-out documents, and each run of its tokens is looked up in the training text. A model that has learned its text by
heart recites it there.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from nanochat.checkpoint_manager import CHECKPOINT_DIRS, default_tag, load_model
from nanochat.common import print0
from nanochat.configurator import Settings, cli, setting
from nanochat.data.shards import open_split
from nanochat.dataloader import DocumentSource, document_eval_rows, tokenize_documents
from nanochat.eval.memorisation import WINDOW, Copying, TrainingText, describe_memory, measure_copying
from nanochat.eval.samples import generate_samples
from nanochat.gpt import GPT
from nanochat.loss_eval import bits_per_byte
from nanochat.report import check_results_writable, log_section
from nanochat.runtime import Runtime
from nanochat.tokenizer import Tokenizer
from nanochat.training.batch_size import evaluation_rows

PROMPT_CHARS = 40  # of a held-out document, up to the end of a word
MIN_SHOWN_TOKENS = 2 * WINDOW  # of a copied run
MAX_TRAINING_TOKENS = 50_000_000  # that samples are looked up in


@dataclass(frozen=True)
class Config(Settings):
    source: str = setting("base", "stage of the model", short="i", choices=tuple(CHECKPOINT_DIRS))
    model_tag: str | None = setting(
        None, "checkpoint folder to measure; default: that of the deepest model", short="g", names="name"
    )
    step: int = setting(-1, "checkpoint to measure; -1 = the last", short="s", at_least=0, or_value=-1)
    device: str = setting("auto", "device to run on", choices=("auto", "cpu", "cuda", "mps"))
    eval_tokens: int = setting(1048576, "tokens of each split; at most one pass over it", at_least=1)
    num_samples: int = setting(16, "samples to look up in the training text", at_least=1)
    max_sample_tokens: int = setting(96, "longest sample, in tokens", at_least=WINDOW)
    temperature: float = setting(0.8, "of the samples; 0 = always the most likely token", at_least=0)
    seed: int = setting(42, "for the samples")


def prompts_of(documents: DocumentSource, count: int) -> list[str]:
    """Return the beginnings of held-out documents; with fewer documents than `count`, also of places within them."""
    texts = [text for array in documents.iter_arrays() for text in array.to_pylist()][: 4 * count]
    text = "\n".join(texts)
    if len(texts) >= count:
        starts = [part[:PROMPT_CHARS] for part in texts[:count]]
    else:
        places = [number * max(0, len(text) - PROMPT_CHARS) // count for number in range(count)]
        starts = [text[place : place + PROMPT_CHARS].partition(" ")[2] for place in places]
    return [start.rpartition(" ")[0] or start for start in starts]


def training_tokens(documents: DocumentSource, tokenizer: Tokenizer) -> np.ndarray:
    """Return the first tokens of the training text, at most MAX_TRAINING_TOKENS, with a `<|bos|>` before a document."""
    chunks: list[np.ndarray] = []
    for ids, _ in tokenize_documents(documents.iter_arrays(), tokenizer):
        chunks.append(ids)
        if sum(map(len, chunks)) >= MAX_TRAINING_TOKENS:
            break
    return np.concatenate(chunks)[:MAX_TRAINING_TOKENS]


def encode_all(texts: Sequence[str], tokenizer: Tokenizer) -> list[np.ndarray]:
    """Return the ids of each text."""
    return [np.asarray(tokenizer.encode(text), dtype=np.int64) for text in texts]


def measure(model: GPT, tokenizer: Tokenizer, runtime: Runtime, config: Config) -> dict[str, Any]:
    """Return the metrics, the samples and the sentences about them, as parts of the report's section."""
    train, val = open_split("train"), open_split("val")
    token_bytes = torch.tensor(tokenizer.token_bytes())
    batch_size = evaluation_rows(model, runtime)
    bpb = {}
    for name, documents in (("training", train), ("validation", val)):
        rows, _ = document_eval_rows(documents, tokenizer, model.config.sequence_len, config.eval_tokens)
        bpb[name] = bits_per_byte(model, rows, token_bytes, batch_size, runtime)
    prompts = prompts_of(val, config.num_samples)
    samples = generate_samples(model, tokenizer, prompts, config.max_sample_tokens, config.temperature, config.seed)
    text = TrainingText(training_tokens(train, tokenizer))
    copied = measure_copying(text, encode_all([sample["text"] for sample in samples], tokenizer))
    held_out_tokens = document_eval_rows(val, tokenizer, config.max_sample_tokens, len(samples) * 96)[0][:, 1:].numpy()
    bos = tokenizer.get_bos_token_id()
    held_out = measure_copying(text, [row[(row >= 0) & (row != bos)] for row in held_out_tokens])
    notes = describe_memory(bpb["training"], bpb["validation"], copied, held_out)
    if len(copied.longest) >= MIN_SHOWN_TOKENS:  # shorter ones are phrases that any text of the kind has
        notes.append(f"The longest run copied into a sample: {tokenizer.decode(list(copied.longest))!r}.")
    return {
        "metrics": {
            "training bits per byte": bpb["training"],
            "validation bits per byte": bpb["validation"],
            **copying_metrics("samples", copied),
            **copying_metrics("held-out text", held_out),
        },
        "notes": notes,
        "samples": samples[:4],
    }


def copying_metrics(name: str, copying: Copying) -> dict[str, float]:
    """Return the two measures of some texts, with names for the report."""
    return {
        f"share of {WINDOW}-token windows of {name} in the training text": copying.share,
        f"longest run of {name} in the training text (tokens)": len(copying.longest),
    }


def main(config: Config) -> dict[str, Any]:
    """Measure a model, print what to expect of it, write the report's section, and return its metrics."""
    start = time.monotonic()
    section = f"memorisation_{config.source}"
    check_results_writable(section)
    runtime = Runtime.start(config.seed, config.device)
    tag = config.model_tag or default_tag(config.source)
    model, tokenizer, meta = load_model(config.source, runtime, model_tag=tag, step=config.step)
    parts = measure(model, tokenizer, replace(runtime, compute_dtype=model.compute_dtype), config)
    for name, value in parts["metrics"].items():
        print0(f"{name}: {value:.4g}")
    for note in parts["notes"]:
        print0(note)
    log_section(
        section,
        {
            "title": f"What the {config.source} model knows by heart",
            "checkpoint": f"{tag}:{meta['step']}",
            "settings": config,
            **parts,
            "headline": ["validation bits per byte"],
            "seconds": time.monotonic() - start,
        },
    )
    runtime.finish()
    metrics: dict[str, Any] = parts["metrics"]
    return metrics


if __name__ == "__main__":
    cli(Config, main, __doc__)
