"""The queue's order and limits, with a thread on the other side and without."""

from __future__ import annotations

import threading

import pytest

from nanochat.data import prefetch_queue
from nanochat.data.prefetch_queue import FIRST_DEPTH, PrefetchQueue


def start_producer(items: PrefetchQueue[int], count: int, num_bytes: int = 0) -> threading.Thread:
    """Put the numbers from 0 to `count` in another thread."""

    def produce() -> None:
        for number in range(count):
            if not items.put(number, num_bytes):
                return

    thread = threading.Thread(target=produce, daemon=True)
    thread.start()
    return thread


def wait_until_full(items: PrefetchQueue[int], count: int) -> None:
    """Return when `count` items wait and the producer waits for room."""
    with items._changed:
        assert items._changed.wait_for(lambda: len(items._items) == count and items._was_full, timeout=30)
        assert len(items._items) == count


def test_items_in_order() -> None:
    items: PrefetchQueue[int] = PrefetchQueue()
    thread = start_producer(items, 1000)
    assert [items.get() for _ in range(1000)] == list(range(1000))
    thread.join(30)


def test_the_depth_doubles_when_it_was_too_small() -> None:
    """Each time that a full queue was emptied and the consumer had to wait, twice as many items fit."""
    items: PrefetchQueue[int] = PrefetchQueue()
    start_producer(items, 10**6)
    depth = FIRST_DEPTH
    for _ in range(4):
        wait_until_full(items, depth)
        with items._changed:  # the producer cannot refill the queue meanwhile
            taken = [items._items.popleft() for _ in range(depth)]
            assert taken == sorted(taken)
            items._changed.notify_all()
            items.get()
        depth *= 2
        assert items.depth == depth
    items.close()


def test_a_slow_producer_does_not_deepen_the_queue() -> None:
    """An empty queue that was never full is no reason for a deeper one."""
    items: PrefetchQueue[int] = PrefetchQueue()
    for number in range(50):
        thread = threading.Timer(0.002, items.put, [number])
        thread.start()
        assert items.get() == number
    assert items.depth == FIRST_DEPTH


def test_a_patient_consumer_does_not_deepen_the_queue() -> None:
    """A queue that is full whenever an item is taken is deep enough."""
    items: PrefetchQueue[int] = PrefetchQueue()
    start_producer(items, 10**6)
    for number in range(50):
        wait_until_full(items, FIRST_DEPTH)
        assert items.get() == number
    assert items.depth == FIRST_DEPTH
    items.close()


@pytest.mark.parametrize(("num_bytes", "expected"), [(10, 100), (200, 5), (1000, FIRST_DEPTH)])
def test_bytes_limit_a_deep_queue(monkeypatch: pytest.MonkeyPatch, num_bytes: int, expected: int) -> None:
    """Large items wait in a small number, but in no smaller one than FIRST_DEPTH."""
    monkeypatch.setattr(prefetch_queue, "MAX_BYTES", 1000)
    items: PrefetchQueue[int] = PrefetchQueue()
    items.depth = 1 << 20
    start_producer(items, 10**6, num_bytes)
    wait_until_full(items, expected)
    items.close()


def test_closing_ends_the_producer() -> None:
    items: PrefetchQueue[int] = PrefetchQueue()
    thread = start_producer(items, 10**6)
    wait_until_full(items, FIRST_DEPTH)
    items.close()
    thread.join(30)
    assert not thread.is_alive()
    assert not items.put(1)
