"""pass@k, compared with an enumeration of all choices, and the metrics of an evaluation."""

from __future__ import annotations

import itertools
from statistics import fmean

import pytest

from nanochat.eval.pass_at_k import pass_at_k, reported_ks


@pytest.mark.parametrize("num_samples", range(1, 7))
def test_pass_at_k_is_the_mean_over_all_choices_of_k_samples(num_samples: int) -> None:
    for num_correct in range(num_samples + 1):
        samples = [1] * num_correct + [0] * (num_samples - num_correct)
        for k in range(1, num_samples + 1):
            expected = fmean(max(choice) for choice in itertools.combinations(samples, k))
            assert pass_at_k(num_samples, num_correct, k) == pytest.approx(expected)


def test_reported_ks() -> None:
    assert [reported_ks(n) for n in (1, 2, 6, 8)] == [[1], [1, 2], [1, 2, 4, 6], [1, 2, 4, 8]]
