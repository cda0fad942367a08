"""Documents to passages: the blocks of a section joined to some hundred characters, none in two passages."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

from nanochat.documents.document import Block, Document
from nanochat.passages.grounding import shorten
from nanochat.passages.passage import Passage

# Sizes at which most answers are found, and stand in what a grounded question has room for (grounding.py).
MIN_CHARACTERS = 200  # a shorter passage takes the next block of its section, if there is one that fits
USUAL_CHARACTERS = 350  # up to which further blocks are added
MAX_CHARACTERS = 500  # of a passage; longer blocks are cut at the end of a sentence, a line or a word


def cut_passages(document: Document) -> list[Passage]:
    """Return the passages of a document in its order. Their headings begin with the document's title.

    Every character of its blocks, but spaces between them and the headings, is in one passage. The first line of a
    table that is cut is in each of its passages, as what names the columns.
    """
    passages = []
    for headings, blocks in groupby(document.blocks, key=lambda block: block.headings):
        pieces = [piece for block in blocks if block.kind != "heading" for piece in _cut_block(block)]
        place = headings if not document.title or document.title in headings else (document.title, *headings)
        passages += [Passage(document.name, place, text) for text in _join(pieces)]
    return passages


def _cut_block(block: Block) -> Iterator[str]:
    """Yield the pieces of a block: tables and lists are cut between lines, unless a line is too long for a passage."""
    text = block.text.strip()
    lines = text.split("\n")
    head = lines[0] if block.kind == "table" else ""
    rows = lines[1:] if head else lines
    longest = max(map(len, rows), default=0) + len(head) + 1
    if len(text) <= MAX_CHARACTERS or block.kind not in ("table", "list") or longest > MAX_CHARACTERS:
        yield from _cut(text)
        return
    piece = head
    for row in rows:
        if len(piece) > len(head) and len(piece) + len(row) >= USUAL_CHARACTERS:
            yield piece
            piece = head
        piece = f"{piece}\n{row}" if piece else row
    yield piece


def _cut(text: str) -> Iterator[str]:
    """Yield the pieces of a block: itself, if it is not too long."""
    while len(text) > MAX_CHARACTERS:
        piece = shorten(text, USUAL_CHARACTERS)
        yield piece
        text = text[len(piece) :].strip()
    if text:
        yield text


def _join(pieces: list[str]) -> Iterator[str]:
    """Yield passages of whole pieces."""
    current = ""
    for piece in pieces:
        joined = f"{current}\n\n{piece}" if current else piece
        limit = MAX_CHARACTERS if len(current) < MIN_CHARACTERS else USUAL_CHARACTERS
        if current and len(joined) > limit:
            yield current
            joined = piece
        current = joined
    if current:
        yield current
