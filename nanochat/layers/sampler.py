"""From logits to the next token: greedy, at a temperature, among the k best."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from nanochat.common import UserError

Words = npt.NDArray[np.uint64]

GREEDY_BELOW = 1e-5  # dividing logits by less gains nothing and ends in infinities


def check_sampling(temperature: float, top_k: int | None) -> None:
    """Raise `UserError` for settings that mean nothing."""
    if not (math.isfinite(temperature) and temperature >= 0):
        raise UserError(f"temperature is {temperature}: it must be a number of at least 0 (0 = always the likeliest)")
    if top_k is not None and top_k < 1:
        raise UserError(f"top_k is {top_k}: it must be at least 1; leave it out to choose among all tokens")


def sample_next(logits: Tensor, temperature: float, top_k: int | None, generator: torch.Generator) -> Tensor:
    """Draw an id for each row of logits, (B, V) -> (B,), each row by itself.

    `temperature` 0: the likeliest. `top_k`: among the k best (all, if the vocabulary is smaller).
    """
    if temperature < GREEDY_BELOW:
        return logits.argmax(dim=-1)
    shares, ids = _shares(logits, temperature, top_k)
    drawn = torch.multinomial(shares, num_samples=1, generator=generator)  # (B, 1)
    return (drawn if ids is None else ids.gather(-1, drawn)).squeeze(-1)


def sample_at(logits: Tensor, temperature: float, top_k: int | None, where: Tensor) -> Tensor:
    """`sample_next` with a given number for each row instead of a generator: `where`, float32 (B,), in [0, 1).

    The id is the one at that share of the way through the distribution, so a row depends on its own number only.
    """
    if temperature < GREEDY_BELOW:
        return logits.argmax(dim=-1)
    shares, ids = _shares(logits, temperature, top_k)
    ends = shares.cumsum(-1)  # (B, V): the last is 1, but for rounding
    drawn = torch.searchsorted(ends, where[:, None] * ends[:, -1:], right=True)  # (B, 1): never one whose share is 0
    return (drawn if ids is None else ids.gather(-1, drawn)).squeeze(-1)


def _shares(logits: Tensor, temperature: float, top_k: int | None) -> tuple[Tensor, Tensor | None]:
    """Probabilities, (B, V) or the k best (B, k), and then which ids they are."""
    ids = None
    if top_k is not None and top_k < logits.size(-1):
        logits, ids = logits.topk(top_k)
    return F.softmax(logits / temperature, dim=-1), ids


def streams(seed: int, count: int) -> Words:
    """`count` random streams for `numbers`, uint64 (count,): the first ones are the same whatever the count."""
    start = _scramble(np.array([seed % 2**64], np.uint64))
    found: Words = _scramble(start + np.arange(count).astype(np.uint64))
    return found


def numbers(streams: Words, steps: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Each stream's number at its step, both (B,): float32 in [0, 1), multiples of 2^-23."""
    bits = _scramble(streams + steps.astype(np.uint64)) >> np.uint64(41)
    share: npt.NDArray[np.float32] = bits.astype(np.float32) * np.float32(2**-23)
    return share


def _scramble(x: Any) -> Any:
    """The output function of SplitMix64 (Steele, Lea, Flood 2014): as good as random, and nothing to carry along."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
