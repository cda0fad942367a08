"""The web server: the chat page, and replies as server-sent events.

    GET  /                    the page, ui.html
    POST /chat/completions    a conversation (see chat_request.py) -> the reply to its last message
    GET  /health              readiness, model and device; default settings and limits of a request; example questions
    GET  /stats               counters since the server started

The format of `POST /chat/completions` is nanochat's own, not OpenAI's. A reply is a stream of events, each followed by
a blank line:

    data: {"kind": ..., "text": ...}

Kinds: those of a `Chunk` in serving/chat_session.py (text, python, python_output), "waiting" if every copy of the
model is busy, and at the end "error" or "done". "done" also has `finish` ("stop": the model ended the reply; "length":
it was cut off), `tokens` (their number) and `dropped` (the number of old messages that did not fit into the context).

With an index of a user's documents, "done" also has `sources`: the passages nearest to question and answer, a list of
{"document", "headings", "text", "score", "given"}, the last of them true if the model has read the passage before the
question. For replies that are stopped, an event "sources" comes before the first chunk, with those of the question.

Each copy of the model generates one reply at a time, in a thread; further requests wait in a queue. A client that
closes its connection leaves the queue, or stops its reply at the next token. If the queue is full, a request is refused
with status 503. Conversations are neither stored nor logged. Every route refuses requests that are meant for another
host or come from the page of another site (see host_check.py); connections.py limits connections and what they send.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import logging
import re
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from nanochat.common import UserError
from nanochat.engine import Engine
from nanochat.layers.sampling_params import SamplingParams
from nanochat.serving.chat_request import LIMITS, SAMPLING_FIELDS, ChatRequest, parse_request, shorten
from nanochat.serving.chat_session import ChatPrompt, Chunk, Message, Reply, fit_prompt, to_content
from nanochat.serving.host_check import HostCheck, HostRules
from nanochat.serving.log_limit import limited_log
from nanochat.serving.sources import DocumentSources, Source, SourcesFault

PAGE = Path(__file__).resolve().parents[1] / "ui.html"
MAX_BODY_BYTES = 1_000_000  # of a request: more than the longest conversation needs, however it is escaped
BODY_SECONDS = 60  # to read a body; connections.py has a shorter limit
RETRY_SECONDS = 10  # after which a client should try again if the queue is full

Event = dict[str, Any]  # the data of a server-sent event


class ServerStats:
    """Counters of the server, updated by several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # refused: by any rule or limit; stopped: replies whose connection was closed; waiting, in_flight: now
        names = ("requests", "refused", "answered", "stopped", "failed", "waiting", "in_flight", "tokens")
        self._counts = dict.fromkeys(names, 0)
        self._generation_seconds = 0.0  # summed over all copies of the model

    def add(self, seconds: float = 0.0, **amounts: int) -> None:
        """Add to the named counters, and `seconds` to the time spent on generation."""
        with self._lock:
            self._generation_seconds += seconds
            for name, amount in amounts.items():
                self._counts[name] += amount

    def snapshot(self) -> dict[str, float]:
        """Return all counters, and the tokens per second of one copy of the model."""
        with self._lock:
            speed = self._counts["tokens"] / self._generation_seconds if self._generation_seconds else 0.0
            return {**self._counts, "tokens_per_second": round(speed, 1)}


@dataclass
class GenerationJob:
    """A reply to generate. Setting `cancelled` stops it at its next token."""

    prompt: ChatPrompt
    params: SamplingParams
    messages: Sequence[Message] = ()  # the conversation, and the sources of its last question; None without an index
    sources: list[Source] | None = None
    cancelled: threading.Event = field(default_factory=threading.Event)
    is_waiting: bool = False


