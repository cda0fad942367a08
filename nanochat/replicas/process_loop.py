"""A copy of the model in a process of its own, with the methods of `GenerationLoop`.

    loops = start_replicas([Replica(partial(load_replica, settings), "copy 1"), ...])
    loops[0].submit(GenerationRequest(tokens=prompt, params=params, rng_key=0, on_event=print))
    loops[0].close(seconds=10)

Each process has its own Python, so the copies do not wait for each other's scheduler, nor for the web server. If one
dies, its running requests end with an error, and the others go on.
"""

from __future__ import annotations

import logging
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, Pipe
from typing import Any

from nanochat.common import UserError
from nanochat.inference.generation_loop import MAX_WAITING, LoopClosed, LoopFailed, QueueFull
from nanochat.inference.generation_request import FinishEvent, GenerationRequest, TokenEvent
from nanochat.inference.scheduler import MAX_RUNNING, check_prompt
from nanochat.replicas.replica_process import Load, Message

CLOSING_SECONDS = 2.0  # after the last reply has ended or is given up, until the process is killed
# Ctrl-C, which reaches all processes of a terminal, is left to the server: before the imports, too.
_CHILD = (
    "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); "
    "from nanochat.replicas.replica_process import serve; serve"
)

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Replica:
    """A copy to start: `load` is pickled, and called in its process. `environment`: variables that it is to have."""

    load: Load
    name: str
    environment: Mapping[str, str] = field(default_factory=dict)
    max_waiting: int = MAX_WAITING
    max_running: int = MAX_RUNNING


def start_replicas(replicas: Sequence[Replica]) -> list[ProcessLoop]:
    """Start a process for each copy, all at once, and wait until all are ready.

    Raises the `UserError` of a copy that cannot be loaded, when all processes have ended.
    """
    loops: list[ProcessLoop] = []
    try:
        for index, replica in enumerate(replicas):
            loops.append(ProcessLoop(replica, is_silent=index > 0))  # else each would say that it loads the model
        for loop in loops:
            loop.wait_until_ready()
    except BaseException:
        for loop in loops:
            loop.kill()
        raise
    return loops


