"""What changes over a run, as pure functions of progress: 0 at the first step, 1 after the last.

Progress outside [0, 1] counts as the nearer end, so that no schedule ever turns negative.
"""

from __future__ import annotations


def _clamp(value: float) -> float:
    return min(1.0, max(0.0, value))


def lr_scale(progress: float, warmup: float = 0.0, warmdown: float = 0.2, final: float = 0.0) -> float:
    """Factor on every learning rate: up from 0 over `warmup` of the run, then 1, then down to `final` over `warmdown`.

    >>> [round(lr_scale(p, warmup=0.1), 3) for p in (0, 0.05, 0.1, 0.8, 0.9, 1)]
    [0.0, 0.5, 1.0, 1.0, 0.5, 0.0]
    """
    progress = _clamp(progress)
    up = _clamp(progress / warmup) if warmup > 0 else 1.0
    left = _clamp((1 - progress) / warmdown) if warmdown > 0 else 1.0
    return min(up, final + (1 - final) * left)


def muon_momentum(progress: float, num_steps: int, start: float = 0.85, end: float = 0.95) -> float:
    """Muon's momentum: from `start` to `end` over the first 300 steps or tenth of the run, whichever is shorter.

    >>> [round(muon_momentum(step / 6000, 6000), 3) for step in (0, 150, 300, 6000)]
    [0.85, 0.9, 0.95, 0.95]
    """
    warmup = min(0.1, 300 / max(1, num_steps))
    return start + (end - start) * _clamp(progress / warmup)


def weight_decay_scale(progress: float, final: float = 1.0) -> float:
    """Factor on the weight decay: from 1 to `final` in a straight line; constant unless told."""
    return 1 + (final - 1) * _clamp(progress)
