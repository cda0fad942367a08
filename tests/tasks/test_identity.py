"""Who the model says it is, from templates and through another model."""

from __future__ import annotations

import importlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from nanochat.common import UserError
from nanochat.configurator import parse
from nanochat.data.shards import Manifest, ShardInfo
from tasks.customjson import read_conversations
from tasks.identity import ABILITIES, GREETINGS, PERSONA, SYSTEM_MESSAGE_PROB, TOPICS, Identity, generate_conversations
from tasks.mixture import detect_data_kind

gen_synthetic_data: Any = importlib.import_module("dev.gen_synthetic_data")  # a command, not a package
Config, main, reworded = gen_synthetic_data.Config, gen_synthetic_data.main, gen_synthetic_data.reworded


def test_it_is_the_same_for_the_same_seed() -> None:
    assert generate_conversations(50) == generate_conversations(50) == generate_conversations(100)[:50]
    assert generate_conversations(50) != generate_conversations(50, seed=1)
    assert generate_conversations(50) != generate_conversations(50, kind="web")
    with pytest.raises(UserError, match="world, web"):
        generate_conversations(1, kind="moon")


@pytest.mark.parametrize("kind", ABILITIES)
def test_it_says_everything(kind: str) -> None:
    conversations = generate_conversations(1000, kind)
    said = " ".join(m["content"] for c in conversations for m in c["messages"] if m["role"] == "assistant")
    assert not re.search(r"[{}|]", said), "every gap is filled"
    for fact in (*PERSONA.values(), *ABILITIES[kind].values()):
        assert fact in said
    for greeting in GREETINGS:
        assert greeting.split("|")[1].format(**PERSONA) in said
    asked = {m["content"].lower().rstrip("?.!") for c in conversations for m in c["messages"] if m["role"] == "user"}
    for questions, _ in TOPICS.values():
        assert all(question.lower().rstrip("?.!") in asked for question in questions.split("|"))
    turns = [sum(m["role"] == "user" for m in c["messages"]) for c in conversations]
    assert {1, 2, 3} <= set(turns)
    assert max(turns) <= 4
    assert len({json.dumps(c) for c in conversations}) > 500
    system = sum(c["messages"][0]["role"] == "system" for c in conversations)
    assert 0.5 * SYSTEM_MESSAGE_PROB < system / 1000 < 1.5 * SYSTEM_MESSAGE_PROB


def test_another_name_is_used_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PERSONA, "name", "Zebulon")
    monkeypatch.setitem(PERSONA, "maker", "Ada and Bob")
    said = json.dumps(generate_conversations(300))
    assert "Zebulon" in said
    assert "Ada and Bob" in said
    assert "nanochat" not in said


def test_a_file_goes_before_the_templates(base_dir: Path) -> None:
    assert len(Identity("all", size=30)) == 30
    assert len(Identity("train", size=40)) == 38
    main(Config(num=7))
    assert list(Identity("all", size=30)) == generate_conversations(7)
    other = base_dir / "other.jsonl"
    main(Config(num=5, seed=3, out=other))
    assert list(Identity("all", path=other)) == generate_conversations(5, seed=3)


@pytest.mark.parametrize(("source", "kind"), [("storyworld", "world"), ("my/folder", "web"), (None, "world")])
def test_its_abilities_are_those_of_the_base_data(source: str | None, kind: str, base_dir: Path) -> None:
    if source:
        Manifest(source, (), "v", {"v": ShardInfo(1, 1, "")}, {}).save(base_dir / "base_data")
    assert detect_data_kind(if_none="world") == kind
    assert detect_data_kind() == (kind if source else "web")
    assert read_conversations(main(Config(num=20))) == generate_conversations(20, kind)
    assert read_conversations(main(Config(num=20, kind="web"))) == generate_conversations(20, "web")


# --- through another model --------------------------------------------------------------------------------------------

Answer = Callable[[dict[str, Any]], tuple[int, str]]


