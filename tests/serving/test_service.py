"""The served model: which loop gets a request, what is random, and how it stops."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from nanochat.inference.generation_loop import LoopClosed, LoopFailed, QueueFull
from nanochat.layers.sampler import rng_keys
from nanochat.layers.sampling_params import SamplingParams
from nanochat.serving.refusals import Refusal
from nanochat.serving.service import RESERVED_FOR, RESERVED_PLACES
from tests.serving.test_generation import PARAMS, ManualLoop, new_service, run


def test_a_request_goes_to_the_loop_with_the_fewest() -> None:
    async def work() -> None:
        loops = [ManualLoop() for _ in range(3)]
        service = new_service(*loops)
        generations = [service.generation([[number]], PARAMS, "") for number in range(4)]
        for generation in generations:
            generation.start()
        assert [len(loop.requests) for loop in loops] == [2, 1, 1]
        generations[1].close()
        generations[2].close()
        later = service.generation([[7], [8]], SamplingParams(num_samples=2), "")
        later.start()
        # The completions of a prompt share a loop, and so what it has read
        assert [[request.tokens for request in loop.requests[1:]] for loop in loops[1:]] == [[[7], [7]], [[8], [8]]]

    run(work())


def test_a_seed_gives_the_same_numbers_however_many_completions_are_asked_for() -> None:
    async def work() -> None:
        keys = []
        for count in (1, 3):
            loop = ManualLoop()
            service = new_service(loop)
            service.generation([[1]], SamplingParams(num_samples=count, seed=7), "").start()
            keys.append([request.rng_key for request in loop.requests])
        assert keys[0] == keys[1][:1]
        assert keys[1] == rng_keys(7, 3).tolist()
        assert len(set(keys[1])) == 3
        unseeded = []
        for _ in range(2):
            loop = ManualLoop()
            new_service(loop).generation([[1]], SamplingParams(seed=None), "").start()
            unseeded.append(loop.requests[0].rng_key)
        assert unseeded[0] != unseeded[1]

    run(work())


def test_a_full_loop_is_status_429() -> None:
    async def work() -> None:
        loop = ManualLoop()
        service = new_service(loop)
        loop.fault = QueueFull("32 requests wait")
        with pytest.raises(Refusal, match=r"the server is busy \(32 requests wait\)") as refusal:
            service.generation([[1]], PARAMS, "").start()
        assert refusal.value.status == 429

    run(work())


def test_a_loop_that_has_ended_is_status_503() -> None:
    async def work() -> None:
        loop = ManualLoop()
        service = new_service(loop)
        loop.fault = LoopClosed("generation is being stopped")
        with pytest.raises(Refusal, match="generation is being stopped") as refusal:
            service.generation([[1]], PARAMS, "").start()
        assert refusal.value.status == 503

    run(work())


@pytest.mark.parametrize("fault", [QueueFull("32 requests wait"), LoopClosed("generation is being stopped")])
def test_a_request_goes_to_the_next_loop_if_one_takes_no_more(fault: Exception) -> None:
    async def work() -> None:
        loops = [ManualLoop(), ManualLoop()]
        service = new_service(*loops)
        loops[0].fault = fault
        service.generation([[1]], SamplingParams(num_samples=3), "").start()
        assert [len(loop.requests) for loop in loops] == [0, 3]

    run(work())


def test_a_server_is_ready_while_one_of_its_loops_runs() -> None:
    loops = [ManualLoop(), ManualLoop()]
    service = new_service(*loops)
    assert service.is_ready
    loops[0].stats = lambda: {"ended": 1.0}  # type: ignore[method-assign]
    assert service.is_ready
    loops[1].stats = loops[0].stats  # type: ignore[method-assign]
    assert not service.is_ready


def test_after_a_fault_of_the_model_clients_are_told_so() -> None:
    async def work() -> None:
        loop = ManualLoop()
        service = new_service(loop)
        loop.fault = LoopFailed("the model has failed")
        with pytest.raises(Refusal, match="the model has failed: the server's log has the reason") as refusal:
            service.generation([[1]], PARAMS, "").start()
        assert refusal.value.status == 503
        loop.stats = lambda: {"ended": 1.0}  # type: ignore[method-assign]
        with pytest.raises(Refusal, match="the model has failed") as refusal:
            service.check_places("")
        assert refusal.value.status == 503

    run(work())


def test_a_copy_that_has_ended_counts_no_more() -> None:
    loops = [ManualLoop(), ManualLoop()]
    service = new_service(*loops, max_rows=4, max_waiting=1)
    assert service.capacity == 9
    loops[0].stats = lambda: {"ended": 1.0}  # type: ignore[method-assign]
    assert service.capacity == 5


def test_the_next_turn_of_a_conversation_goes_to_the_loop_that_has_read_it() -> None:
    async def work() -> None:
        loops = [ManualLoop(), ManualLoop()]
        service = new_service(*loops)
        first = list(range(40))
        service.generation([[1]], PARAMS, "").start()
        service.generation([first], PARAMS, "").start()
        service.generation([[2]], PARAMS, "").start()
        assert [len(loop.requests) for loop in loops] == [2, 1]
        for turn in (50, 60, 70):
            service.generation([[*first, turn]], PARAMS, "").start()
        assert [len(loop.requests) for loop in loops] == [2, 4]
        loops[1].stats = lambda: {"ended": 1.0}  # type: ignore[method-assign]
        service.generation([[*first, 80]], PARAMS, "").start()
        assert [len(loop.requests) for loop in loops] == [3, 4]

    run(work())


def test_no_client_takes_all_places() -> None:
    async def work() -> None:
        service = new_service(ManualLoop(), max_rows=2, max_waiting=1)
        for _ in range(3):
            service.generation([[1]], PARAMS, "greedy").start()
        with pytest.raises(Refusal, match="the server is busy"):
            service.check_places("greedy")
        service.check_places("other", RESERVED_FOR)
        with pytest.raises(Refusal, match="the server is busy"):
            service.check_places("other", RESERVED_FOR + 1)
        for number in range(RESERVED_PLACES):
            service.generation([[1]], PARAMS, f"other {number}").start()
        with pytest.raises(Refusal, match="the server is busy"):
            service.check_places("one more")

    run(work())


def test_no_more_requests_are_refused_than_there_are() -> None:
    service = new_service(ManualLoop())
    scope: dict[str, Any] = {"type": "http"}
    service.count_request(scope)
    service.count_refusal(scope)  # by its route
    service.count_refusal({"type": "http"})  # of a route that does not count
    service.count_refusal()
    stats = service.stats.snapshot()
    assert (stats["requests"], stats["refused"]) == (3, 3)


def test_no_request_is_accepted_once_the_server_stops() -> None:
    async def work() -> None:
        service = new_service(ManualLoop())
        service.begin_shutdown()
        with pytest.raises(Refusal, match="the server is shutting down") as refusal:
            service.generation([[1]], PARAMS, "").start()
        assert refusal.value.status == 503
        await asyncio.gather(service.close(), service.close())

    run(work())


def test_the_last_place() -> None:
    async def work() -> None:
        service = new_service(ManualLoop(), max_rows=2, max_waiting=1)
        for _ in range(3):
            service.generation([[1]], PARAMS, "").start()
        with pytest.raises(Refusal, match="the server is busy, and 1 requests are waiting already"):
            service.check_places("")
        with pytest.raises(Refusal, match="4 replies are asked for: this server takes at most 3"):
            service.check_places("", 4)

    run(work())
