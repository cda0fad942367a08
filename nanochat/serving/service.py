"""The served model: its generation loops, who may use them, and how they stop.

A loop (inference/generation_loop.py, or in a process of its own replicas/process_loop.py) runs one copy of the model
and decodes many completions at once. A request goes to the copy that has read its beginning, else to the one with the
fewest (replicas/prefix_router.py). `max_rows` completions of a loop run, the others wait; if `max_waiting` wait, a
request is refused with status 429.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from starlette.types import Scope

from nanochat.common import UserError
from nanochat.inference.generation_loop import LoopClosed, LoopFailed, QueueFull
from nanochat.inference.generation_request import GenerationRequest
from nanochat.layers.sampler import rng_keys
from nanochat.layers.sampling_params import SamplingParams
from nanochat.replicas.prefix_router import PrefixRouter
from nanochat.serving.access import AccessRules
from nanochat.serving.chat_session import ChatPrompt, Content, Message, beginning_ids, fit_prompt
from nanochat.serving.generation import Generation, ReplyLoop
from nanochat.serving.host_check import HostRules
from nanochat.serving.metrics import ServerStats
from nanochat.serving.refusals import Refusal
from nanochat.serving.sources import DocumentSources, Source, SourcesFault
from nanochat.tokenizer import Tokenizer

SHUTTING_DOWN = "the server is shutting down"
MODEL_FAILED = "the model has failed: the server's log has the reason"
RESERVED_PLACES = 8
RESERVED_FOR = 2  # completions of a client, with the new ones
_OUT_OF_REACH = 1 << 30  # load of a loop that has ended


@dataclass(frozen=True)
class ServedModel:
    """The model as its clients see it.

    `id`: its name in OpenAI's API; `created`: when it was loaded (Unix time); `fingerprint`: of its weights.
    """

    name: str
    id: str
    tokenizer: Tokenizer
    context_len: int
    device: str = "cpu"
    created: int = 0
    fingerprint: str = ""
    examples: tuple[str, ...] = ()  # questions for an empty conversation, of what the model was trained on


@dataclass(frozen=True)
class ServiceLimits:
    """Limits of the service: rows of each loop, completions that wait, completions of one client.

    A client that has little in progress may wait in one of `RESERVED_PLACES` more if others have taken all: nobody can
    lock the others out.
    """

    max_rows: int = 64
    max_waiting: int = 32
    max_per_client: int | None = None
    shutdown_seconds: float = 8.0


DEFAULT_LIMITS = ServiceLimits()


@dataclass(frozen=True)
class ReplyJob:
    """A reply to generate: its prompt, and the sources of the conversation's last question; None without an index.

    `reply`: its text, if it is a quotation of the documents or says that they do not answer; then nothing is generated.
    """

    prompt: ChatPrompt
    params: SamplingParams
    messages: Sequence[Message] = ()
    sources: list[Source] | None = field(default=None)
    reply: str | None = None


class ChatService:
    """The copies of a model, and the requests that they answer.

    `hosts` are answered to, `access` says who may use the routes. `sources`: of a user's documents; closed with the
    service.
    """

    def __init__(
        self,
        loops: Sequence[ReplyLoop],
        model: ServedModel,
        defaults: SamplingParams,
        limits: ServiceLimits = DEFAULT_LIMITS,
        hosts: HostRules | None = None,
        access: AccessRules | None = None,
        sources: DocumentSources | None = None,
        log: str = "off",
    ) -> None:
        self.loops = list(loops)
        self.model = model
        self.defaults = defaults
        self.limits = limits
        self.hosts = hosts or HostRules()
        self.access = access or AccessRules()
        self.sources = sources
        self.log = log
        self.stats: ServerStats = ServerStats(lambda: [loop.stats() for loop in self.loops])
        self.is_stopping = False
        self.is_output_stuck = False  # nobody reads the log: writing to it would wait for ever
        self._closing: asyncio.Future[None] | None = None
        self._num_active = 0  # completions
        self._num_of_client: Counter[str] = Counter()
        self._router = PrefixRouter()

    @property
    def examples(self) -> list[str]:
        """Example questions: about the documents, else of what the model was trained on."""
        return (self.sources.examples if self.sources else []) or list(self.model.examples)

    @property
    def capacity(self) -> int:
        """Completions that may run or wait at once."""
        return self._capacity(self._lives())

    def _capacity(self, lives: Sequence[bool]) -> int:
        return self.limits.max_rows * sum(lives) + self.limits.max_waiting

    @property
    def is_ready(self) -> bool:
        """True while requests are accepted: the server is not stopping, and a loop still runs."""
        return not self.is_stopping and any(self._lives())

    def _lives(self) -> list[bool]:
        """For each loop, True if it has not ended."""
        return [not loop.stats().get("ended") for loop in self.loops]

    # Prompts

    def prepare(self, messages: Sequence[Message], params: SamplingParams, beginning: Content = "") -> ReplyJob:
        """Fit a conversation into the context, and the beginning of its reply, if that is to be continued.

        Raises `UserError` if the last message or the beginning is too long.
        """
        ids = beginning_ids(self.model.tokenizer, beginning)
        if len(ids) >= self.model.context_len:
            context = self.model.context_len
            raise UserError(f"the beginning of the reply has {len(ids)} tokens: the context is {context}")
        model = replace(self.model, context_len=self.model.context_len - len(ids))
        if self.sources is None:
            return ReplyJob(_continued(fit_prompt(model, messages, params), ids), params)
        with logged_fault():
            prompt, sources, reply = self.sources.prepare(model, messages, params, can_quote=not beginning)
        return ReplyJob(_continued(prompt, ids), params, messages, sources, reply)

    def generation(
        self,
        prompts: Sequence[list[int]],
        params: SamplingParams,
        client: str,
        num_logprobs: int | None = None,
        reply: str | None = None,
    ) -> Generation:
        """Return the completions of some prompts, each `params.num_samples` times. They have not been started.

        Completion i has key i of the seed, so that it is the same however many others are asked for. `reply`: the text
        of all, if nothing is to be generated.
        """
        keys = rng_keys(params.draw_seed(), len(prompts) * params.num_samples).tolist()
        repeated = [prompt for prompt in prompts for _ in range(params.num_samples)]
        given = None if reply is None else self.model.tokenizer.encode(reply, append="<|assistant_end|>")
        return Generation(self, repeated, params, keys, num_logprobs, client, given)

    # Places

    @property
    def num_active(self) -> int:
        """Number of completions in progress."""
        return self._num_active

    def check_places(self, client: str, count: int = 1) -> None:
        """Raise `Refusal` if so many further completions of a client cannot be accepted now."""
        if self.is_stopping:
            raise Refusal(503, SHUTTING_DOWN)
        lives = self._lives()
        if not any(lives):
            raise Refusal(503, MODEL_FAILED)
        capacity = self._capacity(lives)
        most = min(capacity, self.limits.max_per_client or capacity)
        if count > most:
            raise Refusal(400, f"{count} replies are asked for: this server takes at most {most} at once", "n")
        is_modest = self._num_of_client[client] + count <= RESERVED_FOR
        if self._num_active + count > capacity + (RESERVED_PLACES if is_modest else 0):
            num_waiting = max(0, self._num_active - (capacity - self.limits.max_waiting))
            raise Refusal(429, f"the server is busy, and {num_waiting} requests are waiting already: try again later")
        limit = self.limits.max_per_client
        if limit is not None and self._num_of_client[client] + count > limit:
            raise Refusal(429, f"this client has {self._num_of_client[client]} replies in progress: at most {limit}")

    def enter(self, generation: Generation) -> None:
        """Take the places of a generation, which `leave` gives back. Raises `Refusal` if they are not free."""
        count = len(generation.completions)
        self.check_places(generation.client, count)
        self._num_active += count
        self._num_of_client[generation.client] += count
        self.stats.begin()

    def leave(self, generation: Generation, outcome: str | None) -> None:
        """Give the places of a generation back, and count its outcome."""
        count = len(generation.completions)
        self._num_active -= count
        self._num_of_client[generation.client] -= count
        if not self._num_of_client[generation.client]:
            del self._num_of_client[generation.client]
        self.stats.end()
        if outcome is not None:
            self.stats.add(**{outcome: 1})

    def submit(self, request: GenerationRequest, loop: ReplyLoop | None = None) -> ReplyLoop:
        """Give a request to the given loop, else to the best one (`PrefixRouter`), or to the next one that takes it.

        Raises `Refusal` if none does.
        """
        faults: list[UserError] = []
        for index in self._order(request.tokens, loop):
            try:
                self.loops[index].submit(request)
            except (QueueFull, LoopClosed) as error:
                faults.append(error)
                continue
            if len(self.loops) > 1:
                self._router.note(request.tokens, index)
            return self.loops[index]
        for fault in faults:
            if isinstance(fault, QueueFull):
                raise Refusal(429, f"the server is busy ({fault}): try again later") from fault
        has_failed = any(isinstance(fault, LoopFailed) for fault in faults)
        raise Refusal(503, MODEL_FAILED if has_failed else str(faults[0])) from faults[0]

    def _order(self, tokens: Sequence[int], loop: ReplyLoop | None) -> list[int]:
        """Return the loops in the order in which they are asked."""
        if len(self.loops) == 1:
            return [0]
        lives = self._lives()
        loads = [
            loop.num_unfinished if is_alive else _OUT_OF_REACH for loop, is_alive in zip(self.loops, lives, strict=True)
        ]
        order = self._router.order(tokens, loads)
        return order if loop is None else sorted(order, key=lambda index: self.loops[index] is not loop)

    def count_request(self, scope: Scope) -> None:
        """Count a request for replies."""
        scope.setdefault("state", {})["is_counted"] = True
        self.stats.add(requests=1)

    def count_refusal(self, scope: Scope | None = None) -> None:
        """Count a refused request, of which `requests` may have been told already (`count_request`)."""
        is_counted = scope is not None and scope.get("state", {}).get("is_counted", False)
        self.stats.add(requests=0 if is_counted else 1, refused=1)

    # The end

    def begin_shutdown(self) -> None:
        """Accept no more requests. What runs may end (`close`)."""
        self.is_stopping = True

    async def close(self) -> None:
        """Tell the requests that wait, and give those that run `limits.shutdown_seconds`. May be called again."""
        self.begin_shutdown()
        if self._closing is None:
            self._closing = asyncio.ensure_future(self._close())
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        seconds = self.limits.shutdown_seconds
        await asyncio.gather(*(asyncio.to_thread(loop.close, seconds) for loop in self.loops))
        if self.sources is not None:
            self.sources.close()


@contextmanager
def logged_fault() -> Iterator[None]:
    """Context that logs why the documents cannot be searched, which names files, and tells the client only that."""
    try:
        yield
    except SourcesFault as error:
        logging.getLogger(__name__).error("The documents cannot be searched: %s", error)
        raise Refusal(500, "the documents cannot be searched: the server's log has the reason") from error


def _continued(prompt: ChatPrompt, beginning: list[int]) -> ChatPrompt:
    """The prompt with the beginning of the reply."""
    return prompt._replace(tokens=[*prompt.tokens, *beginning])
