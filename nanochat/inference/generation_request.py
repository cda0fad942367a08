"""A request for one completion, and the events by which its progress is told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from nanochat.layers.sampling_params import SamplingParams

FinishReason = Literal["stop", "length", "cancelled", "shutdown", "error"]


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """A token of the completion. The end token that the model samples at the end of its turn is one too."""

    token: int
    is_forced: bool  # by the tool, and not sampled
    logprob: float | None = None  # of this token, in nats at temperature 1; None unless the request asks for it
    top_logprobs: list[tuple[int, float]] | None = None  # the most likely tokens with theirs, in descending order


@dataclass(frozen=True, slots=True)
class FinishEvent:
    """The end of a completion, after all of its tokens: the last event of a request.

    "stop": the model sampled an end token. "length": `max_tokens`, or the context is full. "cancelled": by `cancel`.
    "shutdown": the loop was closed. "error": `message` says why.
    """

    reason: FinishReason
    message: str = ""


OnEvent = Callable[[TokenEvent | FinishEvent], None]


@dataclass(eq=False, kw_only=True)
class GenerationRequest:
    """One completion of a prompt. For several, make a request for each: they share what they have in common.

    The completion depends on `tokens`, `params` and `rng_key` only; `num_samples` and `seed` of `params` are not read.
    """

    tokens: list[int]  # the prompt
    params: SamplingParams
    rng_key: int  # of the random numbers (`rng_keys` in layers/sampler.py)
    num_logprobs: int | None = None  # None = no log-probabilities; n = those of each token and of the n most likely
    on_event: OnEvent  # called in the thread of the steps, which it must not hold up
    # Set before the first event: tokens of the prompt that were not computed, but taken from a shared prefix.
    num_cached: int = field(default=0, init=False)
