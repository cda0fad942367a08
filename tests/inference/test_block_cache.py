"""The block cache against a model of it that keeps, for each block, the whole sequence of tokens up to its end."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from nanochat.inference.block_cache import BlockCache


def fill(cache: BlockCache, tokens: list[int]) -> list[int]:
    """Let a sequence take its blocks, full ones known. Returns them."""
    blocks = cache.match(tokens, len(tokens) // cache.block_len)
    cache.use(blocks)
    for end in range(cache.block_len * (len(blocks) + 1), len(tokens) + 1, cache.block_len):
        previous = blocks[-1] if blocks else None
        blocks.append(cache.register(previous, tokens[end - cache.block_len : end], cache.allocate()))
    return blocks


def test_sequences_share_their_common_prefix() -> None:
    cache = BlockCache(8, block_len=2)
    first = fill(cache, [1, 2, 3, 4, 5])
    second = fill(cache, [1, 2, 7, 8])
    assert first[0] == second[0]
    assert first[1] != second[1]
    assert cache.num_available == 5
    assert fill(cache, [3, 4])[0] not in first  # the same tokens after something else are another block


def test_a_released_prefix_is_known_until_its_room_is_needed() -> None:
    cache = BlockCache(3, block_len=2)
    blocks = fill(cache, [1, 2, 3, 4])
    cache.release(blocks)
    assert (cache.num_available, cache.num_kept) == (3, 2)
    assert cache.match([1, 2, 3, 4], 9) == blocks
    assert cache.match([1, 2, 3, 4], 1) == blocks[:1]
    assert cache.match([1, 2, 3], 9) == blocks[:1]
    taken = [cache.allocate(), cache.allocate()]
    assert taken[0] not in blocks  # the block that was never used comes first
    assert taken[1] == blocks[1]  # then the end of the prefix, before what it follows
    assert cache.match([1, 2, 3, 4], 9) == blocks[:1]


def test_the_least_recently_used_prefix_goes_first() -> None:
    cache = BlockCache(2, block_len=1)
    first, second = fill(cache, [1]), fill(cache, [2])
    cache.release(first)
    cache.release(second)
    cache.use(first)
    cache.release(first)
    assert [cache.allocate()] == second


def test_a_prefix_that_two_sequences_computed_at_once_is_kept_once() -> None:
    cache = BlockCache(4, block_len=1)
    one, other = cache.allocate(), cache.allocate()
    assert cache.register(None, [5], one) == one
    assert cache.register(None, [5], other) == one
    assert cache.num_available == 3
    cache.release([one])
    assert cache.num_available == 3
    cache.release([one])
    assert cache.num_available == 4


def test_a_block_used_for_something_else_leads_nowhere() -> None:
    """A follower of a block that was given up is not found after the block has got new tokens, or the old ones."""
    cache = BlockCache(2, block_len=1)
    blocks = fill(cache, [1, 2])
    cache.release(blocks)
    assert sorted([cache.allocate(), cache.allocate()]) == sorted(blocks)
    cache.release([0])
    fill(cache, [1])
    assert len(cache.match([1, 2], 2)) == 1


def test_bugs_of_the_caller_are_found() -> None:
    cache = BlockCache(2, block_len=2)
    block = cache.allocate()
    with pytest.raises(AssertionError, match="not full"):
        cache.register(None, [1], block)
    with pytest.raises(AssertionError, match="before it is not known"):
        cache.register(block, [1, 2], cache.allocate())
    with pytest.raises(AssertionError, match="no block is available"):
        cache.allocate()
    cache.release([block])
    with pytest.raises(AssertionError, match="has no user"):
        cache.release([block])


class Machine(RuleBasedStateMachine):
    """Sequences come, grow and go at random, over an alphabet so small that they share most of what they begin with.

    `content` is what has been written to each block: the whole prefix up to its end.
    """

    @initialize(num_blocks=st.integers(1, 12), block_len=st.integers(1, 3))
    def start(self, num_blocks: int, block_len: int) -> None:
        self.cache = BlockCache(num_blocks, block_len)
        self.content: list[tuple[int, ...] | None] = [None] * num_blocks
        self.sequences: list[tuple[list[int], list[int]]] = []  # tokens, blocks

    def num_users(self, block: int) -> int:
        return sum(blocks.count(block) for _, blocks in self.sequences)

    def take(self) -> int:
        block = self.cache.allocate()
        assert self.num_users(block) == 0, "handed out while in use"
        self.content[block] = None
        return block

    @rule(tokens=st.lists(st.integers(0, 1), max_size=9))
    def begin(self, tokens: list[int]) -> None:
        blocks = self.cache.match(tokens, len(tokens) // self.cache.block_len)
        before = self.cache.num_available_beside(blocks)
        self.cache.use(blocks)
        assert self.cache.num_available == before
        length = self.cache.block_len * len(blocks)
        for index, block in enumerate(blocks):
            assert self.content[block] == tuple(tokens[: (index + 1) * self.cache.block_len])
        self.sequences.append((tokens[:length], blocks))

    @precondition(lambda self: self.sequences)
    @rule(data=st.data(), token=st.integers(0, 1))
    def grow(self, data: st.DataObject, token: int) -> None:
        tokens, blocks = data.draw(st.sampled_from(self.sequences), label="sequence")
        size = self.cache.block_len
        if len(tokens) % size == 0:
            if self.cache.num_available == 0:
                return
            blocks.append(self.take())
        assert self.num_users(blocks[-1]) == 1, "written while shared"
        tokens.append(token)
        if len(tokens) % size == 0:
            self.content[blocks[-1]] = tuple(tokens)
            own = blocks.pop()
            blocks.append(self.cache.register(blocks[-1] if blocks else None, tokens[-size:], own))
            assert self.content[blocks[-1]] == tuple(tokens)

    @precondition(lambda self: self.sequences)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.sequences) - 1), label="sequence")
        _, blocks = self.sequences.pop(index)
        self.cache.release(blocks)

    @precondition(lambda self: self.sequences)
    @rule(data=st.data())
    def an_equal_sequence_finds_all_full_blocks(self, data: st.DataObject) -> None:
        tokens, blocks = data.draw(st.sampled_from(self.sequences), label="sequence")
        num_full = len(tokens) // self.cache.block_len
        assert self.cache.match(tokens, 99) == blocks[:num_full]

    @invariant()
    def no_block_is_lost(self) -> None:
        if hasattr(self, "cache"):
            used = {block for _, blocks in self.sequences for block in blocks}
            assert self.cache.num_available == self.cache.num_blocks - len(used)

    def teardown(self) -> None:
        if hasattr(self, "cache"):
            while self.sequences:
                self.cache.release(self.sequences.pop()[1])
            taken = [self.take() for _ in range(self.cache.num_blocks)]
            assert sorted(taken) == list(range(self.cache.num_blocks))
            assert self.cache.num_available == self.cache.num_kept == 0


TestMachine: Any = Machine.TestCase
TestMachine.settings = settings(max_examples=60, stateful_step_count=50, deadline=None)
