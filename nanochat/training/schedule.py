"""Schedules: pure functions of progress, which is 0 at the first step and 1 after the last.

Progress outside [0, 1] is clamped, so no schedule returns a negative value.
"""

from __future__ import annotations


def _clamp(value: float) -> float:
    return min(1.0, max(0.0, value))


def lr_multiplier(
    progress: float, warmup_ratio: float = 0.0, warmdown_ratio: float = 0.2, final_lr_frac: float = 0.0
) -> float:
    """Return the factor on all learning rates: a linear warmup, a constant 1, a linear warmdown (a trapezoid).

    It rises from 0 over the first `warmup_ratio` of the run and falls to `final_lr_frac` over its last
    `warmdown_ratio`. Where the two overlap, the smaller factor applies.

    >>> [round(lr_multiplier(progress, warmup_ratio=0.1), 3) for progress in (0, 0.05, 0.1, 0.8, 0.9, 1)]
    [0.0, 0.5, 1.0, 1.0, 0.5, 0.0]
    """
    progress = _clamp(progress)
    rise = _clamp(progress / warmup_ratio) if warmup_ratio > 0 else 1.0
    remaining = _clamp((1 - progress) / warmdown_ratio) if warmdown_ratio > 0 else 1.0
    return min(rise, final_lr_frac + (1 - final_lr_frac) * remaining)


def muon_momentum(progress: float, num_steps: int, start: float = 0.85, end: float = 0.95) -> float:
    """Return Muon's momentum, which rises from `start` to `end` over 300 steps or a tenth of the run if that is less.

    >>> [round(muon_momentum(step / 6000, 6000), 3) for step in (0, 150, 300, 6000)]
    [0.85, 0.9, 0.95, 0.95]
    """
    warmup_ratio = min(0.1, 300 / max(1, num_steps))
    return start + (end - start) * _clamp(progress / warmup_ratio)
