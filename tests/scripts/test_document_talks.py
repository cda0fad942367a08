"""scripts/document_talks.py: from documents to the three files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nanochat.common import UserError
from nanochat.configurator import parse
from nanochat.documents.document import Block, Document, write_documents
from scripts import document_talks
from scripts.document_talks import Config, conversations_path, main
from tasks.customjson import read_conversations
from tests.support.openai_server import reply_with, stand_in_server
from tests.support.tale_documents import documents


def contents() -> dict[str, bytes]:
    return {split: conversations_path(split).read_bytes() for split in ("train", "val", "test")}


def test_the_files_are_conversations_with_their_source(base_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_documents(documents())
    talks = main(Config(identity=5))
    assert conversations_path("train") == base_dir / "documents" / "conversations" / "train.jsonl"
    for split, made in talks.items():
        path = conversations_path(split)
        assert [c["messages"] for c in read_conversations(path)] == [list(talk.messages) for talk in made]
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        names = {document.name for document in documents()}
        assert all(row["document"] in names for row in rows if row["expected"])
    output = capsys.readouterr().out
    assert "definition" in output
    assert "user:" in output
    assert f"{len(talks['train']):8,}" in output


def test_the_same_seed_gives_the_same_bytes(base_dir: Path) -> None:  # noqa: ARG001
    write_documents(documents())
    main(Config(examples=0))
    first = contents()
    main(Config(examples=0))
    assert contents() == first
    main(Config(examples=0, seed=1))
    assert contents()["train"] != first["train"]


@pytest.mark.usefixtures("base_dir")
def test_a_collection_that_is_too_large_is_thinned(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_documents(documents())
    monkeypatch.setattr(document_talks, "MAX_BYTES", 10_000)
    main(Config(examples=0))
    output = capsys.readouterr().out
    assert "NOTICE" in output
    assert "24 documents" not in output


@pytest.mark.usefixtures("base_dir")
def test_another_model_writes_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    write_documents(documents())

    def respond(request: dict[str, Any]) -> tuple[int, str]:
        sentence = request["messages"][0]["content"].rpartition("\n")[2].split(". ")[0] + "."
        return 200, reply_with([{"question": f"What about {sentence.split()[1]}?", "answer": sentence}])

    with stand_in_server(respond) as server:
        talks = main(Config(examples=0, endpoint=server.address, model="m", num_written=30))
        assert len(server.requests) == 10
        assert any(talk.kind == "written" for talk in talks["train"])
        assert not any(talk.kind == "written" for talk in (*talks["val"], *talks["test"]))
        first = contents()
        main(Config(examples=0, endpoint=server.address, model="m", num_written=30))
        assert len(server.requests) == 10, "kept from the first run"
    assert contents() == first


@pytest.mark.usefixtures("base_dir")
def test_faults_are_one_line() -> None:
    with pytest.raises(UserError, match="no documents in"):
        main(Config())
    write_documents([Document("a.md", "A", (Block("paragraph", "12 34.", ()),)).with_split("train")])
    with pytest.raises(UserError, match="gave no question with an answer"):
        main(Config())
    assert not conversations_path("train").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--forms=0"], "forms"),
        (["--unanswerable=0.5", "--several=0.4"], "together at most 0.8"),
        (["--endpoint=https://x"], "set both or neither"),
        (["--model=m"], "set both or neither"),
        (["--endpoint=http://a.org", "--model=m"], "must be https"),
        (["--held_out=1"], "held_out"),
    ],
)
def test_impossible_settings(flags: list[str], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(UserError, match=message):
        parse(Config, flags)
