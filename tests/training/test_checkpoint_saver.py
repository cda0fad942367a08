"""Checkpoints are written while the training goes on: what is written is the state at the save, bit for bit.

Errors of the thread reach all processes, and no write is lost at the end of a run, however it ends.
"""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nanochat.checkpoint_manager import (
    Checkpoint,
    build_model,
    list_steps,
    open_checkpoint,
    save_checkpoint,
)
from nanochat.common import UserError
from nanochat.gpt import GPT
from nanochat.optim import Optimizer, build_optimizer
from nanochat.runtime import Runtime
from nanochat.train import LoopState
from nanochat.training import checkpoint_saver
from nanochat.training.checkpoint_saver import CheckpointSaver
from tests.support.processes import Forker
from tests.support.training import CPU, META, SHAPE

LIMIT = 30  # seconds; what takes longer hangs


def take_step(model: GPT, optimizer: Optimizer, seed: int) -> None:
    """Change all weights and the optimizer's state in place."""
    generator = torch.Generator().manual_seed(seed)
    for param in model.parameters():
        param.grad = torch.randn(param.shape, generator=generator)
    optimizer.step(1.0, 0.9)


def contents(model: GPT, optimizer: Optimizer) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Copies of the weights and of the optimizer's state."""
    return {name: value.clone() for name, value in model.state_dict().items()}, optimizer.state_dict()


def assert_holds(checkpoint: Checkpoint, expected: tuple[dict[str, Tensor], dict[str, Tensor]]) -> None:
    for state, other in zip((checkpoint.load_weights(), checkpoint.load_optimizer_state()), expected, strict=True):
        assert state.keys() == other.keys()
        assert [name for name in state if not torch.equal(state[name], other[name])] == []


@dataclass
class Disk:
    """The writing of checkpoints: it waits until `allowed` is set, and then raises `error`, if there is one."""

    allowed: threading.Event = field(default_factory=threading.Event)
    error: Exception | None = None
    num_at_once: int = 0
    num_written: int = 0

    def write(self, *args: Any) -> Path:
        self.num_at_once += 1
        assert self.num_at_once == 1, "two writes at the same time"
        assert self.allowed.wait(LIMIT), "hangs"
        self.num_at_once -= 1
        if self.error:
            raise self.error
        self.num_written += 1
        return save_checkpoint(*args)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    disk = Disk()
    monkeypatch.setattr(checkpoint_saver, "save_checkpoint", disk.write)
    yield disk
    disk.allowed.set()


@pytest.fixture
def model() -> GPT:
    return build_model(SHAPE, CPU)


@pytest.fixture
def optimizer(model: GPT) -> Optimizer:
    return build_optimizer(model, CPU)


def test_training_goes_on_during_a_write(tmp_path: Path, model: GPT, optimizer: Optimizer, disk: Disk) -> None:
    """Weights, moments and loop state that change before the write are written as they were at the save."""
    state = LoopState(step=4, progress=0.25, history=[{"step": 4, "loss": 1.5}], cursor={"epoch": 1}, recent=[0.5])
    take_step(model, optimizer, 1)
    expected = contents(model, optimizer)
    saved_loop = asdict(state)
    with CheckpointSaver(tmp_path, model, optimizer, {**META, "data_hash": "1"}, -1) as save:
        assert save(state) == {}
        assert list_steps(tmp_path) == {}
        take_step(model, optimizer, 2)
        state.step += 1
        state.history[0]["loss"] = 9.0
        state.history.append({"step": 5, "loss": 1.25})
        assert state.cursor is not None
        state.cursor["epoch"] = 2
        state.recent.clear()
        for param in model.parameters():
            param.data.fill_(torch.nan)
        disk.allowed.set()
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.step == 4
    assert_holds(checkpoint, expected)
    assert checkpoint.meta["loop"] == saved_loop
    assert (checkpoint.meta["data_hash"], checkpoint.meta["world_size"]) == ("1", 1)


