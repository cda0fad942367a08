"""nanochat/conversations/written.py: conversations of another model, checked and kept."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nanochat.common import UserError
from nanochat.conversations import chat_client
from nanochat.conversations.chat_client import ChatServer
from nanochat.conversations.sentences import normalize
from nanochat.conversations.written import MAX_PASSAGE, WrittenTalks, fault, parse_pairs, source_passages
from tests.support.openai_server import StandInServer, reply_with, stand_in_server
from tests.support.tale_documents import chapter, story

DOCUMENTS = [story(index) for index in range(6)]


def honest(request: dict[str, Any]) -> tuple[int, str]:
    """A model that asks who had something, and invents a second answer."""
    passage = request["messages"][0]["content"].rpartition("\n")[2]
    first = re.split(r"(?<=\.) ", passage)[0]
    return 200, reply_with(
        [
            {"question": f"Who was {first.split()[0]}?", "answer": first},
            {"question": f"How old was {first.split()[0]}?", "answer": f"{first.split()[0]} was 97 years old."},
        ]
    )


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandInServer]:
    monkeypatch.setattr(chat_client, "INITIAL_DELAY", 0.0)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with stand_in_server(honest) as running:
        yield running


def writer(server: StandInServer, folder: Path, **settings: Any) -> WrittenTalks:
    return WrittenTalks(ChatServer(server.address, "m", **settings), folder / "written.jsonl", workers=3)


def test_supported_answers_are_kept(server: StandInServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asking = writer(server, tmp_path)
    talks = asking.write(source_passages(DOCUMENTS, set()), 18)
    assert len(talks) == len(server.requests) == 6
    assert asking.rejected == {"a number that is not in the passage": 6}
    assert "6 kept; dropped: 6 a number that is not in the passage" in capsys.readouterr().out
    assert talks[0].messages[0]["content"] == "Who was Abena?"
    assert talks[0].document == "stories/000.md"
    assert talks[0].expected == (talks[0].messages[1]["content"],)


def test_a_second_run_asks_only_for_what_is_missing(server: StandInServer, tmp_path: Path) -> None:
    first = writer(server, tmp_path).write(source_passages(DOCUMENTS[:4], set()), 12)
    cache = tmp_path / "written.jsonl"
    lines = cache.read_text(encoding="utf-8").splitlines(keepends=True)
    cache.write_text("".join(lines[:2]) + lines[2][:20] + "\nnot JSON\n{}\n", encoding="utf-8")  # as after a crash
    server.requests.clear()
    assert writer(server, tmp_path).write(source_passages(DOCUMENTS[:4], set()), 12) == first
    assert len(server.requests) == 2
    server.requests.clear()
    assert writer(server, tmp_path).write(source_passages(DOCUMENTS[:4], set()), 12) == first
    assert not server.requests


def test_held_out_sentences_are_not_sent() -> None:
    [passage] = source_passages([story(1)], set())
    sentence = "One day she lost the kettle."
    assert sentence in passage.text
    [without] = source_passages([story(1)], {normalize(sentence)})
    assert sentence not in without.text
    assert all(len(found.text) <= MAX_PASSAGE for found in source_passages([story(1), chapter(2)], set()))


def test_a_server_that_gives_nothing_is_an_error(server: StandInServer, tmp_path: Path) -> None:
    server.respond = lambda _: (401, "")
    with pytest.raises(UserError, match=r"gave no conversation.*401"):
        writer(server, tmp_path).write(source_passages(DOCUMENTS, set()), 3)
    server.respond = lambda _: (200, reply_with([{"question": "What is Velmora?", "answer": "Velmora is a city."}]))
    with pytest.raises(UserError, match="none was supported by its passage"):
        writer(server, tmp_path).write(source_passages(DOCUMENTS, set()), 3)


@pytest.mark.parametrize(
    "reply", ["", "no", "[", "[]", "[1]", '[{"question": 1, "answer": ""}]', '[{"question": "a"}]', "{}"]
)
def test_replies_that_are_no_pairs(reply: str) -> None:
    with pytest.raises(UserError):
        parse_pairs(reply)


def test_pairs_between_words() -> None:
    reply = 'Here they are:\n[{"question": "Who\\n ran?", "answer": "A  hen."}]\nGood luck!'
    assert parse_pairs(reply) == [["Who ran?", "A hen."]]


@pytest.mark.parametrize(
    ("question", "answer", "reason"),
    [
        ("Who lost a kettle?", "The girl lost a kettle.", ""),
        ("Who?", "The girl lost a kettle.", "too short"),
        ("What does the passage say of the kettle?", "The girl lost a kettle.", "a question about the passage"),
        ("Who swims in winter?", "The girl lost a kettle.", "a question without a word"),
        ("Who lost a kettle?", "The girl lost 3 kettles.", "a number"),
    ],
)
def test_faults(question: str, answer: str, reason: str) -> None:
    found = fault(question, answer, "The girl lost a kettle in the forest.")
    assert found.startswith(reason) if reason else not found
