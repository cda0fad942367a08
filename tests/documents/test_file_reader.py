"""Files of every format as documents."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nanochat.documents.document import KINDS, Document, document_to_json
from nanochat.documents.file_reader import FileFacts, ReadOptions, read_file
from nanochat.documents.formats import BINARY, FORMATS, MINIFIED, NO_TEXT, PANDOC_FORMATS, TOO_LARGE, ReadFailure

IN_PROCESS = sorted(set(FORMATS) - set(PANDOC_FORMATS))  # pandoc is a program: too slow for many examples


def read(path: Path, options: ReadOptions | None = None) -> list[Document]:
    return list(read_file(path, path.name, options or ReadOptions(), FileFacts()))


def reason(path: Path, options: ReadOptions | None = None) -> str:
    with pytest.raises(ReadFailure) as failure:
        read(path, options)
    return failure.value.reason


@pytest.mark.parametrize(
    ("name", "content", "title", "kinds"),
    [
        ("a_note.md", "Text.", "a note", ["paragraph"]),
        ("a.md", "# Rivers\n\nText.", "Rivers", ["heading", "paragraph"]),
        ("a.md", "---\ntitle: T\n---\n# Rivers\n\nText.", "T", ["heading", "paragraph"]),
        ("a.html", "<title>T</title><p>Text.", "T", ["paragraph"]),
        ("README", "Rivers\n\nText.", "Rivers", ["heading", "paragraph"]),
        ("a.py", "print(1)\n", "a", ["code"]),
        ("a.csv", "a,b\n1,2\n", "a", ["table"]),
        ("a.json", '{"title": "T", "text": "Text."}', "T", ["paragraph"]),
    ],
)
def test_title_and_blocks(tmp_path: Path, name: str, content: str, title: str, kinds: list[str]) -> None:
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    [document] = read(path)
    assert (document.name, document.title) == (name, title)
    assert [block.kind for block in document.blocks] == kinds


def test_records_are_numbered(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in ("a", "", "b")), encoding="utf-8")
    assert [document.name for document in read(path)] == ["a.jsonl#1", "a.jsonl#3"]


def test_files_that_give_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.md"
    path.write_bytes(b"")
    assert reason(path) == NO_TEXT
    path.write_text("---\ntitle: only settings\n---\n", encoding="utf-8")
    assert reason(path) == NO_TEXT
    path.write_bytes(bytes(range(256)) * 9)
    assert reason(path) == BINARY
    code = tmp_path / "a.js"
    code.write_text("x=1;" * 2000, encoding="utf-8")
    assert reason(code) == MINIFIED
    page = tmp_path / "a.html"
    page.write_text("<p>text", encoding="utf-8")
    assert reason(page, ReadOptions(max_bytes=3)) == TOO_LARGE
    assert read(page)


def test_half_of_a_surrogate_pair_becomes_text(tmp_path: Path) -> None:
    path = tmp_path / "a.html"
    path.write_text("<p>a&#xD800;b", encoding="utf-8")
    document_to_json(read(path)[0]).encode("utf-8")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.sampled_from(IN_PROCESS),
    st.one_of(st.binary(max_size=400), st.text(st.characters(exclude_categories=["Cs"]), max_size=200).map(str.encode)),
)
def test_any_bytes_under_any_name(tmp_path: Path, suffix: str, content: bytes) -> None:
    """Whatever a file holds, it gives documents or a `ReadFailure`."""
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    try:
        documents = read(path)
    except ReadFailure:
        return
    assert documents
    for document in documents:
        document_to_json(document).encode("utf-8")
        assert all(block.kind in KINDS and block.text for block in document.blocks)
