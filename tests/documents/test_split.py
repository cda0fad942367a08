"""Parts of long documents, and the split."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat.common import UserError
from nanochat.documents.document import Block, Document, text_sha256
from nanochat.documents.html_blocks import list_block, table_block, with_headings
from nanochat.documents.split import (
    MAX_VALIDATION_BYTES,
    MAX_VALIDATION_SHARE,
    check_amount,
    choose_validation,
    cut_document,
    max_chars,
)

TEXTS = st.text("abc .", min_size=1, max_size=60).filter(str.strip)
BLOCKS = st.one_of(
    TEXTS.map(lambda text: Block("paragraph", text, ())),
    TEXTS.map(lambda text: Block("heading", text, (), level=2)),
    TEXTS.map(lambda text: Block("code", text, ())),
    st.lists(TEXTS, min_size=1, max_size=8).map(lambda items: list_block([(0, item) for item in items])),
    st.lists(st.tuples(TEXTS, TEXTS), min_size=2, max_size=8).map(table_block),
)


@given(st.lists(BLOCKS, min_size=1, max_size=12), st.integers(1, 200))
def test_parts_have_all_of_a_document(blocks: list[Block], limit: int) -> None:
    document = Document("a.md", "T", tuple(with_headings(blocks)))
    parts = list(cut_document(document, limit))
    assert all(part.blocks for part in parts)
    assert all(part.title == "T" for part in parts)
    assert [part.name for part in parts] == (
        ["a.md"] if len(document.text) <= limit else [f"a.md#{number + 1}" for number in range(len(parts))]
    )

    text = "".join(block.text for part in parts for block in part.blocks)
    for letter in "abc":
        count = sum(block.text.count(letter) for block in document.blocks)
        has_table = any(block.kind == "table" for block in document.blocks)  # whose header is repeated
        assert text.count(letter) >= count if has_table else text.count(letter) == count


def test_parts_begin_at_headings() -> None:
    sections = [
        [Block("heading", f"S{number}", (), level=1), *(Block("paragraph", "x" * 30, ()) for _ in range(3))]
        for number in range(6)
    ]
    document = Document("a.jsonl#3", "", tuple(with_headings([*itertools.chain(*sections)])))
    parts = list(cut_document(document, 220))
    assert [part.name for part in parts] == ["a.jsonl#3.1", "a.jsonl#3.2", "a.jsonl#3.3"]
    assert all(part.blocks[0].kind == "heading" for part in parts)
    assert all(part.blocks[-1].kind != "heading" for part in parts)


def test_a_table_is_cut_with_its_header() -> None:
    rows = [("river", "km"), *((f"r{number}", str(number)) for number in range(50))]
    parts = list(cut_document(Document("a.csv", "", (table_block(rows),)), 100))
    assert all(block.rows[0] == ("river", "km") for part in parts for block in part.blocks)
    assert sum(len(block.rows) - 1 for part in parts for block in part.blocks) == 50


@given(
    st.dictionaries(st.text("0123456789abcdef", min_size=4, max_size=8), st.integers(1, 50), min_size=2, max_size=40)
)
def test_neither_split_is_empty(sizes: dict[str, int]) -> None:
    chosen = choose_validation(sizes)
    assert chosen
    assert chosen < set(sizes)
    assert choose_validation(dict(sorted(sizes.items()))) == chosen


@given(st.lists(st.integers(1, 100), min_size=20, max_size=200))
def test_about_a_tenth_is_for_validation(lengths: list[int]) -> None:
    sizes = {text_sha256(str(number)): length for number, length in enumerate(lengths)}
    total = sum(lengths)
    if max(lengths) <= total / 10:  # as cutting ensures
        share = sum(sizes[sha256] for sha256 in choose_validation(sizes)) / total
        assert 0.05 <= share <= MAX_VALIDATION_SHARE


def test_a_large_corpus_validates_on_some_megabytes() -> None:
    sizes = {text_sha256(str(number)): 100_000 for number in range(2000)}
    assert sum(sizes[sha256] for sha256 in choose_validation(sizes)) == MAX_VALIDATION_BYTES


def test_a_new_file_moves_few_others() -> None:
    sizes = {text_sha256(str(number)): 100 for number in range(200)}
    more = sizes | {text_sha256("new"): 100}
    assert len(choose_validation(sizes) ^ (choose_validation(more) - {text_sha256("new")})) <= 1


@pytest.mark.parametrize("num_chars", [1000, 24_000, 10_000_000])
def test_one_document_gives_two_splits(num_chars: int) -> None:
    line = "The river flows on, number {:06}.\n\n"
    text = [Block("paragraph", line.format(n).strip(), ()) for n in range(num_chars // 40)]
    limit = max_chars(num_chars)
    parts = list(cut_document(Document("a.md", "", tuple(text)), limit))
    assert len(parts) >= 8
    assert choose_validation({text_sha256(part.text): len(part.text) for part in parts})


def test_too_little_text_is_refused() -> None:
    check_amount(1000, "x")
    with pytest.raises(UserError, match=r"--source x has 999 bytes of text: at least 1,000 are needed"):
        check_amount(999, "x")