class ChatService:
    """The copies of a model, and the queue of requests that wait for one.

    `name` is the model's name on the page, `max_waiting` the length of the queue; `hosts` are answered to. `sources`:
    of a user's documents; closed with the service.
    """

    def __init__(
        self,
        engines: Sequence[Engine],
        name: str,
        defaults: SamplingParams,
        max_waiting: int = 32,
        hosts: HostRules | None = None,
        sources: DocumentSources | None = None,
    ) -> None:
        self.sources = sources
        self.engines = list(engines)
        self.name = name
        self.defaults = defaults
        self.max_waiting = max_waiting
        self.hosts = hosts or HostRules()
        self._num_waiting = 0
        self.stats = ServerStats()
        self.is_stopping = threading.Event()
        self._threads = ThreadPoolExecutor(len(self.engines), thread_name_prefix="generate")
        self._free_engines: asyncio.Queue[Engine] = asyncio.Queue()
        for engine in self.engines:
            self._free_engines.put_nowait(engine)

    def prepare(self, request: ChatRequest) -> GenerationJob:
        """Fit the conversation of a request into the context. Raises `UserError` if its last message is too long."""
        engine, messages, params = self.engines[0], request.messages, request.params
        if self.sources is None:
            return GenerationJob(fit_prompt(engine, messages, params), params)
        with _logged_fault():
            prompt, sources = self.sources.prepare(engine, messages, params)
        return GenerationJob(prompt, params, messages, sources)

    def count_refusal(self) -> None:
        """Count a request that was refused before it came to its route."""
        self.stats.add(requests=1, refused=1)

    def refusal(self) -> str | None:
        """Return a reason if no further request may wait, else None."""
        if self.is_stopping.is_set():
            return "the server is shutting down"
        if self._free_engines.empty() and self._num_waiting >= self.max_waiting:
            return f"the server is busy, and {self._num_waiting} requests are waiting already: try again later"
        return None

    def enter_queue(self, job: GenerationJob) -> None:
        """Give a job its place in the queue, which `events` or `leave_queue` gives back."""
        job.is_waiting = True
        self._num_waiting += 1
        self.stats.add(waiting=1)

    def leave_queue(self, job: GenerationJob) -> None:
        """Give the place of a job back, unless that is done."""
        if job.is_waiting:
            job.is_waiting = False
            self._num_waiting -= 1
            self.stats.add(waiting=-1)

    async def events(self, job: GenerationJob) -> AsyncGenerator[Event, None]:
        """Yield the events of a reply. Closing the generator stops the reply and frees its engine."""
        try:
            if self._free_engines.empty():
                yield {"kind": "waiting", "text": ""}
            engine = await self._free_engines.get()
        finally:
            self.leave_queue(job)
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[Event] = asyncio.Queue()

        def emit(event: Event) -> None:  # called from the thread that generates
            loop.call_soon_threadsafe(events.put_nowait, event)

        future = loop.run_in_executor(self._threads, self._generate, engine, job, emit)
        # The engine is free when the thread has left it, which may be after this generator was closed.
        future.add_done_callback(lambda _: self._free_engines.put_nowait(engine))
        try:
            while True:
                event = await events.get()
                yield event
                if event["kind"] in ("done", "error"):
                    return
        finally:
            job.cancelled.set()

    def _generate(self, engine: Engine, job: GenerationJob, emit: Callable[[Event], object]) -> None:
        """Generate a reply, in a thread. Every error becomes an event."""
        self.stats.add(in_flight=1)
        outcome = "failed"
        final_event: Event = {"kind": "error", "text": "the reply failed: the server's log has the reason"}
        try:
            if job.sources is not None:
                emit({"kind": "sources", "text": "", "sources": [source.as_json() for source in job.sources]})
            reply = Reply(engine, job.prompt, job.params, on_token=self._token_counter(job))
            chunks = []
            for chunk in reply:
                chunks.append(chunk)
                emit(asdict(chunk))
            outcome = "stopped" if self._is_cancelled(job) else "answered"
            if self.is_stopping.is_set():
                final_event = {"kind": "error", "text": "the server is shutting down"}
            else:
                final_event = {
                    "kind": "done",
                    "text": "",
                    "finish": "stop" if reply.has_ended else "length",
                    "tokens": len(reply.tokens),
                    "dropped": reply.num_dropped,
                    **self._sources_of(job, chunks),
                }
        except UserError as error:
            final_event = {"kind": "error", "text": shorten(str(error))}
        except Exception:
            logging.getLogger(__name__).exception("A reply failed")
        self.stats.add(in_flight=-1, **{outcome: 1})
        if not job.cancelled.is_set():
            emit(final_event)

    def _sources_of(self, job: GenerationJob, chunks: Sequence[Chunk]) -> Event:
        """Return the field `sources` of the last event, if there is an index."""
        if self.sources is None or job.sources is None:
            return {}
        with _logged_fault():
            found = self.sources.find(job.messages, to_content(chunks), job.sources)
        return {"sources": [source.as_json() for source in found]}

    def _token_counter(self, job: GenerationJob) -> Callable[[], bool]:
        """Return a callback for each token that updates the counters, and returns False if the job is cancelled."""
        previous = time.monotonic()

        def on_token() -> bool:
            nonlocal previous
            if self._is_cancelled(job):
                return False
            now = time.monotonic()
            self.stats.add(tokens=1, seconds=now - previous)
            previous = now
            return True

        return on_token

    def _is_cancelled(self, job: GenerationJob) -> bool:
        return job.cancelled.is_set() or self.is_stopping.is_set()

    async def close(self) -> None:
        """Stop all replies at their next token, and wait for their threads."""
        self.is_stopping.set()
        await asyncio.to_thread(self._threads.shutdown)
        if self.sources is not None:
            self.sources.close()


