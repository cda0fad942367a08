"""pass@k: the probability that at least one of k completions solves a problem."""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import fmean

from nanochat.common import print0
from nanochat.engine import Engine
from nanochat.eval.task_eval import evaluate_chat_task
from nanochat.layers.sampling_params import SamplingParams
from nanochat.runtime import Runtime
from tasks.common import Task


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """Return the unbiased estimate of pass@k from `num_samples` >= k completions (arXiv 2107.03374, equation 1).

    >>> pass_at_k(4, 1, 1), pass_at_k(4, 1, 2), pass_at_k(4, 3, 2)
    (0.25, 0.5, 1.0)
    """
    return 1 - math.comb(num_samples - num_correct, k) / math.comb(num_samples, k)


def reported_ks(num_samples: int) -> list[int]:
    """Return the k for which pass@k is reported: the powers of two up to `num_samples`, and `num_samples`.

    >>> reported_ks(6)
    [1, 2, 4, 6]
    """
    return sorted({2**i for i in range(num_samples.bit_length())} | {num_samples})


def evaluate_pass_at_k(
    engine: Engine, tasks: Mapping[str, Task], params: SamplingParams, runtime: Runtime, batch_size: int
) -> dict[str, float]:
    """Evaluate all examples of each task and print a line for it.

    Returns `{"NAME pass@K": ..., "NAME tool": ...}`, where "tool" is the share of completions with a tool result.
    """
    metrics: dict[str, float] = {}
    for name, task in tasks.items():
        result = evaluate_chat_task(task, engine, params, runtime, batch_size=batch_size)
        task_metrics = {
            f"pass@{k}": fmean(pass_at_k(result.num_samples, count, k) for count in result.num_correct)
            for k in reported_ks(result.num_samples)
        }
        task_metrics["tool"] = result.tool_share
        print0(f"  {name}: {', '.join(f'{key} {value:.3f}' for key, value in task_metrics.items())}")
        metrics |= {f"{name} {key}": value for key, value in task_metrics.items()}
    return metrics
