"""pass@k: how often at least one of k answers to a problem is right."""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import fmean

from nanochat.common import print0
from nanochat.engine import Engine
from nanochat.eval.task_eval import Asking, evaluate
from nanochat.runtime import Runtime
from tasks.common import Task


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """The chance that one of k answers is right, unbiased from `num_samples` >= k of them (arXiv 2107.03374).

    >>> pass_at_k(4, 1, 1), pass_at_k(4, 1, 2), pass_at_k(4, 3, 2)
    (0.25, 0.5, 1.0)
    """
    return 1 - math.comb(num_samples - num_correct, k) / math.comb(num_samples, k)


def ks_of(num_samples: int) -> list[int]:
    """For which k pass@k is told: the powers of two up to the number of samples, and that number."""
    return sorted({2**i for i in range(num_samples.bit_length())} | {num_samples})


def measure(engine: Engine, tasks: Mapping[str, Task], asking: Asking, seed: int, runtime: Runtime) -> dict[str, float]:
    """pass@k on all problems of each task, and the share of answers that use the tool. Printed, too."""
    told: dict[str, float] = {}
    for name, task in tasks.items():
        score = evaluate(task, engine, asking, runtime, seed=seed)
        found = {
            f"pass@{k}": fmean(pass_at_k(score.num_samples, right, k) for right in score.right)
            for k in ks_of(score.num_samples)
        }
        found["tool"] = score.tool_share
        print0(f"  {name}: {', '.join(f'{key} {value:.3f}' for key, value in found.items())}")
        told |= {f"{name} {key}": value for key, value in found.items()}
    return told
