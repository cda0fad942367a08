"""Drawing the next token: what may be drawn, how often, and what is refused."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from nanochat.common import UserError
from nanochat.sampling import check_sampling, sample_next

LOGITS = torch.tensor([[1.0, 3.0, -2.0, 2.0, 0.0], [0.0, -1.0, 2.0, 4.0, 1.0]])


def draw(logits: Tensor, temperature: float, top_k: int | None = None, seed: int = 1) -> list[int]:
    drawn = sample_next(logits, temperature, top_k, torch.Generator().manual_seed(seed))
    assert drawn.shape == logits.shape[:1]
    assert drawn.dtype == torch.int64
    return drawn.tolist()


@pytest.mark.parametrize("temperature", [0.0, 1e-300, 1e-9])
def test_without_heat_the_likeliest_is_drawn(temperature: float) -> None:
    assert draw(LOGITS, temperature) == [1, 3]
    assert draw(LOGITS, temperature, top_k=2) == [1, 3]


def test_very_little_heat_and_very_much_are_legal() -> None:
    assert draw(LOGITS, 1e-5) == [1, 3]
    assert set(draw(LOGITS[:1].expand(500, -1), 1e30)) == {0, 1, 2, 3, 4}


@pytest.mark.parametrize("top_k", [1, 2, 3, 4, 5, 100])
def test_only_the_k_best_are_drawn_and_all_of_them_are(top_k: int) -> None:
    for row in LOGITS:
        best = row.argsort(descending=True)[:top_k].tolist()
        assert set(draw(row.expand(2000, -1), 3.0, top_k)) == set(best)


def test_of_equals_no_more_than_k_are_drawn() -> None:
    assert len(set(draw(torch.zeros(2000, 50), 1.0, top_k=3))) == 3


@pytest.mark.parametrize(("temperature", "top_k"), [(1.0, None), (0.5, None), (2.0, 3)])
def test_each_is_drawn_as_often_as_its_share(temperature: float, top_k: int | None) -> None:
    number = 20_000
    drawn = draw(LOGITS[:1].expand(number, -1), temperature, top_k)
    odds = [math.exp(logit / temperature) for logit in LOGITS[0].tolist()]
    least = sorted(odds, reverse=True)[: top_k or 5][-1]
    total = sum(odd for odd in odds if odd >= least)
    for token, odd in enumerate(odds):
        share = odd / total if odd >= least else 0.0
        assert abs(drawn.count(token) - number * share) <= 4 * math.sqrt(number * share * (1 - share))


def test_the_seed_decides() -> None:
    rows = torch.zeros(20, 100)
    assert draw(rows, 1.0, seed=1) == draw(rows, 1.0, seed=1) != draw(rows, 1.0, seed=2)


@pytest.mark.parametrize("temperature", [-1e-9, -1.0, math.nan, math.inf, -math.inf])
def test_an_impossible_temperature_is_refused(temperature: float) -> None:
    with pytest.raises(UserError, match=f"temperature is {temperature}"):
        check_sampling(temperature, None)


@pytest.mark.parametrize("top_k", [0, -1])
def test_an_impossible_top_k_is_refused(top_k: int) -> None:
    with pytest.raises(UserError, match=f"top_k is {top_k}"):
        check_sampling(1.0, top_k)


def test_what_makes_sense_is_accepted() -> None:
    for temperature, top_k in [(0, None), (0.0, 1), (2, 10**9)]:
        check_sampling(temperature, top_k)
