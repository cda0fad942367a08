"""Completions between the thread of a loop and asyncio: batches, places, and an end however it comes."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any

import pytest

from nanochat.inference.generation_request import FinishEvent, GenerationRequest, TokenEvent
from nanochat.layers.sampling_params import SamplingParams
from nanochat.serving.generation import Generation, Mailbox, Update
from nanochat.serving.refusals import Refusal
from nanochat.serving.service import ChatService, ServedModel, ServiceLimits
from tests.support.scripted_engine import TOKENIZER

PARAMS = SamplingParams(max_tokens=8)


class ManualLoop:
    """A loop whose events a test sends itself."""

    context_len = 256

    def __init__(self) -> None:
        self.requests: list[GenerationRequest] = []
        self.cancelled: list[GenerationRequest] = []
        self.places: dict[int, int] = {}  # by index of the request
        self.fault: Exception | None = None

    def submit(self, request: GenerationRequest) -> None:
        if self.fault is not None:
            raise self.fault
        self.requests.append(request)

    def cancel(self, request: GenerationRequest) -> None:
        self.cancelled.append(request)

    def place(self, request: GenerationRequest) -> int:
        return self.places.get(self.requests.index(request), 0)

    @property
    def num_unfinished(self) -> int:
        return len(self.requests)

    def stats(self) -> dict[str, Any]:
        return {}

    def close(self, seconds: float) -> None:
        pass


def new_service(*loops: ManualLoop, **limits: Any) -> ChatService:
    model = ServedModel("test", "nanochat-test", TOKENIZER, 256)
    return ChatService(loops, model, PARAMS, ServiceLimits(**limits))


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 60))


def token(value: int) -> TokenEvent:
    return TokenEvent(value, False)


def test_events_of_other_threads_arrive_all_and_in_order() -> None:
    async def work() -> None:
        mailbox = Mailbox()

        def post(index: int) -> None:
            for value in range(2000):
                mailbox.post(index, token(value))

        threads = [threading.Thread(target=post, args=(index,)) for index in range(4)]
        for thread in threads:
            thread.start()
        received: list[list[int]] = [[] for _ in threads]
        num_batches = 0
        while sum(map(len, received)) < 8000:
            num_batches += 1
            for update in await mailbox.take():
                assert isinstance(update.event, TokenEvent)
                received[update.number].append(update.event.token)
        assert received == [list(range(2000))] * 4
        assert await mailbox.take(0.01) == []
        for thread in threads:
            thread.join()

    run(work())


def test_an_event_after_the_end_of_the_event_loop_is_lost_without_a_fault() -> None:
    async def work() -> Mailbox:
        return Mailbox()

    mailbox = asyncio.run(work())
    mailbox.post(0, token(1))


def test_what_is_ready_together_is_one_batch() -> None:
    async def work() -> None:
        loop = ManualLoop()
        service = new_service(loop)
        generation = service.generation([[1, 2]], PARAMS, "")
        generation.start()
        [request] = loop.requests
        assert request.tokens == [1, 2]
        for value in (5, 6):
            request.on_event(token(value))
        request.on_event(FinishEvent("stop"))
        batches = [batch async for batch in generation.batches()]
        assert [[type(update.event) for update in batch] for batch in batches] == [
            [TokenEvent, TokenEvent, FinishEvent]
        ]
        generation.close()
        assert loop.cancelled == []
        assert service.stats.snapshot()["answered"] == 1
        [completion] = generation.completions
        assert (completion.num_tokens, completion.finish) == (2, "stop")
        assert completion.tokens_per_second is None or completion.tokens_per_second > 0

    run(work())


def test_tokens_that_gather_wake_nobody_until_the_end() -> None:
    async def work() -> None:
        mailbox = Mailbox()
        taking = asyncio.ensure_future(mailbox.take(hold=30.0))
        for value in range(3):
            await asyncio.sleep(0.01)
            mailbox.post(0, token(value))
        assert not taking.done()
        mailbox.post(0, FinishEvent("stop"))
        assert [type(update.event) for update in await taking] == [TokenEvent, TokenEvent, TokenEvent, FinishEvent]
        # Between two calls it is the same: only an end is told to the next one.
        mailbox.post(0, token(4))
        assert len(await mailbox.take(hold=0.05)) == 1
        taking = asyncio.ensure_future(mailbox.take(hold=0.01))  # which then waits without a limit
        await asyncio.sleep(0.05)
        assert not taking.done()
        mailbox.post(0, token(5))
        assert len(await taking) == 1

    run(work())


@pytest.mark.parametrize(("num_others", "seconds"), [(0, 0.0), (3, 0.003), (1000, 0.1)])
def test_messages_are_further_apart_the_more_replies_are_in_progress(num_others: int, seconds: float) -> None:
    async def work() -> None:
        loop = ManualLoop()
        service = new_service(loop, max_rows=2000)
        generation = service.generation([[1]], PARAMS, "")
        others = service.generation([[2]] * num_others, PARAMS, "") if num_others else None
        generation.start()
        if others is not None:
            others.start()
        holds: list[float] = []
        take = Mailbox.take

        async def noted(self: Mailbox, seconds: float | None = None, hold: float = 0.0) -> list[Update]:
            holds.append(hold)
            return await take(self, seconds, hold)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Mailbox, "take", noted)
            request = loop.requests[0]
            request.on_event(token(1))
            async for batch in generation.batches():
                if isinstance(batch[-1].event, TokenEvent):
                    request.on_event(FinishEvent("stop"))
        assert holds == [0.0, pytest.approx(seconds)]  # the first token never waits
        generation.close()
        if others is not None:
            others.close()

    run(work())


def test_places_are_told_when_they_change() -> None:
    async def work() -> None:
        loop = ManualLoop()
        generation = new_service(loop).generation([[1]], PARAMS, "")
        generation.start()
        loop.places[0] = 2
        places = []
        async for batch in generation.batches():
            if batch:
                break
            places.append(generation.place)
            loop.places[0] -= 1
            if not loop.places[0]:
                loop.requests[0].on_event(token(1))
        assert places == [2, 1]
        generation.close()

    run(work())


def test_a_generation_that_is_closed_gives_everything_back() -> None:
    async def work() -> None:
        loop = ManualLoop()
        service = new_service(loop, max_rows=2, max_waiting=1)
        generation = service.generation([[1]], SamplingParams(num_samples=3), "client")
        generation.start()
        with pytest.raises(Refusal) as refusal:
            service.check_places("client")
        assert refusal.value.status == 429
        loop.requests[1].on_event(token(1))
        loop.requests[1].on_event(FinishEvent("stop"))
        async for _ in generation.batches():
            break
        generation.close()
        generation.close()
        assert loop.cancelled == [loop.requests[0], loop.requests[2]]
        service.check_places("client", 3)
        assert service.stats.snapshot()["stopped"] == 1
        loop.requests[0].on_event(token(1))  # comes too late, and is not counted
        assert service.stats.snapshot()["tokens"] == 1

    run(work())


def test_a_stopped_completion_is_left_alone() -> None:
    async def work() -> None:
        loop = ManualLoop()
        generation = new_service(loop).generation([[1], [2]], PARAMS, "")
        generation.start()
        for request in loop.requests:
            request.on_event(token(1))
        async for batch in generation.batches():
            if batch[0].number == 0:
                generation.stop(0)
                assert loop.cancelled == [loop.requests[0]]
                for request in loop.requests:
                    request.on_event(token(2))
                    request.on_event(FinishEvent("length"))
            else:
                assert {update.number for update in batch} == {1}
        assert [completion.finish for completion in generation.completions] == ["stop", "length"]
        assert [completion.num_tokens for completion in generation.completions] == [1, 2]
        generation.close()

    run(work())


def test_a_request_that_a_loop_refuses_takes_no_place() -> None:
    async def work() -> None:
        loop = ManualLoop()
        service = new_service(loop)
        loop.fault = ValueError("on purpose")
        generation: Generation = service.generation([[1]], PARAMS, "")
        with pytest.raises(ValueError, match="on purpose"):
            generation.start()
        service.check_places("", service.capacity)
        assert service.stats.snapshot()["stopped"] == 0

    run(work())
