"""A loop in another process has the properties of one in a thread, and its end is noticed on both sides."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from nanochat.common import UserError
from nanochat.inference.generation_loop import LoopClosed, LoopFailed, QueueFull
from nanochat.inference.generation_request import FinishEvent, GenerationRequest, TokenEvent
from nanochat.layers.sampling_params import SamplingParams
from nanochat.replicas.process_loop import ProcessLoop, Replica, start_replicas
from tests.support.fake_step import BOS, Receiver, completion_alone, make_request
from tests.support.replicas import FAILS, PANICS, fail_to_load, load_fake

SECONDS = 60.0  # after which a test gives up
ROOT = Path(__file__).resolve().parents[2]
SHORT = SamplingParams(0.0, max_tokens=2)
LONG = SamplingParams(1.0, max_tokens=4000)

pytestmark = pytest.mark.slow


def fake(**options: Any) -> Replica:
    return Replica(partial(load_fake, **options), "copy 1", max_running=4, max_waiting=3)


@contextmanager
def running(*replicas: Replica) -> Iterator[list[ProcessLoop]]:
    loops = start_replicas(replicas)
    try:
        yield loops
    finally:
        for loop in loops:
            loop.close(0.0)
            assert loop._process.returncode is not None
            assert not loop._reader.is_alive()


@pytest.fixture(scope="module")
def shared() -> Iterator[ProcessLoop]:
    with running(fake()) as [loop]:
        yield loop


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.002)


def finish_of(receiver: Receiver) -> FinishEvent:
    wait_until(lambda: receiver.finish)
    assert receiver.finish is not None
    return receiver.finish


def test_completions_are_what_they_are_alone(shared: ProcessLoop) -> None:
    done: list[tuple[GenerationRequest, Receiver]] = []

    def client(number: int) -> None:
        rng = random.Random(number)
        for i in range(10):
            params = rng.choice([SamplingParams(0.0), SamplingParams(1.0), SamplingParams(0.7, top_k=40, max_tokens=7)])
            request, receiver = make_request([BOS, *range(rng.randint(0, 20))], params, 100 * number + i)
            shared.submit(request)
            if rng.random() < 0.2:
                shared.cancel(request)
            finish_of(receiver)
            done.append((request, receiver))

    threads = [threading.Thread(target=client, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    assert len(done) == 60
    for request, receiver in done:
        tokens, reason = completion_alone(request, 64)
        if receiver.finish == FinishEvent("cancelled"):
            assert receiver.tokens == tokens[: len(receiver.tokens)]
        else:
            assert (receiver.tokens, receiver.finish) == (tokens, FinishEvent(reason))  # type: ignore[arg-type]
    assert sum(receiver.finish != FinishEvent("cancelled") for _, receiver in done) > 30
    wait_until(lambda: shared.stats()["running"] == shared.stats()["waiting"] == 0)
    assert shared.stats()["finished_requests"] == 60
    assert shared.stats()["ended"] == 0


def test_log_probabilities_and_shared_prefixes_come_over(shared: ProcessLoop) -> None:
    prompt = [BOS, *range(30)]
    for _ in range(2):
        request, receiver = make_request(prompt, SHORT, num_logprobs=2)
        shared.submit(request)
        finish_of(receiver)
    assert request.num_cached == 28  # of the second: whole blocks of 4
    event = receiver.events[0]
    assert isinstance(event, TokenEvent)
    assert event.top_logprobs is not None
    assert len(event.top_logprobs) == 2
    assert (event.token, event.logprob) == event.top_logprobs[0]


def test_prompts_that_do_not_fit_are_refused_at_once(shared: ProcessLoop) -> None:
    assert shared.context_len == 64
    with pytest.raises(UserError, match="65 tokens"):
        shared.submit(make_request([BOS] * 65)[0])
    with pytest.raises(UserError, match="empty"):
        shared.submit(make_request([])[0])
    full, receiver = make_request([BOS] * 64)
    shared.submit(full)
    assert finish_of(receiver) == FinishEvent("length")


def test_a_receiver_that_raises_fails_its_own_request_only(shared: ProcessLoop) -> None:
    calls: list[TokenEvent | FinishEvent] = []

    def broken(event: TokenEvent | FinishEvent) -> None:
        calls.append(event)
        raise OSError("gone")

    request, _ = make_request([BOS, 1], SamplingParams(0.0, max_tokens=9))
    request.on_event = broken
    other, receiver = make_request([BOS, 2], SamplingParams(1.0))
    shared.submit(request)
    shared.submit(other)
    finish_of(receiver)
    assert receiver.tokens == completion_alone(other, 64)[0]
    wait_until(lambda: len(calls) == 2)
    assert isinstance(calls[1], FinishEvent)
    assert calls[1].reason == "error"


def test_an_error_of_a_step_is_in_the_log_with_its_traceback(
    shared: ProcessLoop, caplog: pytest.LogCaptureFixture
) -> None:
    request, receiver = make_request([BOS, FAILS])
    shared.submit(request)
    assert finish_of(receiver) == FinishEvent("error", "the model failed: RuntimeError('no memory')")
    assert "copy 1: A step of a model failed\nTraceback" in caplog.text
    other, receiver = make_request([BOS, 2], SHORT)
    shared.submit(other)
    assert finish_of(receiver).reason in ("stop", "length")


def test_queue_places_and_the_end_in_order() -> None:
    with running(fake(seconds=0.05, sequence_len=4096)) as [loop]:
        requests = [make_request([BOS, i], LONG if i < 4 else SHORT) for i in range(7)]
        for request, _ in requests:
            loop.submit(request)
        with pytest.raises(QueueFull, match="3 requests wait already"):
            loop.submit(make_request([BOS], SHORT)[0])
        wait_until(lambda: loop.stats()["running"] == 4)
        assert [loop.place(request) for request, _ in requests] == [0, 0, 0, 0, 1, 2, 3]
        assert loop.stats()["waiting"] == 3
        loop.cancel(requests[0][0])
        assert finish_of(requests[0][1]) == FinishEvent("cancelled")
        assert finish_of(requests[4][1]).reason in ("stop", "length")
        start = time.monotonic()
        loop.close(0.2)
        assert time.monotonic() - start < 20
        assert loop._process.returncode == 0
        reasons = {finish_of(receiver).reason for _, receiver in requests[1:4] + requests[5:]}
        assert "shutdown" in reasons
        assert reasons <= {"shutdown", "stop", "length"}
        assert (loop.stats()["ended"], loop.stats()["running"], loop.stats()["waiting"]) == (1, 0, 0)
        with pytest.raises(LoopClosed):
            loop.submit(make_request([BOS])[0])
        loop.cancel(requests[1][0])


def test_a_process_that_dies_fails_its_own_requests(caplog: pytest.LogCaptureFixture) -> None:
    slow = fake(seconds=0.01, sequence_len=4096)
    with running(slow, slow) as [panicking, killed]:
        for loop in (panicking, killed):
            requests = [make_request([BOS, i], LONG) for i in range(3)]
            for request, _ in requests:
                loop.submit(request)
            wait_until(lambda requests=requests: all(receiver.events for _, receiver in requests))  # type: ignore[misc]
            if loop is panicking:
                loop.submit(make_request([BOS, PANICS])[0])
            else:
                os.kill(loop._process.pid, signal.SIGKILL)
            ends = [finish_of(receiver) for _, receiver in requests]
            wait_until(lambda loop=loop: loop.stats()["ended"])  # type: ignore[misc]
            end = next(end for end in ends if end.reason not in ("stop", "length"))
            assert end.reason == "error"
            assert ("index out of bounds" if loop is panicking else "SIGKILL") in end.message
            assert loop is killed or "in forward" in caplog.text
            with pytest.raises(LoopFailed):
                loop.submit(make_request([BOS])[0])
    assert caplog.text.count("The process of copy 1 has ended") == 2


def test_a_process_that_ends_while_it_loads() -> None:
    with pytest.raises(UserError, match="the process of copy 1 ended while it loaded the model"):
        start_replicas([Replica(partial(fail_to_load, error="exit"), "copy 1")])


PARENT = """
import os, sys, time
from functools import partial
from nanochat.replicas.process_loop import Replica, start_replicas
from tests.support.replicas import load_fake
[loop] = start_replicas([Replica(load_fake, "copy 1")])
print(loop._process.pid, flush=True)
time.sleep(600)
"""


def test_a_copy_ends_with_the_server_and_not_by_a_signal() -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    child.send_signal(signal.SIGINT)
    child.send_signal(signal.SIGTERM)
    time.sleep(0.2)
    assert child.is_running()
    parent.kill()
    parent.communicate()
    wait_until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)
