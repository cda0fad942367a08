"""A queue from a thread that prepares batches to the loop that uses them, as deep as the loop needs and no deeper."""

from __future__ import annotations

import threading
from collections import deque
from typing import Generic, TypeVar

FIRST_DEPTH = 4  # items
MAX_BYTES = 1 << 26  # of the items that wait in the queue

T = TypeVar("T")


class PrefetchQueue(Generic[T]):
    """Items in order, from one thread to another, with a depth that adapts to the time for which it must last.

    A loader works in bursts (a chunk of documents or conversations at a time), and a training loop takes all
    micro-batches of a step at once. The number of items that bridge this is a few for large batches and thousands for
    small ones. So the depth is FIRST_DEPTH at first, and doubles when it was the reason for a wait: the queue was full,
    so that the loader paused, and was then empty. A loader that is always slower than the loop does not deepen it. The
    items of a deeper queue than FIRST_DEPTH take at most MAX_BYTES.
    """

    def __init__(self) -> None:
        self.depth = FIRST_DEPTH
        self._items: deque[T] = deque()
        self._was_full = False  # since the last wait for an item
        self._is_closed = False
        self._changed = threading.Condition()

    def put(self, item: T, num_bytes: int = 0) -> bool:
        """Append an item as soon as there is room; return False if the queue is closed."""
        with self._changed:
            while len(self._items) >= self._limit(num_bytes) and not self._is_closed:
                self._was_full = True
                self._changed.wait()
            self._items.append(item)
            self._changed.notify_all()
            return not self._is_closed

    def get(self) -> T:
        """Remove and return the first item; wait until there is one."""
        with self._changed:
            if not self._items and self._was_full:
                self._was_full = False
                self.depth *= 2
            while not self._items:
                self._changed.wait()
            item = self._items.popleft()
            self._changed.notify_all()
            return item

    def close(self) -> None:
        """Drop all items and let no thread wait in `put`."""
        with self._changed:
            self._is_closed = True
            self._items.clear()
            self._changed.notify_all()

    def _limit(self, num_bytes: int) -> int:
        """Return the depth for items of this size."""
        return min(self.depth, max(FIRST_DEPTH, MAX_BYTES // max(1, num_bytes)))
