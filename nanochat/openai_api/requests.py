"""Requests of OpenAI's API: their fields and limits, as models that also describe them in `/openapi.json`.

A field that is unknown is ignored, as other servers do. So are known ones that change nothing in a reply (`user`,
`metadata`, `store`, `service_tier`, ...). A known field that cannot be honoured is refused where the caller would get
something else than was asked for:

    tools, functions             refused, unless `tool_choice` ("function_call") is "none": the model calls its own
                                 calculator only
    response_format              only {"type": "text"}: other forms could not be guaranteed
    frequency_penalty, presence_penalty, logit_bias      only 0 and empty
    modalities, audio, web_search_options                only text
    suffix, best_of, echo with logprobs (completions)    refused

null is the default value of every field but `messages` and `prompt`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr, ValidationError

from nanochat.common import UserError
from nanochat.layers.sampling_params import SamplingParams
from nanochat.serving.chat_request import LIMITS, check_structure
from nanochat.serving.refusals import Refusal
from nanochat.system.json_text import parse_json, short_repr

MAX_CHOICES = 128
MAX_TOKENS = 1_000_000  # in a request; the context is the limit that counts
MAX_STOPS = 4
MAX_STOP_CHARACTERS = 256
MAX_TOP_LOGPROBS = 20
DEFAULT_COMPLETION_TOKENS = 16  # of POST /v1/completions, as OpenAI has it

StopString = Annotated[StrictStr, Field(min_length=1, max_length=MAX_STOP_CHARACTERS)]
Text = Annotated[StrictStr, Field(max_length=LIMITS.characters)]
TokenId = Annotated[StrictInt, Field(ge=0, lt=2**31)]
TokenIds = Annotated[list[TokenId], Field(min_length=1, max_length=LIMITS.characters)]
Temperature = Annotated[float, Field(strict=True, ge=LIMITS.temperature[0], le=LIMITS.temperature[1])]
Probability = Annotated[float, Field(strict=True, ge=0, le=1)]
Penalty = Annotated[float, Field(strict=True, ge=-2, le=2)]
NumTokens = Annotated[StrictInt, Field(le=MAX_TOKENS)]
Rule = tuple[str, bool, str]  # name of a field, True if its value is refused, the rule
Seed = Annotated[StrictInt, Field(ge=-(2**63), lt=2**64)]


class _Fields(BaseModel):
    """Fields of a JSON object; unknown ones are ignored."""

    model_config = ConfigDict(extra="ignore")


class StreamOptions(_Fields):
    """Options of a stream. With `include_usage`, a last chunk has the numbers of tokens."""

    include_usage: StrictBool | None = None


class ContentPart(_Fields):
    """A part of a message's content; only text."""

    type: StrictStr
    text: Text | None = None
    refusal: Text | None = None


class CalculatorCallInput(_Fields):
    """A call of the calculator in an earlier reply, as a response had it."""

    offset: Annotated[StrictInt, Field(ge=0)]
    expression: Text
    result: Text | None = None


class FunctionCall(_Fields):
    """A call of a function, made by another model."""

    name: Text | None = None
    arguments: Text | None = None


class ToolCall(_Fields):
    """A call of a tool, made by another model."""

    function: FunctionCall | None = None


class ChatMessage(_Fields):
    """A message of the conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Text | Annotated[list[ContentPart], Field(max_length=LIMITS.parts)] | None = None
    refusal: Text | None = None
    calculator_calls: Annotated[list[CalculatorCallInput], Field(max_length=LIMITS.parts)] | None = None
    tool_calls: Annotated[list[ToolCall], Field(max_length=LIMITS.parts)] | None = None
    function_call: FunctionCall | None = None


class ResponseFormat(_Fields):
    """The form of the text; only "text"."""

    type: StrictStr


class SamplingFields(_Fields):
    """The fields that chat completions and completions share."""

    model: Annotated[StrictStr, Field(max_length=256)] | None = None
    temperature: Temperature | None = None
    top_p: Probability | None = None
    top_k: Annotated[StrictInt, Field(ge=-1, le=2**31 - 1, description="an extra; 0 and -1 = all tokens")] | None = None
    n: Annotated[StrictInt, Field(ge=1, le=MAX_CHOICES)] | None = None
    seed: Seed | None = None
    stop: StopString | Annotated[list[StopString], Field(max_length=MAX_STOPS)] | None = None
    stream: StrictBool | None = None
    stream_options: StreamOptions | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    logit_bias: dict[str, Any] | None = None

    @property
    def stops(self) -> list[str]:
        """The stop strings."""
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or [])

    @property
    def has_usage_chunk(self) -> bool:
        """True if the last chunk of the stream is to have the numbers of tokens."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    def unsupported_sampling(self) -> list[Rule]:
        """Return the rules of the fields that completions of both kinds have."""
        no_penalty = "must be 0: this server has no penalties"
        return [
            ("frequency_penalty", bool(self.frequency_penalty), no_penalty),
            ("presence_penalty", bool(self.presence_penalty), no_penalty),
            ("logit_bias", bool(self.logit_bias), "must be empty: this server has no bias of tokens"),
            ("stream_options", self.stream_options is not None and not self.stream, "needs stream to be true"),
        ]


