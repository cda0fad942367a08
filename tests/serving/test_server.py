"""The chat server over real connections: routes, streams, the queue, and how it stops."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from nanochat.engine import Engine
from nanochat.gpt import GPT
from nanochat.layers.sampling_params import SamplingParams
from nanochat.serving.chat_session import Chunk, stream_chunks, to_content
from nanochat.serving.server import MAX_BODY_BYTES, PAGE
from nanochat.serving.service import ChatService
from tests.support.chat_server import (
    HELLO,
    EventConnection,
    chat_events,
    get,
    get_stats,
    new_client,
    parse_events,
    post_chat,
    serving,
    serving_model,
    wait_for,
)
from tests.support.models import constant_model, random_model
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

CONTENT = [
    {"type": "text", "text": "Ä€ "},
    {"type": "python", "text": "6*7"},
    {"type": "python_output", "text": "42"},
    {"type": "text", "text": " 🙂"},
]

Server = tuple[str, ChatService, ScriptedEngine]


# Routes


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """The address of a server whose model always replies CONTENT, its service and its engine."""
    engine = ScriptedEngine(lambda _: reply_ids(CONTENT))
    with serving(engine, defaults=SamplingParams(0.5, top_k=5, max_tokens=55, seed=None)) as (address, service):
        yield address, service, engine


def test_a_reply_is_a_stream_of_events(server: Server) -> None:
    address, _, engine = server
    response = post_chat(address, json={**HELLO, "seed": 7})
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/event-stream")
    *chunks, done = parse_events(response.content.decode("utf-8"))
    shown = "".join(event["text"] if event["text"] else f"[{event['kind']}]" for event in chunks)
    assert shown == "Ä€ [python]6*7[python_output]42 🙂"
    assert done.pop("seconds_to_first_token") >= 0
    assert done.pop("tokens_per_second") > 0
    assert done == {
        "kind": "done",
        "text": "",
        "finish": "stop",
        "tokens": len(reply_ids(CONTENT)),
        "dropped": 0,
    }
    prompt = TOKENIZER.render_for_completion(HELLO)
    assert engine.calls[-1] == (prompt, SamplingParams(0.5, top_k=5, max_tokens=55, seed=7))


def test_without_a_seed_every_reply_has_a_random_one(server: Server) -> None:
    address, _, engine = server
    for _ in range(3):
        chat_events(address, temperature=1, top_k=9, max_tokens=2)
    params = [params for _, params in engine.calls[-3:]]
    assert params == [SamplingParams(1, top_k=9, max_tokens=2, seed=None)] * 3
    assert len({params.draw_seed() for params in params}) == 3


def test_a_reply_that_was_cut_off_ends_by_length(server: Server) -> None:
    *_, done = chat_events(server[0], max_tokens=3)
    assert (done["finish"], done["tokens"]) == ("length", 3)


def test_messages_that_do_not_fit_are_dropped_and_counted(server: Server) -> None:
    address, _, engine = server
    messages = [user("x" * 100), assistant("y" * 100), user("last")]
    *_, done = chat_events(address, messages=messages)
    assert done["dropped"] == 2
    assert engine.calls[-1][0] == TOKENIZER.render_for_completion({"messages": [user("last")]})


@pytest.mark.parametrize(
    ("status", "message", "options"),
    [
        (400, "temperature is 3: must be", {"json": {**HELLO, "temperature": 3}}),
        (400, "it has 304 tokens, and 201 fit", {"json": {"messages": [user("x" * 300)]}}),
        (400, "the body is not JSON", {"content": b"{", "headers": {"content-type": "Application/JSON; x=y"}}),
        (
            415,
            "the content type is 'text/plain': must be application/json",
            {"content": json.dumps(HELLO), "headers": {"content-type": "text/plain"}},
        ),
        (413, f"more than {MAX_BODY_BYTES} bytes", {"json": {"messages": [user("x" * MAX_BODY_BYTES)]}}),
    ],
)  # fmt: skip
def test_a_refusal_has_a_status_and_a_reason(
    server: Server, status: int, message: str, options: dict[str, Any]
) -> None:
    address, service, engine = server
    before = service.stats.snapshot()
    num_calls = len(engine.calls)
    response = post_chat(address, **options)
    assert response.status_code == status
    assert message in response.json()["error"]
    after = service.stats.snapshot()
    assert (after["requests"], after["refused"]) == (before["requests"] + 1, before["refused"] + 1)
    assert len(engine.calls) == num_calls


def test_health_and_page(server: Server) -> None:
    address = server[0]
    health = get(address, "/health").json()
    assert (health["ready"], health["model"], health["device"]) == (True, "scripted", "cpu")
    assert health["defaults"] == {"temperature": 0.5, "top_k": 5, "top_p": None, "max_tokens": 55, "seed": None}
    assert health["limits"]["message_characters"] == 8000
    page = get(address)
    assert page.text == PAGE.read_text(encoding="utf-8")
    assert "default-src 'none'; script-src 'sha256-" in page.headers["content-security-policy"]
    assert not [name for name in page.headers if name.startswith("access-control")]
    assert get(address, "/docs").status_code == 404  # would load scripts from another site


def test_the_page_loads_nothing_from_other_sites() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert "innerHTML" not in text
    assert "insertAdjacentHTML" not in text
    assert not re.search(
        r"\beval\(|new Function|document\.write|outerHTML|@import|<script .*src|<link .*stylesheet", text
    )
    assert set(re.findall(r"https?://[\w.]+", text)) == {"http://www.w3.org"}  # the namespace of SVG
    loaded = re.findall(r"""(?:src|href)="([^"]*)"|url\(([^)]*)\)|fetch\("([^"]*)""", text)
    addresses = {address for each in loaded for address in each if address}
    assert all(
        address.startswith(("data:image/svg+xml,", "#icon-")) for address in addresses - {"health", "chat/completions"}
    )


@pytest.mark.parametrize("beginning", ["It is ", [{"type": "python", "text": "1+1"}, {"type": "text", "text": " is "}]])
def test_a_reply_that_is_continued(beginning: Any) -> None:
    engine = ScriptedEngine(lambda _: reply_ids("two."), context=64)
    messages = [user("What is 1+1?"), assistant(beginning)]
    with serving(engine) as (address, _):
        events = chat_events(address, messages=messages)
        assert [event["kind"] for event in events] == ["text"] * (len(events) - 1) + ["done"]
        assert "".join(event["text"] for event in events) == "two."
        prompt = engine.calls[0][0]
        assert prompt == [*TOKENIZER.render_for_completion({"messages": messages[:1]}), *reply_ids(beginning)[:-1]]
        refusal = post_chat(address, json={"messages": [user("a"), assistant("b" * 64)]})
        assert (refusal.status_code, refusal.json()["error"]) == (
            400,
            "the beginning of the reply has 64 tokens: the context is 64",
        )


# A real model


def solo(model: GPT, text: str, **settings: Any) -> list[tuple[str, str]]:
    """The chunks of the reply of a model that has nothing else to do, joined by kind."""
    engine = Engine(model, TOKENIZER)
    prompt = TOKENIZER.render_for_completion({"messages": [user(text)]})
    [[completion]] = engine.generate_many([prompt], SamplingParams(**settings))
    return joined(stream_chunks(TOKENIZER, completion.tokens))


def joined(chunks: Iterable[Chunk]) -> list[tuple[str, str]]:
    content = to_content(chunks)
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    return [(part["type"], part["text"]) for part in parts if part["text"]]


@pytest.mark.slow
def test_replies_of_many_clients_at_once_are_what_each_is_alone() -> None:
    """Greedy and sampled, whole and as streams, in both forms, while requests come and go."""
    model = random_model(256, TOKENIZER.get_vocab_size(), n_layer=2, n_embd=32)
    settings = [
        (f"question {number}" * (1 + number % 5), {"temperature": number % 2, "top_k": 50, "max_tokens": 5 + number,
                                                   "seed": number})
        for number in range(24)
    ]  # fmt: skip
    expected = [solo(model, text, **options) for text, options in settings]

    def ask(number: int) -> list[tuple[str, str]]:
        text, options = settings[number]
        if number % 3:
            events = chat_events(address, messages=[user(text)], **options)
            assert events[-1]["kind"] == "done"
            kinds = ("text", "python", "python_output")
            return joined(Chunk(event["kind"], event["text"]) for event in events if event["kind"] in kinds)
        body = {"messages": [user(text)], **options}
        with new_client() as client:
            message = client.post(f"{address}/v1/chat/completions", json=body).json()["choices"][0]["message"]
        return [("text", message["content"])] if message["content"] else []

    with serving_model(model) as (address, _), ThreadPoolExecutor(12) as threads:
        replies = list(threads.map(ask, range(len(settings))))
    for number, reply in enumerate(replies):
        if number % 3:
            assert reply == expected[number], settings[number]
        else:  # without the calls
            text = "".join(text for kind, text in expected[number] if kind == "text")
            assert "".join(text for _, text in reply).rstrip("\ufffd") == text.rstrip("\ufffd")
    assert sum(map(len, expected)) >= 20


def test_a_client_that_vanishes_frees_its_row_at_the_next_step() -> None:
    model = constant_model(100_000, ord("a"), TOKENIZER.get_vocab_size())
    with serving_model(model, max_rows=1) as (address, _):
        connection = EventConnection(address)
        assert connection.next_event() == {"kind": "text", "text": "a"}
        connection.close()
        wait_for(lambda: get_stats(address, "in_flight") == (0,))
        count = get_stats(address, "generated_tokens")
        assert count[0] < 4096
        assert chat_events(address, max_tokens=3)[-1]["tokens"] == 3
        assert get_stats(address, "generated_tokens") == (count[0] + 3,)


# Queue, end, failures


@pytest.fixture
def connect() -> Iterator[Callable[..., EventConnection]]:
    """Open connections that are closed at the end of the test."""
    connections = []

    def open_connection(*args: Any) -> EventConnection:
        connections.append(EventConnection(*args))
        return connections[-1]

    yield open_connection
    for connection in connections:
        connection.close()


def test_a_token_is_sent_before_the_next_is_generated(connect: Callable[..., EventConnection]) -> None:
    engine = GatedEngine()
    with serving(engine) as (address, _):
        connection = connect(address)
        for count in range(1, 4):
            engine.permits.release()
            assert connection.next_event() == {"kind": "text", "text": "a"}
            assert engine.num_generated == count
        assert get_stats(address, "tokens", "in_flight", "answered") == (3, 1, 0)


def test_closing_a_connection_stops_its_reply_and_frees_the_engine(connect: Callable[..., EventConnection]) -> None:
    engine = GatedEngine()
    with serving(engine) as (address, service):
        connection = connect(address)
        engine.permits.release()
        connection.next_event()
        connection.close()
        engine.is_free = True
        wait_for(lambda: service.stats.snapshot()["in_flight"] == 0)
        assert engine.num_closed_early == 1
        assert engine.num_generated < 4000
        assert get_stats(address, "in_flight", "stopped", "answered", "failed") == (0, 1, 0, 0)
        engine.script = lambda _: reply_ids("next")  # type: ignore[method-assign]
        assert chat_events(address)[-1]["kind"] == "done"


def test_a_request_waits_in_the_queue_while_the_model_is_busy(connect: Callable[..., EventConnection]) -> None:
    engine = GatedEngine()
    with serving(engine) as (address, _):
        first = connect(address)
        engine.permits.release()
        assert first.next_event()["kind"] == "text"
        second = connect(address, "second")
        third = connect(address, "third")
        assert second.next_event() == {"kind": "waiting", "text": "", "place": 1}
        assert third.next_event() == {"kind": "waiting", "text": "", "place": 2}
        assert get(address, "/health").json()["ready"] is True
        assert get_stats(address, "in_flight", "waiting") == (1, 2)
        second.close()  # leaves the queue
        wait_for(lambda: get_stats(address, "waiting") == (1,))
        assert third.next_event() == {"kind": "waiting", "text": "", "place": 1}  # sent again when it changes
        first.close()
        engine.is_free = True
        assert third.next_event() == {"kind": "text", "text": "a"}
        assert [last_user_text(prompt) for prompt, _ in engine.calls] == ["Hello", "third"]


def test_two_copies_reply_at_once(connect: Callable[..., EventConnection]) -> None:
    engines = [GatedEngine(), GatedEngine()]
    with serving(*engines) as (address, _):
        connections = [connect(address), connect(address)]
        for engine in engines:
            engine.permits.release()
        assert [connection.next_event()["kind"] for connection in connections] == ["text", "text"]
        assert [engine.num_generated for engine in engines] == [1, 1]
        assert get_stats(address, "in_flight", "waiting") == (2, 0)


def test_stopping_the_server_tells_those_that_wait_and_ends_those_that_run(
    connect: Callable[..., EventConnection],
) -> None:
    engine = GatedEngine()
    with serving(engine) as (address, service):
        first, second = connect(address), connect(address, "second")
        assert second.next_event() == {"kind": "waiting", "text": "", "place": 1}
        service.begin_shutdown()
        assert get(address, "/health/ready").status_code == 503
        assert get(address, "/health/live").status_code == 200
        assert post_chat(address, json=HELLO).json() == {"error": "the server is shutting down"}
        [loop] = service.loops
        loop.close(0.1)
        for connection in (first, second):
            assert connection.next_event() == {"kind": "error", "text": "the server is shutting down"}


def test_a_running_reply_ends_before_the_server_stops() -> None:
    engine = ScriptedEngine(lambda _: reply_ids("a" * 50))
    with serving(engine) as (address, service):
        [loop] = service.loops
        thread = threading.Thread(target=lambda: (wait_for(lambda: engine.num_generated > 5), loop.close(30)))
        thread.start()
        assert chat_events(address)[-1]["kind"] == "done"
        thread.join()


def test_a_failure_is_an_event_and_is_logged_without_the_conversation(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    def script(prompt: list[int]) -> Iterator[int]:
        yield from b"so"
        if "secret" in last_user_text(prompt):
            raise RuntimeError("out of memory")
        yield SPECIAL["<|assistant_end|>"]

    with serving(ScriptedEngine(script)) as (address, _):
        *_, last = chat_events(address, messages=[user("my secret")])
        assert last == {"kind": "error", "text": "the reply failed: the server's log has the reason"}
        assert chat_events(address)[-1]["kind"] == "done"  # the engine is free again
        assert get_stats(address, "failed", "answered", "in_flight") == (1, 1, 0)
    assert "out of memory" in caplog.text
    output = capfd.readouterr()
    assert "my secret" not in caplog.text + output.out + output.err
