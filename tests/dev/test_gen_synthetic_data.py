"""dev/gen_synthetic_data.py: conversations from the templates, and rephrased by another model."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nanochat.common import UserError
from nanochat.configurator import parse
from nanochat.conversations import chat_client
from nanochat.data.shards import Manifest, ShardInfo
from tasks.customjson import read_conversations
from tasks.identity import PERSONA, Identity, generate_conversations
from tasks.mixture import detect_data_kind
from tests.support.openai_server import StandInServer, stand_in_server

gen_synthetic_data: Any = importlib.import_module("dev.gen_synthetic_data")  # a command, not a package
Config, main, rephrase_all = gen_synthetic_data.Config, gen_synthetic_data.main, gen_synthetic_data.rephrase_all

Messages = list[dict[str, str]]


# --- templates --------------------------------------------------------------------------------------------------------


def test_the_file_is_what_the_identity_task_reads(base_dir: Path) -> None:
    main(Config(num=7))
    assert list(Identity("all", size=30)) == generate_conversations(7)
    other = base_dir / "other.jsonl"
    main(Config(num=5, seed=3, out=other))
    assert list(Identity("all", path=other)) == generate_conversations(5, seed=3)


@pytest.mark.parametrize(("source", "kind"), [("storyworld", "world"), ("my/folder", "web"), (None, "world")])
def test_abilities_follow_the_base_data(source: str | None, kind: str, base_dir: Path) -> None:
    if source:
        files = {name: ShardInfo(1, 1, "0" * 64) for name in ("t.parquet", "v.parquet")}
        Manifest(source, ("t.parquet",), "v.parquet", files, {}).save(base_dir / "base_data")
    assert detect_data_kind(if_none="world") == kind
    assert detect_data_kind() == (kind if source else "web")
    assert read_conversations(main(Config(num=20))) == generate_conversations(20, kind)
    assert read_conversations(main(Config(num=20, kind="web"))) == generate_conversations(20, "web")


# --- another model ----------------------------------------------------------------------------------------------------


def messages_in(request: dict[str, Any]) -> Messages:
    """The conversation in the prompt of a request."""
    messages: Messages = json.loads(request["messages"][0]["content"].rpartition("\n")[2])
    return messages


def rephrased(messages: Messages) -> Messages:
    return [{**message, "content": message["content"] + " Indeed!"} for message in messages]


def reply_with(messages: object) -> str:
    """The body of a reply that contains a conversation, or a text."""
    text = messages if isinstance(messages, str) else f"Here it is:\n```json\n{json.dumps(messages)}\n```"
    return json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]})


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandInServer]:
    monkeypatch.setattr(chat_client, "INITIAL_DELAY", 0.0)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with stand_in_server(lambda request: (200, reply_with(rephrased(messages_in(request))))) as server:
        yield server


def config_for(server: StandInServer, **settings: Any) -> Any:
    return replace(Config(num=12, kind="web", endpoint=server.address, model="m", workers=3), **settings)


def test_another_model_rephrases(server: StandInServer, base_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    path = main(config_for(server))
    assert path == base_dir / "identity_conversations.jsonl"
    originals = generate_conversations(12, "web")
    expected = [{"messages": rephrased(original["messages"])} for original in originals]
    assert read_conversations(path) == expected, "in order"
    assert {(path, key, request["model"]) for path, key, request in server.requests} == {
        ("/v1/chat/completions", "Bearer secret", "m")
    }
    assert len(server.requests) == 12


def test_without_a_key_none_is_sent(server: StandInServer) -> None:
    rephrase_all(config_for(server), generate_conversations(1))
    assert server.requests[0][1] is None


def test_a_busy_server_is_asked_again(server: StandInServer) -> None:
    def respond(request: dict[str, Any]) -> tuple[int, str]:
        num_tries = sum(seen == request for _, _, seen in server.requests)
        return (429, "busy") if num_tries < 3 else (200, reply_with(rephrased(messages_in(request))))

    server.respond = respond
    originals = generate_conversations(4)
    assert len({json.dumps(original) for original in originals}) == 4
    assert len(rephrase_all(config_for(server), originals)) == 4
    assert len(server.requests) == 12


def test_invalid_replies_are_dropped(server: StandInServer, capsys: pytest.CaptureFixture[str]) -> None:
    originals = generate_conversations(7, seed=4)
    assert len({json.dumps(original) for original in originals}) == 7
    name = PERSONA["name"]
    invalid_replies = [
        lambda _: reply_with("I would rather not."),
        lambda messages: reply_with([*messages, {"role": "user", "content": "and"}]),
        lambda _: reply_with([{"role": "user", "content": "only"}]),
        lambda messages: reply_with(
            json.dumps(messages).replace(name, "ChatGPT") if name in str(messages) else "[]"
        ),
        lambda _: "<html>",
        lambda _: json.dumps({"choices": []}),
    ]  # fmt: skip
    index_of = {json.dumps(original["messages"]): index for index, original in enumerate(originals)}

    def respond(request: dict[str, Any]) -> tuple[int, str]:
        messages = messages_in(request)
        index = index_of[json.dumps(messages)]
        return 200, invalid_replies[index](messages) if index < len(invalid_replies) else reply_with(messages)

    server.respond = respond
    assert rephrase_all(config_for(server, attempts=2), originals) == [{"messages": originals[6]["messages"]}]
    assert len(server.requests) == 13
    assert "6 of 7 were dropped" in capsys.readouterr().out


def test_a_refused_request_is_not_repeated(server: StandInServer) -> None:
    server.respond = lambda _: (401, "no")
    with pytest.raises(UserError, match=r"gave no conversation.*401"):
        rephrase_all(config_for(server), generate_conversations(3))
    assert len(server.requests) == 3


def test_an_unreachable_server_is_an_error() -> None:
    config = Config(num=1, endpoint="http://127.0.0.1:9/v1", model="m", attempts=1)
    with pytest.raises(UserError, match=r"gave no conversation.*Connection"):
        rephrase_all(config, generate_conversations(1))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--num=0"], "at least 1"),
        (["--endpoint=http://x"], "endpoint is http://x, model is None: set both or neither"),
        (["--model=m"], "endpoint is None, model is m: set both or neither"),
        (["--timeout=0"], "timeout"),
        (["--kind=moon"], "moon"),
    ],
)
def test_impossible_settings_are_refused(flags: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse(Config, flags)
