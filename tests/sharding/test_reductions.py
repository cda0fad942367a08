"""The order and the moment in which reductions start. That they change no result is tested in tests/test_optim.py."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from nanochat.gpt import GPT
from nanochat.optim import build_optimizer
from nanochat.runtime import Runtime
from tests.support.models import random_model

ONE_OF_EIGHT = Runtime(0, 0, 8, torch.device("cpu"), torch.float32, 0)


def tiny_model() -> GPT:
    return random_model(8, 64, n_layer=2, n_head=2, n_kv_head=1, n_embd=48)


def test_reductions_start_in_the_order_of_the_backward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of many processes: head, blocks and embedding, each gradient at once, and only in the last backward pass."""
    calls: list[tuple[str, int]] = []

    class Done:
        def wait(self) -> None:
            pass

    def collective(name: str) -> Callable[..., Done]:
        def call(*tensors: Tensor, **_: object) -> Done:
            calls.append((name, tensors[-1].numel()))
            return Done()

        return call

    for name in ("reduce", "reduce_scatter_tensor", "all_reduce", "all_gather_into_tensor"):
        monkeypatch.setattr(dist, name, collective(name))
    model = tiny_model()
    optimizer = build_optimizer(model, ONE_OF_EIGHT)
    idx = torch.zeros(1, 8, dtype=torch.int64)
    model(idx, idx).backward()
    assert not calls
    optimizer.overlap_next_backward()
    model(idx, idx).backward()
    block = [("reduce", numel) for numel in (4 * 48 * 48, 4 * 48 * 48, 48 * 48, 24 * 48, 24 * 48, 48 * 48)]
    table = [("reduce_scatter_tensor", 64 * 48)]
    assert calls == [*table, *block, *block, *table]
    optimizer.zero_grad()
    with pytest.raises(AssertionError, match="has no gradient"):
        optimizer.step(1.0, 0.9)


def test_a_second_gradient_after_the_reduction_is_refused() -> None:
    """As from a layer that runs its own backward passes inside the backward pass."""
    model = tiny_model()
    optimizer = build_optimizer(model, ONE_OF_EIGHT)
    optimizer.overlap_next_backward()
    optimizer.reductions._on_gradient(model.embed.weight)
    with pytest.raises(AssertionError, match="added to after its reduction"):
        optimizer.reductions._on_gradient(model.embed.weight)
