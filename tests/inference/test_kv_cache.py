"""The cache as a table of numbers: what was put in comes out, whatever grew, moved or left in between."""

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


def put(cache: KVCache, rows: Tensor) -> list[tuple[Tensor, Tensor, Tensor | None]]:
    """Insert (3 layers, 2, B, K, T, D) and give back what each layer got."""
    return [cache.insert(layer, *rows[layer]) for layer in range(3)]


def test_it_knows_its_bounds() -> None:
    cache = KVCache(CONFIG, 1, torch.float32, CPU)
    put(cache, torch.zeros(3, 2, 1, 2, 20, 10))
    assert cache.positions(3) == slice(20, 23)
    with pytest.raises(AssertionError, match="20 of 23 positions: 4 more"):
        cache.positions(4)


def test_it_grows_by_chunks_and_keeps_what_it_holds() -> None:
    cache = KVCache(CONFIG, 2, torch.float64, CPU)
    rows = torch.randn(3, 2, 2, 2, 23, 10, dtype=torch.float64)
    capacities = []
    for t in range(23):
        for layer, (k, v, seen) in enumerate(put(cache, rows[..., t : t + 1, :])):
            assert torch.equal(torch.stack((k, v)), rows[layer, ..., : t + 1, :])
            assert seen is None  # one token sees everything
        capacities.append(cache.layers[0].size(3))
    assert capacities == [4] * 4 + [8] * 4 + [12] * 4 + [16] * 4 + [20] * 4 + [23] * 3


def test_a_chunk_sees_what_was_there_and_itself_up_to_each_token() -> None:
    cache = KVCache(CONFIG, 1, torch.float32, CPU)
    assert put(cache, torch.zeros(3, 2, 1, 2, 2, 10))[0][2] is None  # the first pass is causal without being told
    seen = put(cache, torch.zeros(3, 2, 1, 2, 2, 10))[0][2]
    assert seen is not None
    assert seen.tolist() == [[True, True, True, False], [True, True, True, True]]


@pytest.mark.parametrize("seed", range(20))
def test_rows_come_and_go_and_what_stays_is_what_was_written(seed: int) -> None:
    """Against one list per row: prompts of random lengths, copied, written on, dropped at random."""
    generator = torch.Generator().manual_seed(seed)

    def integer(high: int) -> int:
        return int(torch.randint(high, (1,), generator=generator))

    lengths = [1 + integer(15) for _ in range(4)]
    if seed % 4 == 0:
        lengths = [lengths[0]] * 4
    copies = [1 + integer(3) for _ in range(4)]
    source = KVCache(CONFIG, 4, torch.float32, CPU)
    prompts = torch.randn(3, 2, 4, 2, max(lengths), 10, generator=generator)
    put(source, prompts)
    cache = KVCache(CONFIG, sum(copies), torch.float32, CPU)
    cache.reserve([length for length, count in zip(lengths, copies, strict=True) for _ in range(count)])
    rows: list[Tensor] = []  # each (3 layers, 2, K, positions, D)
    for i, (length, count) in enumerate(zip(lengths, copies, strict=True)):
        cache.copy_prefix(len(rows), count, source, i)
        rows += [prompts[:, :, i, :, :length]] * count
    while len(rows) > 1 and max(row.size(3) for row in rows) < 23:
        ragged = len({row.size(3) for row in rows}) > 1
        where = cache.positions(1)
        found = [row.size(3) for row in rows]
        assert where.flatten().tolist() == found if isinstance(where, Tensor) else set(found) == {where.start}
        assert isinstance(where, Tensor) == ragged  # rows of one length pay for no mask, however they came to be so
        new = torch.randn(3, 2, len(rows), 2, 1, 10, generator=generator)
        rows = [torch.cat((row, new[:, :, i]), 3) for i, row in enumerate(rows)]
        for layer, (k, v, seen) in enumerate(put(cache, new)):
            assert k.size(2) == max(row.size(3) for row in rows)  # no column is padding in every row
            assert torch.stack((k, v)).isfinite().all()
            for i, row in enumerate(rows):
                visible = torch.ones(k.size(2), dtype=torch.bool) if seen is None else seen[i, 0, 0]
                assert torch.equal(k[i][:, visible], row[layer, 0])
                assert torch.equal(v[i][:, visible], row[layer, 1])
        gone = [i for i in range(len(rows)) if integer(6) == 0][: len(rows) - 1]
        if gone:
            order = cache.remove_rows(gone)
            assert sorted(order) == [i for i in range(len(rows)) if i not in gone]
            rows = [rows[i] for i in order]
