"""The web server of a chat: the page, and answers as server-sent events.

    GET  /                    the page, ui.html
    POST /chat/completions    a conversation (see chat_request.py) -> the answer to its last message
    GET  /health              whether it is ready, with which model, where; defaults and limits
    GET  /stats               what it has done since it started, and does now

An answer is a stream of events, `data: {"kind": ..., "text": ...}` and a blank line. Kinds: text, python, python_output
(see `chat.Piece`), waiting (every copy of the model is busy), and at the end error or done. done also has `finish`
(stop: the model ended its answer; length: it was cut), `tokens`, and `dropped`, the old messages that did not fit.

Each copy of the model writes one answer at a time, in a thread; who comes meanwhile waits in line. A connection that is
closed leaves the line, or stops its answer at the next token. What users say is neither kept nor logged.
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
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from nanochat.common import UserError
from nanochat.engine import Engine
from nanochat.layers.sampling_params import SamplingParams
from nanochat.serving.chat_request import LIMITS, PARAMS, read_request
from nanochat.serving.chat_session import fit_messages, has_ended, pieces

PAGE = Path(__file__).resolve().parents[1] / "ui.html"
MAX_BYTES = 1_000_000  # of a request: more than the longest conversation needs, however it is escaped

Event = dict[str, Any]


class Stats:
    """What the server has done and does now, counted by several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[str, int] = dict.fromkeys(
            # stopped: by a closed connection. seconds_writing: over all copies of the model
            ("requests", "refused", "answered", "stopped", "failed", "waiting", "in_flight", "tokens"),
            0,
        )
        self._seconds = 0.0

    def count(self, seconds: float = 0.0, **by: int) -> None:
        """Add to these counts; `seconds` were spent on writing."""
        with self._lock:
            self._seconds += seconds
            for name, amount in by.items():
                self._counts[name] += amount

    def shown(self) -> dict[str, float]:
        """All counts, and the tokens that a copy of the model writes in a second."""
        with self._lock:
            speed = self._counts["tokens"] / self._seconds if self._seconds else 0.0
            return {**self._counts, "tokens_per_second": round(speed, 1)}


@dataclass
class Job:
    """One answer: what to write, and the word that nobody wants it any more."""

    prompt: list[int]
    dropped: int
    params: SamplingParams
    stop: threading.Event


class Service:
    """The copies of a model, and the line before them. `name` is what users see of it."""

    def __init__(self, engines: Sequence[Engine], name: str, defaults: SamplingParams) -> None:
        self.engines, self.name, self.defaults = list(engines), name, defaults
        self.stats = Stats()
        self.stopping = threading.Event()
        self._threads = ThreadPoolExecutor(len(self.engines), thread_name_prefix="answer")
        self._free: asyncio.Queue[Engine] = asyncio.Queue()
        for engine in self.engines:
            self._free.put_nowait(engine)

    def job(self, messages: Sequence[Mapping[str, Any]], params: SamplingParams) -> Job:
        """What answers the last message. Raises `UserError` if that is too long for the model."""
        engine = self.engines[0]
        context = engine.model.config.sequence_len
        prompt, dropped = fit_messages(engine.tokenizer, messages, context, params.reserved_tokens(context))
        return Job(prompt, dropped, params, threading.Event())

    async def answer(self, job: Job) -> AsyncGenerator[Event, None]:
        """The events of an answer. To close the generator stops it, and frees its place at the next token."""
        if self._free.empty():
            yield {"kind": "waiting", "text": ""}
        self.stats.count(waiting=1)
        try:
            engine = await self._free.get()
        finally:
            self.stats.count(waiting=-1)
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[Event] = asyncio.Queue()
        work = loop.run_in_executor(
            self._threads, self._write, engine, job, lambda event: loop.call_soon_threadsafe(events.put_nowait, event)
        )
        work.add_done_callback(lambda _: self._free.put_nowait(engine))  # not before the thread has left the model
        try:
            while True:
                event = await events.get()
                yield event
                if event["kind"] in ("done", "error"):
                    return
        finally:
            job.stop.set()

    def _write(self, engine: Engine, job: Job, emit: Callable[[Event], object]) -> None:
        """Write an answer. Runs in a thread; whatever goes wrong becomes an event."""
        self.stats.count(in_flight=1)
        said: list[int] = []
        outcome = "failed"
        last: Event = {"kind": "error", "text": "the server failed at this answer; its log says why"}
        try:
            for piece in pieces(engine.tokenizer, self._tokens(engine, job, said)):
                emit(asdict(piece))
            outcome = "stopped" if job.stop.is_set() or self.stopping.is_set() else "answered"
            finish = "stop" if has_ended(engine.tokenizer, said) else "length"
            last = {"kind": "done", "text": "", "finish": finish, "tokens": len(said), "dropped": job.dropped}
            if self.stopping.is_set():
                last = {"kind": "error", "text": "the server is shutting down"}
        except UserError as error:
            last = {"kind": "error", "text": str(error)}
        except Exception:
            logging.getLogger(__name__).exception("An answer failed")
        self.stats.count(in_flight=-1, **{outcome: 1})
        if not job.stop.is_set():
            emit(last)

    def _tokens(self, engine: Engine, job: Job, said: list[int]) -> Iterator[int]:
        """The tokens of an answer, which `said` collects, until it ends or nobody wants it."""
        before = time.monotonic()
        for column, _ in engine.stream(job.prompt, job.params):
            if job.stop.is_set() or self.stopping.is_set():
                return
            said.append(column[0])
            now = time.monotonic()
            self.stats.count(tokens=1, seconds=now - before)
            before = now
            yield column[0]

    async def close(self) -> None:
        """Stop all answers at their next token, and wait for that."""
        self.stopping.set()
        await asyncio.to_thread(self._threads.shutdown)


