"""Schedules at their corners, and their bounds at any progress."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat.training.schedule import lr_multiplier, muon_momentum

shares = st.floats(0, 1)
anywhere = st.floats(-2, 3)


@pytest.mark.parametrize(
    ("progress", "settings", "expected"),
    [
        (0.0, {}, 1.0),  # no warmup: the first step has the full rate
        (0.8, {}, 1.0),
        (0.9, {}, 0.5),
        (1.0, {}, 0.0),
        (0.0, {"warmup_ratio": 0.1}, 0.0),
        (0.05, {"warmup_ratio": 0.1}, 0.5),
        (0.1, {"warmup_ratio": 0.1}, 1.0),
        (1.0, {"final_lr_frac": 0.05}, 0.05),
        (0.9, {"final_lr_frac": 0.1}, 0.55),
        (1.0, {"warmdown_ratio": 0.0}, 1.0),
        (0.5, {"warmdown_ratio": 1.0}, 0.5),
        (0.5, {"warmup_ratio": 1.0, "warmdown_ratio": 1.0}, 0.5),  # overlapping ramps: the lower one
        (-1.0, {}, 1.0),
        (7.0, {}, 0.0),
    ],
)
def test_lr_multiplier_at_its_corners(progress: float, settings: dict[str, float], expected: float) -> None:
    assert lr_multiplier(progress, **settings) == pytest.approx(expected, abs=1e-12)


@given(anywhere, shares, shares, shares)
def test_lr_multiplier_is_in_the_unit_interval(progress: float, warmup: float, warmdown: float, final: float) -> None:
    assert 0 <= lr_multiplier(progress, warmup, warmdown, final) <= 1


@given(anywhere, anywhere, shares)
def test_lr_multiplier_never_rises_without_warmup(first: float, second: float, warmdown_ratio: float) -> None:
    early, late = sorted((first, second))
    assert lr_multiplier(late, warmdown_ratio=warmdown_ratio) <= lr_multiplier(early, warmdown_ratio=warmdown_ratio)


@pytest.mark.parametrize(
    ("step", "num_steps", "expected"),
    [
        (0, 6000, 0.85),
        (150, 6000, 0.90),  # 300 steps, not 600
        (300, 6000, 0.95),
        (6000, 6000, 0.95),
        (20, 400, 0.90),  # a tenth of 400 steps, not 300
        (40, 400, 0.95),
        (0, 1, 0.85),
        (1, 1, 0.95),
        (-5, 400, 0.85),
    ],
)
def test_muon_momentum_at_its_corners(step: int, num_steps: int, expected: float) -> None:
    assert muon_momentum(step / num_steps, num_steps) == pytest.approx(expected, abs=1e-12)


@given(anywhere, st.integers(0, 10**7))
def test_muon_momentum_stays_between_its_ends(progress: float, num_steps: int) -> None:
    assert 0.85 <= muon_momentum(progress, num_steps) <= 0.95 + 1e-12
