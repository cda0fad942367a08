"""Copied runs and windows: equal to a search for them as substrings, and what the sentences say."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat.eval.memorisation import (
    WINDOW,
    Copying,
    TrainingText,
    describe_memory,
    measure_copying,
    prefix_sums,
    window_hashes,
)

IDS = st.lists(st.integers(0, 3), max_size=60)


def array(ids: list[int]) -> np.ndarray:
    return np.asarray(ids, dtype=np.int64)


def stands_in(run: list[int], text: list[int]) -> bool:
    return any(text[start : start + len(run)] == run for start in range(len(text) - len(run) + 1))


@given(IDS, IDS, st.integers(1, 12))
def test_windows_are_found_where_they_are(training: list[int], text: list[int], length: int) -> None:
    positions = TrainingText(array(training)).find(array(text), length).tolist()
    windows = [text[start : start + length] for start in range(len(text) - length + 1)]
    assert [position >= 0 for position in positions] == [stands_in(window, training) for window in windows]
    for window, position in zip(windows, positions, strict=True):
        assert position < 0 or training[position : position + length] == window


@given(IDS, IDS)
def test_longest_run(training: list[int], text: list[int]) -> None:
    run = TrainingText(array(training)).longest_run(array(text)).tolist()
    runs = [text[i:j] for i in range(len(text) + 1) for j in range(i, len(text) + 1)]
    longest = max((part for part in runs if stands_in(part, training)), key=len)
    assert len(run) == len(longest)
    assert stands_in(run, training)
    assert stands_in(run, text)


def test_a_hash_that_two_windows_share(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows of one hash are told apart by their tokens."""
    monkeypatch.setattr(
        "nanochat.eval.memorisation.window_hashes",
        lambda sums, length, _=None: np.zeros(max(0, len(sums) - length), dtype=np.uint64),
    )
    assert TrainingText(array([1, 2, 3])).find(array([4, 1, 2]), 2).tolist() == [-1, 0]


def test_hashes_do_not_depend_on_the_place() -> None:
    ids = np.random.default_rng(1).integers(0, 50_000, 1000)
    hashes = window_hashes(prefix_sums(np.concatenate([ids, ids])), 9)
    assert np.array_equal(hashes[:992], hashes[1000:])
    assert len(set(hashes[:992].tolist())) == 992


def test_measures() -> None:
    copying = measure_copying(TrainingText(np.arange(100)), [np.arange(20, 40), array([7] * 12), array([5, 6])])
    assert copying.num_windows == (20 - WINDOW + 1) + (12 - WINDOW + 1)
    assert copying.num_copied == 20 - WINDOW + 1
    assert copying.longest == tuple(range(20, 40))
    assert Copying(0, 0, ()).share == 0


def test_words() -> None:
    none, half, all_ = Copying(100, 2, (1,)), Copying(100, 40, (1,) * 12), Copying(100, 90, (1,) * 60)
    assert "learned its text by heart" in describe_memory(1.2, 3.1, all_, none)[0]
    assert "learned its text by heart" in describe_memory(1.9, 2.0, all_, none)[0]  # it recites
    assert "learned its text by heart" in describe_memory(0.0, 2.0, none, none)[0]
    assert "knows its own text better" in describe_memory(1.2, 2.0, none, none)[0]
    assert "knows its own text better" in describe_memory(1.9, 2.0, half, none)[0]
    assert "nearly as well" in describe_memory(1.9, 2.0, none, none)[0]
    repeated = describe_memory(1.9, 2.0, all_, all_)
    assert "nearly as well" in repeated[0]
    assert "The documents repeat each other" in repeated[-1]
    assert "repeat each other" not in " ".join(describe_memory(1.9, 2.0, all_, none))
    for train_bpb in (0.3, 1.6, 1.9):
        assert "--grounded" in " ".join(describe_memory(train_bpb, 2.0, none, none))
