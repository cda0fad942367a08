"""Documents to passages: the blocks of a section joined to some hundred characters, none in two passages."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

from nanochat.documents.document import Document
from nanochat.passages.grounding import shorten
from nanochat.passages.passage import Passage

# Sizes at which most answers are found, and stand in what a grounded question has room for (grounding.py).
MIN_CHARACTERS = 200  # a shorter passage takes the next block of its section, if there is one that fits
USUAL_CHARACTERS = 350  # up to which further blocks are added
MAX_CHARACTERS = 500  # of a passage; longer blocks are cut at the end of a sentence, a line or a word


def cut_passages(document: Document) -> list[Passage]:
    """Return the passages of a document in its order. Their headings begin with the document's title.

    Every character of its blocks, but spaces between them and the headings, is in one passage.
    """
    passages = []
    for headings, blocks in groupby(document.blocks, key=lambda block: block.headings):
        texts = [block.text.strip() for block in blocks if block.kind != "heading"]
        pieces = [piece for text in texts for piece in _cut(text)]
        place = headings if not document.title or document.title in headings else (document.title, *headings)
        passages += [Passage(document.name, place, text) for text in _join(pieces)]
    return passages


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
