"""The label of a passage."""

from __future__ import annotations

import pytest

from nanochat.passages.passage import Passage


@pytest.mark.parametrize(
    ("headings", "label"),
    [((), "a/b.md"), (("", " "), "a/b.md"), (("One",), "One"), (("One", "", "Two\n more"), "One / Two more")],
)
def test_a_label_is_one_line(headings: tuple[str, ...], label: str) -> None:
    assert Passage("a/b.md", headings, "text").label == label
