"""Text and numbers as Markdown, read back by an independent Markdown parser."""

from __future__ import annotations

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from markdown_it.token import Token

from nanochat.reporting.markdown import (
    escape,
    fence,
    format_duration,
    format_number,
    format_table,
    to_printable,
    wrap_text,
)

# Anything, and what Markdown acts on far more often than chance would have it.
ACTIVE = st.sampled_from(
    [
        "`",
        "```",
        "|",
        "\\",
        "*",
        "_",
        "#",
        "- ",
        "1. ",
        "<b>",
        "&amp;",
        "[a](b)",
        "~~",
        "$",
        "\n",
        "\r",
        "\x1b",
        "> ",
        "---",
    ]
)
TEXTS = st.lists(st.one_of(ACTIVE, st.text(max_size=4)), max_size=12).map("".join)
PARSER = MarkdownIt("commonmark").enable(["table", "strikethrough"])


def parse(text: str) -> list[Token]:
    return PARSER.parse(text + "\n")


def plain(token: Token) -> str:
    """The text of an inline token; fails if anything in it is more than text."""
    assert token.children is not None
    assert {child.type for child in token.children} <= {"text"}, token.content
    return "".join(child.content for child in token.children)


def one_line(text: str) -> str:
    return " ".join(to_printable(text).split())


@given(st.lists(TEXTS, min_size=2, max_size=4), TEXTS)
def test_a_table_keeps_every_cell(row: list[str], first: str) -> None:
    header = ["name", *[f"column {i}" for i in range(len(row) - 1)]]
    tokens = parse(format_table(header, [row, [first, *row[1:]]]))
    assert tokens[0].type == "table_open"
    assert tokens[-1].type == "table_close"
    cells = [plain(token) for token in tokens if token.type == "inline"]
    assert cells == [*header, *map(one_line, row), *map(one_line, [first, *row[1:]])]


@given(TEXTS)
def test_escaped_text_is_text_in_a_heading_and_in_a_list_item(text: str) -> None:
    expected = one_line(text)
    for prefix, shape in (("## ", ["heading_open", "inline", "heading_close"]), ("- ", None)):
        tokens = parse(prefix + escape(text))
        found = [token for token in tokens if token.type == "inline"]
        assert "".join(plain(token) for token in found) == expected
        assert shape is None or [token.type for token in tokens] == shape
        assert not {token.type for token in tokens} & {"hr", "fence", "code_block", "html_block", "ordered_list_open"}
        assert sum(token.type == "list_item_open" for token in tokens) == (prefix == "- ")


@given(TEXTS)
def test_no_text_breaks_out_of_a_fence(text: str) -> None:
    tokens = parse(f"before\n\n{fence(text, 60)}\n\nafter")
    assert [token.type for token in tokens if token.level == 0 and token.nesting != -1] == [
        "paragraph_open",
        "fence",
        "paragraph_open",
    ]
    assert next(token.content for token in tokens if token.type == "fence") == wrap_text(text, 60).strip("\n") + "\n"


@given(st.text(), st.integers(10, 80))
def test_folding_loses_nothing_but_blanks(text: str, width: int) -> None:
    folded = wrap_text(text, width)
    assert "".join(folded.split()) == "".join(to_printable(text).split())
    for line in folded.split("\n"):
        assert len(line) <= width or " " not in line.strip()


def test_folding_keeps_line_breaks_and_indents() -> None:
    assert wrap_text("one two three\n\n  four", 9) == "one two\nthree\n\n  four"


@given(st.text())
def test_visible_text_steers_no_terminal(text: str) -> None:
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", to_printable(text))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.0, "0"),
        (1, "1"),
        (1.2340001, "1.234"),
        (1.5, "1.500"),
        (-0.98764, "-0.9876"),
        (0.0001234, "0.000123"),
        (2.5e-9, "2.5e-09"),
        (123.456, "123.5"),
        (999.96, "1000"),
        (21034.2, "21,034"),
        (1172, "1,172"),
        (12_345_678, "12.3M"),
        (560_988_160, "561M"),
        (11.2e9, "11.2B"),
        (3e12, "3T"),
        (4.5e19, "4.5e+19"),
        (True, "yes"),
        (None, "not finite"),
        (math.nan, "not finite"),
        (-math.inf, "not finite"),
    ],
)
def test_numbers_for_people(value: float | None, text: str) -> None:
    assert format_number(value) == text


@given(st.one_of(st.floats(-1e300, 1e300), st.integers(-(2**63), 2**63)))
def test_a_number_reads_back_to_its_shown_digits(value: float) -> None:
    text = format_number(value).replace(",", "")
    factor = {"M": 1e6, "B": 1e9, "T": 1e12}.get(text[-1], 1.0)
    shown = float(text.rstrip("MBT")) * factor
    assert shown == pytest.approx(value, rel=5.1e-3, abs=1e-300)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0s"),
        (4.2, "4.2s"),
        (59.96, "1m 00s"),
        (185, "3m 05s"),
        (3599.7, "1h 00m"),
        (3725, "1h 02m"),
        (119520, "33h 12m"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@given(st.floats(0, 1e7))
def test_a_duration_reads_back(seconds: float) -> None:
    parts = re.findall(r"([\d.]+)([hms])", format_duration(seconds))
    total = sum(float(amount) * {"h": 3600, "m": 60, "s": 1}[unit] for amount, unit in parts)
    tolerance = {"h": 30.1, "m": 0.51, "s": 0.051}[parts[0][1]]
    assert abs(total - seconds) <= tolerance