class ProcessLoop:
    """Runs requests in another process. All methods can be called from any thread.

    Events are passed on in a thread of this process. Every request that `submit` accepts gets exactly one
    `FinishEvent`, and nothing after it.
    """

    def __init__(self, replica: Replica, is_silent: bool = False) -> None:
        """Start the process. Call `wait_until_ready` before anything else. `is_silent`: its output goes nowhere."""
        self.name = replica.name
        self._max_waiting = replica.max_waiting
        self._max_unfinished = replica.max_waiting + replica.max_running
        self._connection, theirs = Pipe()
        # A new interpreter: a fork would copy locks and GPU contexts, multiprocessing would import the script again.
        command = [sys.executable, "-c", f"{_CHILD}({theirs.fileno()})"]
        path = os.pathsep.join(filter(None, sys.path))
        self._process = subprocess.Popen(
            command,
            pass_fds=[theirs.fileno()],
            env={**os.environ, "PYTHONPATH": path, **replica.environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL if is_silent else None,
        )
        theirs.close()
        with suppress(OSError):  # it has ended already, which is noticed later
            self._connection.send(("load", replica.load))
        self._outgoing: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        self._lock = threading.Lock()  # of what follows
        self._requests: dict[int, GenerationRequest] = {}  # by number, until they are done
        self._numbers: dict[GenerationRequest, int] = {}
        self._last_number = 0
        self._num_taken = 0  # requests that the scheduler has taken, before its current step
        self._waiting: list[int] = []  # likewise, numbers of those that wait
        self._names: list[str] = []
        self._values: list[float] = []
        self._is_closed = False
        self._has_ended = False
        self._has_failed = False
        # A process that does not read must not hold up the server.
        self._writer = threading.Thread(target=self._write, args=(self._connection,), daemon=True)
        self._writer.start()
        self._reader = threading.Thread(target=self._read, name=f"{self.name}: events", daemon=True)

    def wait_until_ready(self) -> None:
        """Wait until the model is loaded. Raises `UserError` if it cannot be."""
        try:
            name, *arguments = self._receive()
        except (EOFError, OSError):
            raise UserError(
                f"the process of {self.name} ended while it loaded the model ({self._exit_text()}): if memory was "
                "short, start fewer copies"
            ) from None
        if name == "failed":
            reason, trace = arguments
            raise UserError(reason) if not trace else RuntimeError(f"{self.name} failed\n{trace}")
        [facts] = arguments
        self.context_len: int = facts["context_len"]
        self._sequence_len: int = facts["sequence_len"]
        stats = {name: value for name, value in facts["stats"].items() if name != "ended"}
        self._names, self._values = list(stats), list(stats.values())
        self._reader.start()

    # --- as GenerationLoop --------------------------------------------------------------------------------------------

    def submit(self, request: GenerationRequest) -> None:
        """Take a request. Raises `QueueFull`, `LoopClosed`, or `UserError` for a prompt that does not fit."""
        check_prompt(request.tokens, self.context_len, self._sequence_len)
        with self._lock:
            if self._has_failed:
                raise LoopFailed("the model has failed")
            if self._is_closed or self._has_ended:
                raise LoopClosed("no more requests are accepted: generation is being stopped")
            if len(self._requests) >= self._max_unfinished:
                raise QueueFull(f"{self._max_waiting} requests wait already")
            assert request not in self._numbers, "a request was submitted twice"
            self._last_number += 1
            number = self._numbers[request] = self._last_number
            self._requests[number] = request
            self._put("submit", number, request.tokens, request.params, request.rng_key, request.num_logprobs)

    def cancel(self, request: GenerationRequest) -> None:
        """End a request before the next step. One that is done already stays as it is."""
        with self._lock:
            if (number := self._numbers.get(request)) is not None:
                self._put("cancel", number)

    def place(self, request: GenerationRequest) -> int:
        """Return 0 for a request that runs or is done, else its place in the queue, from 1."""
        with self._lock:
            number = self._numbers.get(request)
            if number is None:
                return 0
            if number > self._num_taken:
                return len(self._waiting) + number - self._num_taken
            return self._waiting.index(number) + 1 if number in self._waiting else 0

    @property
    def num_unfinished(self) -> int:
        """Number of requests that wait or run."""
        return len(self._requests)

    def stats(self) -> dict[str, float]:
        """Return the numbers of `GenerationLoop.stats`, before the current step of the process."""
        with self._lock:
            stats = dict(zip(self._names, self._values, strict=True))
            waiting = 0 if self._has_ended else len(self._waiting) + self._last_number - self._num_taken
            running = 0 if self._has_ended else stats["running"]
            return {**stats, "waiting": waiting, "running": running, "ended": float(self._has_ended)}

    def close(self, seconds: float) -> None:
        """Accept no more requests and end the process. Those that wait get `FinishEvent("shutdown")`.

        Those that have begun have `seconds` to finish, then they get it as well. A process that has not ended a little
        later is killed. Returns when all is done.
        """
        with self._lock:
            if not self._is_closed:
                self._is_closed = True
                self._put("close", seconds)
        deadline = time.monotonic() + seconds + CLOSING_SECONDS
        if threading.current_thread() is not self._reader and self._reader.is_alive():
            self._reader.join(deadline - time.monotonic())
        self.kill()

    def kill(self) -> None:
        """End the process at once, and wait for its end."""
        self._process.kill()
        self._process.wait()
        self._outgoing.put(None)
        if threading.current_thread() is not self._reader and self._reader.is_alive():
            self._reader.join()

    # --- messages -----------------------------------------------------------------------------------------------------

    def _put(self, *message: Any) -> None:
        self._outgoing.put(message)

    def _write(self, connection: Connection) -> None:
        with suppress(OSError):  # the reader learns that the process is gone
            while (message := self._outgoing.get()) is not None:
                connection.send(message)

    def _receive(self) -> Message:
        """Return the next message that is no log."""
        while True:
            message: Message = self._connection.recv()
            if message[0] != "log":
                return message
            _, level, text, trace = message
            record = _log.makeRecord(_log.name, level, __file__, 0, "%s: %s", (self.name, text), None)
            record.exc_text = trace or None  # apart from the text: of a long one the end is kept
            if _log.isEnabledFor(level):
                _log.handle(record)

    def _read(self) -> None:
        """Pass events on until the process ends."""
        try:
            while True:
                name, *content = self._receive()
                if name == "refused":
                    self._finish(content[0], FinishEvent("error", content[1]))
                    continue
                events, values, waiting, num_taken = content
                with self._lock:
                    self._values, self._waiting, self._num_taken = values, waiting, num_taken
                for event in events:
                    self._pass_on(*event)
        except (EOFError, OSError):
            pass
        except Exception:
            _log.exception("%s sent what is no message", self.name)
        finally:
            self._end()

    def _pass_on(self, number: int, first: Any, second: Any, *logprobs: Any) -> None:
        request = self._requests.get(number)
        if request is None:  # its receiver has failed
            return
        if first is None:
            request.num_cached = second
        elif isinstance(first, str):
            self._finish(number, FinishEvent(first, second))  # type: ignore[arg-type]
        else:
            try:
                request.on_event(TokenEvent(first, second, *logprobs))
            except Exception as error:
                self._put("cancel", number)
                self._finish(number, FinishEvent("error", f"the receiver of the tokens failed: {error!r}"))

    def _finish(self, number: int, event: FinishEvent) -> None:
        with self._lock:
            request = self._requests.pop(number, None)
            if request is None:
                return
            del self._numbers[request]
        with suppress(Exception):
            request.on_event(event)

    def _end(self) -> None:
        """Note the end of the process, and tell the requests that it has left."""
        self._process.kill()  # it has closed the pipe, or sent what cannot be read
        exit_text = self._exit_text()
        with self._lock:
            self._has_ended = True
            self._has_failed = not self._is_closed
            numbers = list(self._requests)
        if self._has_failed:
            _log.critical("The process of %s has ended (%s): it answers no more requests", self.name, exit_text)
        for number in numbers:
            if self._has_failed:
                self._finish(number, FinishEvent("error", f"the process of {self.name} has ended ({exit_text})"))
            else:
                self._finish(number, FinishEvent("shutdown"))
        self._outgoing.put(None)

    def _exit_text(self) -> str:
        """Return how the process has ended."""
        code = self._process.wait()
        if code >= 0:
            return f"exit code {code}"
        with suppress(ValueError):
            return f"killed by {signal.Signals(-code).name}"
        return f"killed by signal {-code}"
