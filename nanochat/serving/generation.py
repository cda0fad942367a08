"""Completions of one HTTP request: their way through the generation loops, and their events in asyncio.

A generation loop runs in a thread of its own and calls `on_event` there. The event goes into a mailbox; the event loop
of asyncio is woken once for all events that have come since it last looked. So a token costs no thread and no lock that
the model waits for.

A message to a client costs far more than a token of a small model. So the messages of a reply are `MESSAGE_SECONDS`
apart for each completion that runs or waits, and under load one has several tokens: for up to a hundred completions
the server sends at most a thousand a second, however many tokens there are. The first message of a reply and the end of
a completion never wait; a stop string, which is found when its message is made, may be noticed 0.1 s late.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncGenerator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

from nanochat.inference.generation_request import FinishEvent, GenerationRequest, TokenEvent
from nanochat.layers.sampler import NO_PROBABILITIES
from nanochat.layers.sampling_params import SamplingParams
from nanochat.serving.metrics import ServerStats

FIRST_LOOK_SECONDS = 0.05  # a request that begins at once has not waited
PLACE_SECONDS = 0.3  # from one look at the place in the queue to the next
MESSAGE_SECONDS = 0.001  # that a message takes: the event loop's and the socket's work for it
MAX_HOLD_SECONDS = 0.1  # from one message of a reply to the next
REPLY_FAILED = "the reply failed: the server's log has the reason"


def failure_text(event: FinishEvent) -> str:
    """Return what a client is told of an error: the reason if it is the model's, else that the log has it."""
    return event.message if event.message == NO_PROBABILITIES else REPLY_FAILED


class Update(NamedTuple):
    """An event of a completion, and the time at which it happened."""

    number: int  # of the completion
    event: TokenEvent | FinishEvent
    time: float  # of time.monotonic


class ReplyLoop(Protocol):
    """The part of `GenerationLoop` that the server uses. All methods may be called from any thread."""

    context_len: int

    def submit(self, request: GenerationRequest) -> None:
        """Queue a request. Raises `QueueFull`, and `UserError` if its prompt does not fit."""
        ...

    def cancel(self, request: GenerationRequest) -> None:
        """Free the row of a request at the next step, or its place in the queue."""
        ...

    def place(self, request: GenerationRequest) -> int:
        """Return 0 for a request that runs, else its place in the queue from 1."""
        ...

    @property
    def num_unfinished(self) -> int:
        """Number of requests that wait or run. It falls with their `FinishEvent`, so a loop that hangs fills up."""
        ...

    def stats(self) -> Mapping[str, Any]:
        """Return `running`, `waiting`, and further numbers; `ended` is 1 if the loop takes no more requests."""
        ...

    def close(self, seconds: float) -> None:
        """Take no more requests, end those that wait, and give those that run so many seconds."""
        ...


class Places(Protocol):
    """The part of `ChatService` that a generation uses: its places and those of the loops."""

    @property
    def stats(self) -> ServerStats:
        """Counters of the server."""
        ...

    @property
    def num_active(self) -> int:
        """Number of completions in progress."""
        ...

    def enter(self, generation: Generation) -> None:
        """Take the places of a generation. Raises `Refusal` if they are not free."""
        ...

    def leave(self, generation: Generation, outcome: str | None) -> None:
        """Give its places back, and count its outcome."""
        ...

    def submit(self, request: GenerationRequest, loop: ReplyLoop | None = None) -> ReplyLoop:
        """Give a request to a loop, and return it."""
        ...


