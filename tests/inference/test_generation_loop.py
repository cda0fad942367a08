"""The loop in its thread: requests from several threads, cancellations, limits, errors, and its end."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from torch import Tensor

from nanochat.common import UserError
from nanochat.inference.generation_loop import GenerationLoop, LoopClosed, LoopFailed, QueueFull
from nanochat.inference.generation_request import FinishEvent, GenerationRequest, TokenEvent
from nanochat.inference.model_step import StepTokens
from nanochat.layers.sampling_params import SamplingParams
from tests.support.fake_step import BOS, TOOL, FakeStep, Receiver, completion_alone, make_request

SECONDS = 20.0  # after which a test gives up
GREEDY = SamplingParams(0.0)
SHORT = SamplingParams(0.0, max_tokens=2)


class GatedStep(FakeStep):
    """Waits for a permit before each step, unless it `is_free`."""

    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)
        self.permits = threading.Semaphore(0)
        self.is_free = False

    def forward(self, step: StepTokens) -> Tensor:
        while not self.permits.acquire(timeout=0.005) and not self.is_free:
            pass
        return super().forward(step)


@contextmanager
def running(step: FakeStep, **options: Any) -> Iterator[GenerationLoop]:
    loop = GenerationLoop(step, TOOL, **options)
    try:
        yield loop
    finally:
        step.is_free = True  # type: ignore[attr-defined]
        loop.close(SECONDS)
        assert not loop._thread.is_alive()
        assert loop.stats()["blocks_used"] == loop.stats()["running"] == loop.stats()["waiting"] == 0


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.002)


def finish_of(receiver: Receiver) -> FinishEvent:
    wait_until(lambda: receiver.finish)
    assert receiver.finish is not None
    return receiver.finish


def test_requests_of_several_threads_are_what_they_are_alone() -> None:
    with running(FakeStep(40, 4, 64), max_running=5) as loop:
        done: list[tuple[GenerationRequest, Receiver, bool]] = []

        def client(number: int) -> None:
            rng = random.Random(number)
            for i in range(8):
                params = rng.choice([GREEDY, SamplingParams(1.0), SamplingParams(0.7, top_k=40, max_tokens=7)])
                prompt = [BOS, *range(rng.randint(0, 20))]
                request, receiver = make_request(prompt, params, key=100 * number + i)
                loop.submit(request)
                is_cancelled = rng.random() < 0.2
                if is_cancelled:
                    wait_until(lambda receiver=receiver: receiver.events)  # type: ignore[misc]
                    loop.cancel(request)
                finish_of(receiver)
                done.append((request, receiver, is_cancelled))

        threads = [threading.Thread(target=client, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(SECONDS)
        assert len(done) == 48
        for request, receiver, is_cancelled in done:
            tokens, reason = completion_alone(request, 64)
            if is_cancelled and receiver.finish == FinishEvent("cancelled"):
                assert receiver.tokens == tokens[: len(receiver.tokens)]
            else:
                assert (receiver.tokens, receiver.finish) == (tokens, FinishEvent(reason))  # type: ignore[arg-type]
    stats = loop.stats()
    assert stats["finished_requests"] == 48
    assert stats["generated_tokens"] == sum(len(receiver.tokens) for _, receiver, _ in done)
    assert stats["step_seconds"] > 0


def test_the_queue_is_bounded_and_says_where_one_stands() -> None:
    step = GatedStep(100)
    with running(step, max_running=2, max_waiting=3) as loop:
        requests = [make_request([BOS, i], SHORT) for i in range(5)]
        for request, _ in requests:
            loop.submit(request)
        wait_until(lambda: loop.stats()["running"] == 2)
        assert [loop.place(request) for request, _ in requests] == [0, 0, 1, 2, 3]
        assert loop.stats()["waiting"] == 3
        with pytest.raises(QueueFull, match="3 requests wait already"):
            loop.submit(make_request([BOS], SHORT)[0])
        loop.cancel(requests[3][0])
        step.permits.release()
        assert finish_of(requests[3][1]) == FinishEvent("cancelled")
        assert loop.place(requests[4][0]) == 2
        late, receiver = make_request([BOS], SHORT)
        loop.submit(late)
        assert loop.place(late) == 3
        step.is_free = True
        for _, other in [*requests[:3], requests[4], (late, receiver)]:
            assert finish_of(other).reason in ("stop", "length")
        assert loop.place(late) == 0


def test_a_cancelled_request_leaves_at_the_next_step() -> None:
    step = GatedStep(100)
    with running(step) as loop:
        request, receiver = make_request([BOS], SamplingParams(0.0, max_tokens=50))
        loop.submit(request)
        step.permits.release(3)
        wait_until(lambda: len(receiver.tokens) == 3 or receiver.finish)
        loop.cancel(request)
        step.permits.release()
        assert finish_of(receiver) == FinishEvent("cancelled")
        assert len(receiver.tokens) <= 4
        loop.cancel(request)  # nothing happens


def test_prompts_that_do_not_fit_are_refused_at_once() -> None:
    with running(FakeStep(100, 4, 32)) as loop:
        assert loop.context_len == 32
        with pytest.raises(UserError, match="33 tokens"):
            loop.submit(make_request([BOS] * 33)[0])
        with pytest.raises(UserError, match="empty"):
            loop.submit(make_request([])[0])
        full, receiver = make_request([BOS] * 32)
        loop.submit(full)
        assert finish_of(receiver) == FinishEvent("length")


def test_an_error_in_a_step_fails_what_ran_and_the_loop_lives_on(caplog: pytest.LogCaptureFixture) -> None:
    step = GatedStep(100)
    with running(step, max_running=2) as loop:
        requests = [make_request([BOS, i], GREEDY) for i in range(3)]
        for request, _ in requests:
            loop.submit(request)
        wait_until(lambda: loop.stats()["running"] == 2)
        step.fail = RuntimeError("no memory")
        step.permits.release()
        for _, receiver in requests[:2]:
            finish = finish_of(receiver)
            assert finish.reason == "error"
            assert "no memory" in finish.message
        step.is_free = True
        assert finish_of(requests[2][1]).reason in ("stop", "length")
        assert requests[2][1].tokens == completion_alone(requests[2][0], 64)[0]
        assert loop.stats()["step_errors"] == 1
        assert "in forward" in caplog.text  # the traceback


def test_a_receiver_that_raises_fails_its_own_request_only() -> None:
    with running(FakeStep(100)) as loop:
        calls: list[TokenEvent | FinishEvent] = []

        def broken(event: TokenEvent | FinishEvent) -> None:
            calls.append(event)
            raise OSError("gone")

        request, _ = make_request([BOS, 1], SamplingParams(0.0, max_tokens=9))
        request.on_event = broken
        other, receiver = make_request([BOS, 2], SamplingParams(1.0))
        loop.submit(request)
        loop.submit(other)
        finish_of(receiver)
        assert receiver.tokens == completion_alone(other, 64)[0]
        assert len(calls) == 2
        assert isinstance(calls[1], FinishEvent)
        assert calls[1].reason == "error"


def test_an_event_may_submit_and_cancel() -> None:
    with running(FakeStep(100)) as loop:
        second, second_receiver = make_request([BOS, 2], SHORT)
        first, receiver = make_request([BOS, 1], SHORT)

        def on_event(event: TokenEvent | FinishEvent) -> None:
            receiver(event)
            if isinstance(event, FinishEvent):
                loop.cancel(first)
                loop.submit(second)

        first.on_event = on_event
        loop.submit(first)
        assert finish_of(second_receiver).reason in ("stop", "length")


# The end


def test_a_closed_loop_finishes_what_runs_and_tells_what_waits() -> None:
    step = GatedStep(100)
    loop = GenerationLoop(step, TOOL, max_running=2)
    requests = [make_request([BOS, i], SamplingParams(0.0, max_tokens=5)) for i in range(4)]
    for request, _ in requests:
        loop.submit(request)
    wait_until(lambda: loop.stats()["running"] == 2)
    closer = threading.Thread(target=loop.close, args=(SECONDS,))
    closer.start()
    wait_until(lambda: loop._is_closed)
    with pytest.raises(LoopClosed, match="no more requests"):
        loop.submit(make_request([BOS])[0])
    step.permits.release()
    assert [finish_of(receiver) for _, receiver in requests[2:]] == [FinishEvent("shutdown")] * 2
    step.is_free = True
    closer.join(SECONDS)
    for request, receiver in requests[:2]:
        tokens, reason = completion_alone(request, 64)
        assert (receiver.tokens, receiver.finish) == (tokens, FinishEvent(reason))  # type: ignore[arg-type]
    loop.cancel(requests[0][0])
    loop.close(0.0)
    assert loop.stats()["running"] == 0


def test_what_does_not_finish_in_time_is_told_too() -> None:
    step = GatedStep(2000, 4, 4096)
    loop = GenerationLoop(step, TOOL)
    request, receiver = make_request([BOS, 1], SamplingParams(0.0, max_tokens=4000))
    loop.submit(request)
    step.permits.release(2)
    wait_until(lambda: receiver.events)
    closer = threading.Thread(target=loop.close, args=(0.0,))
    closer.start()
    wait_until(lambda: loop._is_closed)
    step.permits.release()
    assert finish_of(receiver).reason in ("shutdown", "stop")
    closer.join(SECONDS)
    assert not loop._thread.is_alive()


class Panic(BaseException):
    """As a panic in Rust is, no Exception."""


def test_nobody_waits_for_a_thread_that_has_died(caplog: pytest.LogCaptureFixture) -> None:
    step = GatedStep(100)
    loop = GenerationLoop(step, TOOL, max_running=1)
    requests = [make_request([BOS, i]) for i in range(3)]
    for request, _ in requests:
        loop.submit(request)
    wait_until(lambda: loop.stats()["running"] == 1)
    assert loop.stats()["ended"] == 0
    step.fail = Panic("index out of bounds")  # type: ignore[assignment]
    step.permits.release()
    for _, receiver in requests:
        assert finish_of(receiver) == FinishEvent("error", "the model failed: Panic('index out of bounds')")
    assert not loop.join()
    assert loop.stats()["ended"] == 1
    assert "in forward" in caplog.text  # the traceback
    with pytest.raises(LoopFailed):
        loop.submit(make_request([BOS])[0])
    loop.close(0.0)


def test_nobody_waits_for_a_thread_that_has_died_between_two_requests() -> None:
    step = GatedStep(100)
    loop = GenerationLoop(step, TOOL)
    requests = [make_request([BOS, i]) for i in range(3)]
    loop.submit(requests[0][0])
    wait_until(lambda: loop.stats()["running"] == 1)
    loop.submit(requests[1][0])
    loop.submit(requests[0][0])  # against the rule, which the scheduler asserts
    loop.submit(requests[2][0])
    step.permits.release()
    assert [finish_of(receiver).reason for _, receiver in requests] == ["error"] * 3


def test_a_place_is_free_as_soon_as_its_request_has_ended() -> None:
    """A client that sends its next request when it reads the end of the last one is not refused."""
    with running(FakeStep(100), max_running=1, max_waiting=0) as loop:
        second, second_receiver = make_request([BOS, 2], SHORT)
        first, receiver = make_request([BOS, 1], SHORT)

        def on_event(event: TokenEvent | FinishEvent) -> None:
            receiver(event)
            if isinstance(event, FinishEvent):
                loop.submit(second)  # in the middle of the step

        first.on_event = on_event
        loop.submit(first)
        assert finish_of(second_receiver).reason in ("stop", "length")