class EventStreamResponse(StreamingResponse):
    """A response of server-sent events. However the connection ends, the generator of the events is closed at once."""

    def __init__(self, events: AsyncGenerator[Event, None], on_end: Callable[[], object]) -> None:
        async def lines() -> AsyncIterator[str]:
            async for event in events:
                yield f"data: {json.dumps(event, ensure_ascii=False)}\n\n"
                await asyncio.sleep(0)  # where many events are ready: serve other tasks, and notice a disconnect

        self.events = events
        self.on_end = on_end  # called even if the generator of the events was never started
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}  # proxies must not buffer the stream
        super().__init__(lines(), media_type="text/event-stream", headers=headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response, as ASGI defines it."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self.body_iterator.aclose()  # type: ignore[attr-defined]
            await self.events.aclose()
            self.on_end()


# Routes

router = APIRouter()


@router.get("/")
async def page() -> Response:
    """The page. Its security policy allows no other script than its own, whatever a model or a user writes."""
    text = PAGE.read_text(encoding="utf-8")
    [script] = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
    policy = (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; img-src data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return HTMLResponse(text, headers={"Content-Security-Policy": policy, "Cache-Control": "no-cache"})


@router.get("/health")
async def health(request: Request) -> dict[str, Any]:
    """Readiness, model and device, default settings and limits of a request, example questions about documents."""
    service: ChatService = request.app.state.service
    return {
        "ready": not service.is_stopping.is_set(),
        "model": service.name,
        "device": ", ".join(str(engine.model.device) for engine in service.engines),
        "defaults": {name: getattr(service.defaults, name) for name in SAMPLING_FIELDS},
        "limits": asdict(LIMITS),
        "examples": service.sources.examples if service.sources else [],
    }


@router.get("/stats")
async def stats(request: Request) -> dict[str, float]:
    """The counters of the server."""
    service: ChatService = request.app.state.service
    return service.stats.snapshot()


@router.post("/chat/completions")
async def complete(request: Request) -> Response:
    """The reply to the last message, as events; status 4xx and `{"error": reason}` if the request is refused."""
    service: ChatService = request.app.state.service
    service.stats.add(requests=1)
    try:
        if reason := service.refusal():
            raise _Refused(503, reason)
        body = await _read_body(request)
        chat_request = parse_request(body, service.defaults)
        job = await asyncio.to_thread(service.prepare, chat_request)
        if reason := service.refusal():
            raise _Refused(503, reason)
    except UserError as error:
        service.stats.add(refused=1)
        status = error.status if isinstance(error, _Refused) else 400
        headers = {"Retry-After": str(RETRY_SECONDS)} if status == 503 else None
        return JSONResponse({"error": shorten(str(error))}, status, headers)
    except ClientDisconnect:  # before the body was complete: this response is never sent
        return Response(status_code=400)
    service.enter_queue(job)
    return EventStreamResponse(service.events(job), partial(service.leave_queue, job))


class _Refused(UserError):
    """A refusal with another status than 400."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


@contextmanager
def _logged_fault() -> Iterator[None]:
    """Context that logs why the documents cannot be searched, which names files, and tells the client only that."""
    try:
        yield
    except SourcesFault as error:
        logging.getLogger(__name__).error("The documents cannot be searched: %s", error)
        raise _Refused(500, "the documents cannot be searched: the server's log has the reason") from error


async def _read_body(request: Request) -> bytes:
    """Return the body of a request, unless it has the wrong type, is too long or takes too long."""
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != "application/json":  # this rule also keeps the pages of other sites from posting here
        raise _Refused(415, f"the content type is {content_type[:50]!r}: must be application/json")

    async def read() -> bytes:
        body = bytearray()
        async for data in request.stream():
            body += data
            if len(body) > MAX_BODY_BYTES:
                raise _Refused(413, f"the body has more than {MAX_BODY_BYTES} bytes: send fewer or shorter messages")
        return bytes(body)

    try:
        return await asyncio.wait_for(read(), BODY_SECONDS)
    except asyncio.TimeoutError:  # of Python 3.10
        raise _Refused(408, f"the body did not arrive within {BODY_SECONDS} seconds") from None


def create_app(load: Callable[[], ChatService]) -> FastAPI:
    """Build the application. `load` is called when the application starts, not before."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        with limited_log():
            app.state.service = service = await asyncio.to_thread(load)
            yield
            await service.close()

    # FastAPI's documentation pages are disabled: they load scripts from other sites.
    app = FastAPI(title="nanochat", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(HostCheck)
    app.include_router(router)
    return app
