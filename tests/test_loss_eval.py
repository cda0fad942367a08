"""Bits per byte and sums of losses, against a loop over single tokens in float64."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from torch import Tensor, nn

from nanochat.dataloader import document_eval_rows
from nanochat.gpt import GPT
from nanochat.loss_eval import bits_per_byte, evaluate_bpb, sum_nats
from nanochat.runtime import Runtime
from nanochat.tokenizer import SPECIAL_TOKENS, SPLIT_PATTERN, Tokenizer
from tests.support.models import random_model
from tests.support.precision import recorded_precision
from tests.support.processes import Forker

# Two tokens of several bytes are not UTF-8 by themselves: a space with the first byte of a snowman, and its last two.
MERGES = [b"th", b"the", " \u2603".encode()[:2], "\u2603".encode()[1:]]
RANKS = {token: i for i, token in enumerate([*(bytes([b]) for b in range(256)), *MERGES])}
TOKENIZER = Tokenizer(SPLIT_PATTERN, RANKS, {name: len(RANKS) + i for i, name in enumerate(SPECIAL_TOKENS)})
CPU = Runtime(0, 0, 1, torch.device("cpu"), torch.float32, 0)
BYTES = torch.tensor(TOKENIZER.token_bytes())
TEXTS = ["the thin \u2603 the other", "", "a", "\u2603\u2603 snow, the theme " * 3]


class Texts:
    """TEXTS as documents."""

    def __len__(self) -> int:
        return len(TEXTS)

    def iter_arrays(self, start: int = 0) -> Iterator[pa.Array]:
        return iter([pa.array(TEXTS[start:])])


def tiny_model() -> GPT:
    return random_model(8, len(BYTES), seed=7)


def rows_of_texts(max_tokens: int = 10**6) -> Tensor:
    return document_eval_rows(Texts(), TOKENIZER, 8, max_tokens)[0]


def by_hand(model: nn.Module, rows: Tensor) -> float:
    """The definition, one token at a time; a token's bytes are those that the tokenizer decodes it to."""
    nats, num_bytes = 0.0, 0
    for row in rows.tolist():
        for position in range(len(row) - 1):
            target = row[position + 1]
            if target == -1 or target >= len(RANKS):
                continue
            with torch.no_grad():
                logits = model(torch.tensor([row[: position + 1]]))[0, -1].double()
            nats -= float(logits.log_softmax(-1)[target])
            num_bytes += len(TOKENIZER.decode_bytes([target]))
    return nats / (math.log(2) * num_bytes)


def test_equals_the_definition() -> None:
    model, rows = tiny_model(), rows_of_texts()
    assert (rows == -1).any()  # a padded row
    assert all((rows == TOKENIZER.ranks[token]).any() for token in MERGES[1:])
    assert bits_per_byte(model, rows, BYTES, 2, CPU) == pytest.approx(by_hand(model, rows), rel=1e-6)


def test_all_bytes_of_the_text_count() -> None:
    """With equal logits each token of text has a loss of log2(V) bits: their sum over the bytes of the text."""
    model, rows = tiny_model(), rows_of_texts()
    with torch.no_grad():
        model.head.weight.zero_()
    num_tokens = sum(len(ids) for ids in TOKENIZER.encode(TEXTS))
    num_bytes = sum(len(text.encode()) for text in TEXTS)
    expected = num_tokens * math.log2(len(BYTES)) / num_bytes
    assert bits_per_byte(model, rows, BYTES, 4, CPU) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("batch_size", [1, 2, 5, 100])
def test_the_batch_size_does_not_matter(batch_size: int) -> None:
    model, rows = tiny_model(), rows_of_texts()
    bpb = bits_per_byte(model, rows, BYTES, batch_size, CPU)
    assert bpb == pytest.approx(bits_per_byte(model, rows, BYTES, 3, CPU), rel=1e-6)


def test_every_batch_has_one_shape() -> None:
    """So that a compiled model is not compiled again for the last one; and padding rows do not count."""
    shapes = []

    class RecordingModel(nn.Module):
        def forward(self, inputs: Tensor, targets: Tensor, loss_reduction: str) -> Tensor:
            assert loss_reduction == "none"
            assert inputs.min() >= 0
            shapes.append(tuple(inputs.shape))
            return torch.full(targets.shape, math.log(2.0))  # one bit per token, also of padding

    rows = torch.zeros(5, 9, dtype=torch.int64)  # 40 targets of a byte each
    assert bits_per_byte(RecordingModel(), rows, BYTES, 2, CPU) == pytest.approx(1.0)
    assert shapes == [(2, 8)] * 3


