"""Boilerplate and repeated passages."""

from __future__ import annotations

from nanochat.documents.cleaning import (
    MIN_PASSAGE_CHARS,
    RepeatedPassages,
    find_boilerplate,
    line_hashes,
    without_lines,
)
from nanochat.documents.document import Block, Document
from nanochat.documents.html_blocks import list_block, with_headings


def document(name: str, *blocks: Block) -> Document:
    return Document(name, "", tuple(with_headings(list(blocks))))


def paragraph(text: str) -> Block:
    return Block("paragraph", text, ())


def boilerplate_of(documents: list[Document]) -> set[int]:
    return find_boilerplate([[line_hashes(one)] for one in documents])


def test_lines_of_many_files_are_removed() -> None:
    heading = Block("heading", "Links", (), level=1)
    documents = [
        document(
            f"{number}.md",
            paragraph(f"Text {number}.\nEdit this page"),
            heading,
            list_block([(0, "Home"), (0, "About")]),
        )
        for number in range(5)
    ]
    cleaned, num_removed = without_lines(documents[3], boilerplate_of(documents))
    assert [block.text for block in cleaned.blocks] == ["Text 3."], "the heading has nothing under it any longer"
    assert num_removed == 3


def test_lines_of_few_files_stay() -> None:
    documents = [document(f"{number}.md", paragraph("Shared" if number < 3 else f"{number}")) for number in range(10)]
    assert not boilerplate_of(documents)


def test_a_line_that_one_file_repeats_stays() -> None:
    documents = [document(f"log.txt#{number}", paragraph("again")) for number in range(9)]
    assert not find_boilerplate(
        [list(map(line_hashes, documents)), *([[line_hashes(document("a", paragraph("x")))]] * 3)]
    )


def test_programs_and_headings_are_no_boilerplate() -> None:
    blocks = [Block("heading", "Summary", (), level=1), Block("code", "import os", ())]
    documents = [document(f"{number}.md", *blocks) for number in range(9)]
    assert not boilerplate_of(documents)


def test_a_long_passage_stays_where_it_comes_first() -> None:
    licence = paragraph("This is the licence. " * (MIN_PASSAGE_CHARS // 20 + 1))
    passages = RepeatedPassages()
    first = document("a.md", paragraph("A."), licence)
    second = document("b.md", paragraph("B."), Block("heading", "Licence", (), level=1), licence)
    assert passages.clean(first) == (first, 0)
    cleaned, num_removed = passages.clean(second)
    assert [block.text for block in cleaned.blocks] == ["B."]
    assert num_removed == 1
