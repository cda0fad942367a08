"""Scores of CORE's options: the loss of each continuation, for many examples in one forward pass.

Examples of similar length are batched. The prefix that the options of an example share is computed once and copied in
the KV cache. The head is applied only where a continuation is predicted.

Letters in shape comments: E examples of a batch, B their options, P tokens of the shared prefixes, T tokens after
these, N predicted tokens, C width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from nanochat.eval.core_prompts import EncodedExample
from nanochat.gpt import GPT
from nanochat.inference.kv_cache import KVCache
from nanochat.layers.attention import varied_shapes
from nanochat.layers.padding import pad_right
from nanochat.runtime import exact_float32

BATCH_TOKENS = 16384  # positions of a forward pass, padding and the cached prefixes included
CPU_BATCH_TOKENS = 4096  # the same on a CPU
HEAD_ROWS = 256  # tokens whose logits are computed at a time
TIE_TOLERANCE = 1e-5  # nats: losses this close differ by rounding only, and count as equal


@dataclass(frozen=True)
class OptionScore:
    """Score of one option's continuation."""

    loss: float  # mean over the continuation's tokens, in nats
    is_greedy: bool  # each token of the continuation is the most likely one


Scorer = Callable[[Sequence[EncodedExample]], Iterator[tuple[EncodedExample, list[OptionScore]]]]  # in any order


def is_correct(task_type: str, scores: Sequence[OptionScore], gold: int) -> bool:
    """Return True if the model solves an example: the gold option has the lowest loss, or the only option is greedy.

    Of losses that are equal within `TIE_TOLERANCE` the first one counts as the lowest.

    >>> is_correct("multiple_choice", [OptionScore(3.4, False), OptionScore(1.2, False)], gold=1)
    True
    >>> is_correct("language_modeling", [OptionScore(0.1, False)], gold=0)
    False
    """
    if task_type == "language_modeling":
        return scores[0].is_greedy
    lowest = min(score.loss for score in scores)
    chosen = next(index for index, score in enumerate(scores) if score.loss <= lowest + TIE_TOLERANCE)
    return chosen == gold


# --- batches: the same for nanochat's models and for those of transformers --------------------------------------------


def default_batch_tokens(device: torch.device) -> int:
    """Return the positions of a forward pass that suit a device: few on a CPU, where a batch should fit its cache."""
    return CPU_BATCH_TOKENS if device.type == "cpu" else BATCH_TOKENS


@dataclass(frozen=True)
class BatchSize:
    """Size of a batch of examples: totals, and the maxima that decide its width."""

    num_examples: int = 0
    num_options: int = 0
    num_predicted: int = 0  # tokens of all continuations
    max_input_len: int = 0
    max_prefix_len: int = 0
    max_rest_len: int = 0  # of what follows an example's prefix
    all_have_prefix: bool = True

    def add(self, example: EncodedExample) -> BatchSize:
        """Return the size of the batch with one more example."""
        return BatchSize(
            num_examples=self.num_examples + 1,
            num_options=self.num_options + len(example.options),
            num_predicted=self.num_predicted + sum(option.continuation_len for option in example.options),
            max_input_len=max(self.max_input_len, example.max_input_len),
            max_prefix_len=max(self.max_prefix_len, example.prefix_len),
            max_rest_len=max(self.max_rest_len, example.max_input_len - example.prefix_len),
            all_have_prefix=self.all_have_prefix and example.prefix_len > 0,
        )

    @property
    def width(self) -> int:
        """Columns of the cache: the longest prefix, then the longest rest."""
        return self.max_prefix_len + self.max_rest_len

    @property
    def num_positions(self) -> int:
        """Positions with shared prefixes: (B, P + T) for the options, and (E, P) for the prefixes."""
        return self.num_options * self.width + self.num_examples * self.max_prefix_len

    @property
    def num_positions_unshared(self) -> int:
        """Positions without shared prefixes: (B, P + T)."""
        return self.num_options * self.max_input_len


def split_batches(
    examples: Sequence[EncodedExample], fits: Callable[[BatchSize], bool]
) -> Iterator[list[EncodedExample]]:
    """Yield consecutive examples as batches, each as large as `fits` allows, and of at least one example."""
    batch: list[EncodedExample] = []
    size = BatchSize()
    for example in examples:
        larger = size.add(example)
        if batch and not fits(larger):
            yield batch
            batch = []
            larger = BatchSize().add(example)
        batch.append(example)
        size = larger
    if batch:
        yield batch


def score_in_batches(
    examples: Sequence[EncodedExample],
    fits: Callable[[BatchSize], bool],
    score_batch: Callable[[Sequence[EncodedExample]], list[OptionScore]],
) -> Iterator[tuple[EncodedExample, list[OptionScore]]]:
    """Yield each example with its options' scores, the longest first: too large a batch fails at once.

    `score_batch` returns the scores of all options of a batch, one example after the other.
    """
    longest_first = sorted(examples, key=lambda example: -example.max_input_len)
    for batch in split_batches(longest_first, fits):
        scores = iter(score_batch(batch))
        for example in batch:
            yield example, [next(scores) for _ in example.options]