def test_the_next_save_waits_for_the_last(tmp_path: Path, model: GPT, optimizer: Optimizer, disk: Disk) -> None:
    """Never two writes at once, and each holds its own step's state. Leaving waits, too."""
    expected = {}
    timer = threading.Timer(0.3, disk.allowed.set)
    with CheckpointSaver(tmp_path, model, optimizer, META, keep_last=2) as save:
        for step in (2, 4, 6):
            take_step(model, optimizer, step)
            expected[step] = contents(model, optimizer)
            if step == 4:
                assert disk.num_written == 0
                timer.start()
            save(LoopState(step=step))
            assert disk.num_written >= step // 2 - 1
    timer.join()
    assert list(list_steps(tmp_path)) == [4, 6]
    for step in (4, 6):
        assert_holds(open_checkpoint(tmp_path, step), expected[step])


@pytest.mark.parametrize("state", [LoopState(step=5, stopped=15), LoopState(step=8, progress=1.0)])
def test_a_save_that_no_step_follows_is_complete(
    tmp_path: Path, model: GPT, optimizer: Optimizer, disk: Disk, state: LoopState
) -> None:
    """At a signal, and before the last evaluations, which may fail."""
    timer = threading.Timer(0.2, disk.allowed.set)
    timer.start()
    CheckpointSaver(tmp_path, model, optimizer, META, -1)(state)
    timer.join()
    assert list(list_steps(tmp_path)) == [state.step]


# --- errors -----------------------------------------------------------------------------------------------------------


def test_a_second_failed_write_is_raised(
    tmp_path: Path, model: GPT, optimizer: Optimizer, disk: Disk, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first may have been an accident, so the training goes on to the next save, with a line that says so."""
    disk.error = UserError("cannot save: the disk is full")
    disk.allowed.set()
    saver = CheckpointSaver(tmp_path, model, optimizer, META, -1)
    saver(LoopState(step=4))
    with pytest.raises(UserError, match=r"cannot save: the disk is full"), saver:
        saver(LoopState(step=6))
    lines = [f"The checkpoint of step {step} is not saved: cannot save: the disk is full" for step in (4, 6)]
    assert capsys.readouterr().out.splitlines() == lines
    assert not list_steps(tmp_path)


def test_the_save_after_a_failed_write_succeeds(tmp_path: Path, model: GPT, optimizer: Optimizer, disk: Disk) -> None:
    """It is complete when the training goes on, and a later failure counts as a first one again."""
    disk.allowed.set()
    with CheckpointSaver(tmp_path, model, optimizer, META, -1) as saver:
        for step, error in ((2, None), (4, "full"), (6, None), (8, "full"), (10, None)):
            disk.error = error and UserError(error)
            saver(LoopState(step=step))
            if step == 6:
                assert list(list_steps(tmp_path)) == [2, 6]
            if saver._write:
                saver._write.thread.join()
    assert list(list_steps(tmp_path)) == [2, 6, 10]


def test_the_folder_is_tried_before_the_first_step(
    tmp_path: Path, model: GPT, optimizer: Optimizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that cannot be made, and one on a disk with too little room for what a checkpoint really takes."""
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write .*d4"):
        CheckpointSaver(tmp_path / "file" / "d4", model, optimizer, META, -1).__enter__()
    saver = CheckpointSaver(tmp_path / "d4", model, optimizer, META, -1)
    saver(LoopState(step=4, progress=1.0))
    on_disk = sum(path.stat().st_size for path in open_checkpoint(tmp_path / "d4").path.glob("*.safetensors"))
    assert 0.8 * on_disk < saver.checkpoint_bytes() <= on_disk
    usage = shutil.disk_usage(tmp_path)
    for free, fits in ((saver.checkpoint_bytes(), True), (saver.checkpoint_bytes() - 1, False)):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: usage._replace(free=free))
        with nullcontext() if fits else pytest.raises(UserError, match=r"GB free, but a checkpoint takes about"):
            saver.__enter__()
    assert [path.name for path in (tmp_path / "d4").iterdir()] == ["step_000004"]


@pytest.mark.parametrize(
    "error", [UserError("cannot save: the disk is full"), MemoryError(), RuntimeError("a bug")], ids=repr
)
def test_a_failed_write_is_raised_at_the_end(
    tmp_path: Path, model: GPT, optimizer: Optimizer, disk: Disk, error: Exception
) -> None:
    """On leaving, or by the save that no step follows: by the main process itself, with its traceback."""
    disk.error = error
    disk.allowed.set()
    with pytest.raises(type(error)) as failure, CheckpointSaver(tmp_path, model, optimizer, META, -1) as save:
        save(LoopState(step=4))
    assert failure.value is error
    with pytest.raises(type(error)):
        CheckpointSaver(tmp_path, model, optimizer, META, -1)(LoopState(step=4, stopped=2))


