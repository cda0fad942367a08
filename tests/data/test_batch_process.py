"""Batches from a forked process, compared with those of the same iterator in this one."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from nanochat.common import UserError
from nanochat.data import batch_process, packing
from nanochat.data.batch_process import batches_in_process
from nanochat.dataloader import MicroBatch, prefetch
from nanochat.runtime import Runtime
from tests.support.talks import TOKENIZER, sums

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
CPU = torch.device("cpu")
ROOT = Path(__file__).parents[2]


def numbered(count: int | None = None) -> Iterator[MicroBatch]:
    """Yield different batches, and the process that made them in the cursor."""
    for number in itertools.count() if count is None else range(count):
        inputs = torch.arange(6).view(2, 3) + number
        yield MicroBatch(inputs, inputs + 1, number / 100, {"process": os.getpid(), "tokens": number})


def is_running(process_id: int) -> bool:
    with suppress(ProcessLookupError):
        os.kill(process_id, 0)
        return True
    return False


def wait_for_end(process_id: int) -> None:
    for _ in range(600):
        if not is_running(process_id):
            return
        time.sleep(0.05)
    raise AssertionError(f"process {process_id} is still running")


@pytest.mark.parametrize("prefetched", [False, True])
def test_the_same_batches(prefetched: bool) -> None:
    """All batches arrive unchanged, from another process, which then ends."""
    batches: Iterator[MicroBatch] = batches_in_process(numbered(25))
    received = list(prefetch(batches, CPU) if prefetched else batches)
    [process_id] = {batch.cursor["process"] for batch in received}
    assert process_id != os.getpid()
    for batch, expected in zip(received, numbered(25), strict=True):
        assert batch.inputs.equal(expected.inputs)
        assert batch.targets.equal(expected.targets)
        assert (batch.progress, batch.cursor["tokens"]) == (expected.progress, expected.cursor["tokens"])
    assert not is_running(process_id)


def test_conversations() -> None:
    """Rendered and packed in the process as here."""
    talks = sums(200)
    here = Runtime(1, 1, 2, CPU, torch.float32, 3)

    def batches() -> Iterator[MicroBatch]:
        return packing.packed_batches(packing.packed_rows(talks, TOKENIZER, 64, 3, 2), here, 2, None)

    for batch, expected in zip(batches_in_process(batches()), batches(), strict=True):
        assert batch.inputs.equal(expected.inputs)
        assert batch.targets.equal(expected.targets)
        assert (batch.progress, batch.cursor) == (expected.progress, expected.cursor)


def test_conversation_batches_fork_for_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a GPU, conversations are rendered in a process; without, in a thread."""
    monkeypatch.setattr(packing, "prefetch", lambda batches, _: batches)
    names = []
    for device in (CPU, torch.device("cuda", 1)):
        here = Runtime(0, 0, 1, device, torch.float32, 0)
        loader = packing.conversation_batches(sums(9), TOKENIZER, here, 2, 64)
        names.append(loader.__qualname__)
        assert next(loader).inputs.device == CPU
        loader.close()
    assert names == ["packed_batches", "batches_in_process"]


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (UserError("conversation 3: no text"), UserError, "^conversation 3: no text$"),
        (ArithmeticError("a bug"), RuntimeError, "(?s)Traceback.*test_batch_process.*ArithmeticError: a bug"),
    ],
)
def test_an_error_is_raised_here(error: Exception, kind: type[Exception], message: str) -> None:
    """After the batches before it; the traceback of a bug names its file."""

    def failing() -> Iterator[MicroBatch]:
        yield from numbered(3)
        raise error

    batches = batches_in_process(failing())
    assert [next(batches).cursor["tokens"] for _ in range(3)] == [0, 1, 2]
    with pytest.raises(kind, match=message):
        next(batches)


def test_a_killed_process_is_an_error() -> None:
    batches = batches_in_process(numbered())
    process_id = next(batches).cursor["process"]
    os.kill(process_id, signal.SIGKILL)
    with pytest.raises(RuntimeError, match=f"process \\({process_id}\\) was killed"):
        list(batches)


def test_a_process_that_hangs_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def hanging() -> Iterator[MicroBatch]:
        yield from numbered(1)
        time.sleep(1000)

    monkeypatch.setattr(batch_process, "MAX_SECONDS", 0.2)
    batches = batches_in_process(hanging())
    process_id = next(batches).cursor["process"]
    with pytest.raises(RuntimeError, match=r"no batch for 0\.2 seconds"):
        next(batches)
    assert not is_running(process_id)


def test_signals_are_left_to_the_training_loop() -> None:
    """SIGINT and SIGTERM, which a terminal and torchrun send to all processes of a run, do not end the process."""
    batches = batches_in_process(numbered())
    process_id = next(batches).cursor["process"]
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(process_id, number)
    assert [next(batches).cursor["tokens"] for _ in range(500)] == list(range(1, 501))
    batches.close()
    assert not is_running(process_id)


@pytest.mark.parametrize("way", ["close", "prefetch"])
def test_closing_ends_the_process(way: str) -> None:
    batches = batches_in_process(numbered())
    loader = prefetch(batches, CPU) if way == "prefetch" else batches
    process_id = next(loader).cursor["process"]
    loader.close()
    assert not is_running(process_id)


ORPHAN = """
import os, signal
from tests.data.test_batch_process import numbered
from nanochat.data.batch_process import batches_in_process
batches = batches_in_process(numbered())
print(next(batches).cursor["process"], flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
def test_the_process_does_not_outlive_the_run() -> None:
    """A run that is killed cannot close its loader: the process notices that nobody reads."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.run(
        [sys.executable, "-c", ORPHAN], capture_output=True, text=True, env=environment, cwd=ROOT, timeout=120
    )
    assert run.returncode == -signal.SIGKILL, run.stderr
    wait_for_end(int(run.stdout))


def test_threads_of_the_parent() -> None:
    """A parent that has computed and encoded with several threads leaves none of them to wait for in the fork."""
    program = """
import numpy as np
import torch
from nanochat.data.batch_process import batches_in_process
from nanochat.dataloader import MicroBatch
from tests.support.talks import TOKENIZER

texts = [f"text number {i}, and some more of it" for i in range(3000)]

def batches():
    for number in range(3):
        ids = [token for row in TOKENIZER.encode(texts, num_threads=4) for token in row]
        inputs = torch.full((64, 4096), number) * 2  # large enough for several threads
        yield MicroBatch(inputs, inputs + len(ids), 0.0, {})

torch.set_num_threads(4)
expected = [batch.targets.sum().item() for batch in batches()]
assert [batch.targets.sum().item() for batch in batches_in_process(batches())] == expected
"""
    command = [sys.executable, "-W", "ignore", "-c", program]
    subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True, timeout=120)
