"""Checkpoints of a training run, written by a thread while the training goes on.

A save copies the training state to host memory, which takes a fraction of a second, and starts a thread that writes the
copy, which takes several: a checkpoint of d20 has 5 GB, one of d32 16 GB. At any time at most one write is in progress.
A save after which no step follows, at the end of a run or at a signal, is complete when it returns.

A write that fails, on a disk that is full for a while, does not end the run: the next save is waited for, and ends it
if it fails, too. Before the first step, the folder is tried: can it be written, and has it room for a checkpoint?
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from types import TracebackType

from nanochat.checkpoint_manager import RunMeta, save_checkpoint
from nanochat.common import UserError, print0
from nanochat.gpt import GPT
from nanochat.optim import Optimizer
from nanochat.system.files import check_room
from nanochat.system.host_memory import copy_to_host, wait_for_copies
from nanochat.train import LoopState, Metrics
from nanochat.training.early_stopping import best_step


class CheckpointSaver:
    """The `run` of an event that saves. A context manager: entering it tries the folder, leaving it waits for the last
    write.

    `folder`: of the run. `meta`: content of meta.json except for the loop state and the number of processes.
    `keep_last`: number of the run's checkpoints that are kept (-1: all). `keep_best`: the one with the lowest held-out
    loss is kept, too.
    """

    def __init__(
        self,
        folder: Path,
        model: GPT,
        optimizer: Optimizer,
        meta: RunMeta,
        keep_last: int,
        keep_best: bool = False,
    ) -> None:
        self.folder = folder
        self.model = model
        self.optimizer = optimizer
        self.meta = meta
        self.keep_last = keep_last
        self.keep_best = keep_best
        self._write: _Write | None = None  # the last one, on the main process

    def __call__(self, state: LoopState) -> Metrics:
        """Save the state of the run. Collective: all processes must call it.

        Raises, on all processes, the error of this save if the one before failed too, or if no step follows. An error
        that is not the user's is raised by the next save at the latest.
        """
        has_failed = self._agree(self._wait(), may_go_on=True)
        runtime = self.optimizer.runtime
        start = time.perf_counter()
        optimizer_state = self.optimizer.state_dict()  # collective: gathers the shards of all processes
        if runtime.is_main:
            weights = {name: copy_to_host(tensor) for name, tensor in self.model.state_dict().items()}
            wait_for_copies(runtime.device)
            meta: RunMeta = {**self.meta, "world_size": runtime.world_size, "loop": asdict(state)}
            keep_last = -1 if state.skipped_in_a_row else self.keep_last  # what looks bad replaces nothing good
            keep_step = best_step(state.history) if self.keep_best else None
            write = partial(
                save_checkpoint, self.folder, state.step, weights, optimizer_state, meta, keep_last, keep_step
            )
            self._write = _Write(state.step, write, time.perf_counter() - start)
        if has_failed or state.stopped or state.progress >= 1:
            self.finish()
        return {}

    def finish(self) -> None:
        """Wait for the write in progress. Collective. Raises its error on all processes."""
        self._agree(self._wait())

    def _agree(self, error: Exception | None, may_go_on: bool = False) -> bool:
        """Raise the main process's error on all processes, instead of leaving the others waiting. Collective.

        `may_go_on`: of an error that the user can fix, meanwhile, only return True.
        """
        is_temporary = may_go_on and isinstance(error, UserError)
        failure = None if error is None else (is_temporary, str(error) or type(error).__name__)
        failure = self.optimizer.runtime.broadcast(failure)
        if failure is None:
            return False
        if failure[0]:
            return True
        raise error or UserError(failure[1])

    def __enter__(self) -> CheckpointSaver:
        """Try the folder. Collective. Raises `UserError` on all processes if a checkpoint cannot be saved there."""
        error = None
        if self.optimizer.runtime.is_main:
            try:
                check_room(self.folder, self.checkpoint_bytes(), "a checkpoint")
            except UserError as failure:
                error = failure
        self._agree(error)
        return self

    def checkpoint_bytes(self) -> int:
        """Return the bytes of the tensors of a checkpoint: weights, and the optimizer's state of all processes."""
        state = sum(
            sum(param.numel() for param in bucket.params) * tensor.element_size()
            for bucket in self.optimizer.buckets
            for tensor in bucket.state.values()
        )
        weights = sum(tensor.nbytes for tensor in self.model.state_dict().values())
        return int(state + weights)

    def __exit__(
        self, kind: type[BaseException] | None, exception: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait for the write in progress, also after an exception, which must not cost a checkpoint."""
        if exception is None:
            self.finish()
        elif self._write is not None:  # not collective: other processes may have no exception
            print0(f"Waiting for the checkpoint of step {self._write.step} ... (Ctrl-C leaves at once, without it)")
            self._wait()

    def _wait(self) -> Exception | None:
        """Wait for the write in progress, and return its error."""
        write, self._write = self._write, None
        return None if write is None else write.wait()


class _Write:
    """A checkpoint that a thread writes. The thread is a daemon: Ctrl-C during the wait at the end leaves at once."""

    def __init__(self, step: int, write: Callable[[], Path], copy_seconds: float) -> None:
        self.step = step
        self.write = write
        self.copy_seconds = copy_seconds
        self.error: Exception | None = None
        self.thread = threading.Thread(target=self._run, name=f"checkpoint of step {step}", daemon=True)
        self.thread.start()

    def _run(self) -> None:
        start = time.perf_counter()
        try:
            path = self.write()
        except Exception as error:  # raised by the main thread, in `CheckpointSaver.finish`
            self.error = error
            print0(f"The checkpoint of step {self.step} is not saved: {error}")
        else:
            seconds = time.perf_counter() - start
            print0(f"Saved {path} (copied in {self.copy_seconds:.1f} s, written in {seconds:.1f} s)")

    def wait(self) -> Exception | None:
        """Wait for the end of the thread, and return its error."""
        self.thread.join()
        return self.error
