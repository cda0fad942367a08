"""Sizing: the settings of a run on a user's documents, from the bytes of text, the minutes, and the device's speed.

A pure function, so that the same three numbers give the same run. With S seconds of training at F FLOP/s, and a text of
D tokens:

    vocabulary   512 for 20 KB of text, twice as many for ten times the text, at most 8,192: a token must occur often
                 enough to be learned, and larger vocabularies need fewer steps
    passes       at most `MAX_PASSES`, those over the text after which more repetition does not help; `--patience` ends
                 a run that gets worse before that
    depth        the largest model that has time for either all useful passes over the text or `TOKENS_PER_PARAM` tokens
                 for each parameter of its matrices, within `MAX_DEPTH_OF_TEXT`
    batch        about twice the square root of the tokens of the run: many small steps where there are few tokens
    steps        what the seconds hold, at most the useful passes; the learning rate falls over most of them. Much text
                 takes long to read: then few minutes leave less for training
    rates        of fine-tuning: lower for little text (`FINE_TUNING_LR`)

tests/pipeline/test_sizing.py has its corners as a table.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from nanochat.common import UserError

MIN_BYTES = 200  # of training text: less is no text to learn from
MAX_PASSES = 8
TOKENS_PER_PARAM = 5  # of the matrices and the head: the embedding is a table that takes no work
MIN_STEPS = 20
MIN_ROWS = 2  # of a batch
DEPTHS = (2, 3, 4, 5, 6, 8, 10, 12, 16, 20)
MAX_DEPTH_OF_TEXT = ((300_000, 4), (3_000_000, 6), (30_000_000, 8), (300_000_000, 12))  # (bytes, depth); above: any
CONTEXT = 512  # tokens: some questions and answers
GROUNDED_CONTEXT = 1024  # with passages of the documents before the question, up to 1,200 characters with headings
HEAD_DIM = 64
# Of fine-tuning, as a share of its rates (bytes of text, share). Little text is forgotten in the first steps, also if
# the model started from another base model.
FINE_TUNING_LR = ((100_000, 0.2), (1_000_000, 0.4))
FULL_FINE_TUNING_LR = 0.6  # above
# Share of the measured speed, which is that of depth 4, at which shallower models train: their matrices are too small.
SPEED_OF_DEPTH = {2: 0.5, 3: 0.7}
EVALUATIONS = 20  # of a run
EVAL_TOKENS = (8192, 65536)  # of an evaluation: least and most
EVALUATED = 1 / 128  # tokens of an evaluation, as a share of those of the run: all take about 5% of its time
PATIENCE = 4  # evaluations
# Shares of the minutes. The rest is for reading, the tokenizer, conversations, the index, measurements and exports.
BASE_SHARE = 0.55
FINE_TUNING_SHARE = 0.2
# What the rest takes on two cores, if that is more: then training has less, but never less than a part of its shares.
OTHER_SECONDS = 60.0
OTHER_SECONDS_PER_MB = 4.5
MIN_TRAINING_SHARE = 0.5
COMPILE_SECONDS = 60.0  # the first time
MIN_COMPILED_SECONDS = 150.0  # of training: in less, compiling takes longer than it saves
COMPILED_SPEEDUP = 1.4  # on a CPU


@dataclass(frozen=True)
class RunSize:
    """Settings of a run's stages."""

    vocab_size: int
    depth: int
    max_seq_len: int
    total_batch_size: int  # tokens of a step
    num_iterations: int  # steps of pretraining
    eval_every: int
    fine_tuning_steps: int
    compile: str  # "auto" or "off"
    passes: float  # over the training text
    fine_tuning_lr: float = FULL_FINE_TUNING_LR  # init_lr_frac of fine-tuning

    @property
    def num_tokens(self) -> int:
        """Tokens of pretraining, repetition included."""
        return self.total_batch_size * self.num_iterations

    @property
    def eval_tokens(self) -> int:
        """Held-out tokens of an evaluation during training."""
        least, most = EVAL_TOKENS
        return min(most, max(least, round(EVALUATED * self.num_tokens)))


def vocab_size_of(num_bytes: int) -> int:
    """Return the size of the vocabulary for so many bytes of training text, a multiple of 64.

    >>> [vocab_size_of(count) for count in (20_000, 200_000, 2_000_000, 20_000_000, 10**10)]
    [512, 1024, 2048, 4096, 8192]
    """
    exact = 512 * 2 ** math.log10(max(num_bytes, 1) / 20_000)
    return min(8192, max(512, round(exact / 64) * 64))


def bytes_per_token(vocab_size: int) -> float:
    """Return the bytes of English text in a token, roughly; measured between 512 and 8,192 tokens."""
    return 2.0 + 0.6 * math.log2(vocab_size / 512)


def flops_per_token(depth: int, vocab_size: int, context: int = CONTEXT) -> float:
    """Return the FLOPs of training on one token, as `GPT.estimate_flops` counts them."""
    return 6 * num_matrix_params(depth, vocab_size) + 12 * depth * 64 * depth * context


def num_params(depth: int, vocab_size: int) -> int:
    """Return the parameters of the model."""
    return num_matrix_params(depth, vocab_size) + 64 * depth * math.ceil(vocab_size / 64) * 64