class Mailbox:
    """Updates from other threads, taken by one coroutine in batches."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._updates: deque[Update] = deque()
        self._is_ready = asyncio.Event()
        self._is_woken = False
        self._is_waited_for = False  # `take` waits for any update; else only an end is worth a wake-up
        self._is_closed = False

    def post(self, index: int, event: TokenEvent | FinishEvent) -> None:
        """Add an event, from any thread."""
        self._updates.append(Update(index, event, time.monotonic()))
        is_urgent = self._is_waited_for or isinstance(event, FinishEvent)
        if is_urgent and not self._is_woken:  # two threads may both wake it, which does no harm
            self._is_woken = True
            try:
                self._loop.call_soon_threadsafe(self._is_ready.set)
            except RuntimeError:  # the event loop has ended, and nobody reads this any more
                pass

    def close(self) -> None:
        """End the wait in `take`, which waits no more."""
        self._is_closed = True
        self._is_ready.set()

    async def take(self, seconds: float | None = None, hold: float = 0.0) -> list[Update]:
        """Wait for updates and return all that are there: none after so many seconds without one, or after `close`.

        `hold`: seconds in which tokens gather first, until a completion ends.
        """
        if hold > 0:
            await self._wait(hold)
        self._is_waited_for = True  # before the look at the updates: later ones wake
        if not self._updates:
            await self._wait(seconds)
        self._is_waited_for = False
        return [self._updates.popleft() for _ in range(len(self._updates))]

    async def _wait(self, seconds: float | None) -> None:
        """Wait for a wake-up, at most so many seconds."""
        if self._is_closed:
            return
        timer = None if seconds is None else self._loop.call_later(seconds, self._is_ready.set)
        try:
            await self._is_ready.wait()
        finally:
            if timer is not None:
                timer.cancel()
        self._is_ready.clear()
        self._is_woken = False  # before the look at the updates: what is posted later wakes again


class Completion:
    """One completion: its request, the loop that it was given to, and its times."""

    def __init__(self, request: GenerationRequest) -> None:
        self.loop: ReplyLoop | None = None  # once it is submitted
        self.request = request
        self.num_tokens = 0
        self.first_time = 0.0  # of the first token, and of the last
        self.last_time = 0.0
        self.finish: str | None = None  # reason

    @property
    def tokens_per_second(self) -> float | None:
        """Speed after the first token; None if there are fewer than two."""
        seconds = self.last_time - self.first_time
        return round((self.num_tokens - 1) / seconds, 1) if self.num_tokens > 1 and seconds > 0 else None


class Generation:
    """The completions of a request. `start` gives them to the loops, `close` must be called however it ends."""

    def __init__(
        self,
        service: Places,
        prompts: Sequence[list[int]],
        params: SamplingParams,
        keys: Sequence[int],
        num_logprobs: int | None = None,
        client: str = "",
        given: Sequence[int] | None = None,
    ) -> None:
        """`prompts` and `keys` (of the random numbers) have an entry for each completion.

        `given`: the tokens of all completions, as of a quotation; then no loop is asked.
        """
        self._service = service
        self._mailbox = Mailbox()
        self.client = client
        self._given = given
        self.started = time.monotonic()
        self.completions: list[Completion] = []
        self.place = 0  # in the queue of the completion that begins last
        self._has_begun = False
        self._is_closed = False
        self.is_failed = False
        self.is_refused = False
        for index, (tokens, key) in enumerate(zip(prompts, keys, strict=True)):
            request = GenerationRequest(
                tokens=tokens,
                params=params,
                rng_key=key,
                num_logprobs=num_logprobs,
                on_event=partial(self._mailbox.post, index),
            )
            self.completions.append(Completion(request))

    def start(self) -> None:
        """Give all completions to a loop, those of a prompt to the same one. Raises `Refusal` if the server is full."""
        self._service.enter(self)
        if self._given is not None:
            for number, completion in enumerate(self.completions):
                self._post(number, self._given, completion.request.params.max_tokens)
            return
        try:
            for number, completion in enumerate(self.completions):
                previous = self.completions[max(0, number - 1)]
                is_same_prompt = previous.request.tokens == completion.request.tokens
                completion.loop = self._service.submit(completion.request, previous.loop if is_same_prompt else None)
        except BaseException:
            self.is_refused = True
            self.close()
            raise

    def _post(self, number: int, tokens: Sequence[int], max_tokens: int | None) -> None:
        """Post the events of a completion whose tokens are known."""
        is_cut = max_tokens is not None and len(tokens) > max_tokens
        for token in tokens[:max_tokens]:
            self._mailbox.post(number, TokenEvent(token, is_forced=False))
        self._mailbox.post(number, FinishEvent("length" if is_cut else "stop"))

    async def batches(self, *, is_whole: bool = False) -> AsyncGenerator[list[Update], None]:
        """Yield the updates of all completions until each has its `FinishEvent`, or was stopped.

        An empty batch means that the request waits, and that its `place` in the queue has changed. `is_whole`: nobody
        needs the tokens before a completion ends.
        """
        while any(completion.finish is None for completion in self.completions):
            if self._has_begun:
                updates = await self._mailbox.take(hold=MAX_HOLD_SECONDS if is_whole else self._hold())
            else:
                updates = await self._mailbox.take(PLACE_SECONDS if self.place else FIRST_LOOK_SECONDS)
            if updates:
                self._has_begun = True
                self.place = 0
                if updates := [update for update in updates if self._note(update)]:
                    yield updates
            elif (place := self._look()) != self.place and place:
                self.place = place
                yield []

    def stop(self, index: int, reason: str = "stop") -> None:
        """End a completion whose further tokens are not wanted."""
        completion = self.completions[index]
        if completion.finish is None:
            completion.finish = reason
            if completion.loop is not None:
                completion.loop.cancel(completion.request)

    def close(self) -> None:
        """End what is still generated, and give its places back. Does nothing the second time."""
        if self._is_closed:
            return
        self._is_closed = True
        is_complete = all(completion.finish is not None for completion in self.completions)
        for index in range(len(self.completions)):
            self.stop(index, "cancelled")
        self._mailbox.close()
        outcome = "answered" if is_complete else "stopped"
        self._service.leave(self, "failed" if self.is_failed else None if self.is_refused else outcome)

    @property
    def seconds_to_first_token(self) -> float | None:
        """Time from the request to the first token of all; None before it."""
        times = [completion.first_time for completion in self.completions if completion.num_tokens]
        return round(min(times) - self.started, 4) if times else None

    def _hold(self) -> float:
        """Return the seconds until the next message, 0 for a reply that is alone."""
        others = self._service.num_active - len(self.completions)
        return min(MAX_HOLD_SECONDS, others * MESSAGE_SECONDS)

    def _look(self) -> int:
        """Return the place in the queue, 0 if one of the completions is running."""
        if self._given is not None:
            return 0
        return min(each.loop.place(each.request) for each in self.completions if each.loop is not None)

    def _note(self, update: Update) -> bool:
        """Count an update. False for one of a completion that was stopped."""
        completion = self.completions[update.number]
        if completion.finish is not None:
            return False
        if isinstance(update.event, FinishEvent):
            completion.finish = update.event.reason
            if update.event.reason == "error":
                self.is_failed = True
                logging.getLogger(__name__).error("A reply failed: %s", update.event.message)
            return True
        stats = self._service.stats
        stats.add(tokens=1)
        if not completion.num_tokens:
            completion.first_time = completion.last_time = update.time
            stats.observe_first_token(update.time - self.started)
        elif self._given is None:  # a quotation has no speed
            stats.observe_token(update.time - completion.last_time)
            completion.last_time = update.time
        completion.num_tokens += 1
        return True
