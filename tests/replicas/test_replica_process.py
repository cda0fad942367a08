"""The events of a step in one message, and what the process does with messages; without a process."""

from __future__ import annotations

import queue
from functools import partial
from multiprocessing import Pipe
from multiprocessing.reduction import ForkingPickler
from typing import Any

import pytest

from nanochat.inference.generation_request import FinishEvent, TokenEvent
from nanochat.layers.sampling_params import SamplingParams
from nanochat.replicas import replica_process
from nanochat.replicas.replica_process import _load, _obey, _Outbox
from tests.support.fake_step import BOS, completion_alone, make_request
from tests.support.replicas import fail_to_load, load_fake

PARAMS = SamplingParams(1.0, max_tokens=20)


def test_requests_over_a_pipe() -> None:
    ours, theirs = Pipe()
    inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
    outbox = _Outbox(theirs)
    inbox.put(("load", load_fake))
    loop = _load(inbox, outbox)
    assert loop is not None
    outbox.start(loop)
    name, facts = ours.recv()
    assert (name, facts["context_len"], facts["sequence_len"]) == ("ready", 64, 64)
    inbox.put(("submit", 1, [BOS, 5], PARAMS, 9, None))
    inbox.put(("submit", 2, [BOS, 6], PARAMS, 9, None))
    inbox.put(("submit", 3, [], PARAMS, 9, None))  # which the other side would not send
    inbox.put(("cancel", 4))  # done already
    inbox.put(("close", 60.0))
    inbox.put(())  # the end of this test's messages
    with pytest.raises(ValueError, match="not enough values"):
        _obey(loop, inbox, outbox)
    assert loop.join()
    events: list[tuple[Any, ...]] = []
    refused = []
    while ours.poll():
        name, *content = ours.recv()
        if name == "refused":
            refused.append(content)
        else:
            assert name == "step"
            events += content[0]
            assert len(content[1]) == len(facts["stats"]) - 1
    assert content[2:] == [[], 3]
    assert refused == [[3, "the prompt is empty: pass at least one token, such as <|bos|>"]]
    for number, token in ((1, 5), (2, 6)):
        request, _ = make_request([BOS, token], PARAMS, 9)
        tokens, reason = completion_alone(request, 64)
        mine = [event[1:] for event in events if event[0] == number]
        assert mine == [*tokens, (reason, "")] or mine[-1][0] == "shutdown"
    assert outbox.requests == outbox.numbers == {}


def test_a_step_of_many_rows_is_a_short_message() -> None:
    ours, theirs = Pipe()
    outbox = _Outbox(theirs)
    outbox._is_started = True
    requests = [make_request([BOS], PARAMS)[0] for _ in range(64)]
    for number, request in enumerate(requests, 1):
        outbox.requests[number], outbox.numbers[request] = request, number
    requests[0].num_cached = 48
    for number, request in enumerate(requests, 1):
        outbox.add(number, request, TokenEvent(30_000 + number, is_forced=False))
    outbox.add(64, requests[63], FinishEvent("stop"))
    outbox.publish({"steps": 1.0}, requests[:2], 64)
    message = ours.recv()
    _, events, values, waiting, num_taken = message
    assert events[:2] == [(1, None, 48), (1, 30_001, False)]
    assert events[-1] == (64, "stop", "")
    assert (values, waiting, num_taken) == ([1.0], [1, 2], 64)
    assert len(ForkingPickler.dumps(message)) < 12 * 64 + 200
    ours.close()
    theirs.close()


@pytest.mark.parametrize(
    ("error", "reason", "trace"),
    [("user", "there is no such model", ""), ("file", "Permission denied", ""), ("bug", "blocks", "Traceback")],
)
def test_a_copy_that_cannot_be_loaded(error: str, reason: str, trace: str) -> None:
    ours, theirs = Pipe()
    inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
    inbox.put(("load", partial(fail_to_load, error=error)))
    assert _load(inbox, _Outbox(theirs)) is None
    name, *content = ours.recv()
    assert name == "failed"
    assert reason in content[0]
    assert content[1].startswith(trace)
    assert bool(content[1]) == bool(trace)
    ours.close()
    theirs.close()


def test_without_a_server_the_process_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    codes: list[int] = []
    monkeypatch.setattr(replica_process.os, "_exit", codes.append)
    ours, theirs = Pipe()
    ours.close()
    _Outbox(theirs).send(("log", 40, "text", ""))
    replica_process._read(theirs, queue.SimpleQueue())
    assert codes == [0, 0]
    theirs.close()
