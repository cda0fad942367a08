"""Right padding: values, widths, dtypes and the input types that callers use."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nanochat.layers.padding import pad_right, pad_rows


def test_the_longest_row_sets_the_width() -> None:
    padded = pad_right([[1, 2, 3], [], [4]], fill=0)
    assert padded.dtype == torch.int64
    assert padded.tolist() == [[1, 2, 3], [0, 0, 0], [4, 0, 0]]


def test_a_given_width() -> None:
    assert pad_right([[1], [2, 3]], fill=-1, width=4).tolist() == [[1, -1, -1, -1], [2, 3, -1, -1]]
    with pytest.raises(RuntimeError):
        pad_right([[1, 2, 3]], fill=0, width=2)


def test_rows_may_be_tuples_arrays_and_tensors() -> None:
    rows = [(65_535, 1), np.array([65_535], dtype=np.uint16), torch.tensor([3, 2, 1])]
    assert pad_right(rows, fill=9).tolist() == [[65_535, 1, 9], [65_535, 9, 9], [3, 2, 1]]


def test_pad_rows_keeps_dtype_and_rows() -> None:
    rows = torch.arange(6, dtype=torch.int32).view(2, 3)
    padded = pad_rows(rows, num_rows=4, fill=-1)
    assert padded.dtype == torch.int32
    assert padded.tolist() == [[0, 1, 2], [3, 4, 5], [-1] * 3, [-1] * 3]
    assert pad_rows(rows, num_rows=2, fill=-1).equal(rows)
    assert pad_rows(rows[:0], num_rows=1, fill=7).tolist() == [[7, 7, 7]]
