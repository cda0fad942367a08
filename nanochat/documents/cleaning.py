"""Cleaning of documents: lines that repeat over files, and long passages that stand in several documents.

A line of at most 300 characters is boilerplate if at least 4 files and a fifth of all files have it: navigation,
notices of copyright, "Edit this page". A passage of at least 200 characters stays where it comes first, so that a
licence that every file repeats is learned once, and nothing of a validation document stands in a training document.

Passages must be the same, up to spaces: those that are almost the same stay, also where parts of one long file are in
different splits. Of 32 MB of textbooks 0.6% of the validation text has a passage in the training text with which it
shares four fifths of its runs of words, of 120 stories none. Such passages are records of a catalogue, exercises with
other numbers or refrains more often than copies, and to leave them out would lose what differs.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt

from nanochat.documents.document import Block, Document
from nanochat.documents.html_blocks import list_block

MIN_FILES = 4
MIN_SHARE = 0.2
MAX_LINE_CHARS = 300
MIN_PASSAGE_CHARS = 200


LineHashes = npt.NDArray[np.uint64]


def line_hashes(document: Document) -> LineHashes:
    """Return the hashes of the short lines of a document, each once and in order: 8 bytes for each line."""
    lines = (line for block in document.blocks for line in _lines(block))
    hashes = {_hash(line) for line in lines if line.strip() and len(line) <= MAX_LINE_CHARS}
    return np.array(sorted(hashes), dtype=np.uint64)


def find_boilerplate(files: Iterable[list[LineHashes]]) -> set[int]:
    """Return the hashes of the lines that many files have. `files`: the hashes of the documents of each file.

    The documents must be without duplicates: of a text in many copies every line would be boilerplate.
    """
    of_files = [np.unique(np.concatenate(of_documents)) for of_documents in files if of_documents]
    if len(of_files) < MIN_FILES:
        return set()
    hashes, counts = np.unique(np.concatenate(of_files), return_counts=True)
    return set(hashes[counts >= max(MIN_FILES, MIN_SHARE * len(of_files))].tolist())


def without_lines(document: Document, boilerplate: set[int]) -> tuple[Document, int]:
    """Return a document without its lines that are boilerplate, and the number of those."""
    blocks: list[Block] = []
    num_removed = 0
    for block in document.blocks:
        lines = list(_lines(block))
        kept = [line for line in lines if len(line) > MAX_LINE_CHARS or _hash(line) not in boilerplate]
        num_removed += len(lines) - len(kept)
        if len(kept) == len(lines):
            blocks.append(block)
        elif any(line.strip() for line in kept):
            blocks.append(_with_lines(block, kept))
    if not num_removed:
        return document, 0
    return dataclasses.replace(document, blocks=tuple(_without_empty_sections(blocks, document.blocks))), num_removed


class RepeatedPassages:
    """Removes long passages that an earlier document has. 8 bytes, and Python's overhead, for each passage."""

    def __init__(self) -> None:
        self._seen: set[int] = set()

    def clean(self, document: Document) -> tuple[Document, int]:
        """Return a document without passages of earlier ones, and the number of those that were removed."""
        kept = []
        for block in document.blocks:
            if len(block.text) >= MIN_PASSAGE_CHARS:
                key = _hash(block.text)
                if key in self._seen:
                    continue
                self._seen.add(key)
            kept.append(block)
        num_removed = len(document.blocks) - len(kept)
        kept = _without_empty_sections(kept, document.blocks) if num_removed else kept
        return dataclasses.replace(document, blocks=tuple(kept)), num_removed


def _lines(block: Block) -> Iterator[str]:
    """Yield the lines of a block that may be boilerplate; those of programs, tables and headings never are."""
    if block.kind == "list":
        yield from block.items
    elif block.kind in ("paragraph", "quote"):
        yield from block.text.split("\n")


def _with_lines(block: Block, lines: list[str]) -> Block:
    if block.kind == "list":
        return dataclasses.replace(list_block([(0, line) for line in lines]), headings=block.headings)
    return dataclasses.replace(block, text="\n".join(lines))


def _without_empty_sections(blocks: list[Block], before: tuple[Block, ...]) -> list[Block]:
    """Return the blocks without the headings that have nothing under them any longer."""

    def paths(of: tuple[Block, ...] | list[Block]) -> set[tuple[str, ...]]:
        return {
            block.headings[:depth]
            for block in of
            if block.kind != "heading"
            for depth in range(len(block.headings) + 1)
        }

    emptied = paths(before) - paths(blocks)
    return [block for block in blocks if block.kind != "heading" or (*block.headings, block.text) not in emptied]


def _hash(text: str) -> int:
    """Return a hash of a text that is the same in every process; its spaces count as one each."""
    return int.from_bytes(hashlib.blake2b(" ".join(text.split()).encode("utf-8"), digest_size=8).digest(), "little")
