"""Batch sizes: the totals that an error names are valid and the nearest; "auto" is the largest valid size that fits."""

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
    MAX_GPU_MEMORY_SHARE,
    BatchFitter,
    accumulation_steps,
    evaluation_rows,
    search_largest,
    valid_device_batch_sizes,
)
from nanochat.training.memory import evaluation_memory
from tests.support.models import random_model

MODEL: Any = SimpleNamespace(config=SimpleNamespace(sequence_len=512))  # all that is read of a model on a CPU


def fitter(
    total: int, sequence_len: int = 512, world_size: int = 1, model: Any = MODEL, device: str = "cpu", **settings: Any
) -> BatchFitter:
    """Chooses for a model that is "compiled" to the number of rows."""
    runtime = Runtime(0, 0, world_size, torch.device(device), torch.float32, 0)
    choices: dict[str, Any] = {"is_compiled": False, "compile_for": lambda rows: rows, **settings}
    return BatchFitter(model, runtime, total, sequence_len, **choices)


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
    """The largest valid size within MAX_CPU_TOKENS; one row if every size exceeds that. The model is that for it."""
    size, compiled = fitter(rows * world_size * 512, 512, world_size).largest()
    assert size == compiled == max(n for n in range(1, MAX_CPU_TOKENS // 512 + 1) if rows % n == 0)
    too_long = 2 * MAX_CPU_TOKENS
    assert fitter(rows * world_size * too_long, too_long, world_size).largest() == (1, 1)


def test_auto_without_a_valid_size() -> None:
    with pytest.raises(UserError, match=r"total_batch_size 1000 does not divide .* choose 512 or 1024"):
        fitter(1000).largest()


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
    assert fitter(16 * 512, world_size=world_size).resolve(setting, checkpoint) == (expected, expected)


@given(
    sizes=st.sets(st.integers(1, 64), min_size=1),
    computed=st.integers(0, 100),
    slope=st.integers(1, 5),
    limit=st.integers(0, 300),
)
def test_search(sizes: set[int], computed: int, slope: int, limit: int) -> None:
    """The largest that fits, whatever was computed, where memory is a constant and a part in proportion to the rows."""
    first = max([size for size in sizes if size <= computed], default=min(sizes))
    measured: list[int] = []

    def measure(size: int) -> float:
        measured.append(size)
        return 20 + slope * size

    found = search_largest(sorted(sizes, reverse=True), first, measure, constant=20, limit=limit)
    assert found == max([size for size in sizes if 20 + slope * size <= limit], default=0)
    assert len(measured) == len(set(measured))
    assert found == first or len(measured) <= 1 + sum(min(found, first) <= size <= max(found, first) for size in sizes)


class Card:
    """A GPU of a given memory, of which training on R rows takes `constant` + R x `per_row` bytes."""

    def __init__(self, patch: pytest.MonkeyPatch, total: float, constant: float, per_row: float) -> None:
        self.passes: list[tuple[int, int]] = []  # rows and number of passes
        self.compiled: list[int] = []
        self.peak = 0.0
        self.constant = constant

        def warm_up(_forward: object, _model: object, rows: int, _length: int, num_passes: int) -> None:
            self.passes.append((rows, num_passes))
            self.peak = constant + rows * per_row
            if self.peak > total:
                raise torch.OutOfMemoryError("CUDA out of memory")

        patch.setattr("nanochat.training.batch_size.warm_up", warm_up)
        for name, value in {
            "get_device_properties": lambda _: SimpleNamespace(total_memory=total),
            "reset_peak_memory_stats": lambda _: None,
            "memory_allocated": lambda _: self.constant,
            "max_memory_allocated": lambda _: self.peak,
            "empty_cache": lambda: None,
        }.items():
            patch.setattr(torch.cuda, name, value)

    def compile_for(self, rows: int) -> Any:
        self.compiled.append(rows)
        return rows


COMPUTED = fitter(16 * 16, 16, model=random_model(16), device="cuda").memory


@pytest.mark.parametrize(
    ("factor", "expected", "compiled"),
    [(1.0, 8, [8]), (1.3, 4, [8, 4]), (2.5, 2, [8, 4, 2]), (0.7, 8, [8]), (0.4, 16, [8, 16])],
    ids=["as computed", "more", "out of memory", "less", "half"],
)
def test_auto_on_a_gpu(monkeypatch: pytest.MonkeyPatch, factor: float, expected: int, compiled: list[int]) -> None:
    """The computed size is measured once; a wrong computation costs one more compilation for each step."""
    total = 1.05 * COMPUTED(8).peak / MAX_GPU_MEMORY_SHARE
    constant = COMPUTED(8).constant
    card = Card(monkeypatch, total, constant, factor * COMPUTED(8).activations / 8)
    chosen = fitter(16 * 16, 16, model=random_model(16), device="cuda", compile_for=card.compile_for)
    assert chosen.resolve("auto", None) == (expected, expected)
    assert card.compiled == compiled
    assert card.passes == [(rows, 2) for rows in compiled]  # the second pass has gradients to add to


def test_auto_while_compiling_exhausts_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    card = Card(monkeypatch, 1.05 * COMPUTED(8).peak / MAX_GPU_MEMORY_SHARE, 0, 0)

    def compile_for(rows: int) -> Any:
        if rows > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return card.compile_for(rows)

    chosen = fitter(16 * 16, 16, model=random_model(16), device="cuda", compile_for=compile_for)
    assert chosen.largest() == (2, 2)


def test_the_buffers_of_the_optimizer_must_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step that needs more than the passes decides."""
    card = Card(monkeypatch, 1.05 * COMPUTED(8).peak / MAX_GPU_MEMORY_SHARE, 0, 0)
    card.constant = 2 * COMPUTED(8).peak  # in use between the passes and the step
    with pytest.raises(UserError, match="not even one row"):
        fitter(16 * 16, 16, model=random_model(16), device="cuda", compile_for=card.compile_for).largest()


def test_all_ranks_take_the_least(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process, whose GPU has more in use, has no memory for more than 2 rows."""
    card = Card(monkeypatch, 1.05 * COMPUTED(8).peak / MAX_GPU_MEMORY_SHARE, 0, 0)
    others = {8: float("inf"), 4: float("inf"), 2: 0.0}

    def maximum(_: Runtime, value: float) -> float:
        return max(value, others[card.compiled[-1]]) if card.compiled else value

    monkeypatch.setattr(Runtime, "maximum", maximum)
    chosen = fitter(2 * 16 * 16, 16, 2, model=random_model(16), device="cuda", compile_for=card.compile_for)
    assert chosen.largest() == (2, 2)


def test_auto_on_a_gpu_that_is_too_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """One row exceeds the memory: computed with checkpointed activations it may fit, which the error says."""
    card = Card(monkeypatch, 0.95 * COMPUTED(1).peak, COMPUTED(1).peak, 0)
    with pytest.raises(UserError, match=r"not even one row fits .*: lower --depth or --max_seq_len"):
        fitter(16 * 16, 16, model=random_model(16), device="cuda", compile_for=card.compile_for).largest()


def test_out_of_memory_names_what_would_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model(128, n_layer=8)
    training = fitter(64 * 128, 128, model=model, device="cuda")
    Card(monkeypatch, 1.01 * training.memory(4).peak / MAX_GPU_MEMORY_SHARE, 0, 0)

    def message() -> str:
        with pytest.raises(UserError) as failure, training.explained_out_of_memory(64):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return str(failure.value)

    assert message() == (
        "out of memory on cuda with --device_batch_size=64: "
        "by computation 4 rows fit, 8 rows fit with --checkpoint_activations"
    )
    model.checkpoint_activations = True
    assert message().endswith("by computation 8 rows fit with --checkpoint_activations")
    with pytest.raises(UserError, match="by computation 2 rows fit"), training.explained_out_of_memory(4):
        raise torch.OutOfMemoryError("CUDA out of memory")  # 4 rows should fit, but did not
    with pytest.raises(RuntimeError, match="another"), training.explained_out_of_memory(64):
        raise RuntimeError("another error")


def test_evaluation_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Within MAX_CPU_TOKENS on a CPU, within the memory on a GPU."""
    model = random_model(16)
    on_cpu = Runtime(0, 0, 1, torch.device("cpu"), torch.float32, 0)
    on_gpu = Runtime(0, 0, 1, torch.device("cuda", 0), torch.float32, 0)
    assert [evaluation_rows(model, on_cpu, length) for length in (16, 2048, 10_000)] == [64, 4, 1]
    for rows in (64, 8, 1):
        limit = evaluation_memory(model.config, torch.float32, rows, 16)
        Card(monkeypatch, 1.01 * limit / MAX_GPU_MEMORY_SHARE, 0, 0)
        assert evaluation_rows(model, on_gpu) == rows