def num_matrix_params(depth: int, vocab_size: int) -> int:
    """Return the parameters of the blocks and of the head, whose rows are padded to a multiple of 64."""
    width = 64 * depth
    return 12 * depth * width**2 + math.ceil(vocab_size / 64) * 64 * width


def size_run(
    num_bytes: int, minutes: float, flops_per_second: float, device: str = "cpu", context: int = CONTEXT
) -> RunSize:
    """Return the settings of a run on `num_bytes` of training text that may take `minutes` in all.

    `flops_per_second`: speed of an uncompiled training step (`nanochat.pipeline.speed`). `context`: CONTEXT, or
    GROUNDED_CONTEXT. Raises `UserError` if there is too little text.
    """
    if num_bytes < MIN_BYTES:
        raise UserError(f"the training text has {num_bytes:,} bytes: at least {MIN_BYTES:,} are needed; add documents")
    total_seconds = 60 * minutes * training_share(num_bytes, minutes)
    seconds = total_seconds * BASE_SHARE
    vocab_size = vocab_size_of(num_bytes)
    depth, num_tokens = _fit(num_bytes, vocab_size, seconds * flops_per_second, context)
    is_long = num_tokens * _seconds_per_token(depth, vocab_size, context, flops_per_second) >= MIN_COMPILED_SECONDS
    if is_compiled := is_long and device != "mps":
        flops_per_second *= COMPILED_SPEEDUP
        depth, num_tokens = _fit(num_bytes, vocab_size, (seconds - COMPILE_SECONDS) * flops_per_second, context)
    batch = batch_of(num_tokens, context)
    num_steps = max(MIN_STEPS, round(num_tokens / batch))
    step_seconds = batch * _seconds_per_token(depth, vocab_size, context, flops_per_second)
    return RunSize(
        vocab_size=vocab_size,
        depth=depth,
        max_seq_len=context,
        total_batch_size=batch,
        num_iterations=num_steps,
        eval_every=max(1, num_steps // EVALUATIONS),
        fine_tuning_steps=max(MIN_STEPS, int(total_seconds * FINE_TUNING_SHARE / step_seconds)),
        compile="auto" if is_compiled else "off",
        passes=batch * num_steps * bytes_per_token(vocab_size) / num_bytes,
        fine_tuning_lr=next((share for limit, share in FINE_TUNING_LR if num_bytes <= limit), FULL_FINE_TUNING_LR),
    )


def other_seconds(num_bytes: int) -> float:
    """Return what reading, tokenizer, conversations, index, measurements and exports take on two cores, roughly."""
    return OTHER_SECONDS + OTHER_SECONDS_PER_MB * num_bytes / 1e6


def training_share(num_bytes: int, minutes: float) -> float:
    """Return the part of their shares of the minutes that pretraining and fine-tuning have beside the other steps.

    At least MIN_TRAINING_SHARE: then the run takes longer than its minutes.

    >>> [round(training_share(num_bytes, 5), 2) for num_bytes in (160_000, 20_000_000, 10**9)]
    [1.0, 0.67, 0.5]
    """
    share = (60 * minutes - other_seconds(num_bytes)) / (60 * minutes * (BASE_SHARE + FINE_TUNING_SHARE))
    return min(1.0, max(MIN_TRAINING_SHARE, share))


def _fit(num_bytes: int, vocab_size: int, budget: float, context: int) -> tuple[int, float]:
    """Return the depth, and the tokens of pretraining, for a text and a budget of FLOPs."""
    useful = MAX_PASSES * num_bytes / bytes_per_token(vocab_size)
    depth = DEPTHS[0]
    for candidate in DEPTHS:
        tokens = budget * speed_of_depth(candidate) / flops_per_token(candidate, vocab_size, context)
        enough = min(useful, TOKENS_PER_PARAM * num_matrix_params(candidate, vocab_size))
        if candidate <= max_depth_of_text(num_bytes) and tokens >= enough:
            depth = candidate
    return depth, min(useful, budget * speed_of_depth(depth) / flops_per_token(depth, vocab_size, context))


def speed_of_depth(depth: int) -> float:
    """Return the share of the measured speed at which a model of a depth trains.

    Two cores, bfloat16, vocabularies of 512 to 4,544: 0.48 to 0.55 for depth 2, 0.67 to 0.74 for 3, 1.12 for 6.
    """
    return SPEED_OF_DEPTH.get(max(depth, min(SPEED_OF_DEPTH)), 1.0)


def _seconds_per_token(depth: int, vocab_size: int, context: int, flops_per_second: float) -> float:
    return flops_per_token(depth, vocab_size, context) / (flops_per_second * speed_of_depth(depth))


def max_depth_of_text(num_bytes: int) -> int:
    """Return the depth beyond which so little text does not carry a model."""
    return next((depth for size, depth in MAX_DEPTH_OF_TEXT if num_bytes <= size), DEPTHS[-1])


def batch_of(num_tokens: float, context: int = CONTEXT) -> int:
    """Return the tokens of a step of a run with so many tokens: rows of `context` tokens, a power of two of them.

    >>> [batch_of(tokens) for tokens in (1e4, 6e5, 4e6, 1e8)]
    [1024, 2048, 4096, 16384]
    """
    exact = 2 * math.sqrt(num_tokens) / context
    return context * max(MIN_ROWS, 1 << round(math.log2(max(1.0, exact))))
