"""Tiles and splits of the kernels. Their results: tests/steps/interpreted.py."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")
from nanochat.steps import launch


@pytest.mark.parametrize("context_len", [1, 40, 128, 129, 2048, 2049, 5000, 1 << 20])
def test_a_few_programs_share_the_positions_of_a_context(context_len: int) -> None:
    length = launch.split_len(context_len)
    assert length % 64 == 0
    assert length & (length - 1) == 0
    assert 1 <= -(-context_len // length) <= launch.MAX_SPLITS
    assert length == launch.MIN_SPLIT_LEN or context_len / length > launch.MAX_SPLITS / 2


@pytest.mark.parametrize("group", [1, 2, 3, 5, 16, 17, 40])
def test_the_query_heads_of_a_tile_fit_into_its_rows(group: int) -> None:
    num_tokens = launch.tokens_of_a_tile(4 * group, 4)
    assert num_tokens >= 1
    assert num_tokens * group <= launch.ATTENTION_ROWS or num_tokens == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tiles_of_weights_have_sizes_that_triton_takes(dtype: torch.dtype) -> None:
    for num_out in (1, 64, 768, 2304, 3072, 65536):
        block_out, block_in, num_stages = launch.tile_of_weights(num_out, dtype)
        assert all(size >= 16 and size & (size - 1) == 0 for size in (block_out, block_in))
        num_bytes = (block_out + launch.LINEAR_ROWS) * block_in * dtype.itemsize * (num_stages - 1)
        assert num_bytes <= 99 * 1024
