"""From logits to the next token: greedy, at a temperature, among the k best."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from nanochat.common import UserError

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
    ids = None
    if top_k is not None and top_k < logits.size(-1):
        logits, ids = logits.topk(top_k)  # (B, V) -> (B, k), and which ids they are
    drawn = torch.multinomial(F.softmax(logits / temperature, dim=-1), num_samples=1, generator=generator)  # (B, 1)
    return (drawn if ids is None else ids.gather(-1, drawn)).squeeze(-1)
