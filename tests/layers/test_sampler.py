"""Sampling of the next token: greedy, top-k and frequencies, with a generator and with given uniforms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from nanochat.common import UserError
from nanochat.layers import sampler
from nanochat.layers.sampler import (
    drawn_ids,
    log_probabilities,
    rng_keys,
    sample_at,
    sample_exactly,
    sample_next,
    uniforms,
)
from nanochat.layers.sampling_params import SamplingParams

LOGITS = torch.tensor([[1.0, 3.0, -2.0, 2.0, 0.0], [0.0, -1.0, 2.0, 4.0, 1.0]])


def probabilities(temperature: float, top_k: int | None) -> list[float]:
    """The softmax of the first row of LOGITS, by its formula."""
    weights = [math.exp(logit / temperature) for logit in LOGITS[0].tolist()]
    smallest = sorted(weights, reverse=True)[: top_k or 5][-1]
    total = sum(weight for weight in weights if weight >= smallest)
    return [weight / total if weight >= smallest else 0.0 for weight in weights]


def draw(
    logits: Tensor, temperature: float, top_k: int | None = None, seed: int = 1, top_p: float | None = None
) -> list[int]:
    params = SamplingParams(temperature, top_k, top_p=top_p)
    drawn = sample_next(logits, params, torch.Generator().manual_seed(seed))
    assert drawn.shape == logits.shape[:1]
    assert drawn.dtype == torch.int64
    return drawn.tolist()


@pytest.mark.parametrize("temperature", [0.0, 1e-300, 1e-9])
def test_at_temperature_0_decoding_is_greedy(temperature: float) -> None:
    assert draw(LOGITS, temperature) == [1, 3]
    assert draw(LOGITS, temperature, top_k=2) == [1, 3]


def test_very_low_and_very_high_temperatures_work() -> None:
    assert draw(LOGITS, 1e-5) == [1, 3]
    assert set(draw(LOGITS[:1].expand(500, -1), 1e30)) == {0, 1, 2, 3, 4}


@pytest.mark.parametrize("top_k", [1, 2, 3, 4, 5, 100])
def test_all_of_the_top_k_are_sampled_and_no_others(top_k: int) -> None:
    for row in LOGITS:
        best = row.argsort(descending=True)[:top_k].tolist()
        assert set(draw(row.expand(2000, -1), 3.0, top_k)) == set(best)


def test_no_more_than_k_of_equal_logits_are_sampled() -> None:
    assert len(set(draw(torch.zeros(2000, 50), 1.0, top_k=3))) == 3


@pytest.mark.parametrize(("temperature", "top_k"), [(1.0, None), (0.5, None), (2.0, 3)])
def test_frequencies_follow_the_softmax(temperature: float, top_k: int | None) -> None:
    count = 20_000
    drawn = draw(LOGITS[:1].expand(count, -1), temperature, top_k)
    for token, p in enumerate(probabilities(temperature, top_k)):
        assert abs(drawn.count(token) - count * p) <= 4 * math.sqrt(count * p * (1 - p))


def test_the_seed_determines_the_samples() -> None:
    rows = torch.zeros(20, 100)
    assert draw(rows, 1.0, seed=1) == draw(rows, 1.0, seed=1) != draw(rows, 1.0, seed=2)


# Given uniforms instead of a generator


@pytest.mark.parametrize(("temperature", "top_k"), [(1.0, None), (0.5, None), (2.0, 3), (1.0, 1), (1.0, 100)])
def test_evenly_spaced_uniforms_give_each_token_its_share(temperature: float, top_k: int | None) -> None:
    """Up to one sample, by inversion of the cumulative distribution."""
    count = 10_000
    u = torch.arange(count) / count
    drawn = sample_at(LOGITS[:1].expand(count, -1), SamplingParams(temperature, top_k), u)
    assert drawn.shape == (count,)
    for token, p in enumerate(probabilities(temperature, top_k)):
        assert abs(int((drawn == token).sum()) - count * p) <= 1.5


def test_a_token_of_probability_0_is_never_sampled() -> None:
    """Neither with u = 0 nor with the largest u below 1, however the sum is rounded."""
    logits = torch.randn(500, 300, generator=torch.Generator().manual_seed(1))
    logits[:, [0, 150, 299]] = -1e9
    for u in (0.0, 1 - 2**-23):
        drawn = sample_at(logits, SamplingParams(), torch.full((500,), u))
        assert torch.equal(drawn, torch.full((500,), 1 if u == 0 else 298))


def test_a_row_depends_on_its_own_uniform_only() -> None:
    logits = torch.randn(40, 100, generator=torch.Generator().manual_seed(1))
    u = torch.rand(40, generator=torch.Generator().manual_seed(2))
    params = SamplingParams(top_k=20)
    whole = sample_at(logits, params, u)
    assert [int(sample_at(logits[i : i + 1], params, u[i : i + 1])) for i in range(40)] == whole.tolist()
    assert torch.equal(sample_at(logits, SamplingParams(temperature=0.0), u), logits.argmax(-1))


def test_streams_do_not_depend_on_their_count_and_differ_by_seed() -> None:
    assert rng_keys(5, 3).tolist() == rng_keys(5, 1000)[:3].tolist()
    keys = {key for seed in (-1, 0, 1, 2, 42, 2**63) for key in rng_keys(seed, 1000).tolist()}
    assert len(keys) == 6000


def test_uniforms_are_those_of_splitmix64() -> None:
    """The first outputs from state 0 are published: 0xe220a8397b1dcdaf, 0x6e789e6aa1b965f4, 0x06c45d188009454f."""
    golden = 0x9E3779B97F4A7C15
    keys = np.array([0, golden, 2 * golden % 2**64], dtype=np.uint64)
    outputs = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert uniforms(keys, np.zeros(3, dtype=np.int64)).tolist() == [(word >> 41) / 2**23 for word in outputs]


def test_uniforms_are_uniform_and_uncorrelated() -> None:
    table = np.stack([uniforms(rng_keys(7, 400), np.full(400, step)) for step in range(300)])  # (steps, keys)
    assert table.dtype == np.float32
    assert 0 <= table.min() < 1e-4
    assert 1 - 1e-4 < table.max() < 1
    counts = np.histogram(table, bins=100, range=(0, 1))[0]
    assert 50 < ((counts - 1200) ** 2 / 1200).sum() < 170  # chi-square, 99 degrees of freedom
    for a, b in ((table[:-1], table[1:]), (table[:, :-1], table[:, 1:])):
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.015


# Top-p


def nucleus(logits: list[float], temperature: float, top_k: int | None, top_p: float) -> dict[int, float]:
    """The tokens that can be drawn and their probabilities, one by one from the most likely."""
    order = sorted(range(len(logits)), key=lambda token: -logits[token])[:top_k]
    weights = {token: math.exp((logits[token] - logits[order[0]]) / temperature) for token in order}
    total = math.fsum(weights.values())
    kept: dict[int, float] = {}
    for token in order:
        if math.fsum(kept.values()) / total >= top_p:
            break
        kept[token] = weights[token]
    return {token: weight / math.fsum(kept.values()) for token, weight in kept.items()}


def assert_shares(ids: torch.Tensor, expected: dict[int, float]) -> None:
    """Check that evenly spaced uniforms draw each of 30 tokens as often as its probability says."""
    shares = torch.bincount(ids, minlength=30) / len(ids)
    for token in range(30):
        assert abs(float(shares[token]) - expected.get(token, 0.0)) <= 1.5 / len(ids)


@pytest.mark.parametrize("num_candidates", [4, 1000])
@pytest.mark.parametrize("temperature", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("top_k", [None, 1, 7])
@pytest.mark.parametrize("top_p", [1e-9, 0.3, 0.75, 0.99, 1.0])
def test_top_p_keeps_the_fewest_tokens_with_this_probability(
    top_p: float, top_k: int | None, temperature: float, num_candidates: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each token's share of evenly spaced uniforms, for rows of which some need more than the first candidates."""
    monkeypatch.setattr(sampler, "NUCLEUS_CANDIDATES", num_candidates)
    rows = torch.randn(4, 30, generator=torch.Generator().manual_seed(3)) * torch.tensor([[0.1], [1.0], [3.0], [9.0]])
    params = SamplingParams(temperature, top_k, top_p=top_p)
    count = 1000
    u = ((torch.arange(count) + 0.5) / count).repeat(len(rows))
    drawn = sample_at(rows.repeat_interleave(count, 0), params, u).view(len(rows), count)
    for row, ids in zip(rows, drawn, strict=True):
        expected = nucleus(row.tolist(), temperature, top_k, top_p)
        assert_shares(ids, expected)
        assert set(draw(row.expand(200, -1), temperature, top_k, top_p=top_p)) <= set(expected)


