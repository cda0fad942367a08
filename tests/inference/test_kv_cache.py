"""The KV cache as a table of numbers: inserted values are returned, however rows grew, moved and were removed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nanochat.gpt import GPTConfig
from nanochat.inference import kv_cache
from nanochat.inference.kv_cache import KVCache

CPU = torch.device("cpu")
CONFIG = GPTConfig(sequence_len=23, vocab_size=265, n_layer=3, n_head=6, n_kv_head=2, n_embd=60)


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kv_cache, "CACHE_CHUNK", 4)


def insert(cache: KVCache, rows: Tensor) -> list[tuple[Tensor, Tensor, Tensor | None]]:
    """Insert keys and values, (3 layers, 2, B, K, T, D), and return the result of each layer."""
    return [cache.insert(layer, *rows[layer]) for layer in range(3)]


def test_positions_beyond_the_context_are_an_error() -> None:
    cache = KVCache(CONFIG, 1, torch.float32, CPU)
    insert(cache, torch.zeros(3, 2, 1, 2, 20, 10))
    assert cache.positions(3) == slice(20, 23)
    with pytest.raises(AssertionError, match="20 of 23 positions: 4 more"):
        cache.positions(4)


def test_the_cache_grows_by_chunks_and_keeps_its_values() -> None:
    cache = KVCache(CONFIG, 2, torch.float64, CPU)
    rows = torch.randn(3, 2, 2, 2, 23, 10, dtype=torch.float64)
    capacities = []
    for t in range(23):
        for layer, (k, v, mask) in enumerate(insert(cache, rows[..., t : t + 1, :])):
            assert torch.equal(torch.stack((k, v)), rows[layer, ..., : t + 1, :])
            assert mask is None  # a single token attends to every position
        capacities.append(cache.layers[0].size(3))
    assert capacities == [4] * 4 + [8] * 4 + [12] * 4 + [16] * 4 + [20] * 4 + [23] * 3


def test_the_mask_of_several_tokens_is_causal() -> None:
    cache = KVCache(CONFIG, 1, torch.float32, CPU)
    assert insert(cache, torch.zeros(3, 2, 1, 2, 2, 10))[0][2] is None  # the first pass is causal without a mask
    mask = insert(cache, torch.zeros(3, 2, 1, 2, 2, 10))[0][2]
    assert mask is not None
    assert mask.tolist() == [[True, True, True, False], [True, True, True, True]]


@pytest.mark.parametrize("seed", range(20))
def test_remaining_rows_keep_their_values(seed: int) -> None:
    """Compared with a list per row: prompts of random lengths are copied, continued, and removed at random."""
    generator = torch.Generator().manual_seed(seed)

    def randint(high: int) -> int:
        return int(torch.randint(high, (1,), generator=generator))

    lengths = [1 + randint(15) for _ in range(4)]
    if seed % 4 == 0:
        lengths = [lengths[0]] * 4
    copies = [1 + randint(3) for _ in range(4)]
    source = KVCache(CONFIG, 4, torch.float32, CPU)
    prompts = torch.randn(3, 2, 4, 2, max(lengths), 10, generator=generator)
    insert(source, prompts)
    cache = KVCache(CONFIG, sum(copies), torch.float32, CPU)
    cache.reserve([length for length, count in zip(lengths, copies, strict=True) for _ in range(count)])
    rows: list[Tensor] = []  # each (3 layers, 2, K, positions, D)
    for i, (length, count) in enumerate(zip(lengths, copies, strict=True)):
        cache.copy_prefix(len(rows), count, source, i)
        rows += [prompts[:, :, i, :, :length]] * count
    while len(rows) > 1 and max(row.size(3) for row in rows) < 23:
        is_ragged = len({row.size(3) for row in rows}) > 1
        positions = cache.positions(1)
        lengths = [row.size(3) for row in rows]
        if isinstance(positions, Tensor):
            assert positions.flatten().tolist() == lengths
        else:
            assert set(lengths) == {positions.start}
        assert isinstance(positions, Tensor) == is_ragged  # rows of one length need no mask
        new = torch.randn(3, 2, len(rows), 2, 1, 10, generator=generator)
        rows = [torch.cat((row, new[:, :, i]), 3) for i, row in enumerate(rows)]
        for layer, (k, v, mask) in enumerate(insert(cache, new)):
            assert k.size(2) == max(row.size(3) for row in rows)  # no column is padding in every row
            assert torch.stack((k, v)).isfinite().all()
            for i, row in enumerate(rows):
                visible = torch.ones(k.size(2), dtype=torch.bool) if mask is None else mask[i, 0, 0]
                assert torch.equal(k[i][:, visible], row[layer, 0])
                assert torch.equal(v[i][:, visible], row[layer, 1])
        removed = [i for i in range(len(rows)) if randint(6) == 0][: len(rows) - 1]
        if removed:
            order = cache.remove_rows(removed)
            assert sorted(order) == [i for i in range(len(rows)) if i not in removed]
            rows = [rows[i] for i in order]