def test_bits_per_byte_of_a_loaders_batches() -> None:
    """`evaluate_bpb` takes the first `steps` batches; without any it is infinite."""
    model = tiny_model()
    rows = rows_of_texts()
    batches = [(batch[:, :-1].clamp(min=0), batch[:, 1:]) for batch in rows.split(2)]
    assert evaluate_bpb(model, batches, len(batches), BYTES) == pytest.approx(bits_per_byte(model, rows, BYTES, 2, CPU))
    assert evaluate_bpb(model, iter(batches), 2, BYTES) == pytest.approx(bits_per_byte(model, rows[:4], BYTES, 2, CPU))
    assert evaluate_bpb(model, batches, 0, BYTES) == math.inf


def test_losses_are_computed_in_float32() -> None:
    """By all three functions: not in TF32, which training on CUDA uses."""
    model, rows = tiny_model(), rows_of_texts(50)
    inputs, targets = rows[:, :-1].clamp(min=0), rows[:, 1:]
    for measure in (
        lambda: bits_per_byte(model, rows, BYTES, 2, CPU),
        lambda: evaluate_bpb(model, [(inputs, targets)], 1, BYTES),
        lambda: sum_nats(model, inputs, targets, 2, CPU),
    ):
        with recorded_precision() as precisions:
            measure()
        assert precisions == {"highest"}


def test_special_tokens_do_not_count() -> None:
    model, rows = tiny_model(), rows_of_texts()
    special = rows.clone()
    special[0, 3] = TOKENIZER.encode_special("<|user_end|>")
    assert bits_per_byte(model, special, BYTES, 2, CPU) == pytest.approx(by_hand(model, special), rel=1e-6)


@pytest.mark.parametrize("token", [-1, len(RANKS)])
def test_without_a_byte_it_is_infinite(token: int) -> None:
    assert bits_per_byte(tiny_model(), torch.full((3, 9), token), BYTES, 2, CPU) == math.inf


def some_targets() -> tuple[Tensor, Tensor]:
    """Rows in which about half of the targets is chosen, and none of one row."""
    rows = rows_of_texts()[:7].clamp(min=0)
    chosen = torch.randint(2, (7, 8), generator=torch.Generator().manual_seed(3)) * (torch.arange(7) != 4)[:, None]
    return rows[:, :-1], torch.where(chosen == 1, rows[:, 1:], -1)


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_sum_nats(batch_size: int) -> None:
    """The sum of -log p over the chosen targets, and their number; both are 0 without rows."""
    model, (inputs, targets) = tiny_model(), some_targets()
    expected = 0.0
    for row, row_targets in zip(inputs, targets, strict=True):
        with torch.no_grad():
            log_probs = model(row[None])[0].double().log_softmax(-1)
        expected -= sum(float(log_probs[i, t]) for i, t in enumerate(row_targets.tolist()) if t != -1)
    count = int((targets != -1).sum())
    assert sum_nats(model, inputs, targets, batch_size, CPU) == (pytest.approx(expected, rel=1e-6), count)
    assert sum_nats(model, inputs[:0], targets[:0], batch_size, CPU) == (0.0, 0)


def test_computes_no_gradient() -> None:
    model = tiny_model()
    bits_per_byte(model, rows_of_texts(), BYTES, 2, CPU)
    sum_nats(model, *some_targets(), 2, CPU)
    assert all(param.grad is None for param in model.parameters())


@pytest.mark.slow
def test_two_processes_equal_one(forker: Forker, tmp_path: Path) -> None:
    """Each scores every second row of an odd number, and both get the whole result; of one row rank 1 has none."""
    forker.run_ranks(write_scores, tmp_path, NANOCHAT_DTYPE="float32")
    results = [json.loads((tmp_path / f"{rank}.json").read_text(encoding="utf-8")) for rank in range(2)]
    assert len(rows_of_texts()) % 2 == 1
    assert results[0] == results[1] == pytest.approx(scores(CPU), rel=1e-6)


def scores(runtime: Runtime) -> list[float]:
    rows = rows_of_texts()
    bpb = [bits_per_byte(tiny_model(), part, BYTES, 2, runtime) for part in (rows, rows[:1])]
    return [*bpb, *sum_nats(tiny_model(), *some_targets(), 2, runtime)]


def write_scores(folder: Path) -> None:
    """Run one of the processes."""
    runtime = Runtime.start(device="cpu")
    (folder / f"{runtime.rank}.json").write_text(json.dumps(scores(runtime)), encoding="utf-8")
    runtime.finish()
