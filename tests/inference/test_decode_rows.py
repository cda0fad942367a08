"""The arrays of the rows against what the completions themselves say."""

from __future__ import annotations

import random

from nanochat.inference.decode_rows import DecodeRows, Generation
from nanochat.inference.tool_use import RowState
from nanochat.layers.sampling_params import SamplingParams
from tests.support.fake_step import TOOL, make_request

PARAMS = [SamplingParams(0.5), SamplingParams(0.5, top_k=3), SamplingParams(0.5, max_tokens=9), SamplingParams(0.0)]


def make_generation(rng: random.Random, arrival: int) -> Generation:
    length = rng.randint(1, 9)
    request, _ = make_request([arrival] * length, rng.choice(PARAMS), key=arrival)
    generation = Generation(request, RowState(TOOL, 99), arrival)
    generation.blocks = [100 * arrival + i for i in range(-(-length // 2))]
    return generation


def assert_consistent(rows: DecodeRows, expected: list[Generation]) -> None:
    assert rows.generations == expected
    for row, generation in enumerate(expected):
        assert generation.row == row
        assert rows.tokens[row] == generation.tokens[-1]
        assert rows.positions[row] == len(generation.tokens) - 1
        assert rows.keys[row] == generation.request.rng_key
        assert rows.num_generated[row] == len(generation.state.tokens)
        table = rows.block_tables[row].tolist()
        assert table == generation.blocks + [-1] * (20 - len(generation.blocks))
    members = sorted(row for _, group in rows.sampling_groups() for row in group)
    assert members == list(range(len(expected)))
    for params, group in rows.sampling_groups():
        for row in group:
            assert (params.temperature, params.top_k) == (expected[row].params.temperature, expected[row].params.top_k)
    if expected:
        num_blocks = max(-(-len(generation.tokens) // 2) for generation in expected)
        assert rows.tables().tolist() == rows.block_tables[: len(expected), :num_blocks].tolist()


def test_rows_come_go_and_advance() -> None:
    rng = random.Random(4)
    rows = DecodeRows(max_rows=12, max_blocks=20, block_len=2)
    expected: list[Generation] = []
    for step in range(300):
        if len(expected) < 12 and rng.random() < 0.6:
            expected.append(make_generation(rng, step))
            rows.append(expected[-1])
        if rng.random() < 0.4 and expected:
            removed = sorted(rng.sample(range(len(expected)), rng.randint(1, len(expected))))
            rows.remove(removed)
            gone = [expected[row] for row in removed]
            assert all(generation.row == -1 for generation in gone)
            kept = len(expected) - len(removed)  # the last rows fill the gaps, in order
            movers = [generation for generation in expected[kept:] if generation not in gone]
            expected = [movers.pop(0) if row in removed else expected[row] for row in range(kept)]
        assert_consistent(rows, expected)
        lengths = [len(generation.tokens) for generation in expected]
        assert rows.at_block_start() == [g for g, length in zip(expected, lengths, strict=True) if length % 2 == 1]
        assert rows.at_block_end() == [g for g, length in zip(expected, lengths, strict=True) if length % 2 == 0]
        if all(length < 38 for length in lengths):
            tokens = [rng.randint(0, 99) for _ in expected]
            for generation, token in zip(expected, tokens, strict=True):
                generation.state.append(token)
                generation.tokens.append(token)
                if len(generation.tokens) % 2:
                    generation.blocks.append(7)
                    rows.block_tables[generation.row, len(generation.blocks) - 1] = 7
            rows.advance(tokens)
