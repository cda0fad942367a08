"""Routes of OpenAI's API, and of the tokenizer.

    POST /v1/chat/completions    the reply to a conversation, whole or as a stream
    POST /v1/completions         the continuation of texts or token ids
    GET  /v1/models              the model that is served
    GET  /v1/models/{model}
    POST /tokenize               {"content": text} or {"messages": [...]} -> {"tokens": [...], "count": ...}
    POST /detokenize             {"tokens": [...]} -> {"content": text}
    GET  /openapi.json           a description of all routes (description.py)

A conversation that does not fit into the context loses its oldest turns; `dropped_messages` of the response says how
many, if any. A last message that does not fit alone is refused (`context_length_exceeded`). A reply that fills the
context ends with `finish_reason` "length". Further fields of ours, which clients ignore unless they know them:
`calculator_calls` of a message or delta (choices.py), and `sources` of a response if documents are indexed. In a stream
`sources` and `dropped_messages` are in the chunk with the last `finish_reason`.

A stream whose generation fails ends with an event that has `error`, and without `[DONE]`.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from nanochat.common import UserError
from nanochat.inference.generation_request import FinishEvent
from nanochat.layers.sampling_params import SamplingParams
from nanochat.openai_api.choices import ChoiceBuilder, Delta, chat_logprobs, completion_logprobs
from nanochat.openai_api.description import describe
from nanochat.openai_api.messages import to_conversation
from nanochat.openai_api.requests import (
    ChatCompletionRequest,
    CompletionRequest,
    DetokenizeRequest,
    SamplingFields,
    TokenizeRequest,
    check_model,
    parse_request,
)
from nanochat.serving.access import client_of
from nanochat.serving.chat_session import Message, beginning_ids
from nanochat.serving.generation import Generation, Update, failure_text
from nanochat.serving.refusals import Refusal, error_body
from nanochat.serving.server import EventStreamResponse, as_event_text, log_generation, read_body
from nanochat.serving.service import SHUTTING_DOWN, ChatService, ReplyJob, logged_fault
from nanochat.serving.sources import Source

ALIAS = "nanochat"  # a name that always means the model that is served
OWNER = "nanochat"
DONE = "data: [DONE]\n\n"

Fields = dict[str, Any]
Result = TypeVar("Result")

router = APIRouter()


@dataclass
class Reply:
    """A response in the making: what all its parts have in common, and a builder for each choice."""

    kind: str  # "chat.completion" or "text_completion"
    request: SamplingFields
    service: ChatService
    generation: Generation
    prompt_tokens: int
    builders: list[ChoiceBuilder]
    with_logprobs: bool
    echoes: Sequence[str] = ()  # of each choice
    job: ReplyJob | None = None  # of a chat

    def __post_init__(self) -> None:
        self.id = f"{'chatcmpl' if self.is_chat else 'cmpl'}-{uuid.uuid4().hex}"
        self.created = int(time.time())

    @property
    def is_chat(self) -> bool:
        """True for a chat completion."""
        return self.kind == "chat.completion"

    def head(self, kind: str) -> Fields:
        """Return the fields of a response or a chunk before its choices."""
        model = self.service.model
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.request.model or model.id,
            "system_fingerprint": f"fp_{model.fingerprint}",
        }

    def usage(self) -> Fields:
        """Return the numbers of tokens."""
        completion_tokens = sum(builder.num_tokens for builder in self.builders)
        usage: Fields = {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": self.prompt_tokens + completion_tokens,
        }
        cached = getattr(self.generation.completions[0].request, "num_cached", None)
        if cached is not None:
            usage["prompt_tokens_details"] = {"cached_tokens": cached}
        return usage

    def extras(self, sources: Sequence[Source] | None) -> Fields:
        """Return our own fields of a response."""
        extras: Fields = {}
        if self.job is not None and self.job.prompt.num_dropped:
            extras["dropped_messages"] = self.job.prompt.num_dropped
        if sources is not None:
            extras["sources"] = [source.as_json() for source in sources]
        return extras

    def push(self, updates: Sequence[Update]) -> dict[int, tuple[Delta, str | None]]:
        """Give updates to their choices. Returns for each its delta and, at its end, the finish reason.

        Raises `Refusal` if a completion has failed.
        """
        results: dict[int, tuple[Delta, str | None]] = {}
        for update in updates:
            delta, reason = results.get(update.number, (Delta(), None))
            if reason is not None:
                continue
            builder = self.builders[update.number]
            if isinstance(update.event, FinishEvent):
                reason = _finish_reason(update.event)
                delta.add(builder.finish(is_cut=reason == "length"))
                reason = "stop" if builder.has_stopped else reason
            else:
                delta.add(builder.push(update.event))
                if builder.has_stopped:
                    self.generation.stop(update.number)
                    reason = "stop"
            results[update.number] = (delta, reason)
        return results

    async def find_sources(self, content: str) -> list[Source] | None:
        """Return the sources of an answer; None without documents. Raises `Refusal` if they cannot be searched."""
        if self.job is None or self.job.sources is None or self.service.sources is None:
            return None
        try:
            with logged_fault():
                return await asyncio.to_thread(self.service.sources.find, self.job.messages, content, self.job.sources)
        except Refusal:
            self.generation.is_failed = True
            raise


@router.post("/v1/chat/completions")
async def create_chat_completion(request: Request) -> Response:
    """The reply to a conversation."""
    service: ChatService = request.app.state.service
    service.count_request(request.scope)
    client = client_of(request.scope)
    service.check_places(client)
    fields = parse_request(await read_body(request), ChatCompletionRequest)
    check_model(fields.model, model_names(service))
    params = fields.params(service.defaults)
    service.check_places(client, params.num_samples)
    job, prompt = await asyncio.to_thread(_prepare_chat, service, fields, params)
    generation = service.generation([prompt], params, client, fields.num_logprobs, job.reply)
    builders = [ChoiceBuilder(service.model.tokenizer, fields.stops) for _ in range(params.num_samples)]
    reply = Reply("chat.completion", fields, service, generation, len(prompt), builders, bool(fields.logprobs), job=job)
    return await _respond(request, reply)


@router.post("/v1/completions")
async def create_completion(request: Request) -> Response:
    """The continuation of texts or token ids."""
    service: ChatService = request.app.state.service
    service.count_request(request.scope)
    client = client_of(request.scope)
    service.check_places(client)
    fields = parse_request(await read_body(request), CompletionRequest)
    check_model(fields.model, model_names(service))
    params = fields.params(service.defaults)
    service.check_places(client, params.num_samples * len(fields.prompts))
    prompts = await asyncio.to_thread(_completion_prompts, service, fields)
    generation = service.generation(prompts, params, client, fields.logprobs)
    tokenizer = service.model.tokenizer
    builders = [ChoiceBuilder(tokenizer, fields.stops) for _ in generation.completions]
    echoes = [_echo(service, fields, number) for number in range(len(prompts)) for _ in range(params.num_samples)]
    prompt_tokens = sum(map(len, prompts))
    has_logprobs = fields.logprobs is not None
    reply = Reply("text_completion", fields, service, generation, prompt_tokens, builders, has_logprobs, echoes)
    return _echoes_alone(reply) if fields.max_tokens == 0 else await _respond(request, reply)


@router.get("/v1/models")
async def list_models(request: Request) -> Fields:
    """The model that is served."""
    service: ChatService = request.app.state.service
    return {"object": "list", "data": [_model_fields(service)]}


@router.get("/v1/models/{model:path}")
async def get_model(request: Request, model: str) -> Fields:
    """The model that is served, under one of its names."""
    service: ChatService = request.app.state.service
    check_model(model or "-", model_names(service))
    return _model_fields(service)


@router.post("/tokenize")
async def tokenize(request: Request) -> Fields:
    """The token ids of a text, or of a conversation as the model reads it."""
    service: ChatService = request.app.state.service
    fields = parse_request(await read_body(request), TokenizeRequest)
    tokens = await asyncio.to_thread(_tokenize, service, fields)
    return {"tokens": tokens, "count": len(tokens), "max_model_len": service.model.context_len}


@router.post("/detokenize")
async def detokenize(request: Request) -> Fields:
    """The text of token ids; bytes that are not UTF-8 become U+FFFD."""
    service: ChatService = request.app.state.service
    fields = parse_request(await read_body(request), DetokenizeRequest)
    _check_ids(service, fields.tokens, "tokens")
    return {"content": await asyncio.to_thread(service.model.tokenizer.decode, fields.tokens)}


@router.get("/openapi.json")
async def openapi(request: Request) -> Fields:
    """A description of all routes."""
    service: ChatService = request.app.state.service
    return describe(needs_key=service.access.api_key is not None, root_path=request.scope.get("root_path", ""))


def model_names(service: ChatService) -> list[str]:
    """Return the names under which the model may be asked for, its own first."""
    return [service.model.id, ALIAS]


# Prompts


def _prepare_chat(
    service: ChatService, fields: ChatCompletionRequest, params: SamplingParams
) -> tuple[ReplyJob, list[int]]:
    """Fit the conversation, and the beginning of its reply, into the context. Returns the job and the prompt."""
    conversation = to_conversation(fields.messages)
    messages: list[Message] = list(conversation.messages)
    try:
        job = service.prepare(messages, params, conversation.beginning)
    except Refusal:
        raise
    except UserError as error:
        raise Refusal(400, str(error), "messages", "context_length_exceeded") from error
    return job, job.prompt.tokens


def _completion_prompts(service: ChatService, fields: CompletionRequest) -> list[list[int]]:
    """Return the token ids of the prompts. Raises `Refusal` if one does not fit into the context."""
    tokenizer = service.model.tokenizer
    prompts = []
    for prompt in fields.prompts:
        if isinstance(prompt, str):
            prompts.append(tokenizer.encode(prompt, prepend=tokenizer.get_bos_token_id()))
        else:
            _check_ids(service, prompt, "prompt")
            prompts.append(list(prompt))
        if len(prompts[-1]) >= service.model.context_len:
            reason = (
                f"the prompt has {len(prompts[-1])} tokens: must have fewer than the context, which is "
                f"{service.model.context_len}"
            )
            raise Refusal(400, reason, "prompt", "context_length_exceeded")
    return prompts


def _echo(service: ChatService, fields: CompletionRequest, number: int) -> str:
    if not fields.echo:
        return ""
    prompt = fields.prompts[number]
    return prompt if isinstance(prompt, str) else service.model.tokenizer.decode(prompt)


def _tokenize(service: ChatService, fields: TokenizeRequest) -> list[int]:
    given = [value for value in (fields.content, fields.prompt, fields.messages) if value is not None]
    if len(given) != 1:
        raise Refusal(400, f"{len(given)} of content, prompt and messages are given: must be one of them")
    tokenizer = service.model.tokenizer
    if fields.messages is not None:
        conversation = to_conversation(fields.messages)
        ids = tokenizer.render_for_completion({"messages": conversation.messages})
        return [*ids, *beginning_ids(tokenizer, conversation.beginning)]
    text = fields.content if fields.content is not None else fields.prompt or ""
    return tokenizer.encode(text, prepend=tokenizer.get_bos_token_id() if fields.add_special else None)


def _check_ids(service: ChatService, tokens: Sequence[int], param: str) -> None:
    size = service.model.tokenizer.get_vocab_size()
    if tokens and max(tokens) >= size:
        raise Refusal(400, f"{param} has the id {max(tokens)}: must be below {size}", param, "invalid_value")


# Responses


async def _respond(request: Request, reply: Reply) -> Response:
    """Generate, and return the response: a stream of chunks, or the whole."""
    reply.generation.start()
    if reply.request.stream:
        return EventStreamResponse(_stream(reply), reply.generation)
    try:
        body = await _unless_disconnected(request, _collect(reply))
    finally:
        reply.generation.close()
        log_generation(request.scope, reply.generation)
    return JSONResponse(body) if body is not None else Response(status_code=499)  # which nobody will read


def _echoes_alone(reply: Reply) -> Response:
    """Return the response that has the prompts and nothing else."""
    if not reply.request.stream:
        return JSONResponse(_whole(reply, [(Delta(), "length") for _ in reply.builders], None))
    chunks = [_chunk(reply, index, {"text": echo}, "length") for index, echo in enumerate(reply.echoes)]
    return Response("".join([*chunks, _end_of_stream(reply)]), media_type="text/event-stream")


async def _collect(reply: Reply) -> Fields:
    """Generate all choices and return the response."""
    deltas = [Delta() for _ in reply.builders]
    reasons: list[str | None] = [None for _ in reply.builders]
    async for updates in reply.generation.batches(is_whole=not reply.request.stops):
        for index, (delta, reason) in reply.push(updates).items():
            deltas[index].add(delta)
            reasons[index] = reason or reasons[index]
    sources = await reply.find_sources(deltas[0].text)
    return _whole(reply, list(zip(deltas, reasons, strict=True)), sources)


def _whole(reply: Reply, results: Sequence[tuple[Delta, str | None]], sources: Sequence[Source] | None) -> Fields:
    tokenizer = reply.service.model.tokenizer
    choices = []
    for index, (delta, reason) in enumerate(results):
        choice: Fields = {"index": index}
        if reply.is_chat:
            message: Fields = {"role": "assistant", "content": delta.text, "refusal": None}
            if delta.calls:
                message["calculator_calls"] = [call.as_json() for call in delta.calls]
            choice["message"] = message
            choice["logprobs"] = chat_logprobs(tokenizer, delta.logprobs) if reply.with_logprobs else None
        else:
            echo = reply.echoes[index]
            choice["text"] = echo + delta.text
            if delta.calls:
                choice["calculator_calls"] = [call.as_json() for call in delta.calls]
            has = reply.with_logprobs
            choice["logprobs"] = completion_logprobs(tokenizer, delta.logprobs, len(echo)) if has else None
        choice["finish_reason"] = reason
        choices.append(choice)
    return {**reply.head(reply.kind), "choices": choices, "usage": reply.usage(), **reply.extras(sources)}


async def _stream(reply: Reply) -> AsyncGenerator[str, None]:
    """Yield the events of a stream."""
    content = ""
    num_open = len(reply.builders)  # choices
    end = 0, ""  # the choice that ends last, and its finish reason
    try:
        if reply.is_chat:
            role = {"role": "assistant", "content": ""}
            yield "".join(_chunk(reply, index, {"delta": role}, None) for index in range(len(reply.builders)))
        elif any(reply.echoes):
            yield "".join(_chunk(reply, index, {"text": echo}, None) for index, echo in enumerate(reply.echoes))
        async for updates in reply.generation.batches():
            if not updates:  # a comment, which clients skip: it keeps the connection open
                yield f": waiting, place {reply.generation.place}\n\n"
                continue
            text = ""
            for index, (delta, reason) in reply.push(updates).items():
                content += delta.text if index == 0 else ""
                text += _delta_chunk(reply, index, delta) if delta else ""
                num_open -= reason is not None
                if reason and num_open:
                    text += _end_chunk(reply, index, reason)
                elif reason:
                    end = index, reason
            if text:
                yield text
        extras = reply.extras(await reply.find_sources(content))
    except UserError as error:
        yield as_event_text(error_body("/v1/", error))
        return
    yield _end_chunk(reply, *end, extras) + _end_of_stream(reply)


def _end_of_stream(reply: Reply) -> str:
    if not reply.request.has_usage_chunk:
        return DONE
    return as_event_text({**reply.head(_chunk_kind(reply)), "choices": [], "usage": reply.usage()}) + DONE


def _delta_chunk(reply: Reply, index: int, delta: Delta) -> str:
    tokenizer = reply.service.model.tokenizer
    calls = [call.as_json() for call in delta.calls]
    if reply.is_chat:
        fields: Fields = {"delta": {"content": delta.text}}
        if calls:
            fields["delta"]["calculator_calls"] = calls
        if reply.with_logprobs:
            fields["logprobs"] = chat_logprobs(tokenizer, delta.logprobs)
    else:
        fields = {"text": delta.text}
        if calls:
            fields["calculator_calls"] = calls
        if reply.with_logprobs:
            fields["logprobs"] = completion_logprobs(tokenizer, delta.logprobs, len(reply.echoes[index]))
    return _chunk(reply, index, fields, None)


def _end_chunk(reply: Reply, index: int, reason: str, extras: Fields | None = None) -> str:
    """The last chunk of a choice. Our own fields are in one: many clients fail at a chunk without choices."""
    return _chunk(reply, index, {"delta": {}} if reply.is_chat else {"text": ""}, reason, extras)


def _chunk(reply: Reply, index: int, fields: Fields, reason: str | None, extras: Fields | None = None) -> str:
    choice = {"index": index, "logprobs": None, "finish_reason": reason, **fields}
    usage = {"usage": None} if reply.request.has_usage_chunk else {}
    return as_event_text({**reply.head(_chunk_kind(reply)), "choices": [choice], **usage, **(extras or {})})


def _chunk_kind(reply: Reply) -> str:
    return "chat.completion.chunk" if reply.is_chat else reply.kind


def _finish_reason(event: FinishEvent) -> str:
    """Return the finish reason of a completion. Raises `Refusal` if it has failed."""
    if event.reason in ("stop", "length"):
        return event.reason
    if event.reason == "error":
        raise Refusal(500, failure_text(event))
    raise Refusal(503, SHUTTING_DOWN)


async def _unless_disconnected(request: Request, work: Awaitable[Result]) -> Result | None:
    """Return the result of some work; stop it and return None if the client closes the connection before."""

    async def disconnect() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    task = asyncio.ensure_future(work)
    watcher = asyncio.ensure_future(disconnect())
    try:
        await asyncio.wait((task, watcher), return_when=asyncio.FIRST_COMPLETED)
        return await task if task.done() else None
    finally:
        for each in (task, watcher):
            each.cancel()
        await asyncio.gather(task, watcher, return_exceptions=True)


def _model_fields(service: ChatService) -> Fields:
    model = service.model
    return {
        "id": model.id,
        "object": "model",
        "created": model.created,
        "owned_by": OWNER,
        "root": model.name,
        "max_model_len": model.context_len,
    }
