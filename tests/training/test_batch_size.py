"""How a step divides: the error's advice is right, and the automatic choice is the largest legal one."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nanochat.checkpoint_manager import Checkpoint
from nanochat.common import UserError
from nanochat.runtime import Runtime
from nanochat.training.batch_size import (
    MAX_CPU_TOKENS,
    accumulation_steps,
    largest_device_batch_size,
    resolve_device_batch_size,
    valid_device_batch_sizes,
)

MODEL: Any = SimpleNamespace(config=SimpleNamespace(sequence_len=512))  # all that is asked of one on a CPU


def runtime(world_size: int = 1) -> Runtime:
    class Alone(Runtime):
        def broadcast(self, value: Any) -> Any:
            return value

    return Alone(0, 0, world_size, torch.device("cpu"), torch.float32, 0)


small = st.integers(1, 40)


@given(total=st.integers(1, 3000), batch_size=small, sequence_len=small, world_size=st.integers(1, 4))
def test_a_batch_divides_or_the_nearest_that_do_are_named(
    total: int, batch_size: int, sequence_len: int, world_size: int
) -> None:
    def micro_steps(tokens: int) -> int | None:
        counted = [n for n in range(1, tokens + 1) if n * batch_size * sequence_len * world_size == tokens]
        return counted[0] if counted else None

    expected = micro_steps(total)
    if expected:
        assert accumulation_steps(total, batch_size, sequence_len, world_size) == expected
        return
    with pytest.raises(UserError) as failure:
        accumulation_steps(total, batch_size, sequence_len, world_size)
    advised = [int(word) for word in re.findall(r"\d+", str(failure.value).split("choose ")[1])]
    unit = batch_size * sequence_len * world_size
    assert advised == [size for size in (total - total % unit, total - total % unit + unit) if size]
    for size in advised:
        assert accumulation_steps(size, batch_size, sequence_len, world_size) >= 1
        assert abs(size - total) < unit


@given(total=st.integers(1, 3000), sequence_len=small, world_size=st.integers(1, 4))
def test_legal_sizes_are_those_that_pass_the_check(total: int, sequence_len: int, world_size: int) -> None:
    def passes(size: int) -> bool:
        try:
            accumulation_steps(total, size, sequence_len, world_size)
        except UserError:
            return False
        return True

    assert valid_device_batch_sizes(total, sequence_len, world_size) == [n for n in range(total, 0, -1) if passes(n)]


@given(rows=st.integers(1, 200), world_size=st.integers(1, 4))
def test_auto_on_a_cpu(rows: int, world_size: int) -> None:
    """The largest that divides and stays within the rule's tokens; one row, if not even that does."""
    chosen = largest_device_batch_size(MODEL, rows * world_size * 512, 512, runtime(world_size))
    assert chosen == max(n for n in range(1, MAX_CPU_TOKENS // 512 + 1) if rows % n == 0)
    assert (
        largest_device_batch_size(
            MODEL, rows * world_size * 2 * MAX_CPU_TOKENS, 2 * MAX_CPU_TOKENS, runtime(world_size)
        )
        == 1
    )


def test_auto_with_a_total_that_nothing_divides() -> None:
    with pytest.raises(UserError, match=r"total_batch_size 1000 does not divide .* choose 512 or 1024"):
        largest_device_batch_size(MODEL, 1000, 512, runtime())


@pytest.mark.parametrize(
    ("fitting", "chosen"), [(100, 16), (16, 16), (15, 8), (1, 1)], ids=["all fit", "just", "half", "one"]
)
def test_auto_on_a_gpu(monkeypatch: pytest.MonkeyPatch, fitting: int, chosen: int) -> None:
    """The largest legal one that fits, tried from above."""
    monkeypatch.setattr("nanochat.training.batch_size.fits_in_memory", lambda _model, size, _length: size <= fitting)
    on_gpu = Runtime(0, 0, 1, torch.device("cuda", 0), torch.bfloat16, 0)
    assert largest_device_batch_size(MODEL, 16 * 512, 512, on_gpu) == chosen


def test_auto_on_a_gpu_that_is_too_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nanochat.training.batch_size.fits_in_memory", lambda *_: False)
    on_gpu = Runtime(0, 0, 1, torch.device("cuda", 0), torch.bfloat16, 0)
    with pytest.raises(UserError, match="not even one row"):
        largest_device_batch_size(MODEL, 16 * 512, 512, on_gpu)


@pytest.mark.parametrize(
    ("asked", "world_size", "resumed", "expected"),
    [
        ("4", 1, False, 4),
        ("auto", 1, False, 16),
        ("auto", 1, True, 2),  # found when the run began
        ("auto", 2, True, 8),  # that was with one process: found again
        ("4", 1, True, 4),  # a number that is asked for counts
    ],
)
def test_resolve_device_batch_size_a_run(asked: str, world_size: int, resumed: bool, expected: int) -> None:
    checkpoint = Checkpoint(Path("unused"), {"world_size": 1, "device_batch_size": 2}) if resumed else None
    assert resolve_device_batch_size(asked, checkpoint, MODEL, 16 * 512, runtime(world_size)) == expected
