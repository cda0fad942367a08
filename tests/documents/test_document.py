"""Documents and their file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat.common import UserError
from nanochat.documents.document import (
    KINDS,
    Block,
    Document,
    document_from_json,
    document_to_json,
    load_documents,
    write_documents,
)

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
BLOCKS = st.builds(
    Block,
    kind=st.sampled_from(KINDS),
    text=TEXTS,
    headings=st.lists(TEXTS, max_size=3).map(tuple),
    level=st.integers(0, 6),
    items=st.lists(TEXTS, max_size=3).map(tuple),
    rows=st.lists(st.lists(TEXTS, max_size=2).map(tuple), max_size=3).map(tuple),
)
DOCUMENTS = st.builds(
    Document, TEXTS, TEXTS, st.lists(BLOCKS, max_size=4).map(tuple), st.sampled_from(["train", "val"])
)


@given(DOCUMENTS)
def test_a_document_is_one_line_that_gives_it_back(document: Document) -> None:
    line = document_to_json(document)
    assert "\n" not in line
    assert document_from_json(json.loads(line)) == document


def test_the_text_of_a_document() -> None:
    blocks = (
        Block("heading", "Rivers", (), level=1),
        Block("paragraph", "They flow.", ("Rivers",)),
        Block("heading", "The Nile", ("Rivers",), level=2),
        Block("list", "- long\n- old", ("Rivers", "The Nile"), items=("long", "old")),
    )
    document = Document("rivers.md", "Rivers", blocks).with_split("val")
    assert document.text == "# Rivers\n\nThey flow.\n\n## The Nile\n\n- long\n- old"
    assert document.split == "val"
    assert len(document.sha256) == 64


def test_documents_are_written_and_read(tmp_path: Path) -> None:
    path = tmp_path / "documents" / "documents.jsonl"
    documents = [Document(f"{n}.md", "", (Block("paragraph", f"text {n}", ()),)).with_split("train") for n in range(3)]
    assert write_documents(documents, path) == 3
    assert list(load_documents(path)) == documents
    assert [file.name for file in path.parent.iterdir()] == ["documents.jsonl"]


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("no json", "not JSON"),
        ("[]", "must be an object"),
        ('{"name": "a", "title": ""}', "blocks is missing"),
        ('{"name": "a", "title": "", "blocks": [{"kind": "x", "text": "", "headings": []}]}', "must be one of heading"),
        ('{"name": "a", "title": "", "blocks": [{"kind": "list", "text": 1, "headings": []}]}', "text is 1"),
    ],
)
def test_a_damaged_line_is_named(tmp_path: Path, line: str, fault: str) -> None:
    path = tmp_path / "documents.jsonl"
    good = Document("a.md", "", ())
    path.write_text(f"{document_to_json(good)}\n{line}\n", encoding="utf-8")
    documents = load_documents(path)
    assert next(documents) == good
    with pytest.raises(UserError, match=rf"documents\.jsonl, line 2: .*{fault}.*read_documents again"):
        next(documents)


def test_no_documents(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no documents in .*: read some with python -m scripts\.read_documents"):
        next(load_documents(tmp_path / "documents.jsonl"))
