"""Settings of generation, shared by the engine, the evaluation, RL, the web server and the command line."""

from __future__ import annotations

import math
import secrets
from dataclasses import dataclass

from nanochat.common import UserError


@dataclass(frozen=True)
class SamplingParams:
    """Settings of generation. Raises `UserError` for an impossible value.

    >>> SamplingParams(temperature=0.6, top_k=50).max_tokens is None
    True
    """

    temperature: float = 1.0  # 0 = greedy: always the most likely token
    top_k: int | None = None  # sample among the k most likely tokens; None = among all
    max_tokens: int | None = None  # length limit of a completion; None = until the context is full
    num_samples: int = 1  # completions of each prompt
    seed: int | None = 42  # None = a random seed for every call
    # Of these, sample among the fewest most likely tokens that have this probability together; None, 1 = among all.
    top_p: float | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise UserError(
                f"temperature is {self.temperature}: must be a finite number of at least 0 (0 = greedy decoding)"
            )
        if self.top_k is not None and self.top_k < 1:
            raise UserError(f"top_k is {self.top_k}: must be at least 1 (omit it to sample among all tokens)")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise UserError(
                f"top_p is {self.top_p}: must be above 0 and at most 1 (omit it to sample among all tokens)"
            )
        if self.max_tokens is not None and self.max_tokens < 1:
            raise UserError(f"max_tokens is {self.max_tokens}: must be at least 1 (omit it to fill the context)")
        if self.num_samples < 1:
            raise UserError(f"num_samples is {self.num_samples}: must be at least 1")

    def draw_seed(self) -> int:
        """Return `seed`, or a new random one below 2**32 if it is None."""
        return secrets.randbelow(2**32) if self.seed is None else self.seed

    def reserved_tokens(self, context_len: int) -> int:
        """Return the number of tokens of the context to keep free for a completion: `max_tokens`, at most a quarter.

        >>> SamplingParams(max_tokens=100).reserved_tokens(1024), SamplingParams(max_tokens=512).reserved_tokens(1024)
        (100, 256)
        """
        quarter = max(1, context_len // 4)
        return quarter if self.max_tokens is None else min(self.max_tokens, quarter)
