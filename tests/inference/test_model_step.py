"""The checks of a step: each part of it made wrong in turn."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from nanochat.gpt import GPTConfig
from nanochat.inference.model_step import StepTokens

CONFIG = GPTConfig(sequence_len=16, vocab_size=100, n_layer=1, n_head=1, n_kv_head=1, n_embd=4)


def int32(values: Any) -> np.ndarray:
    return np.array(values, np.int32)


# Row 0 decodes at position 5, row 1 prefills positions 0 to 2; blocks of 4 positions.
STEP = StepTokens(
    tokens=int32([7, 1, 2, 99]),
    positions=int32([5, 0, 1, 2]),
    rows=int32([0, 1, 1, 1]),
    block_tables=int32([[3, 0], [2, -1]]),
    wanted=int32([0, 3]),
)


def test_a_step_that_can_be_computed() -> None:
    STEP.check(CONFIG, block_len=4, num_blocks=4)
    empty = StepTokens(int32([]), int32([]), int32([]), np.zeros((0, 0), np.int32), int32([]))
    empty.check(CONFIG, block_len=4, num_blocks=4)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"tokens": int32([7, 1, 2, 100])}, "token ids outside 0 to 99"),
        ({"tokens": int32([-1, 1, 2, 99])}, "token ids outside"),
        ({"tokens": int32([7, 1, 2])}, "differ in length"),
        ({"tokens": np.array([7, 1, 2, 99])}, "dtypes"),
        ({"positions": int32([16, 0, 1, 2])}, "positions outside 0 to 15"),
        ({"positions": int32([5, 0, 2, 3])}, "do not follow each other"),
        ({"positions": int32([8, 0, 1, 2])}, "block table of row 0 is too short"),
        ({"positions": int32([5, 2, 3, 4])}, "blocks of row 1 are outside 0 to 3"),
        ({"rows": int32([0, 1, 1, 2])}, "rows outside 0 to 1"),
        ({"rows": int32([1, 0, 0, 0])}, "not ascending"),
        ({"block_tables": int32([[3, 4], [2, -1]])}, "blocks of row 0 are outside"),
        ({"block_tables": int32([[3, 3], [2, -1]])}, "a block stands twice in row 0"),
        ({"wanted": int32([0, 4])}, "wanted tokens outside"),
        ({"wanted": int32([3, 0])}, "wanted tokens are not ascending"),
        ({"wanted": int32([3, 3])}, "wanted tokens are not ascending"),
    ],
)
def test_what_is_wrong_is_named(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        replace(STEP, **wrong).check(CONFIG, block_len=4, num_blocks=4)