@pytest.mark.parametrize("interruption", [UserError("no such task"), KeyboardInterrupt()], ids=repr)
@pytest.mark.parametrize("is_full", [False, True])
def test_an_exception_costs_no_checkpoint(
    tmp_path: Path, model: GPT, optimizer: Optimizer, disk: Disk, interruption: BaseException, is_full: bool,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """An evaluation that fails after the save leaves the checkpoint complete, and is not hidden by a failed write."""
    timer = threading.Timer(0.2, disk.allowed.set)
    disk.error = UserError("the disk is full") if is_full else None

    def run() -> None:
        with CheckpointSaver(tmp_path, model, optimizer, META, -1) as save:
            save(LoopState(step=4))
            timer.start()
            raise interruption

    with pytest.raises(type(interruption)):
        run()
    timer.join()
    assert list(list_steps(tmp_path)) == ([] if is_full else [4])
    out = capsys.readouterr().out
    assert out.startswith("Waiting for the checkpoint of step 4 ...")
    assert ("is not saved: the disk is full" in out) == is_full


def test_the_other_processes_write_nothing_and_raise(
    tmp_path: Path, model: GPT, optimizer: Optimizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broadcast(_: Runtime, value: Any) -> Any:
        assert value is None
        return failures.pop(0)

    failures = [None, (True, "cannot save: the disk is full"), None, (False, "cannot save: the disk is full")]
    optimizer.runtime = Runtime(1, 1, 1, torch.device("cpu"), torch.float32, 42)
    monkeypatch.setattr(Runtime, "broadcast", broadcast)
    monkeypatch.setattr(checkpoint_saver, "save_checkpoint", lambda *_: pytest.fail("only the main process writes"))
    saver = CheckpointSaver(tmp_path, model, optimizer, META, -1)
    for step in (4, 6):
        saver(LoopState(step=step))
    with pytest.raises(UserError, match="the disk is full"):
        saver(LoopState(step=8))
    assert not failures


@pytest.mark.slow
@pytest.mark.usefixtures("base_dir")
def test_two_processes(forker: Forker, tmp_path: Path) -> None:
    """A slow write of rank 0 lets both go on, up to the next save; its failure ends both with the same error."""
    outputs = forker.run_ranks(one_of_two, tmp_path / "run", NANOCHAT_DTYPE="float32")
    first, second = (json.loads(output.splitlines()[-1]) for output in outputs)
    assert first == second == {"steps": [4, 6], "failure": "cannot save: the disk is full"}


def one_of_two(folder: Path) -> None:
    """Save twice, the second time with a failure, as rank 0 or 1."""
    runtime = Runtime.start(device="cpu")
    model = build_model(SHAPE, runtime)
    optimizer = build_optimizer(model, runtime)
    disk = Disk()
    checkpoint_saver.save_checkpoint = disk.write  # type: ignore[assignment]
    saver = CheckpointSaver(folder, model, optimizer, META, -1)
    saver(LoopState(step=4))
    runtime.barrier()  # both are here while rank 0 still writes
    assert not list_steps(folder)
    disk.allowed.set()
    saver(LoopState(step=6))
    saver.finish()
    steps = list(list_steps(folder)) if runtime.is_main else [4, 6]
    disk.error = UserError("cannot save: the disk is full")
    saver(LoopState(step=8))
    failure = ""
    try:
        saver.finish()
    except UserError as error:
        failure = str(error)
    runtime.finish()
    print(json.dumps({"steps": steps, "failure": failure}))


# --- GPU --------------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_snapshot_of_a_gpu(tmp_path: Path, disk: Disk) -> None:
    """Kernels that are queued after the save do not change what is written."""
    gpu = Runtime(0, 0, 1, torch.device("cuda:0"), torch.float32, 42)
    model = build_model(SHAPE, gpu)
    optimizer = build_optimizer(model, gpu)
    expected = {name: value.cpu() for name, value in model.state_dict().items()}
    with CheckpointSaver(tmp_path, model, optimizer, META, -1) as save:
        save(LoopState(step=4))
        for param in model.parameters():
            param.data.fill_(torch.nan)
        disk.allowed.set()
    weights = open_checkpoint(tmp_path).load_weights()
    assert [name for name in weights if not torch.equal(weights[name], expected[name])] == []
