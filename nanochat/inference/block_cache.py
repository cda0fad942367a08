"""Owners of the cache blocks of a `ModelStep`, and the prefixes that sequences share.

A block is used by one sequence that writes it, or, when it is full, by any number of sequences that read it. A full
block is known by its tokens and by the block before it, so that equal prefixes of sequences lead to the same blocks.
Example with blocks of two tokens, for the sequences a b c d e and a b x y:

    root ── a b ── c d        e is in a block of its own, which is not full
              └─── x y

A block that no sequence uses any more stays known until its room is needed. Those least recently used go first, and
none goes before the blocks that follow it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

_ROOT = 0  # identity of what is before the first block


class BlockCache:
    """Counts the users of each block and finds known prefixes. It holds numbers of blocks only, no keys or values.

    A sequence calls `match` and `use` for its known prefix, `allocate` for each further block, `register` when a block
    is full, and `release` with all its blocks at its end.
    """

    def __init__(self, num_blocks: int, block_len: int) -> None:
        self.num_blocks = num_blocks
        self.block_len = block_len
        self._empty = list(range(num_blocks))[::-1]  # the next is the last: low numbers first, so memory is reused
        self._num_users = [0] * num_blocks
        # Identities are never used again, unlike blocks: a key cannot lead from a block that has been given up to one
        # that followed it.
        self._identity = [_ROOT] * num_blocks  # of known blocks; _ROOT = not known
        self._key: list[tuple[int, tuple[int, ...]] | None] = [None] * num_blocks
        self._known: dict[tuple[int, tuple[int, ...]], int] = {}  # (identity of the block before, tokens) -> block
        self._unused: OrderedDict[int, None] = OrderedDict()  # known blocks without users, least recently used first
        self._last_identity = _ROOT

    @property
    def num_available(self) -> int:
        """Number of blocks that `allocate` can still return."""
        return len(self._empty) + len(self._unused)

    @property
    def num_kept(self) -> int:
        """Number of blocks without users that are kept as known prefixes; they are available as well."""
        return len(self._unused)

    def match(self, tokens: Sequence[int], max_blocks: int) -> list[int]:
        """Return the known blocks, at most `max_blocks`, that hold the beginning of a sequence. Nothing changes."""
        blocks: list[int] = []
        identity = _ROOT
        for start in range(0, max_blocks * self.block_len, self.block_len):
            part = tuple(tokens[start : start + self.block_len])
            block = self._known.get((identity, part)) if len(part) == self.block_len else None
            if block is None:
                break
            blocks.append(block)
            identity = self._identity[block]
        return blocks

    def num_available_beside(self, blocks: Sequence[int]) -> int:
        """Number of blocks that `allocate` could return after `use(blocks)`."""
        return self.num_available - sum(self._num_users[block] == 0 for block in blocks)

    def use(self, blocks: Sequence[int]) -> None:
        """Add a user to each of these known blocks, as returned by `match`, or to blocks that are in use."""
        for block in blocks:
            if self._num_users[block] == 0:
                del self._unused[block]
            self._num_users[block] += 1

    def allocate(self) -> int:
        """Return a block for one sequence to write. `num_available` must not be 0."""
        if self._empty:
            block = self._empty.pop()
        else:
            assert self._unused, "no block is available"
            block, _ = self._unused.popitem(last=False)
            key = self._key[block]
            assert key is not None, f"block {block} is kept, but not known"
            del self._known[key]
            self._key[block] = None
            self._identity[block] = _ROOT
        self._num_users[block] = 1
        return block

    def register(self, previous: int | None, tokens: Sequence[int], block: int) -> int:
        """Make a full block known. Returns the block that the sequence uses from now on.

        `previous`: the sequence's block before it, which is known, or None for the first. If the same prefix is known
        by another block, the sequence becomes a user of that one, and its own is available again.
        """
        assert len(tokens) == self.block_len, f"{len(tokens)} tokens: the block is not full"
        assert self._num_users[block] == 1, f"block {block} has {self._num_users[block]} users"
        assert self._key[block] is None, f"block {block} is known already"
        key = (_ROOT if previous is None else self._identity[previous], tuple(tokens))
        assert previous is None or key[0] != _ROOT, f"block {previous} before it is not known"
        known = self._known.get(key)
        if known is not None:
            self.use([known])
            self.release([block])
            return known
        self._last_identity += 1
        self._identity[block] = self._last_identity
        self._key[block] = key
        self._known[key] = block
        return block

    def release(self, blocks: Sequence[int]) -> None:
        """Remove a user from each of the blocks of a sequence, given in its order."""
        for block in reversed(blocks):  # so that in `_unused` a block stands before the one that it follows
            assert self._num_users[block] > 0, f"block {block} has no user"
            self._num_users[block] -= 1
            if self._num_users[block] == 0:
                if self._key[block] is None:
                    self._empty.append(block)
                else:
                    self._unused[block] = None
