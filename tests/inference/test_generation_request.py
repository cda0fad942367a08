"""Requests are told apart by identity, and their events by value."""

from __future__ import annotations

from nanochat.inference.generation_request import FinishEvent, GenerationRequest, TokenEvent
from nanochat.layers.sampling_params import SamplingParams


def test_equal_requests_are_different_ones() -> None:
    first, second = (
        GenerationRequest(tokens=[1], params=SamplingParams(), rng_key=0, on_event=lambda _: None) for _ in range(2)
    )
    assert first != second
    assert len({first, second}) == 2
    assert first.num_logprobs is None


def test_events_are_compared_by_value() -> None:
    assert TokenEvent(3, is_forced=False) == TokenEvent(3, False, None, None)
    assert FinishEvent("stop") == FinishEvent("stop", "") != FinishEvent("length")
