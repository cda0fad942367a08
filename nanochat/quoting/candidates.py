"""Candidates for a reply that quotes: the sentences, lists, list items and table cells of the passages found."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from nanochat.conversations.sentences import split_sentences, squeeze
from nanochat.passages.passage import Passage

MAX_CANDIDATES = 200  # of one question
MAX_CHARACTERS = 600  # of a candidate
KINDS = ("sentence", "list", "item", "item sentence", "cell", "meaning")
_ITEM = re.compile(r"\s*[-*•]\s+(.+)")
_CELLS = re.compile(r"\s\|(?:\s|$)|^\|\s")
_TERM = re.compile(r"([^:.!?]{2,60}):\s+(.+)", re.DOTALL)


@dataclass(frozen=True)
class Candidate:
    """A quotation of a passage that may be the reply.

    `kind`: one of KINDS. `label`: what names it in its passage: row and column of a cell, the term of a meaning.
    `previous`: the sentence before it in its paragraph. `is_first`, `is_last`: of its passage, lists aside.
    """

    text: str
    passage: Passage
    kind: str = "sentence"
    label: str = ""
    previous: str = ""
    is_first: bool = False
    is_last: bool = False


def candidates(passages: Sequence[Passage]) -> list[Candidate]:
    r"""Return the candidates of some passages in their order, each text of a passage once.

    >>> passage = Passage("tea.md", ("Tea",), "Tea is hot.\n\n- green\n- black")
    >>> [(candidate.kind, candidate.text) for candidate in candidates([passage])]
    [('sentence', 'Tea is hot.'), ('list', '- green\n- black'), ('item', 'green'), ('item', 'black')]
    """
    found = []
    for passage in passages:
        blocks = [block for block in passage.text.split("\n\n") if block.strip()]
        prose = [number for number, block in enumerate(blocks) if not is_list(block)]
        seen = set()
        for number, block in enumerate(blocks):
            for candidate in _block_candidates(block, passage, number in prose[:1], number in prose[-1:]):
                has_word = any(map(str.isalnum, candidate.text))
                if has_word and candidate.text not in seen and len(candidate.text) <= MAX_CHARACTERS:
                    seen.add(candidate.text)
                    found.append(candidate)
    return found[:MAX_CANDIDATES]


def is_list(block: str) -> bool:
    """Return True for a block whose lines are all items of a list."""
    return all(_ITEM.fullmatch(line) for line in block.split("\n") if line.strip())


def _block_candidates(block: str, passage: Passage, is_first: bool, is_last: bool) -> Iterator[Candidate]:
    lines = [line for line in block.split("\n") if line.strip()]
    items = [match[1].strip() for line in lines if (match := _ITEM.fullmatch(line))]
    if items and len(items) == len(lines):
        if len(items) > 1:
            yield Candidate("\n".join(f"- {item}" for item in items), passage, "list")
        for item in items:
            yield Candidate(item, passage, "item")
            sentences = split_sentences(item)
            if len(sentences) > 1:
                yield from (Candidate(sentence, passage, "item sentence") for sentence in sentences)
    elif len(lines) > 1 and all(_CELLS.search(line) for line in lines):
        yield from _cells(lines, passage)
    else:
        if match := _TERM.fullmatch(block.strip()):
            yield Candidate(squeeze(match[2]), passage, "meaning", match[1], "", is_first)
        sentences = split_sentences(block)
        for number, sentence in enumerate(sentences):
            previous = sentences[number - 1] if number else ""
            starts, ends = is_first and not number, is_last and number == len(sentences) - 1
            yield Candidate(sentence, passage, "sentence", "", previous, starts, ends)


def _cells(lines: Sequence[str], passage: Passage) -> Iterator[Candidate]:
    """Yield the cells of a table below its first line, without those of its first column."""
    rows = [[squeeze(cell) for cell in _CELLS.split(line)] for line in lines]
    for row in rows[1:]:
        for column, cell in zip(rows[0][1:], row[1:], strict=False):
            if cell:
                yield Candidate(cell, passage, "cell", f"{row[0]} {column}")
