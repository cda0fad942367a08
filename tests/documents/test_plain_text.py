"""Plain text and code to blocks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat.documents.plain_text import read_code, read_plain_text


def shown(text: str) -> list[tuple[str, str]]:
    return [(block.kind, block.text) for block in read_plain_text(text)]


WRAPPED = (
    "This line is as long as the lines of an e-mail usually are, and it goes\non in the next one, which is the last."
)


@pytest.mark.parametrize(
    ("text", "blocks"),
    [
        ("One.\n\n\nTwo.\n", [("paragraph", "One."), ("paragraph", "Two.")]),
        (WRAPPED, [("paragraph", WRAPPED.replace("\n", " "))]),
        ("A verse,\nand another", [("paragraph", "A verse,\nand another")]),
        ("Title\n=====\nText.", [("heading", "Title"), ("paragraph", "Text.")]),
        ("The Nile\n\nIt is long.", [("heading", "The Nile"), ("paragraph", "It is long.")]),
        (
            "It is long.\n\nThe Nile and the Po\n\nText.",
            [("paragraph", "It is long."), ("heading", "The Nile and the Po"), ("paragraph", "Text.")],
        ),
        (
            "Text.\n\nEntering known values,\n\nText.",
            [("paragraph", "Text."), ("paragraph", "Entering known values,"), ("paragraph", "Text.")],
        ),
        ("Text.\n\nCHAPTER IV\n\nText.", [("paragraph", "Text."), ("heading", "CHAPTER IV"), ("paragraph", "Text.")]),
        ("- a\n- b\n* c", [("list", "- a\n- b\n- c")]),
        ("1. a\n2) b", [("list", "- a\n- b")]),
        ("- a\n\n- b\n\nText.", [("list", "- a\n- b"), ("paragraph", "Text.")]),
        ("\f \n", []),
    ],
)
def test_texts(text: str, blocks: list[tuple[str, str]]) -> None:
    assert shown(text) == blocks


def test_levels_of_numbered_headings() -> None:
    blocks = read_plain_text("Book\n\n1. Rivers\n\n1.1 Long Ones\n\nThe Nile.\n\n1.2.3 Short Ones\n\nx")
    assert [block.level for block in blocks] == [1, 2, 3, 0, 4, 0]
    assert blocks[3].headings == ("Book", "1. Rivers", "1.1 Long Ones")


@given(st.text(st.sampled_from("ab. -=1\nAB\t\f\r"), max_size=200))
def test_words_of_a_text_come_back_in_order(text: str) -> None:
    """Only marks of lists, underlines and white space are lost."""
    letters = [char for char in text if char.isalpha()]
    assert [char for block in read_plain_text(text) for char in block.text if char.isalpha()] == letters


def test_code_is_one_block() -> None:
    assert [block.text for block in read_code("\n\ndef f():  \n\n    return 1\n")] == ["def f():\n\n    return 1"]
    assert read_code(" \n") == []
