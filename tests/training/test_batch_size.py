"""Batch sizes: the totals that an error names are valid and the nearest; "auto" is the largest valid size that fits."""

from __future__ import annotations

import re
from collections.abc import Iterator
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

MODEL: Any = SimpleNamespace(config=SimpleNamespace(sequence_len=512))  # all that is read of a model on a CPU


@pytest.fixture(autouse=True, scope="module")
def no_communication() -> Iterator[None]:
    """Runtimes of several processes are made here without the other processes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Runtime, "broadcast", lambda _, value: value)
        yield


def make_runtime(world_size: int = 1) -> Runtime:
    return Runtime(0, 0, world_size, torch.device("cpu"), torch.float32, 0)


small = st.integers(1, 40)


@given(total=st.integers(1, 3000), batch_size=small, sequence_len=small, world_size=st.integers(1, 4))
def test_accumulation_steps(total: int, batch_size: int, sequence_len: int, world_size: int) -> None:
    """The steps that make up the total, or an error that names the two nearest totals, which are valid."""
    candidates = (n for n in range(1, total + 1) if n * batch_size * sequence_len * world_size == total)
    expected = next(candidates, None)
    if expected:
        assert accumulation_steps(total, batch_size, sequence_len, world_size) == expected
        return
    with pytest.raises(UserError) as failure:
        accumulation_steps(total, batch_size, sequence_len, world_size)
    named = [int(word) for word in re.findall(r"\d+", str(failure.value).split("choose ")[1])]
    tokens = batch_size * sequence_len * world_size
    assert named == [size for size in (total - total % tokens, total - total % tokens + tokens) if size]
    for size in named:
        assert accumulation_steps(size, batch_size, sequence_len, world_size) >= 1
        assert abs(size - total) < tokens


@given(total=st.integers(1, 3000), sequence_len=small, world_size=st.integers(1, 4))
def test_valid_sizes_are_those_without_an_error(total: int, sequence_len: int, world_size: int) -> None:
    def is_valid(size: int) -> bool:
        try:
            accumulation_steps(total, size, sequence_len, world_size)
        except UserError:
            return False
        return True

    assert valid_device_batch_sizes(total, sequence_len, world_size) == [n for n in range(total, 0, -1) if is_valid(n)]


@given(rows=st.integers(1, 200), world_size=st.integers(1, 4))
def test_auto_on_a_cpu(rows: int, world_size: int) -> None:
    """The largest valid size within MAX_CPU_TOKENS; one row if every size exceeds that."""
    size = largest_device_batch_size(MODEL, rows * world_size * 512, 512, make_runtime(world_size))
    assert size == max(n for n in range(1, MAX_CPU_TOKENS // 512 + 1) if rows % n == 0)
    assert (
        largest_device_batch_size(
            MODEL, rows * world_size * 2 * MAX_CPU_TOKENS, 2 * MAX_CPU_TOKENS, make_runtime(world_size)
        )
        == 1
    )


def test_auto_without_a_valid_size() -> None:
    with pytest.raises(UserError, match=r"total_batch_size 1000 does not divide .* choose 512 or 1024"):
        largest_device_batch_size(MODEL, 1000, 512, make_runtime())


@pytest.mark.parametrize(
    ("max_fitting", "expected"), [(100, 16), (16, 16), (15, 8), (1, 1)], ids=["all fit", "just", "half", "one"]
)
def test_auto_on_a_gpu(monkeypatch: pytest.MonkeyPatch, max_fitting: int, expected: int) -> None:
    """The largest valid size that fits, tried in descending order."""
    monkeypatch.setattr(
        "nanochat.training.batch_size.fits_in_memory", lambda _model, size, _length: size <= max_fitting
    )
    on_gpu = Runtime(0, 0, 1, torch.device("cuda", 0), torch.bfloat16, 0)
    assert largest_device_batch_size(MODEL, 16 * 512, 512, on_gpu) == expected


def test_auto_on_a_gpu_that_is_too_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nanochat.training.batch_size.fits_in_memory", lambda *_: False)
    on_gpu = Runtime(0, 0, 1, torch.device("cuda", 0), torch.bfloat16, 0)
    with pytest.raises(UserError, match="not even one row"):
        largest_device_batch_size(MODEL, 16 * 512, 512, on_gpu)


@pytest.mark.parametrize(
    ("setting", "world_size", "is_resumed", "expected"),
    [
        ("4", 1, False, 4),
        ("auto", 1, False, 16),
        ("auto", 1, True, 2),  # that of the run before it was stopped
        ("auto", 2, True, 8),  # the run before had one process: chosen anew
        ("4", 1, True, 4),  # a number overrides the checkpoint
    ],
)
def test_size_of_a_run(setting: str, world_size: int, is_resumed: bool, expected: int) -> None:
    checkpoint = Checkpoint(Path("unused"), {"world_size": 1, "device_batch_size": 2}) if is_resumed else None
    assert resolve_device_batch_size(setting, checkpoint, MODEL, 16 * 512, make_runtime(world_size)) == expected
