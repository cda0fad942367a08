"""Copies that are loaded from a checkpoint, and the devices that they get."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from nanochat.inference.generation_request import FinishEvent
from nanochat.layers.sampling_params import SamplingParams
from nanochat.replicas import replica
from nanochat.replicas.replica import ReplicaSettings, load_replica, start_on_devices, visible_gpu
from tests.support.fake_step import BOS, Receiver, make_request
from tests.support.models import random_model
from tests.support.processes import TIMEOUT
from tests.support.talks import TOKENIZER, save_model
from tests.support.training import CPU as RUNTIME


def settings(**fields: object) -> ReplicaSettings:
    return ReplicaSettings("sft", "d1", 7, "cpu", cache_gb=0.01, **fields)  # type: ignore[arg-type]


def test_a_process_sees_one_gpu_of_those_that_are_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert visible_gpu(2) == "2"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4, GPU-8a,6")
    assert [visible_gpu(index) for index in range(3)] == ["4", "GPU-8a", "6"]


def test_copies_on_gpus_get_one_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    started: list[replica.Replica] = []
    monkeypatch.setattr(replica, "start_replicas", started.extend)
    start_on_devices(ReplicaSettings("sft", "d20", 7, "cuda"), 2)
    start_on_devices(ReplicaSettings("sft", "d20", 7, "cpu"), 2)
    assert [each.environment.get("CUDA_VISIBLE_DEVICES") for each in started] == ["0", "1", None, None]
    assert [each.load.args[0].num_replicas for each in started] == [1, 1, 2, 2]  # type: ignore[attr-defined]
    assert [each.name for each in started] == ["copy 1 of 2", "copy 2 of 2"] * 2


def test_copies_share_the_memory_of_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    shares: list[int] = []
    monkeypatch.setattr(replica, "blocks_that_fit", lambda *arguments: shares.append(arguments[-1]) or 64)
    model = random_model(64, TOKENIZER.get_vocab_size())
    for count in (1, 2):
        replica.new_loop(settings(num_replicas=count), RUNTIME, model, TOKENIZER).close(0.0)
    assert shares == [1, 2]


@pytest.mark.slow
def test_a_copy_in_a_process_answers_as_one_in_a_thread(run_here: Path) -> None:
    save_model(run_here, "sft")
    answers = []
    loops = [load_replica(settings()), *start_on_devices(settings(), 1)]
    try:
        for loop in loops:
            receiver = Receiver()
            request, _ = make_request([BOS, 65, 66], SamplingParams(1.0, max_tokens=12), key=3)
            request.on_event = receiver
            loop.submit(request)
            wait_for_end(receiver)
            answers.append(receiver.events)
    finally:
        for loop in loops:
            loop.close(0.0)
    assert answers[0] == answers[1]
    assert isinstance(answers[0][-1], FinishEvent)
    assert answers[0][-1].reason in ("stop", "length")


def wait_for_end(receiver: Receiver) -> None:
    deadline = time.monotonic() + TIMEOUT
    while receiver.finish is None:
        assert time.monotonic() < deadline, "no end"
        time.sleep(0.005)