@dataclass(frozen=True)
class OptionRows:
    """A batch's options as rows (B, T) without their cached prefixes, and the N tokens to predict in them.

    Token `targets[n]` is predicted at `[rows[n], columns[n]]` of the outputs.
    """

    input_ids: list[list[int]]  # B rows, without the last token of each, which is only predicted
    rows: list[int]
    columns: list[int]
    targets: list[int]
    continuation_lens: list[int]  # of each option; their sum is N

    @staticmethod
    def from_examples(batch: Sequence[EncodedExample], prefix_lens: Sequence[int]) -> OptionRows:
        """Return the rows of all options; `prefix_lens`: for each example the tokens that are cached already.

        >>> from nanochat.eval.core_prompts import EncodedOption
        >>> example = EncodedExample(0, [EncodedOption([1, 2, 3, 4], 1), EncodedOption([1, 2, 3, 5, 6], 2)], False)
        >>> OptionRows.from_examples([example], prefix_lens=[2])  # doctest: +NORMALIZE_WHITESPACE
        OptionRows(input_ids=[[3], [3, 5]], rows=[0, 1, 1], columns=[0, 0, 1], targets=[4, 5, 6],
                   continuation_lens=[1, 2])
        """
        input_ids: list[list[int]] = []
        rows: list[int] = []
        columns: list[int] = []
        targets: list[int] = []
        continuation_lens: list[int] = []
        for example, prefix_len in zip(batch, prefix_lens, strict=True):
            for option in example.options:
                ids = option.ids[prefix_len:]
                first = len(ids) - option.continuation_len
                rows += [len(input_ids)] * option.continuation_len
                columns += range(first - 1, len(ids) - 1)
                targets += ids[first:]
                input_ids.append(ids[:-1])
                continuation_lens.append(option.continuation_len)
        return OptionRows(input_ids, rows, columns, targets, continuation_lens)

    def scores(self, losses: Tensor, is_most_likely: Tensor) -> list[OptionScore]:
        """Return the score of each option. `losses` and `is_most_likely` (N,): of each target."""
        return [
            OptionScore(option_losses.mean().item(), bool(hits.all()))
            for option_losses, hits in zip(
                losses.split(self.continuation_lens), is_most_likely.split(self.continuation_lens), strict=True
            )
        ]


def prefix_ids(batch: Sequence[EncodedExample], prefix_lens: Sequence[int]) -> list[list[int]]:
    """Return the ids of each example's shared prefix."""
    return [example.options[0].ids[:length] for example, length in zip(batch, prefix_lens, strict=True)]


# --- nanochat's own model ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ModelScorer:
    """Scorer with a `GPT`. `batch_tokens`: maximum number of positions in a forward pass; -1: the default of
    the model's device.

    A batch has at least one example, even if that exceeds `batch_tokens`.
    """

    model: GPT
    batch_tokens: int = -1

    def __call__(self, examples: Sequence[EncodedExample]) -> Iterator[tuple[EncodedExample, list[OptionScore]]]:
        """Yield each example with its options' scores, the longest examples first."""
        return score_in_batches(examples, self._fits, self._score)

    def _fits(self, size: BatchSize) -> bool:
        max_positions = default_batch_tokens(self.model.device) if self.batch_tokens == -1 else self.batch_tokens
        return size.num_positions <= max_positions and size.width <= self.model.config.sequence_len

    @torch.inference_mode()
    @exact_float32()
    def _score(self, batch: Sequence[EncodedExample]) -> list[OptionScore]:
        device = self.model.device
        prefix_lens = [example.prefix_len for example in batch]
        options = OptionRows.from_examples(batch, prefix_lens)
        idx = pad_right(options.input_ids, fill=0, device=device)  # (B, T)
        with varied_shapes(device):
            cache = self._prefill_prefixes(batch, prefix_lens) if any(prefix_lens) else None
            hidden = self.model.hidden_states(idx, cache)  # (B, T) -> (B, T, C)
        targets = torch.tensor(options.targets).to(device)
        losses, is_most_likely = self._predict(hidden[options.rows, options.columns], targets)  # (N, C) -> (N,), (N,)
        return options.scores(losses, is_most_likely)

    def _prefill_prefixes(self, batch: Sequence[EncodedExample], prefix_lens: Sequence[int]) -> KVCache:
        """Return a cache in which each option's row holds the prefix of its example, computed once per example."""
        model = self.model
        prefix_cache = KVCache(model.config, len(batch), model.compute_dtype, model.device)
        idx = pad_right(prefix_ids(batch, prefix_lens), fill=0, device=model.device)  # (E, P)
        model.hidden_states(idx, prefix_cache)
        num_options = [len(example.options) for example in batch]
        cache = KVCache(model.config, sum(num_options), model.compute_dtype, model.device)
        cache.reserve([length for length, count in zip(prefix_lens, num_options, strict=True) for _ in range(count)])
        row = 0
        for index, count in enumerate(num_options):
            cache.copy_prefix(row, count, prefix_cache, index)
            row += count
        return cache

    def _predict(self, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss of each target and whether it is the most likely token, both (N,) on the CPU."""
        losses = []
        is_most_likely = []
        for start in range(0, len(targets), HEAD_ROWS):
            chunk_targets = targets[start : start + HEAD_ROWS]
            # In float32: bf16 is so coarse that many options would tie.
            logits = self.model.logits(hidden[start : start + HEAD_ROWS].float())  # (n, C) -> (n, V)
            losses.append(F.cross_entropy(logits, chunk_targets, reduction="none"))
            is_most_likely.append(_is_first_maximum(logits, chunk_targets))
        return torch.cat(losses).cpu(), torch.cat(is_most_likely).cpu()


def _is_first_maximum(logits: Tensor, targets: Tensor) -> Tensor:
    """Return True for each target that is its row's argmax, the first of equal logits: (N, V), (N,) -> (N,)."""
    if logits.device.type != "cpu":
        return logits.argmax(-1) == targets
    # On a CPU argmax takes ten times as long as amax: it runs on the few rows where the target has the highest logit.
    # Elsewhere the number of these rows would be waited for.
    hits = logits.gather(-1, targets[:, None])[:, 0] == logits.amax(-1)
    rows = hits.nonzero()[:, 0]
    hits[rows] = logits[rows].argmax(-1) == targets[rows]
    return hits
