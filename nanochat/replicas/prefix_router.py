"""The choice of a copy of the model for a prompt: the one that has read its beginning, else the one with least to do.

A copy keeps the keys and values of what it has read (inference/block_cache.py), so a conversation's next turn costs
least where the turns before were read. The router remembers, for the prompts that it has placed, the hashes of their
beginnings in whole blocks:

    1 2 3 4 | 5 6 7 8 | 9      hash(1 2 3 4) -> copy, hash(1 2 3 4 5 6 7 8) -> copy
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence

BLOCK_LEN = 16  # tokens
MAX_KNOWN = 1 << 16  # beginnings: a million tokens
# Requests that a copy may have beyond the one with the fewest, and still get a prompt that it has read before; of a
# prompt that it has read in part, as large a share of them.
MAX_MORE = 4


class PrefixRouter:
    """Remembers which copy has read what. Not thread-safe."""

    def __init__(self, max_known: int = MAX_KNOWN) -> None:
        self._max_known = max_known
        self._copy_of: OrderedDict[int, int] = OrderedDict()  # hash of a beginning -> copy, the oldest first

    def order(self, tokens: Sequence[int], loads: Sequence[int]) -> list[int]:
        """Return the copies in the order in which they should be asked. `loads`: the requests that each has.

        >>> router = PrefixRouter()
        >>> router.note([7] * 16, 1)
        >>> router.order([7] * 20, loads=[0, 3]), router.order([7] * 20, loads=[0, 9]), router.order([8], loads=[1, 0])
        ([1, 0], [0, 1], [1, 0])
        """
        copies = sorted(range(len(loads)), key=lambda copy: loads[copy])
        keys = list(_beginnings(tokens))
        num_known = next((count for count in range(len(keys), 0, -1) if keys[count - 1] in self._copy_of), 0)
        known = self._copy_of[keys[num_known - 1]] if num_known else -1
        if 0 <= known < len(loads) and loads[known] <= min(loads) + MAX_MORE * num_known * BLOCK_LEN // len(tokens):
            copies.remove(known)
            copies.insert(0, known)
        return copies

    def note(self, tokens: Sequence[int], copy: int) -> None:
        """Note that a copy reads this prompt."""
        for key in reversed(list(_beginnings(tokens))):  # the longest is forgotten first, as its blocks are
            self._copy_of[key] = copy
            self._copy_of.move_to_end(key)
        while len(self._copy_of) > self._max_known:
            self._copy_of.popitem(last=False)


def _beginnings(tokens: Sequence[int]) -> Iterator[int]:
    """Yield a hash of each beginning of whole blocks. Equal hashes of different ones only cost a little time."""
    key = 0
    for end in range(BLOCK_LEN, len(tokens) + 1, BLOCK_LEN):
        key = hash((key, tuple(tokens[end - BLOCK_LEN : end])))
        yield key