class EventStream(StreamingResponse):
    """Server-sent events. However the connection ends, the events' generator is closed at once."""

    def __init__(self, events: AsyncGenerator[Event, None]) -> None:
        async def lines() -> AsyncIterator[str]:
            async for event in events:
                yield f"data: {json.dumps(event, ensure_ascii=False)}\n\n"
                await asyncio.sleep(0)  # where many events are ready, let the others and a closed connection be seen

        self.events = events
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}  # no proxy may hold it back
        super().__init__(lines(), media_type="text/event-stream", headers=headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response, as ASGI has it."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self.body_iterator.aclose()  # type: ignore[attr-defined]
            await self.events.aclose()


# What is where

router = APIRouter()


@router.get("/")
async def page() -> Response:
    """The page. Nothing in it may run but its own script, whatever a model or a user says."""
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
    """Ready, with which model, where; and what the page wants to know of it."""
    service: Service = request.app.state.service
    return {
        "ready": not service.stopping.is_set(),
        "model": service.name,
        "device": ", ".join(str(engine.model.device) for engine in service.engines),
        "defaults": {name: getattr(service.defaults, name) for name in PARAMS},
        "limits": asdict(LIMITS),
    }


@router.get("/stats")
async def stats(request: Request) -> dict[str, float]:
    """The counts of `Stats`."""
    service: Service = request.app.state.service
    return service.stats.shown()


@router.post("/chat/completions")
async def complete(request: Request) -> Response:
    """The answer to the last message, as events; 4xx and `{"error": reason}` for what cannot be answered."""
    service: Service = request.app.state.service
    service.stats.count(requests=1)
    status = 400
    try:
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            status = 415  # also keeps other sites' pages from posting here without being asked
            raise UserError("the content type must be application/json")
        body = b""
        async for chunk in request.stream():
            body += chunk
            if len(body) > MAX_BYTES:
                status = 413
                raise UserError(f"the body has more than {MAX_BYTES} bytes")
        messages, params = read_request(body, service.defaults)
        job = await asyncio.to_thread(service.job, messages, params)
    except UserError as error:
        service.stats.count(refused=1)
        return JSONResponse({"error": str(error)}, status)
    except ClientDisconnect:  # before it had said all: nobody reads this
        return Response(status_code=400)
    return EventStream(service.answer(job))


def create_app(load: Callable[[], Service]) -> FastAPI:
    """The application; `load` is called when it starts, not before."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.service = service = await asyncio.to_thread(load)
        yield
        await service.close()

    # FastAPI's own pages of documentation load scripts from elsewhere: left out
    app = FastAPI(title="nanochat", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.include_router(router)
    return app
