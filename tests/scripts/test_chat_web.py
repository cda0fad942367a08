"""The chat's server, over real connections: requests and their limits, streams, the line, and how it stops."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nanochat.checkpoint_manager import build_model, model_meta, run_dir, save_checkpoint
from nanochat.common import UserError
from nanochat.configurator import parse
from nanochat.engine import Engine
from nanochat.gpt import GPT, GPTConfig
from nanochat.layers.sampling_params import SamplingParams
from nanochat.runtime import Runtime
from nanochat.serving.chat_request import DEFAULTS, check_messages, read_request
from nanochat.serving.chat_session import reply
from nanochat.serving.server import MAX_BYTES, PAGE
from scripts import chat_web
from tests.support.scripted import (
    SPECIAL,
    TOKENIZER,
    Gated,
    Scripted,
    answer_ids,
    assistant,
    question,
    serving,
    serving_app,
    user,
)

ROOT = Path(__file__).resolve().parents[2]
HERE = Runtime(0, 0, 1, torch.device("cpu"), torch.float32, 42)
HELLO = {"messages": [user("Hello")]}
CALL = [
    {"type": "text", "text": "Ä€ "},
    {"type": "python", "text": "6*7"},
    {"type": "python_output", "text": "42"},
    {"type": "text", "text": " 🙂"},
]


CLIENT = httpx.Client(verify=False, trust_env=False, timeout=60)


def ask(address: str, body: Any = None, **fields: Any) -> httpx.Response:
    return CLIENT.post(f"{address}/chat/completions", json={**HELLO, **fields} if body is None else body)


def events(text: str) -> list[dict[str, Any]]:
    """The events of a whole stream, which consists of nothing else."""
    blocks = text.split("\n\n")
    assert blocks.pop() == ""
    assert all(block.startswith("data: ") and "\n" not in block for block in blocks)
    return [json.loads(block.removeprefix("data: ")) for block in blocks]


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "this does not come to pass"
        time.sleep(0.01)


def tiny_model(context: int) -> GPT:
    size = {"vocab_size": TOKENIZER.get_vocab_size(), "n_layer": 1, "n_head": 1, "n_kv_head": 1, "n_embd": 16}
    return build_model(GPTConfig(sequence_len=context, **size), HERE)


@pytest.fixture(scope="module", autouse=True)
def _close_client() -> Iterator[None]:
    yield
    CLIENT.close()


# What a request may hold


def refusal(body: Any) -> str:
    with pytest.raises(UserError) as caught:
        read_request(body if isinstance(body, bytes) else json.dumps(body).encode(), DEFAULTS)
    return str(caught.value)


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"", "the body is not JSON"),
        (b'{"messages": [', "the body is not JSON"),
        (b"\xff\xfe", "the body is not JSON"),
        (b"[" * 100_000, "the body is not JSON"),
        (b'{"temperature": 1' + b"0" * 5000 + b"}", "the body is not JSON"),
        ([], 'the body must be {"messages": [...]}, not []'),
        ({}, "messages is missing, empty or no list"),
        ({"messages": []}, "messages is missing, empty or no list"),
        ({"messages": {"role": "user"}}, "messages is missing, empty or no list"),
        ({"messages": ["hi"]}, "message 1: must have a role and a content"),
        ({"messages": [None]}, "message 1: must have a role and a content"),
        ({"messages": [{"role": "user"}]}, "message 1: must have a role and a content"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "role 'robot' where 'user' is due"),
        ({"messages": [{"role": [], "content": "x"}]}, "role [] where 'user' is due"),
        ({"messages": [user("a"), user("b")]}, "message 2: role 'user' where 'assistant' is due"),
        ({"messages": [{"role": "user", "content": 5}]}, "message 1: a user's content must be text, not int"),
        ({"messages": [{"role": "user", "content": [{"text": "a"}]}]}, "a user's content must be text, not list"),
        ({"messages": [user("a"), assistant([{"type": "image", "text": ""}])]}, "message 2: a part must be"),
        ({"messages": [user("a"), assistant([[1]])]}, "message 2: a part must be"),
        ({"messages": [user("\ud800")]}, "message 1 has half a character"),
        ({**HELLO, "temprature": 1}, "unknown field 'temprature': known are messages, temperature, top_k"),
        ({**HELLO, "temperature": 2.01}, "temperature is 2.01: it must be a number from 0 to 2"),
        ({**HELLO, "temperature": -0.1}, "temperature is -0.1: it must be a number from 0 to 2"),
        ({**HELLO, "temperature": float("nan")}, "temperature is nan: it must be a number from 0 to 2"),
        ({**HELLO, "temperature": float("inf")}, "temperature is inf: it must be a number from 0 to 2"),
        ({**HELLO, "temperature": "hot"}, "temperature is 'hot': it must be a number from 0 to 2"),
        ({**HELLO, "temperature": True}, "temperature is True: it must be a number from 0 to 2"),
        ({**HELLO, "top_k": 0}, "top_k is 0: it must be a whole number from 1 to 200"),
        ({**HELLO, "top_k": 201}, "top_k is 201: it must be a whole number from 1 to 200"),
        ({**HELLO, "top_k": 1.5}, "top_k is 1.5: it must be a whole number from 1 to 200"),
        ({**HELLO, "max_tokens": 0}, "max_tokens is 0: it must be a whole number from 1 to 4096"),
        ({**HELLO, "max_tokens": 4097}, "max_tokens is 4097: it must be a whole number from 1 to 4096"),
        ({**HELLO, "max_tokens": 10**4000}, "000...: it must be a whole number from 1 to 4096"),
        ({**HELLO, "seed": -1}, "seed is -1: it must be a whole number from 0 to 4294967295"),
        ({"messages": [user("x" * 8001)]}, "message 1 has 8001 characters: at most 8000 are allowed"),
        (
            {"messages": [user("a"), assistant([{"type": "text", "text": "x" * 4001}] * 2), user("b")]},
            "message 2 has 8002 characters: at most 8000 are allowed",
        ),
        (
            {"messages": [user("x" * 8000), assistant("x" * 8000)] * 2 + [user("x")]},
            "the messages have 32001 characters in all: at most 32000 are allowed",
        ),
        ({"messages": [user("a"), assistant("b")] * 250 + [user("c")]}, "there are 501 messages: at most 500 are"),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, str) else "",
)  # fmt: skip
def test_what_is_refused_and_why(body: Any, why: str) -> None:
    assert why in refusal(body)


def test_what_stands_at_a_limit_is_taken() -> None:
    full = [user("x" * 8000), assistant("ä" * 8000), user("x" * 8000), assistant("x" * 7999), user("x")]
    many = [{"role": "system", "content": "s"}, *([user("a"), assistant("b")] * 249), user("c")]
    assert len(many) == 500
    check_messages(many)
    for temperature, top_k, max_tokens, seed in [(0, 1, 1, 0), (2, 200, 4096, 2**32 - 1), (0.5, 7, 9, 1)]:
        asked = {"temperature": temperature, "top_k": top_k, "max_tokens": max_tokens, "seed": seed}
        read = read_request(json.dumps({"messages": full, **asked}).encode(), DEFAULTS)
        assert read == (full, SamplingParams(temperature, top_k, max_tokens, seed=seed))


def test_what_is_left_out_or_null_is_as_the_server_has_it() -> None:
    defaults = SamplingParams(0.1, 2, 3, seed=4)
    body = json.dumps({**HELLO, "top_k": None, "max_tokens": 8}).encode()
    assert read_request(body, defaults) == (HELLO["messages"], replace(defaults, max_tokens=8))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
odd_messages = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant", "system"]) | json_values},
        optional={"content": json_values | st.lists(st.fixed_dictionaries({"type": json_values, "text": json_values}))},
    )
    | json_values,
    max_size=3,
)


@given(
    json_values
    | st.fixed_dictionaries(
        {"messages": odd_messages},
        optional=dict.fromkeys(("temperature", "top_k", "max_tokens", "seed", "more"), json_values),
    )
)
def test_whatever_comes_is_read_or_refused(body: Any) -> None:
    try:
        messages, params = read_request(json.dumps(body).encode(), DEFAULTS)
    except UserError:
        return
    TOKENIZER.render_conversation({"messages": messages})
    assert 0 <= params.temperature <= 2


# Over a connection


@pytest.fixture(scope="module")
def plain() -> Iterator[tuple[str, Any, Scripted]]:
    """A server whose model says CALL, and its engine."""
    engine = Scripted(lambda _: answer_ids(CALL))
    with serving(engine, defaults=SamplingParams(0.5, 5, 55, seed=None)) as (address, service):
        yield address, service, engine


def test_an_answer_is_a_stream_of_events(plain: tuple[str, Any, Scripted]) -> None:
    address, _, engine = plain
    response = ask(address, seed=7)
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/event-stream")
    *said, done = events(response.content.decode("utf-8"))
    shown = "".join(event["text"] if event["text"] else f"[{event['kind']}]" for event in said)
    assert shown == "Ä€ [python]6*7[python_output]42 🙂"
    assert done == {
        "kind": "done",
        "text": "",
        "finish": "stop",
        "tokens": len(answer_ids(CALL)),
        "dropped": 0,
    }
    prompt = TOKENIZER.render_for_completion(HELLO)
    assert engine.asked[-1] == (prompt, SamplingParams(0.5, 5, 55, seed=7))


def test_without_a_seed_every_answer_has_its_own(plain: tuple[str, Any, Scripted]) -> None:
    address, _, engine = plain
    for _ in range(3):
        ask(address, temperature=1, top_k=9, max_tokens=2)
    params = [params for _, params in engine.asked[-3:]]
    assert params == [SamplingParams(1, 9, 2, seed=None)] * 3
    assert len({params.draw_seed() for params in params}) == 3


def test_an_answer_that_was_cut_says_so(plain: tuple[str, Any, Scripted]) -> None:
    *_, done = events(ask(plain[0], max_tokens=3).text)
    assert (done["finish"], done["tokens"]) == ("length", 3)


def test_what_no_longer_fits_is_left_out_and_counted(plain: tuple[str, Any, Scripted]) -> None:
    address, _, engine = plain
    messages = [user("x" * 100), assistant("y" * 100), user("last")]
    *_, done = events(ask(address, {"messages": messages}).text)
    assert done["dropped"] == 2
    assert engine.asked[-1][0] == TOKENIZER.render_for_completion({"messages": [user("last")]})


@pytest.mark.parametrize(
    ("status", "why", "sent"),
    [
        (400, "temperature is 3: it must be", {"json": {**HELLO, "temperature": 3}}),
        (400, "it takes 304 tokens, and 201 fit", {"json": {"messages": [user("x" * 300)]}}),
        (400, "the last message must be the user's", {"json": {"messages": [user("a"), assistant("b")]}}),
        (400, "the body is not JSON", {"content": b"{", "headers": {"content-type": "Application/JSON; x=y"}}),
        (415, "must be application/json", {"content": json.dumps(HELLO), "headers": {"content-type": "text/plain"}}),
        (413, f"more than {MAX_BYTES} bytes", {"json": {"messages": [user("x" * MAX_BYTES)]}}),
    ],
)  # fmt: skip
def test_a_refusal_has_a_status_and_a_reason(
    plain: tuple[str, Any, Scripted], status: int, why: str, sent: dict[str, Any]
) -> None:
    address, service, engine = plain
    before, asked = service.stats.shown(), len(engine.asked)
    response = CLIENT.post(f"{address}/chat/completions", **sent)
    assert response.status_code == status
    assert why in response.json()["error"]
    after = service.stats.shown()
    assert (after["requests"], after["refused"]) == (before["requests"] + 1, before["refused"] + 1)
    assert len(engine.asked) == asked


def test_health_and_the_page(plain: tuple[str, Any, Scripted]) -> None:
    address = plain[0]
    health = CLIENT.get(f"{address}/health").json()
    assert (health["ready"], health["model"], health["device"]) == (True, "scripted", "cpu")
    assert health["defaults"] == {"temperature": 0.5, "top_k": 5, "max_tokens": 55, "seed": None}
    assert health["limits"]["message_characters"] == 8000
    page = CLIENT.get(address, headers={"Origin": "http://elsewhere.example"})
    assert page.text == PAGE.read_text(encoding="utf-8")
    assert "default-src 'none'; script-src 'sha256-" in page.headers["content-security-policy"]
    assert not [name for name in page.headers if name.startswith("access-control")]
    assert CLIENT.get(f"{address}/docs").status_code == 404  # would load scripts from elsewhere


def test_the_page_needs_nothing_from_elsewhere() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert "innerHTML" not in text
    assert "insertAdjacentHTML" not in text
    assert not [line for line in text.splitlines() if "http" in line.replace("http://www.w3.org/2000/svg", "")]


def test_a_real_model_streams_what_it_says_in_the_terminal() -> None:
    model = tiny_model(64)
    torch.nn.init.normal_(model.head.weight, generator=torch.Generator().manual_seed(0))
    engine = Engine(model, TOKENIZER)
    expected = [
        (piece.kind, piece.text) for piece in reply(engine, HELLO["messages"], SamplingParams(1.0, 50, 30, seed=5))
    ]
    with serving(engine) as (address, _):
        *said, done = events(ask(address, temperature=1, max_tokens=30, seed=5).content.decode("utf-8"))
    assert [(event["kind"], event["text"]) for event in said] == expected
    assert len(expected) > 3
    assert done["kind"] == "done"


# One answer at a time for each copy of the model


class Stream:
    """A connection that asks, and reads event by event."""

    def __init__(self, address: str, text: str = "Hello") -> None:
        self._client = httpx.Client(verify=False, trust_env=False, timeout=60)
        request = self._client.build_request(
            "POST", f"{address}/chat/completions", json={"messages": [user(text)], "max_tokens": 4096}
        )
        self._response = self._client.send(request, stream=True)
        self._lines = self._response.iter_lines()

    def next(self) -> dict[str, Any]:
        line = next(line for line in self._lines if line)
        event: dict[str, Any] = json.loads(line.removeprefix("data: "))
        return event

    def close(self) -> None:
        self._response.close()
        self._client.close()


@pytest.fixture
def connect() -> Iterator[Callable[..., Stream]]:
    streams = []

    def make(*args: Any) -> Stream:
        streams.append(Stream(*args))
        return streams[-1]

    yield make
    for stream in streams:
        stream.close()


def counts(address: str, *names: str) -> tuple[float, ...]:
    stats = CLIENT.get(f"{address}/stats").json()
    return tuple(stats[name] for name in names)


def test_a_token_is_sent_before_the_next_is_made(connect: Callable[..., Stream]) -> None:
    engine = Gated()
    with serving(engine) as (address, _):
        stream = connect(address)
        for count in range(1, 4):
            engine.permits.release()
            assert stream.next() == {"kind": "text", "text": "a"}
            assert engine.said == count
        assert counts(address, "tokens", "in_flight", "answered") == (3, 1, 0)


def test_a_closed_connection_stops_its_answer_and_frees_its_place(connect: Callable[..., Stream]) -> None:
    engine = Gated()
    with serving(engine) as (address, service):
        stream = connect(address)
        engine.permits.release()
        stream.next()
        stream.close()
        engine.free = True
        wait_for(lambda: service.stats.shown()["in_flight"] == 0)
        assert engine.closed == 1
        assert engine.said < 4000
        assert counts(address, "in_flight", "stopped", "answered", "failed") == (0, 1, 0, 0)
        engine.script = lambda _: answer_ids("next")  # type: ignore[method-assign]
        assert events(ask(address).text)[-1]["kind"] == "done"


def test_who_comes_while_it_writes_waits_in_line(connect: Callable[..., Stream]) -> None:
    engine = Gated()
    with serving(engine) as (address, _):
        first = connect(address)
        engine.permits.release()
        assert first.next()["kind"] == "text"
        second, third = connect(address, "second"), connect(address, "third")
        assert second.next() == third.next() == {"kind": "waiting", "text": ""}
        assert CLIENT.get(f"{address}/health").json()["ready"] is True
        assert counts(address, "in_flight", "waiting") == (1, 2)
        second.close()  # leaves the line
        wait_for(lambda: counts(address, "waiting") == (1,))
        first.close()
        engine.free = True
        assert third.next() == {"kind": "text", "text": "a"}
        assert [question(asked[0]) for asked in engine.asked] == ["Hello", "third"]


def test_two_copies_answer_at_once(connect: Callable[..., Stream]) -> None:
    engines = [Gated(), Gated()]
    with serving(*engines) as (address, _):
        streams = [connect(address), connect(address)]
        for engine in engines:
            engine.permits.release()
        assert [stream.next()["kind"] for stream in streams] == ["text", "text"]
        assert [engine.said for engine in engines] == [1, 1]
        assert counts(address, "in_flight", "waiting") == (2, 0)


def test_stopping_the_server_ends_its_answers(connect: Callable[..., Stream]) -> None:
    engine = Gated()
    with serving(engine) as (address, service):
        stream = connect(address)
        engine.permits.release()
        stream.next()
        service.stopping.set()
        engine.permits.release()
        assert stream.next() == {"kind": "error", "text": "the server is shutting down"}


def test_a_fault_is_an_event_and_a_line_in_the_log_without_what_was_said(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    def script(prompt: list[int]) -> Iterator[int]:
        yield from b"so"
        if "secret" in question(prompt):
            raise RuntimeError("out of memory")
        yield SPECIAL["<|assistant_end|>"]

    with serving(Scripted(script)) as (address, _):
        *_, last = events(ask(address, {"messages": [user("my secret")]}).text)
        assert last == {"kind": "error", "text": "the server failed at this answer; its log says why"}
        assert events(ask(address).text)[-1]["kind"] == "done"  # its place is free again
        assert counts(address, "failed", "answered", "in_flight") == (1, 1, 0)
    assert "out of memory" in caplog.text
    output = capfd.readouterr()
    assert "my secret" not in caplog.text + output.out + output.err


# The script


@pytest.fixture
def tiny(run_here: Path) -> Path:
    """A base folder with a tiny model, which was never trained: it says anything, for as long as it may."""
    model = tiny_model(4096)
    with torch.no_grad():
        model.head.weight[97] = 1e-3  # all others stay at 0, and the ends are rare among 50 of them
    TOKENIZER.save(run_here / "tokenizer")
    meta = model_meta(model, HERE, TOKENIZER)
    save_checkpoint(run_dir("sft", "d1"), 7, model.state_dict(), {}, meta)
    return run_here


@pytest.mark.usefixtures("tiny")
def test_main_serves_until_ctrl_c_in_mid_answer() -> None:
    command = [sys.executable, "-u", "-m", "scripts.chat_web", "-p", "0", "--device=cpu", "-t", "0", "-m", "4096"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        lines = iter(process.stdout.readline, "")
        line = next(line for line in lines if line.startswith("Chat with"))
        assert "sft d1, step 7 at http://127.0.0.1:" in line
        address = line.split(" at ")[1].split()[0]
        stream = Stream(address)
        assert stream.next()["kind"] in ("text", "python", "python_output")
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
        stream.close()
    finally:
        process.kill()
        process.wait()
    assert (process.returncode, errors) == (0, "")


def test_a_port_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(UserError, match=rf"cannot listen on port {port} of 127.0.0.1 .*: stop what uses it, or"):
            chat_web.main(parse(chat_web.Config, ["-p", str(port)]))
    with pytest.raises(UserError, match=r"cannot listen on port 8000 of no.such.host.invalid"):
        chat_web.main(parse(chat_web.Config, ["--host", "no.such.host.invalid"]))


@pytest.mark.usefixtures("base_dir")
def test_no_model() -> None:
    with pytest.raises(UserError, match="no model to talk to"):
        chat_web.main(parse(chat_web.Config, ["-p", "0", "--device=cpu"]))


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        (["-t", "3"], "temperature is 3.0: it must be a number from 0 to 2"),
        (["-k", "0"], "top_k is 0: it must be a whole number from 1 to 200"),
        (["-m", "5000"], "max_tokens is 5000: it must be a whole number from 1 to 4096"),
        (["-n", "0"], "num_gpus is 0: it must be at least 1"),
        (["-p", "70000"], "port is 70000: it must be from 0 to 65535"),
        (["-i", "base"], "one of mid, sft, rl"),
    ],
)
def test_settings_that_mean_nothing(flags: list[str], why: str) -> None:
    with pytest.raises(UserError, match=why):
        parse(chat_web.Config, flags)


@pytest.mark.usefixtures("tiny")
def test_more_copies_than_devices() -> None:
    with pytest.raises(UserError, match=r"num_gpus is 3, but this machine has room for 1 \(cpu\)"):
        chat_web.load(chat_web.Config(device="cpu", num_gpus=3))


@pytest.mark.usefixtures("tiny")
def test_the_application_alone_as_gunicorn_runs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NANOCHAT_WEB_ARGS", "-i sft --device=cpu -t 0 -k 7")
    with serving_app(chat_web.app) as address:
        health = CLIENT.get(f"{address}/health").json()
        assert health["model"] == "sft d1, step 7"
        assert (health["defaults"]["temperature"], health["defaults"]["top_k"]) == (0, 7)
        assert events(ask(address, max_tokens=5).text)[-1]["kind"] == "done"
