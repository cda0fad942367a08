"""Price of the dtypes in which a CPU can generate: bits per byte of a checkpoint through the step in Rust.

    python -m dev.check_step                     # the deepest base model, on its validation documents
    python -m dev.check_step -i sft -g d20       # another stage and model
    python -m dev.check_step --text=mine.txt     # on a text file, one document a paragraph

The first line is the model in torch, in float32. The others are the step that chats, servers, evaluation and
reinforcement learning generate with, one line for each dtype of the weights; int8 is what `--quantize=int8` serves.
"agree" is the share of positions at which the most likely token is that of the first line.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nanochat.checkpoint_manager import CHECKPOINT_DIRS, check_tokenizer, default_tag, open_checkpoint, run_dir
from nanochat.common import UserError, print0
from nanochat.configurator import Settings, cli, setting
from nanochat.data.shards import open_split
from nanochat.dataloader import document_eval_rows, split_into_rows
from nanochat.gpt import GPT
from nanochat.inference.model_step import StepTokens
from nanochat.inference.native_step import BLOCK_LEN, FORMATS, NativeStep, fastest_cpu, is_available
from nanochat.system.files import read_regular_file
from nanochat.tokenizer import Tokenizer, get_tokenizer

MAX_TEXT_BYTES = 1 << 20
LogitsOf = Callable[[Tensor], Tensor]
"""Logits of a row of tokens, (T,) -> (T, V)."""


@dataclass(frozen=True)
class Config(Settings):
    source: str = setting("base", "stage of the checkpoint", short="i", choices=tuple(CHECKPOINT_DIRS))
    model_tag: str | None = setting(None, "its tag; default: that of the deepest model", short="g", names="name")
    step: int = setting(-1, "its step; -1 = the last", short="s", at_least=0, or_value=-1)
    text: Path | None = setting(None, "text file of up to 1 MiB; none = the validation documents")
    eval_tokens: int = setting(65536, "tokens to measure on", at_least=1)


@dataclass(frozen=True)
class Price:
    """The price of a way to compute."""

    bits_per_byte: float
    agreement: float  # share of positions at which the most likely token is that of the model in torch


def native_logits(step: NativeStep) -> LogitsOf:
    """Return the function that computes the logits of a whole row with a step."""

    def logits_of(row: Tensor) -> Tensor:
        count = len(row)
        positions = np.arange(count, dtype=np.int32)
        blocks = np.arange(-(-count // BLOCK_LEN), dtype=np.int32)[None]
        tokens = row.numpy().astype(np.int32)
        return step.forward(StepTokens(tokens, positions, np.zeros(count, np.int32), blocks, positions))

    return logits_of


@torch.inference_mode()
def measure(ways: dict[str, LogitsOf], rows: Tensor, token_bytes: Tensor) -> dict[str, Price]:
    """Return the price of each way on rows of text, (R, T + 1), -1 = padding. The first way is the reference."""
    nats = dict.fromkeys(ways, 0.0)
    num_equal = dict.fromkeys(ways, 0)
    num_bytes = num_positions = 0
    for row in rows:
        tokens = row[row >= 0]
        inputs, targets = tokens[:-1], tokens[1:]
        counts = token_bytes[targets]
        num_bytes += int(counts.sum())
        num_positions += len(targets)
        best: Tensor | None = None
        for name, logits_of in ways.items():
            logits = logits_of(inputs)
            losses = F.cross_entropy(logits, targets, reduction="none")
            nats[name] += float((losses * (counts > 0)).sum(dtype=torch.float64))
            best = logits.argmax(-1) if best is None else best
            num_equal[name] += int((logits.argmax(-1) == best).sum())
    if not num_bytes:
        raise UserError("the text has no tokens to predict: it is empty")
    return {name: Price(nats[name] / (math.log(2) * num_bytes), num_equal[name] / num_positions) for name in ways}


def torch_logits(model: GPT) -> LogitsOf:
    """Return the function that computes the logits of a whole row with the model."""
    return lambda row: model(row[None])[0]


def text_rows(config: Config, model: GPT, tokenizer: Tokenizer) -> Tensor:
    """Return the rows of text to measure on, (R, T + 1)."""
    if config.text is None:
        return document_eval_rows(open_split("val"), tokenizer, model.config.sequence_len, config.eval_tokens)[0]
    paragraphs = read_regular_file(config.text, MAX_TEXT_BYTES).decode("utf-8", "replace").split("\n\n")
    bos = tokenizer.get_bos_token_id()
    ids = [token for text in paragraphs if text.strip() for token in tokenizer.encode(text, prepend=bos)]
    return split_into_rows(np.array(ids[: config.eval_tokens + 1]), model.config.sequence_len)


def main(config: Config) -> dict[str, Price]:
    """Measure all dtypes and print the table."""
    if not is_available():
        raise UserError("the step in Rust is not built: bash dev/setup.sh")
    checkpoint = open_checkpoint(run_dir(config.source, config.model_tag or default_tag(config.source)), config.step)
    tokenizer = get_tokenizer()
    check_tokenizer(checkpoint, tokenizer)
    print0(f"Loading {checkpoint.path}")
    model = GPT(checkpoint.shape)  # in float32, whatever it was trained in
    model.load_state_dict(checkpoint.load_weights())
    model.init_rope()
    rows = text_rows(config, model, tokenizer)
    num_blocks = -(-model.config.sequence_len // BLOCK_LEN)
    ways = {"torch, float32": torch_logits(model)}
    for dtype, name in FORMATS.items():
        cpu = fastest_cpu(dtype)
        title = f"{name} ({cpu})" if cpu else name
        ways[title] = native_logits(NativeStep(model, num_blocks, dtype, cpu=cpu))
    prices = measure(ways, rows, torch.tensor(tokenizer.token_bytes()))
    print0(f"{'':<20} {'bits per byte':>14} {'difference':>11} {'agree':>9}")
    first = prices["torch, float32"].bits_per_byte
    for name, price in prices.items():
        difference = price.bits_per_byte - first
        print0(f"{name:<20} {price.bits_per_byte:>14.5f} {difference:>+11.5f} {price.agreement:>9.2%}")
    return prices


if __name__ == "__main__":
    cli(Config, main, __doc__)
