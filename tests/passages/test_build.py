"""The files of an index: equal for equal documents, complete or absent, current or written again."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest

from nanochat.common import UserError
from nanochat.documents.document import write_documents
from nanochat.passages import build, index
from nanochat.passages.build import build_index, current_facts
from tests.support.documents import TEA, make_documents


def test_the_same_documents_give_the_same_bytes(tmp_path: Path) -> None:
    contents = []
    for name in ("one", "two"):
        source = make_documents(tmp_path / name)
        assert current_facts(source) is None
        facts = build_index(source)
        assert current_facts(source) == facts
        assert sorted(path.name for path in source.parent.iterdir()) == [
            *("documents.jsonl", "passages.json", "passages.sqlite")
        ]
        contents.append([(source.parent / name).read_bytes() for name in ("passages.sqlite", "passages.json")])
    assert contents[0] == contents[1]


def test_an_index_of_other_documents_is_not_current(tmp_path: Path) -> None:
    source = make_documents(tmp_path)
    facts = build_index(source)
    write_documents([TEA], source)
    assert current_facts(source) is None
    assert build_index(source).num_passages < facts.num_passages
    assert current_facts(source) is not None
    (tmp_path / "passages.sqlite").write_bytes(b"")
    assert current_facts(source) is None


def test_a_build_that_is_interrupted_leaves_the_old_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make_documents(tmp_path)
    facts = build_index(source)

    def stop(_: str) -> list[str]:
        raise KeyboardInterrupt

    monkeypatch.setattr(build, "all_terms", stop)
    with pytest.raises(KeyboardInterrupt):
        build_index(source)
    assert current_facts(source) == facts
    assert len(list(tmp_path.iterdir())) == 3


def test_a_database_without_its_facts_is_written_again(tmp_path: Path) -> None:
    source = make_documents(tmp_path)
    facts = build_index(source)
    (tmp_path / "passages.json").unlink()  # as if the process had been killed between the two files
    assert current_facts(source) is None
    assert build_index(source) == facts


def test_faults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"no documents in .*: read some with python -m scripts\.read_documents"):
        build_index(tmp_path / "documents.jsonl")
    source = make_documents(tmp_path)
    monkeypatch.setattr(build, "cut_passages", lambda _: [])
    with pytest.raises(UserError, match="has no text to search in"):
        build_index(source)
    monkeypatch.setattr(build, "SCHEMA", ("CREATE TABLE a (b)", "INSERT INTO a VALUES (1, 2)"))
    with pytest.raises(UserError, match=r"cannot write .*passages\.sqlite: table a has 1 columns"):
        build_index(source)
    monkeypatch.setattr(index, "SCHEMA", ("", "CREATE VIRTUAL TABLE terms USING fts99 (text)"))
    with pytest.raises(UserError, match=r"SQLite 3\.[0-9.]+ of this Python has no FTS5"):
        build_index(source)
    assert [path.name for path in tmp_path.iterdir()] == ["documents.jsonl"]


def test_a_passage_is_found_by_the_headings_that_it_begins(tmp_path: Path) -> None:
    source = make_documents(tmp_path)
    build_index(source)
    connection = sqlite3.connect(tmp_path / "passages.sqlite")
    rows = connection.execute("SELECT document, headings FROM passages ORDER BY id").fetchall()
    begun = [row[0] for row in connection.execute("SELECT rowid FROM terms WHERE terms MATCH 'begun : coffee'")]
    connection.close()
    first = next(number for number, row in enumerate(rows, 1) if "Coffee" in json.loads(row[1]))
    assert begun == [first]