def test_with_top_p_a_row_depends_on_its_own_logits_only() -> None:
    """Rows that need the whole vocabulary stand beside rows for which the first candidates are enough."""
    spread = torch.tensor([0.01, 0.5, 4.0, 8.0]).repeat(5)[:, None]
    logits = torch.randn(20, 3000, generator=torch.Generator().manual_seed(1)) * spread
    u = torch.rand(20, generator=torch.Generator().manual_seed(2))
    for top_p in (0.5, 0.9, 0.999):
        params = SamplingParams(top_p=top_p)
        whole = sample_at(logits, params, u)
        assert [int(sample_at(logits[i : i + 1], params, u[i : i + 1])) for i in range(20)] == whole.tolist()


@pytest.mark.parametrize("temperature", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("top_k", [None, 1, 7, 100])
@pytest.mark.parametrize("top_p", [None, 1e-9, 0.3, 0.75, 0.99])
def test_with_exact_sums_each_token_has_its_share(top_p: float | None, top_k: int | None, temperature: float) -> None:
    rows = torch.randn(4, 30, generator=torch.Generator().manual_seed(3)) * torch.tensor([[0.1], [1.0], [3.0], [9.0]])
    params = SamplingParams(temperature, top_k, top_p=top_p)
    count = 1000
    u = ((torch.arange(count) + 0.5) / count).repeat(len(rows))
    drawn = sample_exactly(rows.repeat_interleave(count, 0), params, u).view(len(rows), count)
    for row, ids in zip(rows, drawn, strict=True):
        assert_shares(ids, nucleus(row.tolist(), temperature, top_k, 1.0 if top_p is None else top_p))


def test_exact_sums_do_not_depend_on_the_order_of_the_vocabulary() -> None:
    """The kept weights are whole numbers: tokens in another order have other bounds, but the same shares."""
    logits = torch.randn(1, 5000, generator=torch.Generator().manual_seed(1))
    order = torch.randperm(5000, generator=torch.Generator().manual_seed(2))
    for params in (SamplingParams(), SamplingParams(0.7, top_k=50), SamplingParams(1.5, top_p=0.9)):
        u = torch.arange(3000) / 3000
        tokens = sample_exactly(logits.expand(3000, -1), params, u)
        others = order[sample_exactly(logits[:, order].expand(3000, -1), params, u)]
        counts, other_counts = torch.bincount(tokens, minlength=5000), torch.bincount(others, minlength=5000)
        assert int((counts - other_counts).abs().max()) <= 2


def test_exact_sums_keep_all_tokens_that_are_as_likely_as_the_kth() -> None:
    logits = torch.tensor([[0.0, 2.0, 1.0, 1.0, 1.0, -1.0]]).expand(600, -1)
    drawn = sample_exactly(logits, SamplingParams(top_k=3), torch.arange(600) / 600)
    assert sorted(set(drawn.tolist())) == [1, 2, 3, 4]


@pytest.mark.parametrize("top_p", [None, 0.5])
@pytest.mark.parametrize("top_k", [None, 2])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_exact_sums_of_logits_that_are_not_finite(value: float, top_k: int | None, top_p: float | None) -> None:
    logits = torch.zeros(3, 5)
    logits[1] = value
    drawn = sample_exactly(logits, SamplingParams(1.0, top_k=top_k, top_p=top_p), torch.full((3,), 0.5))
    assert (drawn < 5).tolist() == [True, False, True]
    logits = torch.zeros(1, 5)
    logits[0, 2] = torch.nan if value == -torch.inf else value
    assert sample_exactly(logits, SamplingParams(1.0, top_k=top_k, top_p=top_p), torch.zeros(1)).tolist() == [5]


def test_log_probabilities() -> None:
    row = LOGITS[1].tolist()
    total = math.log(sum(math.exp(logit) for logit in row))
    logprob, top = log_probabilities(LOGITS[1], token=4, num_top=2)
    assert logprob == pytest.approx(row[4] - total, abs=1e-6)
    assert [token for token, _ in top] == [3, 2]
    assert [value for _, value in top] == pytest.approx([row[3] - total, row[2] - total], abs=1e-6)
    assert log_probabilities(LOGITS[1], token=4, num_top=0) == (logprob, [])
    assert len(log_probabilities(LOGITS[1], token=0, num_top=20)[1]) == 5


@pytest.mark.parametrize("top_p", [None, 0.5])
@pytest.mark.parametrize("top_k", [None, 2])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_finite(temperature: float, value: float, top_k: int | None, top_p: float | None) -> None:
    """One such row is an error of one line, whichever way the tokens are drawn; the other rows are not touched."""
    logits = torch.zeros(3, 5)
    logits[1, 2] = value
    params = SamplingParams(temperature, top_k=top_k, top_p=top_p)
    with pytest.raises(UserError, match="logits are not finite"):
        sample_next(logits, params, torch.Generator())
    drawn = sample_at(logits, params, torch.full((3,), 0.5))
    assert (drawn < 5).tolist() == [True, False, True]
    with pytest.raises(UserError, match="logits are not finite"):
        drawn_ids(drawn, logits)
    assert drawn_ids(drawn[::2], logits) == drawn[::2].tolist()
