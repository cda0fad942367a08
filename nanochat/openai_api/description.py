"""OpenAPI description of the server, `GET /openapi.json`: all its routes, what they accept and what they return."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from nanochat.openai_api.requests import ChatCompletionRequest, CompletionRequest, DetokenizeRequest, TokenizeRequest
from nanochat.serving.chat_request import LIMITS, SAMPLING_FIELDS

Schema = dict[str, Any]

# A stream has no schema: tools differ in whether it would be that of the text or of each event. README.md says what the
# events have.
EVENTS: Schema = {"text/event-stream": {}}

REQUESTS: tuple[type[BaseModel], ...] = (
    ChatCompletionRequest,
    CompletionRequest,
    TokenizeRequest,
    DetokenizeRequest,
)


def describe(needs_key: bool = False, root_path: str = "") -> Schema:
    """Return the description. `needs_key`: requests need the API key; `root_path`: prefix of a proxy."""
    _, definitions = models_json_schema(
        [(form, "validation") for form in REQUESTS], ref_template="#/components/schemas/{model}"
    )
    description: Schema = {
        "openapi": "3.1.0",
        "info": {"title": "nanochat", "version": _version(), "description": "A chat model that you have trained."},
        "paths": _paths(),
        "components": {"schemas": {**definitions["$defs"], **_own_schemas()}},
    }
    if root_path:
        description["servers"] = [{"url": root_path}]
    if needs_key:
        description["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        description["security"] = [{"key": []}]
    return description


def _paths() -> Schema:
    chat, completion = _ref("ChatCompletion"), _ref("Completion")
    return {
        "/": {"get": _operation("The chat page", _content("text/html", {"type": "string"}))},
        "/chat/completions": {
            "post": _operation(
                "The reply to a conversation, as events in nanochat's own format",
                EVENTS,
                body=_ref("ChatRequest"),
            )
        },
        "/v1/chat/completions": {
            "post": _operation(
                "The reply to a conversation",
                {**_json(chat), **EVENTS},
                body=_ref("ChatCompletionRequest"),
                is_openai=True,
            )
        },
        "/v1/completions": {
            "post": _operation(
                "The continuation of texts or token ids",
                {**_json(completion), **EVENTS},
                body=_ref("CompletionRequest"),
                is_openai=True,
            )
        },
        "/v1/models": {"get": _operation("The model that is served", _json(_ref("ModelList")), is_openai=True)},
        "/v1/models/{model}": {
            "get": {
                **_operation("The model under one of its names", _json(_ref("Model")), is_openai=True),
                "parameters": [{"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}],
            }
        },
        "/tokenize": {
            "post": _operation("The token ids of a text", _json(_ref("Tokens")), body=_ref("TokenizeRequest"))
        },
        "/detokenize": {
            "post": _operation("The text of token ids", _json(_ref("TokenText")), body=_ref("DetokenizeRequest"))
        },
        "/health": {"get": _operation("Readiness, model, defaults and limits", _json(_ref("Health")))},
        "/health/live": {"get": _operation("200 while the process answers", _json({"type": "object"}))},
        "/health/ready": {"get": _operation("200 while requests are accepted, else 503", _json({"type": "object"}))},
        "/stats": {"get": _operation("Counters since the server started", _json({"type": "object"}))},
        "/metrics": {"get": _operation("Counters for Prometheus", _content("text/plain", {"type": "string"}))},
        "/openapi.json": {"get": _operation("This description", _json({"type": "object"}))},
    }


def _own_schemas() -> Schema:
    """The schemas of responses, and of the request in nanochat's own format."""
    text, count = {"type": "string"}, {"type": "integer", "minimum": 0}
    choice: Schema = {
        "type": "object",
        "properties": {
            "index": count,
            "finish_reason": {"enum": ["stop", "length"]},
            "logprobs": {"type": ["object", "null"]},
        },
        "required": ["index", "finish_reason", "logprobs"],
    }
    calls = {"type": "array", "items": _ref("CalculatorCall")}
    message = _object({"role": {"const": "assistant"}, "content": text, "calculator_calls": calls}, ["role", "content"])
    own_message = _object({"role": {"enum": ["system", "user", "assistant"]}, "content": {"type": ["string", "array"]}})
    head = {"id": text, "object": text, "created": count, "model": text, "system_fingerprint": text}

    def response(extra: Schema) -> Schema:
        item = {**choice, "properties": {**choice["properties"], **extra}, "required": [*choice["required"], *extra]}
        fields = {**head, "choices": {"type": "array", "items": item, "minItems": 1}, "usage": _ref("Usage")}
        return _object(fields)

    return {
        "Error": _object({"error": text}),
        "OpenAIError": _object(
            {
                "error": _object(
                    {
                        "message": text,
                        "type": text,
                        "param": {"type": ["string", "null"]},
                        "code": {"type": ["string", "null"]},
                    }
                )
            }
        ),
        "ChatRequest": {
            **_object(
                {
                    "messages": {"type": "array", "minItems": 1, "maxItems": LIMITS.messages, "items": own_message},
                    **{name: _number(name) for name in SAMPLING_FIELDS},
                },
                ["messages"],
            ),
            "additionalProperties": False,
        },
        "CalculatorCall": _object(
            {"index": count, "offset": count, "expression": text, "result": {"type": ["string", "null"]}}
        ),
        "Usage": _object({"prompt_tokens": count, "completion_tokens": count, "total_tokens": count}),
        "ChatCompletion": response({"message": message}),
        "Completion": response({"text": text}),
        "Model": _object({"id": text, "object": {"const": "model"}, "created": count, "owned_by": text}),
        "ModelList": _object({"object": {"const": "list"}, "data": {"type": "array", "items": _ref("Model")}}),
        "Tokens": _object({"tokens": {"type": "array", "items": count}, "count": count, "max_model_len": count}),
        "TokenText": _object({"content": text}),
        "Health": _object({"ready": {"type": "boolean"}, "model": text, "needs_key": {"type": "boolean"}}),
    }


def _operation(summary: str, content: Schema, body: Schema | None = None, is_openai: bool = False) -> Schema:
    operation: Schema = {
        "summary": summary,
        "responses": {
            "200": {"description": summary, "content": content},
            "default": {
                "description": "The request is refused, with a reason; or it fails",
                "content": _json(_ref("OpenAIError" if is_openai else "Error")),
            },
        },
    }
    if body is not None:
        operation["requestBody"] = {"required": True, "content": _json(body)}
    return operation


def _object(properties: Schema, required: list[str] | None = None) -> Schema:
    return {"type": "object", "properties": properties, "required": list(properties) if required is None else required}


def _number(name: str) -> Schema:
    low, high = getattr(LIMITS, name)
    kind = "number" if name in ("temperature", "top_p") else "integer"
    return {"type": [kind, "null"], "minimum": low, "maximum": high}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _json(schema: Schema) -> Schema:
    return _content("application/json", schema)


def _content(media_type: str, schema: Schema) -> Schema:
    return {media_type: {"schema": schema}}


def _version() -> str:
    try:
        return version("nanochat")
    except PackageNotFoundError:
        return "0"