class ChatCompletionRequest(SamplingFields):
    """Body of POST /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=LIMITS.messages)]
    max_tokens: NumTokens | None = None
    max_completion_tokens: NumTokens | None = None
    logprobs: StrictBool | None = None
    top_logprobs: Annotated[StrictInt, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    response_format: ResponseFormat | None = None
    tools: list[Any] | None = None
    tool_choice: Any = None
    functions: list[Any] | None = None
    function_call: Any = None
    modalities: list[Any] | None = None
    audio: Any = None
    web_search_options: Any = None

    def unsupported(self) -> list[Rule]:
        """Return the rules of all fields that may have to be refused."""
        no_tools = "must be empty: this model calls its own calculator only, and none of the caller's tools"
        limits = {self.max_tokens, self.max_completion_tokens} - {None}
        form = self.response_format
        return [
            *self.unsupported_sampling(),
            ("max_tokens", len(limits) > 1, "must equal max_completion_tokens, or be omitted"),
            ("top_logprobs", self.top_logprobs is not None and not self.logprobs, "needs logprobs to be true"),
            ("response_format", form is not None and form.type != "text", 'must be {"type": "text"}, or be omitted'),
            ("tools", bool(self.tools) and self.tool_choice != "none", no_tools),
            ("tool_choice", not self.tools and self.tool_choice not in (None, "none", "auto"), "needs tools"),
            ("functions", bool(self.functions) and self.function_call != "none", no_tools),
            ("modalities", self.modalities not in (None, [], ["text"]), 'must be ["text"]'),
            ("audio", self.audio is not None, "must be omitted: this model writes text"),
            ("web_search_options", self.web_search_options is not None, "must be omitted: there is no web search"),
        ]

    def params(self, defaults: SamplingParams) -> SamplingParams:
        """Return the settings of generation."""
        limit = self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens
        if limit is not None and limit < 1:
            raise Refusal(400, f"max_tokens is {limit}: must be at least 1", "max_tokens", "invalid_value")
        return _sampling_params(self, defaults, defaults.max_tokens if limit is None else limit)

    @property
    def num_logprobs(self) -> int | None:
        """Number of the most likely tokens at each place; None without log probabilities."""
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionRequest(SamplingFields):
    """Body of POST /v1/completions. A prompt is a text, which a document begins with, or token ids."""

    prompt: (
        Text
        | Annotated[list[Text], Field(min_length=1, max_length=MAX_CHOICES)]
        | TokenIds
        | Annotated[list[TokenIds], Field(min_length=1, max_length=MAX_CHOICES)]
    )
    max_tokens: Annotated[NumTokens, Field(ge=0)] | None = None
    logprobs: Annotated[StrictInt, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    echo: StrictBool | None = None
    suffix: Text | None = None
    best_of: Annotated[StrictInt, Field(ge=0, le=MAX_CHOICES)] | None = None

    def unsupported(self) -> list[Rule]:
        """Return the rules of all fields that may have to be refused."""
        has_prompt_logprobs = bool(self.echo) and self.logprobs is not None
        return [
            *self.unsupported_sampling(),
            ("max_tokens", self.max_tokens == 0 and not self.echo, "must be at least 1, unless echo is true"),
            ("logprobs", has_prompt_logprobs, "cannot be given with echo: those of a prompt are not computed"),
            ("suffix", bool(self.suffix), "must be empty: this model does not insert"),
            ("best_of", self.best_of not in (None, 1, self.n or 1), "must be n, or be omitted"),
        ]

    def params(self, defaults: SamplingParams) -> SamplingParams:
        """Return the settings of generation."""
        limit = DEFAULT_COMPLETION_TOKENS if self.max_tokens is None else self.max_tokens
        return _sampling_params(self, defaults, max(1, limit))

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        """The prompts, as texts or as token ids."""
        prompt = self.prompt
        if isinstance(prompt, str):
            return [prompt]
        return [prompt] if isinstance(prompt[0], int) else prompt


class TokenizeRequest(_Fields):
    """Body of POST /tokenize: one of a text (`content` or `prompt`) and `messages`, rendered as for a reply."""

    content: Text | None = None
    prompt: Text | None = None
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=LIMITS.messages)] | None = None
    add_special: StrictBool | None = None


class DetokenizeRequest(_Fields):
    """Body of POST /detokenize."""

    tokens: Annotated[list[TokenId], Field(max_length=LIMITS.characters)]


AnyRequest = TypeVar("AnyRequest", bound=_Fields)


def parse_request(body: bytes, form: type[AnyRequest]) -> AnyRequest:
    """Parse and validate the body of a request. Raises `Refusal` that names the field and the rule that it breaks."""
    check_structure(body)
    try:
        value = parse_json(body)
    except UserError as error:
        raise Refusal(400, f"the body {'is' if str(error).startswith('not ') else 'has'} {error}") from None
    if not isinstance(value, dict):
        raise Refusal(400, f"the body is {short_repr(value)}: must be an object")
    try:
        request = form.model_validate(value)
    except ValidationError as error:
        raise _as_refusal(error) from None
    except RecursionError:
        raise Refusal(400, "the body has brackets too deep to be read") from None
    if isinstance(request, (ChatCompletionRequest, CompletionRequest)):
        for name, is_refused, rule in request.unsupported():
            if is_refused:
                raise Refusal(400, f"{name} is {short_repr(value.get(name))}: {rule}", name, "unsupported_value")
    return request


def check_model(name: str | None, known: Sequence[str]) -> None:
    """Raise `Refusal` with status 404 for a model that is not served; a request without one means the one that is."""
    if name and name not in known:
        raise Refusal(
            404, f"the model {short_repr(name)} is not served: it is {known[0]} here", "model", "model_not_found"
        )


def _sampling_params(fields: SamplingFields, defaults: SamplingParams, max_tokens: int | None) -> SamplingParams:
    params = replace(defaults, max_tokens=max_tokens, num_samples=fields.n or 1, seed=fields.seed)
    if fields.temperature is not None:
        params = replace(params, temperature=float(fields.temperature))
    if fields.top_k is not None:
        params = replace(params, top_k=fields.top_k if fields.top_k > 0 else None)
    if fields.top_p is not None:
        if fields.top_p == 0:  # of the most likely token only
            return replace(params, temperature=0.0)
        params = replace(params, top_p=None if fields.top_p == 1 else float(fields.top_p))
    return params


def _as_refusal(error: ValidationError) -> Refusal:
    """Return the first fault that pydantic found, in one line, with the path of the field."""
    faults = error.errors(include_url=False, include_context=False)
    # A value that may have several types has a fault for each. The deepest one is of the type that was meant.
    size = 2 if faults[0]["loc"][:1] == ("messages",) else 1
    faults = [fault for fault in faults if fault["loc"][:size] == faults[0]["loc"][:size]]
    depth = max(len(fault["loc"]) for fault in faults)
    faults = [fault for fault in faults if len(fault["loc"]) == depth]
    # Names of types and validators in the path are no fields.
    names = [str(part) for part in faults[0]["loc"] if isinstance(part, int) or part in _FIELD_NAMES]
    param = ".".join(names)
    if faults[0]["type"] == "missing":
        return Refusal(400, f"{param} is missing", param, "missing_required_parameter")
    rules = [fault["msg"][:1].lower() + fault["msg"][1:] for fault in faults if fault["input"] is faults[0]["input"]]
    rule = ", or ".join(list(dict.fromkeys(rules))[:3])
    return Refusal(400, f"{param} is {short_repr(faults[0]['input'])}: {rule}", param, "invalid_value")


_FIELD_NAMES = frozenset(
    name
    for form in (
        *(ChatCompletionRequest, CompletionRequest, TokenizeRequest, DetokenizeRequest, ChatMessage, ContentPart),
        *(CalculatorCallInput, FunctionCall, ToolCall, ResponseFormat, StreamOptions),
    )
    for name in form.model_fields
)