class Server:
    """An endpoint of OpenAI's protocol. `answer(request) -> (status, body)`; `seen` has (path, key, request)."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str | None, dict[str, Any]]] = []
        self.answer: Answer = lambda request: (200, reply(changed(given(request))))
        self.address = ""


def given(request: dict[str, Any]) -> list[dict[str, str]]:
    """The conversation that a request shows."""
    found: list[dict[str, str]] = json.loads(request["messages"][0]["content"].rpartition("\n")[2])
    return found


def changed(messages: list[dict[str, str]]) -> list[dict[str, str]]:
    return [{**message, "content": message["content"] + " Indeed!"} for message in messages]


def reply(messages: object) -> str:
    text = messages if isinstance(messages, str) else f"Here it is:\n```json\n{json.dumps(messages)}\n```"
    return json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]})


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    told = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            told.seen.append((self.path, self.headers["Authorization"], request))
            status, body = told.answer(request)
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    told.address = f"http://127.0.0.1:{http.server_port}/v1"
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    monkeypatch.setattr(gen_synthetic_data, "FIRST_WAIT", 0.0)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    yield told
    http.shutdown()
    http.server_close()
    thread.join()


def config_for(server: Server, **settings: Any) -> Any:
    return replace(Config(num=12, kind="web", endpoint=server.address, model="m", workers=3), **settings)


def test_another_model_says_it_in_its_words(server: Server, base_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    path = main(config_for(server))
    assert path == base_dir / "identity_conversations.jsonl"
    originals = generate_conversations(12, "web")
    assert read_conversations(path) == [{"messages": changed(c["messages"])} for c in originals], "in order"
    assert {(where, key, request["model"]) for where, key, request in server.seen} == {
        ("/v1/chat/completions", "Bearer secret", "m")
    }
    assert len(server.seen) == 12


def test_without_a_key_none_is_sent(server: Server) -> None:
    reworded(config_for(server), generate_conversations(1))
    assert server.seen[0][1] is None


def test_a_busy_server_is_asked_again(server: Server) -> None:
    def answer(request: dict[str, Any]) -> tuple[int, str]:
        tries = sum(seen == request for _, _, seen in server.seen)
        return (429, "busy") if tries < 3 else (200, reply(changed(given(request))))

    server.answer = answer
    assert (
        len(reworded(config_for(server), generate_conversations(4)))
        == len({json.dumps(c) for c in generate_conversations(4)})
        == 4
    )
    assert len(server.seen) == 12


def test_bad_answers_are_dropped(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    originals = generate_conversations(7, seed=4)
    assert len({json.dumps(original) for original in originals}) == 7
    bad = [
        lambda _: reply("I would rather not."),
        lambda messages: reply([*messages, {"role": "user", "content": "and"}]),
        lambda _: reply([{"role": "user", "content": "only"}]),
        lambda messages: reply(
            json.dumps(messages).replace(PERSONA["name"], "ChatGPT") if PERSONA["name"] in str(messages) else "[]"
        ),
        lambda _: "<html>",
        lambda _: json.dumps({"choices": []}),
    ]
    numbers = {json.dumps(original["messages"]): number for number, original in enumerate(originals)}

    def answer(request: dict[str, Any]) -> tuple[int, str]:
        messages = given(request)
        number = numbers[json.dumps(messages)]
        return 200, bad[number](messages) if number < len(bad) else reply(messages)

    server.answer = answer
    assert reworded(config_for(server, attempts=2), originals) == [{"messages": originals[6]["messages"]}]
    assert len(server.seen) == 13
    assert "6 of 7 were dropped" in capsys.readouterr().out


def test_a_refusal_ends_it_at_once(server: Server) -> None:
    server.answer = lambda _: (401, "no")
    with pytest.raises(UserError, match=r"gave no conversation.*401"):
        reworded(config_for(server), generate_conversations(3))
    assert len(server.seen) == 3


def test_nobody_there() -> None:
    with pytest.raises(UserError, match=r"gave no conversation.*Connection"):
        reworded(Config(num=1, endpoint="http://127.0.0.1:9/v1", model="m", attempts=1), generate_conversations(1))


@pytest.mark.parametrize(
    "flags", [["--num=0"], ["--endpoint=http://x"], ["--model=m"], ["--timeout=0"], ["--kind=moon"]]
)
def test_impossible_settings_are_refused(flags: list[str]) -> None:
    with pytest.raises(UserError):
        parse(Config, flags)
