"""The float32 precision that is in force while modules compute."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.nn.modules.module import register_module_forward_pre_hook


@contextmanager
def recorded_precision() -> Iterator[set[str]]:
    """Context in which training has chosen TF32 ("high"): yields the set of precisions in which modules compute in it.

    On leaving asserts that the choice of training is in force again.
    """
    seen: set[str] = set()
    before = torch.get_float32_matmul_precision()
    hook = register_module_forward_pre_hook(lambda *_: seen.add(torch.get_float32_matmul_precision()))
    torch.set_float32_matmul_precision("high")
    try:
        yield seen
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)
        hook.remove()
