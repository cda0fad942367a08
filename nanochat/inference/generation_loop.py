"""A thread that runs a scheduler over one copy of the model, for requests that come from other threads.

    loop = GenerationLoop(model_step, Tool(tokenizer), max_waiting=100)
    loop.submit(GenerationRequest(tokens=prompt, params=params, rng_key=0, on_event=print))
    loop.close(seconds=10)

The threads of the callers and that of the loop meet in an inbox only, so nobody waits for a step of the model.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from nanochat.common import UserError
from nanochat.inference.generation_request import FinishReason, GenerationRequest
from nanochat.inference.model_step import ModelStep
from nanochat.inference.scheduler import MAX_RUNNING, Scheduler
from nanochat.inference.tool_use import Tool
from nanochat.system.json_text import short_repr

MAX_WAITING = 256  # requests in the queue of a loop, behind those that run
_SECONDS_OF_A_STEP = 30.0  # longer than any: how long `close` waits for the last one

_log = logging.getLogger(__name__)


class QueueFull(UserError):
    """As many requests wait as may wait: try again later."""


class LoopClosed(UserError):
    """The loop takes no more requests."""


class LoopFailed(LoopClosed):
    """The loop has ended by an error, which is in the log."""


# Called when a step is about to begin, and when there is nothing left to do, in the loop's thread: with the statistics,
# the requests that wait, and the number of requests that the scheduler has taken so far.
OnPublish = Callable[[dict[str, float], list[GenerationRequest], int], None]


class GenerationLoop:
    """Runs requests on a `ModelStep`, in a thread that begins at once. All methods can be called from any thread.

    The events of a request are passed to its `on_event` in the loop's thread. Every request that `submit` accepts gets
    exactly one `FinishEvent`, and nothing after it.
    """

    def __init__(
        self,
        model_step: ModelStep,
        tool: Tool,
        *,
        max_waiting: int = MAX_WAITING,
        max_running: int = MAX_RUNNING,
        max_prefill_tokens: int | None = None,
        on_publish: OnPublish | None = None,
    ) -> None:
        """`max_waiting`: length of the queue. `max_running`, `max_prefill_tokens`: those of `Scheduler`."""
        self._scheduler = Scheduler(model_step, tool, max_running=max_running, max_prefill_tokens=max_prefill_tokens)
        self.context_len = self._scheduler.context_len
        self.sequence_len = model_step.config.sequence_len
        self._max_unfinished = max_waiting + max_running
        self._max_waiting = max_waiting
        # Protects what follows. It is held for moments only: never during a step, or while an event is passed on.
        self._condition = threading.Condition()
        self._inbox: list[tuple[Callable[[GenerationRequest], object], GenerationRequest]] = []
        self._num_accepted = 0
        self._waiting: list[GenerationRequest] = []  # in the scheduler, before the current step
        self._stats: dict[str, float] = {}
        self._is_closed = False
        self._has_ended = False
        self._has_failed = False
        self._deadline = 0.0  # of what runs when the loop is closed
        # Of the thread:
        self._on_publish = on_publish
        self._num_taken = 0  # requests that were given to the scheduler
        self._step_seconds = 0.0
        self._num_errors = 0
        self._publish(0)
        self._thread = threading.Thread(target=self._run, name="generation", daemon=True)
        self._thread.start()

    def submit(self, request: GenerationRequest) -> None:
        """Take a request. Raises `QueueFull`, `LoopClosed`, or `UserError` for a prompt that does not fit.

        The queue is full if `max_waiting` requests wait besides those that can run at once.
        """
        self._scheduler.check_prompt(request.tokens)
        with self._condition:
            if self._has_failed:
                raise LoopFailed("the model has failed")
            if self._is_closed:
                raise LoopClosed("no more requests are accepted: generation is being stopped")
            # What has finished in the current step counts no more: its client may send the next request at once.
            if self.num_unfinished >= self._max_unfinished:
                raise QueueFull(f"{self._max_waiting} requests wait already")
            self._num_accepted += 1
            self._inbox.append((self._scheduler.submit, request))
            self._condition.notify()

    def cancel(self, request: GenerationRequest) -> None:
        """End a request before the next step. One that is done already stays as it is."""
        with self._condition:
            if not self._has_ended:
                self._inbox.append((self._scheduler.cancel, request))
                self._condition.notify()

    def place(self, request: GenerationRequest) -> int:
        """Return 0 for a request that runs or is done, else its place in the queue, from 1."""
        with self._condition:
            if request in self._waiting:
                return self._waiting.index(request) + 1
            submitted = self._submitted
            return len(self._waiting) + submitted.index(request) + 1 if request in submitted else 0

    @property
    def num_unfinished(self) -> int:
        """Number of requests that wait or run."""
        return self._num_accepted - self._scheduler.num_finished

    def stats(self) -> dict[str, float]:
        """Return the numbers of `Scheduler.stats` before the current step, "step_seconds" and "step_errors".

        "ended" is 1 if the thread has ended, as it does after `close` and after a fault of the step in Rust.
        """
        with self._condition:
            waiting = self._stats["waiting"] + len(self._submitted)
            return {**self._stats, "waiting": waiting, "ended": float(self._has_ended)}

    def close(self, seconds: float) -> None:
        """Accept no more requests and end the thread. Those that wait get `FinishEvent("shutdown")`.

        Those that have begun have `seconds` to finish, then they get it as well. Returns when all is done.
        """
        with self._condition:
            if not self._is_closed:
                self._is_closed = True
                self._deadline = time.monotonic() + seconds
            self._condition.notify()
        if threading.current_thread() is not self._thread:
            self._thread.join(max(0.0, self._deadline - time.monotonic()) + _SECONDS_OF_A_STEP)

    def join(self) -> bool:
        """Wait until the thread has ended. Returns False if an error has ended it."""
        self._thread.join()
        return not self._has_failed

    @property
    def _submitted(self) -> list[GenerationRequest]:
        return [request for act, request in self._inbox if act == self._scheduler.submit]

    # --- the thread ---------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        reason: FinishReason = "shutdown"
        message = ""
        try:
            self._run_steps()
        except BaseException as error:  # a panic in Rust is no Exception
            _log.critical("The loop of a model has ended", exc_info=True)
            reason, message = "error", f"the model failed: {short_repr(error)}"
        finally:  # whatever has ended the thread, nobody waits for ever
            with self._condition:
                self._is_closed = self._has_ended = True
                self._has_failed = reason == "error"
                entries = list(self._inbox)
            for entry in entries:
                with suppress(Exception):  # what was done before the thread failed cannot be done again
                    self._act(*entry)
            self._scheduler.cancel_all(reason, message)
            self._publish(len(entries))

    def _run_steps(self) -> None:
        while True:
            with self._condition:
                while not (self._inbox or self._is_closed or self._scheduler.num_unfinished):
                    self._condition.wait()
                entries = list(self._inbox)
                is_closed = self._is_closed
            for entry in entries:
                self._act(*entry)
            if is_closed:
                self._scheduler.cancel_all("shutdown", only_waiting=time.monotonic() < self._deadline)
            self._guarded(self._scheduler.admit)
            self._publish(len(entries))
            if self._scheduler.num_unfinished:
                self._guarded(self._scheduler.step)
                if not self._scheduler.num_unfinished:
                    self._publish(0)  # else the last step's numbers would stand until the next request
            elif is_closed:
                return

    def _act(self, act: Callable[[GenerationRequest], object], request: GenerationRequest) -> None:
        self._num_taken += act == self._scheduler.submit
        act(request)

    def _guarded(self, part_of_step: Callable[[], object]) -> None:
        """Run it; an error ends the requests that run, and the loop goes on."""
        start = time.perf_counter()
        try:
            part_of_step()
        except Exception as error:
            self._num_errors += 1
            _log.exception("A step of a model failed")
            self._scheduler.fail_running(f"the model failed: {short_repr(error)}")
        self._step_seconds += time.perf_counter() - start

    def _publish(self, num_done: int) -> None:
        """Copy what others may ask for, so that they do not wait for a step. Entries of the inbox are done."""
        stats = {**self._scheduler.stats(), "step_seconds": self._step_seconds, "step_errors": self._num_errors}
        waiting = self._scheduler.waiting
        with self._condition:
            del self._inbox[:num_done]
            self._waiting = waiting
            self._stats = stats
        if self._on_publish is not None:
            self._on_publish(stats, waiting, self._num_taken)
