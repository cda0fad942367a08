"""Prompts go to the copy that has read their beginning, unless that has too much to do."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nanochat.replicas.prefix_router import BLOCK_LEN, MAX_MORE, PrefixRouter

TURN = list(range(100))


def test_the_next_turn_goes_to_the_copy_that_has_read_the_last_one() -> None:
    router = PrefixRouter()
    router.note(TURN[:40], 2)
    assert router.order(TURN, [0, 0, 0]) == [2, 0, 1]
    assert router.order(TURN[:32], [0, 0, MAX_MORE]) == [2, 0, 1]
    assert router.order(TURN[:32], [0, 0, MAX_MORE + 1]) == [0, 1, 2]
    assert router.order(TURN[:64], [0, 0, MAX_MORE // 2]) == [2, 0, 1]  # half of it is known
    assert router.order(TURN[:64], [0, 0, MAX_MORE // 2 + 1]) == [0, 1, 2]
    assert router.order([1, *TURN], [1, 0, 1]) == [1, 0, 2]  # another beginning
    assert router.order(TURN[: BLOCK_LEN - 1], [1, 0, 1]) == [1, 0, 2]  # nothing to share


def test_the_longest_beginning_decides() -> None:
    router = PrefixRouter()
    router.note(TURN[:64], 1)
    router.note([*TURN[:16], *[7] * 48], 0)
    assert router.order(TURN[:80], [0, 0])[0] == 1
    assert router.order([*TURN[:16], 9, 9], [0, 0])[0] == 0  # the last one that has read it


def test_what_was_not_asked_for_lately_is_forgotten() -> None:
    router = PrefixRouter(max_known=4)
    router.note(TURN[:48], 1)
    router.note([5] * 32, 0)
    assert len(router._copy_of) == 4
    assert router.order(TURN, [1, 1])[0] == 1  # two of its three beginnings are left
    router.note([6] * 64, 0)
    assert router.order(TURN, [0, 1])[0] == 0


@given(st.lists(st.tuples(st.lists(st.integers(0, 1), max_size=40), st.integers(0, 3)), max_size=12), st.data())
def test_the_order_has_each_copy_once(noted: list[tuple[list[int], int]], data: st.DataObject) -> None:
    router = PrefixRouter(max_known=data.draw(st.integers(1, 8)))
    for tokens, copy in noted:
        router.note(tokens, copy)
    loads = data.draw(st.lists(st.integers(0, 9), min_size=1, max_size=4))
    order = router.order(data.draw(st.lists(st.integers(0, 1), max_size=40)), loads)
    assert sorted(order) == list(range(len(loads)))
    assert loads[order[0]] <= min(loads) + MAX_MORE
    assert [loads[copy] for copy in order[1:]] == sorted(loads[copy] for copy in order[1:])
