"""The settings of generation: refused values, the seed, and the tokens reserved for a completion."""

from __future__ import annotations

import math

import pytest

from nanochat.common import UserError
from nanochat.layers.sampling_params import SamplingParams


@pytest.mark.parametrize("temperature", [-1e-9, -1.0, math.nan, math.inf, -math.inf])
def test_an_impossible_temperature_is_refused(temperature: float) -> None:
    with pytest.raises(UserError, match=f"temperature is {temperature}: must be a finite number of at least 0"):
        SamplingParams(temperature)


@pytest.mark.parametrize("name", ["top_k", "max_tokens", "num_samples"])
@pytest.mark.parametrize("value", [0, -1])
def test_an_impossible_count_is_refused(name: str, value: int) -> None:
    with pytest.raises(UserError, match=f"{name} is {value}: must be at least 1"):
        SamplingParams(**{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("top_p", [0.0, -0.5, 1.0001, math.nan, math.inf])
def test_an_impossible_top_p_is_refused(top_p: float) -> None:
    with pytest.raises(UserError, match=f"top_p is {top_p}: must be above 0 and at most 1"):
        SamplingParams(top_p=top_p)


def test_possible_values_are_accepted() -> None:
    for top_p in (None, 1e-9, 0.9, 1, 1.0):
        SamplingParams(top_p=top_p)
    for temperature, top_k in [(0, None), (0.0, 1), (2, 10**9)]:
        SamplingParams(temperature, top_k)


def test_without_a_seed_every_call_draws_another_one() -> None:
    assert SamplingParams(seed=7).draw_seed() == 7
    seeds = [SamplingParams(seed=None).draw_seed() for _ in range(3)]
    assert len(set(seeds)) == 3
    assert all(0 <= seed < 2**32 for seed in seeds)


def test_tokens_reserved_for_a_completion() -> None:
    """`max_tokens`, but at most a quarter of the context, and at least 1."""
    reserved = [SamplingParams(max_tokens=limit).reserved_tokens(256) for limit in (None, 10, 64, 65, 4096)]
    assert reserved == [64, 10, 64, 64, 64]
    assert SamplingParams().reserved_tokens(2) == 1
