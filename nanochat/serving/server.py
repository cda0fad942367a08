"""The web server: the chat page, and replies as server-sent events.

    GET  /                    the page, ui.html
    POST /chat/completions    a conversation (see chat_request.py) -> the reply to its last message
    GET  /health              readiness, model and device; default settings and limits of a request; example questions
    GET  /health/live         200 while the process answers
    GET  /health/ready        200 while requests are accepted, else 503
    GET  /stats               counters since the server started
    GET  /metrics             the same and more for Prometheus

OpenAI's API is in nanochat/openai_api/, and is added to this application by `create_app`.

The format of `POST /chat/completions` is nanochat's own. A reply is a stream of events, each followed by a blank line:

    data: {"kind": ..., "text": ...}

Kinds: those of a `Chunk` in serving/chat_session.py (text, python, python_output), "waiting" while the request is in
the queue, with its `place` (1 = next; sent again when it changes), and at the end "error" or "done". "done" also has

    finish                   "stop": the model ended the reply; "length": it was cut off
    tokens                   number of tokens of the reply
    dropped                  number of old messages that did not fit into the context
    seconds_to_first_token   from the arrival of the request
    tokens_per_second        after the first token; null if there is no second one

With an index of a user's documents, "done" also has `sources`: the passages nearest to question and answer, a list of
{"document", "headings", "text", "score", "given"}, the last of them true if the model has read the passage before the
question. For replies that are stopped, an event "sources" comes before the first chunk, with those of the question.

The model decodes many replies at once, in a thread of its own (service.py). A client that closes its connection leaves
the queue, or its row at the next step. If the queue is full, a request is refused with status 429 and `Retry-After`;
while the server stops, with 503. Conversations are neither stored nor logged. Every route refuses requests that are
meant for another host or come from the page of another site (host_check.py), or that lack the API key (access.py);
connections.py limits connections and what they send.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from nanochat.common import UserError
from nanochat.inference.generation_request import FinishEvent
from nanochat.serving.access import AccessCheck, client_of
from nanochat.serving.chat_request import LIMITS, SAMPLING_FIELDS, parse_request, shorten
from nanochat.serving.chat_session import Chunk, ChunkDecoder, to_content
from nanochat.serving.generation import Generation, failure_text
from nanochat.serving.host_check import HostCheck
from nanochat.serving.log_limit import limited_log
from nanochat.serving.metrics import CONTENT_TYPE
from nanochat.serving.refusals import Refusal, error_body, error_response, route_path
from nanochat.serving.request_log import RequestLog, log_facts
from nanochat.serving.service import SHUTTING_DOWN, ChatService, ReplyJob, logged_fault

PAGE = Path(__file__).resolve().parents[1] / "ui.html"
MAX_BODY_BYTES = 1_000_000  # of a request: more than the longest conversation needs, however it is escaped
BODY_SECONDS = 60  # to read a body; connections.py has a shorter limit

Event = dict[str, Any]  # the data of a server-sent event


async def chat_events(service: ChatService, job: ReplyJob, generation: Generation) -> AsyncGenerator[list[Event], None]:
    """Yield the events of a reply, those together that are ready together."""
    decoder = ChunkDecoder(service.model.tokenizer)
    chunks: list[Chunk] = []
    has_begun = False
    async for updates in generation.batches():
        if not updates:
            yield [{"kind": "waiting", "text": "", "place": generation.place}]
            continue
        events: list[Event] = []
        if job.sources is not None and not has_begun:
            events.append({"kind": "sources", "text": "", "sources": [source.as_json() for source in job.sources]})
        has_begun = True
        for update in updates:
            new = decoder.flush() if isinstance(update.event, FinishEvent) else decoder.push(update.event.token)
            chunks += new
            events += [asdict(chunk) for chunk in new]
            if isinstance(update.event, FinishEvent):
                events.append(await _last_event(service, job, generation, update.event, chunks))
        yield events


async def _last_event(
    service: ChatService, job: ReplyJob, generation: Generation, finish: FinishEvent, chunks: Sequence[Chunk]
) -> Event:
    """Return the event "done", or "error" if the reply failed."""
    if finish.reason == "error":
        return {"kind": "error", "text": failure_text(finish)}
    if finish.reason not in ("stop", "length"):
        return {"kind": "error", "text": SHUTTING_DOWN}
    [completion] = generation.completions
    event: Event = {
        "kind": "done",
        "text": "",
        "finish": finish.reason,
        "tokens": completion.num_tokens,
        "dropped": job.prompt.num_dropped,
        "seconds_to_first_token": generation.seconds_to_first_token,
        "tokens_per_second": completion.tokens_per_second,
    }
    if service.sources is None or job.sources is None:
        return event
    try:
        with logged_fault():
            found = await asyncio.to_thread(service.sources.find, job.messages, to_content(chunks), job.sources)
    except Refusal as error:
        generation.is_failed = True
        return {"kind": "error", "text": shorten(str(error))}
    return {**event, "sources": [source.as_json() for source in found]}


class EventStreamResponse(StreamingResponse):
    """A response of server-sent events. However the connection ends, the generation is closed at once."""

    def __init__(self, texts: AsyncGenerator[str, None], generation: Generation) -> None:
        async def paced() -> AsyncIterator[str]:
            async for text in texts:
                yield text
                await asyncio.sleep(0)  # where many events are ready: serve other tasks, and notice a disconnect

        self._texts = texts
        self._generation = generation
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}  # proxies must not buffer the stream
        super().__init__(paced(), media_type="text/event-stream", headers=headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response, as ASGI defines it."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._generation.close()
            log_generation(scope, self._generation)
            await self.body_iterator.aclose()  # type: ignore[attr-defined]
            await self._texts.aclose()


def log_generation(scope: Scope, generation: Generation) -> None:
    """Add the numbers of a generation to the line of its request."""
    log_facts(
        scope,
        prompt_tokens=len(generation.completions[0].request.tokens),
        completion_tokens=sum(completion.num_tokens for completion in generation.completions),
        first_token_seconds=generation.seconds_to_first_token,
    )


def as_event_text(data: Any) -> str:
    """Return the text of a server-sent event."""
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n"


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
    """Readiness, model and device, default settings and limits of a request, example questions.

    `needs_key`: replies need an API key. A request without it is told no more than that and the model's name.
    """
    service: ChatService = request.app.state.service
    public = {
        "ready": service.is_ready,
        "model": service.model.name,
        "needs_key": service.access.api_key is not None,
    }
    if not service.access.has_key(request.scope):
        return public
    return {
        **public,
        "device": service.model.device,
        "defaults": {name: getattr(service.defaults, name) for name in SAMPLING_FIELDS},
        "limits": asdict(LIMITS),
        "context": service.model.context_len,
        "examples": service.examples,
        "continues": True,  # a reply whose beginning is the last message
    }


@router.get("/health/live")
async def live() -> dict[str, bool]:
    """True while the process answers."""
    return {"live": True}


@router.get("/health/ready")
async def ready(request: Request) -> Response:
    """Status 200 while requests are accepted, else 503."""
    service: ChatService = request.app.state.service
    return JSONResponse({"ready": service.is_ready}, 200 if service.is_ready else 503)


@router.get("/stats")
async def stats(request: Request) -> dict[str, Any]:
    """The counters of the server."""
    service: ChatService = request.app.state.service
    return service.stats.snapshot()


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """The counters of the server for Prometheus."""
    service: ChatService = request.app.state.service
    return Response(service.stats.prometheus(), headers={"Content-Type": CONTENT_TYPE})


@router.post("/chat/completions")
async def complete(request: Request) -> Response:
    """The reply to the last message, as events; status 4xx and `{"error": reason}` if the request is refused."""
    service: ChatService = request.app.state.service
    service.count_request(request.scope)
    client = client_of(request.scope)
    service.check_places(client)
    chat_request = parse_request(await read_body(request), service.defaults)
    beginning = chat_request.beginning
    job = await asyncio.to_thread(service.prepare, chat_request.messages, chat_request.params, beginning)
    generation = service.generation([job.prompt.tokens], job.params, client, reply=job.reply)
    generation.start()

    async def texts() -> AsyncGenerator[str, None]:
        async for events in chat_events(service, job, generation):
            yield "".join(map(as_event_text, events))

    return EventStreamResponse(texts(), generation)


async def read_body(request: Request) -> bytes:
    """Return the body of a request. Raises `Refusal` if it has the wrong type, is too long or takes too long."""
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != "application/json":  # this rule also keeps the pages of other sites from posting here
        raise Refusal(415, f"the content type is {content_type[:50]!r}: must be application/json")

    async def read() -> bytes:
        body = bytearray()
        async for data in request.stream():
            body += data
            if len(body) > MAX_BODY_BYTES:
                raise Refusal(413, f"the body has more than {MAX_BODY_BYTES} bytes: send fewer or shorter messages")
        return bytes(body)

    try:
        return await asyncio.wait_for(read(), BODY_SECONDS)
    except asyncio.TimeoutError:  # of Python 3.10
        raise Refusal(408, f"the body did not arrive within {BODY_SECONDS} seconds") from None


# The application


async def _refuse(request: Request, error: Exception) -> Response:
    """The response to a request that is refused while its route runs."""
    assert isinstance(error, UserError), f"{type(error)} is no refusal"
    request.app.state.service.count_refusal(request.scope)
    return error_response(route_path(request.scope), error)


async def _refuse_path(request: Request, error: Exception) -> Response:
    """The response to a request for what is no route, or with a method that it does not have."""
    assert isinstance(error, HTTPException), f"{type(error)} has no status"
    path = route_path(request.scope)
    reason = "no such route" if error.status_code == 404 else f"{error.detail}: see /openapi.json"
    return JSONResponse(error_body(path, Refusal(error.status_code, reason)), error.status_code, error.headers)


async def _give_up(request: Request, error: Exception) -> Response:  # noqa: ARG001
    """The response to a request whose client has left before the body was complete: it is never sent."""
    return Response(status_code=400)


async def _report_failure(request: Request, error: Exception) -> Response:  # noqa: ARG001
    """The response if something else fails. The server logs the traceback."""
    reason = "the request failed: the server's log has the reason"
    return JSONResponse(error_body(route_path(request.scope), Refusal(500, reason)), 500)


def create_app(load: Callable[[], ChatService], *routers: APIRouter) -> FastAPI:
    """Build the application, with further routes. `load` is called when the application starts, not before."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        with limited_log():
            app.state.service = service = await asyncio.to_thread(load)
            yield
            await service.close()

    # FastAPI's documentation pages are disabled: they load scripts from other sites.
    app = FastAPI(title="nanochat", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(AccessCheck)
    app.add_middleware(HostCheck)
    app.add_middleware(RequestLog)  # the last one is the outermost
    app.add_exception_handler(UserError, _refuse)
    app.add_exception_handler(HTTPException, _refuse_path)
    app.add_exception_handler(ClientDisconnect, _give_up)
    app.add_exception_handler(Exception, _report_failure)
    for each in (router, *routers):
        app.include_router(each)
    return app
