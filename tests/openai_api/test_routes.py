"""OpenAI's API as its official client uses it, unchanged, against a server on the loopback address."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nanochat.openai_api.routes import router
from nanochat.quoting.weights import default_weights
from nanochat.serving.access import AccessRules
from nanochat.serving.metrics import ServerStats
from nanochat.serving.service import ChatService, ServiceLimits
from nanochat.serving.sources import DocumentSources
from tests.support.chat_server import EventConnection, get, get_stats, new_client, serving, wait_for
from tests.support.documents import make_index
from tests.support.scripted_engine import (
    SPECIAL,
    TOKENIZER,
    GatedEngine,
    ScriptedEngine,
    assistant,
    last_user_text,
    reply_ids,
    user,
)

openai: Any = pytest.importorskip("openai", reason="the package openai is not installed: uv pip install -e '.[dev]'")

CALL = [
    {"type": "text", "text": "Ä€ is "},
    {"type": "python", "text": "6*7"},
    {"type": "python_output", "text": "42"},
    {"type": "text", "text": "42 🙂 the end"},
]
TEXT = "Ä€ is 42 🙂 the end"
ONE_CALL = [{"index": 0, "offset": 6, "expression": "6*7", "result": "42"}]
HELLO = [user("Hello")]


def script(prompt: list[int]) -> Iterator[int]:
    """Reply to a document or a message by a keyword, and to all others with CALL."""
    text = last_user_text(prompt) if SPECIAL["<|user_start|>"] in prompt else TOKENIZER.decode(prompt)
    if "fails" in text:
        yield from b"so"
        raise RuntimeError("out of memory")
    if "echo" in text:
        yield from reply_ids(f"<{text}>")
        return
    if "endless" in text:
        while True:
            yield from "€".encode()
    yield from reply_ids(CALL)


Served = tuple[str, ChatService, ScriptedEngine]


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    engine = ScriptedEngine(script)
    limits = ServiceLimits(max_rows=4, shutdown_seconds=0.2)
    with serving(engine, routers=[router], service_limits=limits) as (address, service):
        yield address, service, engine


@pytest.fixture(scope="module")
def client(server: Served) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"{server[0]}/v1", api_key="none", max_retries=0) as client:
        yield client


def chat(client: Any, messages: Any = HELLO, **options: Any) -> Any:
    return client.chat.completions.create(model="nanochat", messages=messages, **options)


# Chat completions


def test_a_reply(client: Any) -> None:
    reply = chat(client)
    [choice] = reply.choices
    assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", TEXT, "stop")
    assert choice.message.calculator_calls == ONE_CALL
    assert choice.message.tool_calls is None  # which would ask the client to run something
    assert choice.logprobs is None
    assert (reply.object, reply.model) == ("chat.completion", "nanochat")
    assert reply.system_fingerprint.startswith("fp_")
    usage = reply.usage
    assert usage.prompt_tokens == len(TOKENIZER.render_for_completion({"messages": HELLO}))
    assert usage.completion_tokens == len(reply_ids(CALL))
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


def test_a_stream_has_the_text_of_the_reply(client: Any) -> None:
    chunks = list(chat(client, stream=True, stream_options={"include_usage": True}))
    *deltas, usage = chunks
    assert deltas[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in deltas) == TEXT
    assert "\ufffd" not in "".join(chunk.model_dump_json() for chunk in chunks)
    calls = [getattr(chunk.choices[0].delta, "calculator_calls", None) for chunk in deltas]
    assert [call for call in calls if call] == [ONE_CALL]
    assert [chunk.choices[0].finish_reason for chunk in deltas] == [None] * (len(deltas) - 1) + ["stop"]
    assert {chunk.id for chunk in chunks} == {chunks[0].id}
    assert (usage.choices, usage.usage) == ([], chat(client).usage)
    assert all(chunk.usage is None for chunk in deltas)


def test_the_helper_that_collects_a_stream(client: Any) -> None:
    """It adds up deltas by itself, our own field too."""
    with client.chat.completions.stream(model="nanochat", messages=HELLO) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.content == TEXT
    assert final.choices[0].message.calculator_calls == ONE_CALL


@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize(
    ("stop", "expected"),
    [("the", "Ä€ is 42 🙂 "), (["zzz", "42 🙂"], "Ä€ is "), ("Ä", ""), ("is 42", "Ä€ "), ("x", TEXT), (None, TEXT)],
)
def test_stop_strings_are_never_shown(client: Any, is_stream: bool, stop: Any, expected: str) -> None:
    reply = chat(client, stop=stop, stream=is_stream)
    if is_stream:
        chunks = list(reply)
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        assert (text, chunks[-1].choices[0].finish_reason) == (expected, "stop")
    else:
        assert (reply.choices[0].message.content, reply.choices[0].finish_reason) == (expected, "stop")


def test_a_stop_string_ends_the_generation(client: Any, server: Served) -> None:
    """The reply would not end by itself before the context is full; its row is free soon after the stop string."""
    reply = chat(client, [user("endless")], stop="€€€")
    assert (reply.choices[0].message.content, reply.choices[0].finish_reason) == ("", "stop")
    assert reply.usage.completion_tokens == 9
    wait_for(lambda: get_stats(server[0], "in_flight") == (0,))


def test_several_choices(client: Any, server: Served) -> None:
    reply = chat(client, n=3, seed=5)
    assert [choice.index for choice in reply.choices] == [0, 1, 2]
    assert [choice.message.content for choice in reply.choices] == [TEXT] * 3
    assert reply.usage.completion_tokens == 3 * len(reply_ids(CALL))
    chunks = list(chat(client, n=3, stream=True))
    texts = ["", "", ""]
    for chunk in chunks:
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert texts == [TEXT] * 3
    assert [params.seed for _, params in server[2].calls[-6:]] == [5, 5, 5, None, None, None]


def test_settings_reach_the_model(client: Any, server: Served) -> None:
    chat(client, temperature=0.25, top_p=0.5, seed=-3, max_completion_tokens=7, extra_body={"top_k": 3})
    params = server[2].calls[-1][1]
    assert (params.temperature, params.top_p, params.top_k, params.seed, params.max_tokens) == (0.25, 0.5, 3, -3, 7)
    chat(client, top_p=0, extra_body={"top_k": -1})
    params = server[2].calls[-1][1]
    assert (params.temperature, params.top_p, params.top_k, params.seed) == (0, None, None, None)


def test_a_cut_reply_ends_by_length_and_within_no_character(client: Any) -> None:
    for limit in range(1, 8):
        reply = chat(client, [user("endless")], max_tokens=limit)
        assert (reply.choices[0].message.content, reply.choices[0].finish_reason) == ("€" * (limit // 3), "length")
        assert reply.usage.completion_tokens == limit
        chunks = list(chat(client, [user("endless")], max_tokens=limit, stream=True))
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "€" * (limit // 3)
        assert chunks[-1].choices[0].finish_reason == "length"


@pytest.mark.parametrize("is_stream", [False, True])
def test_log_probabilities(client: Any, is_stream: bool) -> None:
    reply = chat(client, logprobs=True, top_logprobs=2, stream=is_stream)
    if is_stream:
        chunks = [chunk.choices[0] for chunk in reply]
        entries = [entry for chunk in chunks if chunk.logprobs for entry in chunk.logprobs.content]
    else:
        entries = reply.choices[0].logprobs.content
    assert bytes(byte for entry in entries for byte in entry.bytes).decode() == TEXT  # without the call
    assert {entry.logprob for entry in entries} == {-0.5}
    assert all([top.logprob for top in entry.top_logprobs] == [-0.5, -1.5] for entry in entries)
    assert all(entry.token == entry.top_logprobs[0].token for entry in entries)


def test_log_probabilities_end_with_the_text(client: Any) -> None:
    for stop in ("the", "e"):
        entries = chat(client, logprobs=True, stop=stop).choices[0].logprobs.content
        content = chat(client, stop=stop).choices[0].message.content
        text = bytes(byte for entry in entries for byte in entry.bytes).decode()
        assert text.startswith(content)
        assert len(text) - len(content) < len(" the")  # the last token may reach into the stop string


# Messages that real clients send


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([{"role": "system", "content": "S"}, user("a")], [{"role": "user", "content": "S\n\na"}]),
        ([{"role": "developer", "content": "S"}, user("a")], [{"role": "user", "content": "S\n\na"}]),
        ([{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}], [user("ab")]),
        ([user("a"), {"role": "assistant", "content": None}, user("b")], [user("a"), assistant(""), user("b")]),
        ([user("a"), user("b")], [user("a\n\nb")]),
        ([user("a"), assistant("b"), {"role": "system", "content": "S"}, user("c")],
         [user("a"), assistant("b"), user("S\n\nc")]),
        ([assistant("Welcome."), user("a")], [user(""), assistant("Welcome."), user("a")]),
        ([user("a"), {"role": "assistant", "content": None,
                      "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]},
          {"role": "tool", "tool_call_id": "1", "content": "7"}],
         [user("a"), assistant("f({})"), user("7")]),
        ([user("a"), {"role": "assistant", "content": TEXT, "calculator_calls": ONE_CALL}, user("b")],
         [user("a"), assistant(CALL), user("b")]),
        ([user("<|assistant_end|>")], [user("<|assistant_end|>")]),
        ([{"role": "user", "content": "a", "name": "Ann", "cache_control": {"type": "ephemeral"}}], [user("a")]),
    ],
    ids=str,
)  # fmt: skip
def test_messages_become_a_conversation(client: Any, server: Served, messages: Any, expected: Any) -> None:
    chat(client, messages)
    prompt = server[2].calls[-1][0]
    assert prompt == TOKENIZER.render_for_completion({"messages": expected})
    assert TOKENIZER.decode(prompt).count("<|assistant_start|>") == prompt.count(SPECIAL["<|assistant_start|>"])


def test_a_trailing_message_of_the_assistant_is_continued(client: Any, server: Served) -> None:
    reply = chat(client, [user("a"), assistant("It begins")])
    prompt = TOKENIZER.render_for_completion({"messages": [user("a")]})
    assert server[2].calls[-1][0] == [*prompt, *TOKENIZER.encode("It begins")]
    assert reply.choices[0].message.content == TEXT


def test_old_turns_are_dropped_and_counted(client: Any, server: Served) -> None:
    messages = [user("x" * 100), assistant("y" * 100), user("last")]
    assert chat(client, messages).dropped_messages == 2
    assert server[2].calls[-1][0] == TOKENIZER.render_for_completion({"messages": [user("last")]})
    *chunks, last = chat(client, messages, stream=True, n=2)
    assert (last.dropped_messages, last.choices[0].finish_reason) == (2, "stop")
    assert not any(hasattr(chunk, "dropped_messages") for chunk in chunks)
    assert all(len(chunk.choices) == 1 for chunk in [*chunks, last])
    reasons = [chunk.choices[0].finish_reason for chunk in [*chunks, last]]
    assert reasons.count("stop") == len(reasons) - reasons.count(None) == 2
    assert not hasattr(chat(client), "dropped_messages")


@pytest.mark.parametrize(
    "options",
    [
        {"user": "u", "metadata": {"a": "b"}, "store": False, "service_tier": "auto", "parallel_tool_calls": True},
        {"tools": [], "response_format": {"type": "text"}, "modalities": ["text"], "frequency_penalty": 0},
        {"tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "none"},
        {"extra_body": {"min_p": 0.1, "repetition_penalty": 1.1, "chat_template_kwargs": {"a": 1}}},
        {"extra_body": {"stop": None, "n": None, "seed": None, "logprobs": None, "stream": None, "tools": None}},
        {"max_tokens": 100_000},
        {"stop": []},
    ],
    ids=str,
)
def test_fields_that_change_nothing_are_accepted(client: Any, options: Any) -> None:
    assert chat(client, **options).choices[0].message.content == TEXT


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"messages": []}, "messages", "list should have at least 1 item"),
        ({"messages": "hello"}, "messages", "input should be a valid list"),
        ({"messages": [{"role": "system", "content": "S"}]}, "messages", "has no message of the user"),
        ({"messages": [{"role": "user", "content": None}]}, "messages.0.content", "is missing"),
        ({"messages": [{"role": "robot", "content": "a"}]}, "messages.0.role", "'robot'"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
         "messages.0.content", "has a part of type 'image_url'"),
        ({"messages": [user("x" * 9000)]}, "messages.0.content", "has 9000 characters: at most 8000"),
        ({"messages": [user("x" * 300)]}, "messages", "the message is too long"),
        ({"messages": [user("a"), assistant("b" * 300)]}, "messages", "304 tokens|300 tokens"),
        ({"temperature": 3}, "temperature", "is 3: input should be less than or equal to 2"),
        ({"temperature": True}, "temperature", "is True"),
        ({"top_p": -1}, "top_p", "is -1"),
        ({"n": 0}, "n", "is 0"),
        ({"n": 129}, "n", "less than or equal to 128"),
        ({"max_tokens": 0}, "max_tokens", "must be at least 1"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens", "must equal max_completion_tokens"),
        ({"stop": ["a"] * 5}, "stop", "at most 4 items"),
        ({"stop": ""}, "stop", "at least 1 character"),
        ({"seed": 1.5}, "seed", "is 1.5"),
        ({"top_logprobs": 5}, "top_logprobs", "needs logprobs to be true"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "less than or equal to 20"),
        ({"response_format": {"type": "json_object"}}, "response_format", 'must be {"type": "text"}'),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools", "none of the caller's tools"),
        ({"functions": [{"name": "f"}]}, "functions", "none of the caller's tools"),
        ({"presence_penalty": 0.5}, "presence_penalty", "must be 0"),
        ({"logit_bias": {"5": 1}}, "logit_bias", "must be empty"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "needs stream to be true"),
        ({"modalities": ["text", "audio"]}, "modalities", "must be"),
    ],
    ids=str,
)  # fmt: skip
def test_wrong_requests_are_refused_with_the_error_object(
    client: Any, fields: dict[str, Any], param: str, message: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=message) as error:
        client.post("/chat/completions", body={"messages": HELLO, **fields}, cast_to=object)
    assert (error.value.param, error.value.type) == (param, "invalid_request_error")
    assert isinstance(error.value.code, str)


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"", 400, "not JSON"),
        (b"[]", 400, "must be an object"),
        (b'{"messages": [{"role": "user", "content": "a"}], "temperature": NaN}', 400, "NaN is no number"),
        (b'{"n": 1, "n": 2}', 400, "comes twice"),
        (b'{"messages": "\xff"}', 400, "not UTF-8"),
        (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', 400, "half a surrogate pair"),
        (b'{"a":' * 3000 + b"1" + b"}" * 3000, 400, ""),
        (b'{"tools": ' + b"[" * 900 + b"]" * 900 + b"}", 400, ""),
        (b"[" * 200_000, 400, "too many values"),
        (b"x" * 1_000_001, 413, "more than 1000000 bytes"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_body_that_is_no_request_is_refused(server: Served, body: bytes, status: int, message: str) -> None:
    with new_client() as http:
        for path in ("/v1/chat/completions", "/v1/completions"):
            response = http.post(server[0] + path, content=body, headers={"Content-Type": "application/json"})
            assert response.status_code == status
            assert message in response.json()["error"]["message"]
            assert set(response.json()["error"]) == {"message", "type", "param", "code"}


def test_a_failure_is_status_500_or_the_last_event(client: Any) -> None:
    with pytest.raises(openai.InternalServerError, match="the reply failed"):
        chat(client, [user("fails")])
    with pytest.raises(openai.APIError, match="the reply failed"):
        list(chat(client, [user("fails")], stream=True))


# Completions


def test_a_completion(client: Any, server: Served) -> None:
    reply = client.completions.create(model="nanochat", prompt="Once", max_tokens=100)
    assert (reply.choices[0].text, reply.choices[0].finish_reason, reply.object) == (TEXT, "stop", "text_completion")
    assert server[2].calls[-1][0] == [SPECIAL["<|bos|>"], *TOKENIZER.encode("Once")]
    chunks = list(client.completions.create(model="nanochat", prompt="Once", max_tokens=100, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == TEXT
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert client.completions.create(model="nanochat", prompt="a").usage.completion_tokens == 16


@pytest.mark.parametrize(
    ("prompt", "count"), [("a", 1), (["a", "b"], 2), ([264, 65], 1), ([[264, 65], [264]], 2), ("", 1), (["", "b"], 2)]
)
def test_prompts_of_every_form(client: Any, server: Served, prompt: Any, count: int) -> None:
    reply = client.completions.create(model="nanochat", prompt=prompt, n=2)
    assert [choice.index for choice in reply.choices] == list(range(2 * count))
    prompts = [prompt for prompt, _ in server[2].calls[-2 * count :]]
    assert reply.usage.prompt_tokens == sum(map(len, prompts)) / 2


def test_an_echo(client: Any) -> None:
    reply = client.completions.create(model="nanochat", prompt=["Once", "x"], echo=True, max_tokens=100)
    assert [choice.text for choice in reply.choices] == ["Once" + TEXT, "x" + TEXT]
    chunks = client.completions.create(model="nanochat", prompt="Once", echo=True, max_tokens=100, stream=True)
    assert "".join(chunk.choices[0].text for chunk in chunks) == "Once" + TEXT
    alone = client.completions.create(model="nanochat", prompt="Once", echo=True, max_tokens=0)
    assert (alone.choices[0].text, alone.choices[0].finish_reason, alone.usage.completion_tokens) == (
        "Once",
        "length",
        0,
    )
    options = {"stream": True, "stream_options": {"include_usage": True}}
    *chunks, last = client.completions.create(
        model="nanochat", prompt=["Once", "x"], echo=True, max_tokens=0, **options
    )
    assert [(chunk.choices[0].text, chunk.choices[0].finish_reason) for chunk in chunks] == [
        ("Once", "length"),
        ("x", "length"),
    ]
    assert (last.choices, last.usage.completion_tokens) == ([], 0)


def test_log_probabilities_of_a_completion(client: Any) -> None:
    reply = client.completions.create(model="nanochat", prompt="Once", max_tokens=100, logprobs=2, stop=" the")
    logprobs = reply.choices[0].logprobs
    text = reply.choices[0].text
    count = len(logprobs.tokens)
    assert count == len(logprobs.token_logprobs) == len(logprobs.top_logprobs) == len(logprobs.text_offset)
    assert logprobs.text_offset == sorted(logprobs.text_offset)
    for token, offset in zip(logprobs.tokens, logprobs.text_offset, strict=True):
        assert "\ufffd" in token or text[offset:].startswith(token)
    assert all(-0.5 in top.values() for top in logprobs.top_logprobs)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"suffix": "end"}, "suffix"),
        ({"echo": True, "logprobs": 1}, "logprobs"),
        ({"best_of": 3}, "best_of"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"prompt": [99999]}, "prompt"),
        ({"prompt": "x" * 400}, "prompt"),
        ({"prompt": [True]}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": None}, "prompt"),
    ],
    ids=str,
)
def test_wrong_completions_are_refused(client: Any, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as error:
        client.post("/completions", body={"prompt": "Once", **fields}, cast_to=object)
    assert str(error.value.param).split(".")[0] == param


# Models, tokens, keys, errors of the server


def test_models(client: Any) -> None:
    [model] = client.models.list().data
    assert (model.id, model.object, model.max_model_len) == ("nanochat-scripted", "model", 256)
    assert client.models.retrieve("nanochat").id == model.id
    for name in ("gpt-4o", "nanochat/other"):
        with pytest.raises(openai.NotFoundError, match="is not served: it is nanochat-scripted here") as error:
            client.models.retrieve(name)
        assert error.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError, match="is not served"):
        client.chat.completions.create(model="gpt-4o", messages=HELLO)
    assert client.post("/chat/completions", body={"messages": HELLO}, cast_to=object)["model"] == "nanochat-scripted"


def test_tokens(server: Served) -> None:
    def post(path: str, body: Any) -> Any:
        with new_client() as http:
            return http.post(server[0] + path, json=body)

    text = "<|bos|> the €"
    tokens = post("/tokenize", {"content": text}).json()
    assert tokens == {"tokens": TOKENIZER.encode(text), "count": len(TOKENIZER.encode(text)), "max_model_len": 256}
    assert post("/detokenize", {"tokens": tokens["tokens"]}).json() == {"content": text}
    assert post("/tokenize", {"prompt": "a", "add_special": True}).json()["tokens"] == [SPECIAL["<|bos|>"], 97]
    messages = post("/tokenize", {"messages": [user("a"), assistant("b")]}).json()["tokens"]
    assert messages == [*TOKENIZER.render_for_completion({"messages": [user("a")]}), 98]
    assert post("/tokenize", {}).json() == {"error": "0 of content, prompt and messages are given: must be one of them"}
    assert post("/detokenize", {"tokens": [9999]}).json() == {"error": "tokens has the id 9999: must be below 273"}
    assert post("/detokenize", {"tokens": [-1]}).status_code == 400


def test_unknown_routes_have_the_error_object(client: Any, server: Served) -> None:
    with pytest.raises(openai.NotFoundError, match="no such route"):
        client.embeddings.create(model="nanochat", input="a")
    assert get(server[0], "/nothing").json() == {"error": "no such route"}
    assert get(server[0], "/v1/chat/completions").status_code == 405


def test_the_async_client(server: Served) -> None:
    async def run() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{server[0]}/v1", api_key="none", max_retries=0) as client:
            replies = await asyncio.gather(*(chat(client, [user(f"echo {i}")]) for i in range(8)))
            texts = [reply.choices[0].message.content for reply in replies]
            stream = await chat(client, [user("echo s")], stream=True)
            texts.append("".join([chunk.choices[0].delta.content or "" async for chunk in stream]))
            return texts

    assert asyncio.run(run()) == [f"<echo {i}>" for i in range(8)] + ["<echo s>"]


def test_a_key_is_needed_where_one_is_set() -> None:
    engine = ScriptedEngine(script)
    with serving(engine, routers=[router], access=AccessRules("secret-key")) as (address, _):
        for key in ("wrong", "secret-ke", "secret-key2"):
            client = openai.OpenAI(base_url=f"{address}/v1", api_key=key, max_retries=0)
            for call in (client.models.list, lambda client=client: chat(client)):
                with pytest.raises(openai.AuthenticationError, match="the API key is missing or wrong") as error:
                    call()
                assert error.value.code == "invalid_api_key"
            client.close()
        with openai.OpenAI(base_url=f"{address}/v1", api_key="secret-key", max_retries=0) as client:
            assert chat(client).choices[0].message.content == TEXT


def test_a_client_that_gives_up_frees_its_row() -> None:
    """Its time-out, or its end in the middle of a stream; the others get their replies."""
    engine = GatedEngine()
    with serving(engine, routers=[router]) as (address, _):
        impatient = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=0.3)
        with impatient as client, pytest.raises(openai.APITimeoutError):
            chat(client)
        wait_for(lambda: get_stats(address, "stopped") == (1,))
        engine.permits.release()  # the step after which the loop sees it
        wait_for(lambda: get_stats(address, "in_flight", "waiting") == (0, 0))
        with openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client:
            stream = chat(client, stream=True)
            engine.permits.release(3)
            assert next(iter(stream)).choices[0].delta.role == "assistant"
            stream.close()
            wait_for(lambda: get_stats(address, "stopped") == (2,))
            engine.is_free = True
            wait_for(lambda: get_stats(address, "in_flight") == (0,))


def test_a_full_queue_is_status_429() -> None:
    limits = ServiceLimits(max_rows=1, max_waiting=1, shutdown_seconds=0.2)
    with serving(GatedEngine(), routers=[router], service_limits=limits) as (address, _):
        connections = [EventConnection(address) for _ in range(2)]
        with openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client:
            with pytest.raises(openai.RateLimitError, match="the server is busy, and 1 requests are waiting") as error:
                chat(client)
            assert error.value.response.headers["retry-after"] == "10"
            with pytest.raises(openai.RateLimitError):
                chat(client, n=2)
        for connection in connections:
            connection.close()


def test_a_request_that_can_never_be_taken_is_refused_for_good() -> None:
    limits = ServiceLimits(max_rows=1, max_waiting=1, shutdown_seconds=0.2)
    with serving(ScriptedEngine(script), routers=[router], service_limits=limits) as (address, _):
        message = "3 replies are asked for: this server takes at most 2"
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
        with client, pytest.raises(openai.BadRequestError, match=message):
            chat(client, n=3)


def test_a_stream_that_waits_gets_comments() -> None:
    engine = GatedEngine()
    with serving(engine, routers=[router]) as (address, _):
        first = EventConnection(address)
        body = {"messages": HELLO, "stream": True, "max_tokens": 2}
        with new_client() as http, http.stream("POST", f"{address}/v1/chat/completions", json=body) as response:
            lines = response.iter_lines()
            assert json.loads(next(lines).removeprefix("data: "))["choices"][0]["delta"]["role"] == "assistant"
            assert [line for line in (next(lines) for _ in range(2)) if line] == [": waiting, place 1"]
            engine.is_free = True
            first.close()
            assert list(lines)[-2:] == ["data: [DONE]", ""]


def test_statistics_have_no_words(server: Served, client: Any) -> None:
    chat(client, [user("my secret")])
    text = get(server[0], "/metrics").text
    assert 'nanochat_http_requests_total{route="POST /v1/chat/completions",status="200"}' in text
    assert "nanochat_first_token_seconds_count" in text
    assert "secret" not in text
    assert isinstance(server[1].stats, ServerStats)


def test_quotations_of_documents(tmp_path: Path) -> None:
    documents = DocumentSources(make_index(tmp_path), True, default_weights())
    engine = ScriptedEngine(lambda _: reply_ids("Own words."))
    with serving(engine, routers=[router], sources=documents) as (address, _), new_client() as http:
        body = {"messages": [user("What is tea?")], "n": 2, "logprobs": True}
        answer = http.post(f"{address}/v1/chat/completions", json=body).json()
        stream = http.post(f"{address}/v1/chat/completions", json={**body, "stream": True}).text
    quotation = "Tea is a drink made of leaves."
    assert [choice["message"]["content"] for choice in answer["choices"]] == [quotation] * 2
    assert [choice["finish_reason"] for choice in answer["choices"]] == ["stop"] * 2
    assert answer["sources"][0]["quoted"] is True
    *_, last, done = stream.rstrip().split("\n\n")
    assert done == "data: [DONE]"
    last = json.loads(last.removeprefix("data: "))
    assert (last["sources"], last["choices"][0]["finish_reason"]) == (answer["sources"], "stop")
    assert "Own words" not in stream


@pytest.mark.parametrize("is_stream", [False, True])
def test_a_fault_of_the_documents_is_not_told_in_detail(tmp_path: Path, is_stream: bool) -> None:
    documents = DocumentSources(make_index(tmp_path), False)

    def script(_: list[int]) -> list[int]:
        documents.index.close()
        return reply_ids("So.")

    with serving(ScriptedEngine(script), routers=[router], sources=documents) as (address, _), new_client() as http:
        body = {"messages": [user("What is tea?")], "stream": is_stream}
        response = http.post(f"{address}/v1/chat/completions", json=body)
    assert response.status_code == (200 if is_stream else 500)
    error = json.loads(response.text.rstrip().split("\n\n")[-1].removeprefix("data: "))["error"]
    assert error["message"] == "the documents cannot be searched: the server's log has the reason"
    assert error["type"] == "server_error"
