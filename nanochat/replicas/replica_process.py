"""The process of a copy: a generation loop whose requests come over a pipe, and whose events go back over it.

`ProcessLoop` (process_loop.py) has the other end. Messages are pickled tuples, a name first:

    to the process      ("load", load)                 a function that returns the loop
                        ("submit", request number, prompt, params, key, number of log-probabilities)
                        ("cancel", request number)     ("close", seconds)
    from the process    ("ready", facts)               or ("failed", reason, traceback or "")
                        ("step", events, values of the statistics, numbers that wait, number of requests taken)
                        ("refused", request number, reason)     ("log", level, text, traceback or "")

All events of a step are in one message. An event is (number, token, is_forced), with log-probabilities (number, token,
is_forced, logprob, top); at the end (number, reason, message); before the first (number, None, tokens from the cache).

The process ignores Ctrl-C and SIGTERM, which reach all processes of a terminal or service: the server tells it when to
end. It ends at once if the server is gone.
"""

from __future__ import annotations

import logging
import os
import queue
import signal
import threading
import traceback
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

from nanochat.common import UserError, run_without_output
from nanochat.inference.generation_loop import GenerationLoop, LoopClosed, OnPublish
from nanochat.inference.generation_request import FinishEvent, GenerationRequest, TokenEvent
from nanochat.system.console import start_command
from nanochat.system.errors import find_fault_of_file, find_fault_of_name

Load = Callable[[OnPublish], GenerationLoop]
Message = tuple[Any, ...]


def serve(descriptor: int) -> None:
    """Load a copy and generate until it is closed, over a pipe with this file descriptor. Never returns."""
    connection = Connection(descriptor)
    start_command()
    run_without_output()  # the server, too, outlives the reader of its output
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    inbox: queue.SimpleQueue[Message] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(connection, inbox), daemon=True).start()
    outbox = _Outbox(connection)
    logging.getLogger("nanochat").addHandler(_SentLog(outbox))
    logging.getLogger("nanochat").propagate = False
    loop = _load(inbox, outbox)
    if loop is None:
        os._exit(2)
    outbox.start(loop)
    threading.Thread(target=_obey, args=(loop, inbox, outbox), daemon=True).start()
    os._exit(0 if loop.join() else 1)  # without a word of the threads that wait


def _read(connection: Connection, inbox: queue.SimpleQueue[Message]) -> None:
    """Read messages until the server is gone, then end this process, whatever it is doing."""
    try:
        while True:
            inbox.put(connection.recv())
    except BaseException:
        os._exit(0)


def _load(inbox: queue.SimpleQueue[Message], outbox: _Outbox) -> GenerationLoop | None:
    """Load the copy. If that fails, the server is told why."""
    _, load = inbox.get()
    try:
        loop: GenerationLoop = load(outbox.publish)
    except Exception as error:
        fault = str(error) if isinstance(error, UserError) else find_fault_of_file(error) or find_fault_of_name(error)
        outbox.send(("failed", fault or repr(error), "" if fault else traceback.format_exc()))
        return None
    return loop


def _obey(loop: GenerationLoop, inbox: queue.SimpleQueue[Message], outbox: _Outbox) -> None:
    """Do what the server asks for."""
    while True:
        name, *arguments = inbox.get()
        if name == "submit":
            number, tokens, params, key, num_logprobs = arguments
            request = GenerationRequest(
                tokens=tokens, params=params, rng_key=key, num_logprobs=num_logprobs, on_event=lambda _: None
            )
            request.on_event = partial(outbox.add, number, request)
            outbox.requests[number], outbox.numbers[request] = request, number
            try:
                loop.submit(request)
            except LoopClosed:  # it has failed meanwhile, and the server learns so from the end of this process
                return
            except UserError as error:
                outbox.refuse(number, request, str(error))
        elif name == "cancel":
            if request_to_end := outbox.requests.get(arguments[0]):
                loop.cancel(request_to_end)
        else:
            # Closing waits for the last reply: in a thread, so that clients can leave meanwhile.
            threading.Thread(target=loop.close, args=arguments, daemon=True).start()


class _Outbox:
    """The events of a step, on their way to the server."""

    def __init__(self, connection: Connection) -> None:
        self.requests: dict[int, GenerationRequest] = {}  # by number, until they are done
        self.numbers: dict[GenerationRequest, int] = {}
        self._connection = connection
        self._lock = threading.Lock()  # of the connection: the log comes from any thread
        self._events: list[tuple[Any, ...]] = []
        self._begun: set[int] = set()
        self._num_refused = 0
        self._is_started = False

    def start(self, loop: GenerationLoop) -> None:
        """Tell the server that the copy is ready."""
        facts = {"context_len": loop.context_len, "sequence_len": loop.sequence_len, "stats": loop.stats()}
        self.send(("ready", facts))
        self._is_started = True

    def send(self, message: Message) -> None:
        """Send a message. Without a server, this process ends."""
        try:
            with self._lock:
                self._connection.send(message)
        except OSError:
            os._exit(0)

    def refuse(self, number: int, request: GenerationRequest, reason: str) -> None:
        """Tell the server that the loop does not take a request."""
        self._forget(number, request)
        self._num_refused += 1
        self.send(("refused", number, reason))

    def _forget(self, number: int, request: GenerationRequest) -> None:
        del self.requests[number], self.numbers[request]
        self._begun.discard(number)

    def add(self, number: int, request: GenerationRequest, event: TokenEvent | FinishEvent) -> None:
        """Note an event of a request, in the thread of the steps."""
        if isinstance(event, FinishEvent):
            self._forget(number, request)
            self._events.append((number, event.reason, event.message))
            return
        if number not in self._begun:
            self._begun.add(number)
            if request.num_cached:
                self._events.append((number, None, request.num_cached))
        if event.logprob is None:
            self._events.append((number, event.token, event.is_forced))
        else:
            self._events.append((number, event.token, event.is_forced, event.logprob, event.top_logprobs))

    def publish(self, stats: dict[str, float], waiting: list[GenerationRequest], num_taken: int) -> None:
        """Send what has happened since the last time: an `OnPublish`."""
        if self._is_started:
            numbers = [self.numbers[request] for request in waiting]
            events, self._events = self._events, []
            self.send(("step", events, list(stats.values()), numbers, num_taken + self._num_refused))


class _SentLog(logging.Handler):
    """Sends the log to the server, which limits it."""

    def __init__(self, outbox: _Outbox) -> None:
        super().__init__()
        self._outbox = outbox

    def emit(self, record: logging.LogRecord) -> None:
        """Send a record with its traceback."""
        trace = "".join(traceback.format_exception(*record.exc_info)) if record.exc_info else ""
        self._outbox.send(("log", record.levelno, record.getMessage(), trace))
