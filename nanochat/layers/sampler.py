"""Sampling: from logits to the next token, greedy, at a temperature, among the k most likely tokens or in a nucleus.

Letters in shape comments: B rows, V vocabulary, K tokens that remain after top-k and top-p.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from nanochat.common import UserError
from nanochat.layers.sampling_params import SamplingParams

RNGKeys = npt.NDArray[np.uint64]  # of a counter-based generator: one key for each row

NO_PROBABILITIES = (
    "no token can be drawn: the model's logits are not finite, as after a training that diverged: choose an earlier "
    "checkpoint"
)
NUCLEUS_CANDIDATES = 1024  # of top-p on a CPU: the most likely tokens, which are nearly always enough
EXACT_ONE = 2**30  # of `sample_exactly`: the sum over a vocabulary is below 2^53, so that float64 represents it
GREEDY_BELOW = 1e-5  # a lower temperature is greedy: dividing the logits by it would overflow


def sample_next(logits: Tensor, params: SamplingParams, generator: torch.Generator) -> Tensor:
    """Sample a token id for each row of logits, (B, V) -> (B,), independently of the other rows.

    Raises `UserError` if a row is not finite.
    """
    if params.temperature < GREEDY_BELOW:
        most_likely = greedy_ids(logits)
        if (most_likely == logits.size(-1)).any():
            raise UserError(NO_PROBABILITIES)
        return most_likely
    probs, ids = _probs(logits, params)
    try:
        drawn = torch.multinomial(probs, num_samples=1, generator=generator)  # (B, 1)
    except RuntimeError as error:  # it looks at the probabilities itself, on each kind of device
        if "probability tensor contains" in str(error):
            raise UserError(NO_PROBABILITIES) from error
        raise
    return (drawn if ids is None else ids.gather(-1, drawn)).squeeze(-1)


def sample_at(logits: Tensor, params: SamplingParams, u: Tensor) -> Tensor:
    """Sample like `sample_next`, (B, V) -> (B,), by inverting the cumulative distribution at `u` instead.

    `u`: float32 (B,), uniform in [0, 1). A row's token depends on its own logits and its own `u` only, not on
    the other rows of the batch. It is V, which is no token, if they are not finite (`drawn_ids`).

    Example with probabilities [0.5, 0.3, 0.2]:

    >>> logits = torch.tensor([[0.5, 0.3, 0.2]]).log().expand(4, -1)
    >>> sample_at(logits, SamplingParams(), torch.tensor([0.0, 0.49, 0.51, 0.81])).tolist()
    [0, 0, 1, 2]
    """
    if params.temperature < GREEDY_BELOW:
        return greedy_ids(logits)
    if logits.device.type == "cuda":
        return sample_exactly(logits, params, u)
    probs, ids = _probs(logits, params)
    cdf = probs.cumsum(-1)  # (B, V) or (B, K); the last is 1 up to rounding
    # right=True: a token of probability 0 is never returned, not even for u = 0.
    drawn = torch.searchsorted(cdf, u[:, None] * cdf[:, -1:], right=True)  # (B, 1)
    if ids is not None:  # drawn is K where the sum is NaN
        num_kept = ids.size(-1)
        ids = ids.gather(-1, drawn.clamp(max=num_kept - 1)).where(drawn < num_kept, logits.size(-1))
    return (drawn if ids is None else ids).squeeze(-1)


def greedy_ids(logits: Tensor) -> Tensor:
    """Return the most likely token of each row of logits, (B, V) -> (B,); V, which is no token, if it is not finite.

    >>> greedy_ids(torch.tensor([[0.0, 2.0], [torch.nan, 1.0], [1.0, torch.inf], [1.0, -torch.inf]])).tolist()
    [1, 2, 2, 0]
    """
    if logits.device.type == "cpu":  # in numpy: 64 rows of 32,768 take 0.5 ms instead of 2.5
        rows = logits.numpy()
        best = rows.argmax(axis=-1)  # that of a NaN, if there is one
        best[~np.isfinite(rows[np.arange(len(rows)), best])] = logits.size(-1)
        return torch.from_numpy(best)
    ids = logits.argmax(dim=-1)
    largest = logits.gather(-1, ids[:, None]).squeeze(-1)
    return ids.where(largest.isfinite(), logits.size(-1))


def sample_exactly(logits: Tensor, params: SamplingParams, u: Tensor) -> Tensor:
    """Sample like `sample_at`, with sums that are exact in any order: GPUs sum differently for each number of rows.

    Probabilities become whole numbers, 2^30 for the most likely token. Top-k keeps all tokens that are as likely as the
    k-th. The host waits for nothing.
    """
    top = logits.amax(-1, keepdim=True)  # (B, 1)
    weights = ((logits - top) / params.temperature).exp().nan_to_num(0.0)  # (B, V); 0 in a row that is not finite
    weights = (weights * EXACT_ONE).to(torch.int64)
    num_likely = min(params.top_k or logits.size(-1), logits.size(-1))
    if num_likely < logits.size(-1):
        weights = weights.masked_fill(logits < logits.topk(num_likely).values[:, -1:], 0)
    if params.top_p is not None and params.top_p < 1:
        likely = weights.topk(num_likely).values  # (B, K), in descending order
        before = likely.cumsum(-1) - likely  # (B, K), the weight of all that are more likely
        is_kept = before.double() < params.top_p * weights.sum(-1, keepdim=True).double()
        weights = weights.masked_fill(weights < likely.masked_fill(~is_kept, EXACT_ONE).amin(-1, keepdim=True), 0)
    cdf = weights.cumsum(-1)  # (B, V)
    drawn = torch.searchsorted(cdf, (u.double()[:, None] * cdf[:, -1:]).to(torch.int64), right=True)  # (B, 1)
    return drawn.squeeze(-1)


def drawn_ids(drawn: Tensor, logits: Tensor) -> list[int]:
    """Return the tokens of `sample_at` as a list. Raises `UserError` if logits that it drew from are not finite."""
    ids: list[int] = drawn.tolist()
    if max(ids) >= logits.size(-1):
        raise UserError(NO_PROBABILITIES)
    return ids


def _probs(logits: Tensor, params: SamplingParams) -> tuple[Tensor, Tensor | None]:
    """Return the probabilities of all tokens (B, V) and None; with top-k or top-p, those of K tokens and their ids.

    They need not sum to 1. A row's numbers depend on its own logits only.
    """
    ids = None
    if params.top_k is not None and params.top_k < logits.size(-1):
        logits, ids = logits.topk(params.top_k)  # (B, V) -> (B, K), in descending order
    probs = F.softmax(logits / params.temperature, dim=-1)
    if params.top_p is None or params.top_p >= 1:
        return probs, ids
    if ids is None:
        probs, ids = _most_likely(probs, params.top_p)
    before = F.pad(probs.cumsum(-1)[:, :-1], (1, 0))  # (B, K), the probability of all that are more likely
    return probs.masked_fill(before >= params.top_p, 0.0), ids


def _most_likely(probs: Tensor, mass: float) -> tuple[Tensor, Tensor]:
    """Return at least so many of the most likely tokens, with their ids, that they have `mass` together.

    (B, V) -> (B, K), in descending order. Sorting the vocabulary takes a CPU milliseconds a row, so the tokens beyond
    NUCLEUS_CANDIDATES are sorted only for rows that need them. Other devices sort all, and the host waits for nothing.
    """
    vocab_size = probs.size(-1)
    if probs.device.type != "cpu" or vocab_size <= NUCLEUS_CANDIDATES:
        return probs.sort(dim=-1, descending=True, stable=True)
    kept, ids = probs.topk(NUCLEUS_CANDIDATES)
    is_short = ~(kept.cumsum(-1)[:, -1] >= mass)  # (B,); true for a row that is not finite
    if is_short.any():
        missing = (0, vocab_size - NUCLEUS_CANDIDATES)
        kept, ids = F.pad(kept, missing), F.pad(ids, missing)  # the sums of the other rows do not change by zeros
        kept[is_short], ids[is_short] = probs[is_short].sort(dim=-1, descending=True, stable=True)
    return kept, ids


def log_probabilities(logits: Tensor, token: int, num_top: int) -> tuple[float, list[tuple[int, float]]]:
    """Return the log-probability of a token, and the `num_top` most likely tokens with theirs: logits (V,) of one row.

    In nats, at temperature 1 and without top-k or top-p.
    """
    logprobs = F.log_softmax(logits, dim=-1)
    if not num_top:
        return float(logprobs[token]), []
    values, ids = logprobs.topk(min(num_top, len(logits)))
    return float(logprobs[token]), list(zip(ids.tolist(), values.tolist(), strict=True))


def rng_keys(seed: int, count: int) -> RNGKeys:
    """Return the keys of `count` independent random streams for `uniforms`, uint64 (count,).

    Key i depends on `seed` and i only.
    """
    start = _splitmix64(np.array([seed % 2**64], np.uint64))
    keys: RNGKeys = _splitmix64(start + np.arange(count).astype(np.uint64))
    return keys


def uniforms(keys: RNGKeys, steps: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Return the random number of each key at its step: (B,), (B,) -> (B,), float32, uniform in [0, 1).

    The generator is counter-based: a number depends on its key and step only, so rows can join and leave a batch. The
    numbers are multiples of 2^-23, which float32 represents exactly.
    """
    bits = _splitmix64(keys + steps.astype(np.uint64)) >> np.uint64(41)
    u: npt.NDArray[np.float32] = bits.astype(np.float32) * np.float32(2**-23)
    return u


def _splitmix64(x: Any) -> Any:
    """Return the output of SplitMix64 at state `x` (Steele, Lea, Flood 2014): a random number without a state."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
