"""Parts of long documents, and the split into training and validation.

* A document of more than a tenth of all text, or of 100,000 characters, becomes several: it is cut before a heading
  if possible, else between blocks, else within one. So a single file has a validation split, too.
* Documents in the order of their SHA-256 are validation documents until they have a tenth of all bytes (or 4 MB); one
  that would make it more than 15% is passed over. The same texts always give the same split, and a new file moves
  few others.
* A text of fewer than 1,000 bytes is refused: neither split of it would say anything.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from nanochat.common import UserError
from nanochat.data.text_source import split_long_text
from nanochat.documents.document import Block, Document
from nanochat.documents.html_blocks import list_block, table_block

VALIDATION_SHARE = 0.1
MAX_VALIDATION_SHARE = 0.15
MAX_VALIDATION_BYTES = 4_000_000
MIN_TEXT_BYTES = 1_000
MAX_DOCUMENT_CHARS = 100_000


def check_amount(num_bytes: int, source: str) -> None:
    """Raise UserError if there is too little text to train on."""
    if num_bytes < MIN_TEXT_BYTES:
        raise UserError(
            f"--source {source} has {num_bytes:,} bytes of text: at least {MIN_TEXT_BYTES:,} are needed, to train on "
            "and to validate with (20,000 to learn anything from): add more files"
        )


def max_chars(num_chars: int) -> int:
    """Return the length that documents are cut at, if there are `num_chars` characters in all."""
    return min(MAX_DOCUMENT_CHARS, max(1, num_chars // 10))


def cut_document(document: Document, limit: int) -> Iterator[Document]:
    """Yield a document in parts of at most about `limit` characters, or as it is.

    >>> blocks = tuple(Block("paragraph", letter * 40, ()) for letter in "abc")
    >>> [(part.name, len(part.blocks)) for part in cut_document(Document("a.md", "", blocks), 90)]
    [('a.md#1', 2), ('a.md#2', 1)]
    """
    if len(document.text) <= limit:
        yield document
        return
    parts: list[list[Block]] = [[]]
    size = 0
    for block in (piece for whole in document.blocks for piece in _cut_block(whole, limit)):
        is_full = parts[-1] and size + len(block.text) > limit
        if is_full or (block.kind == "heading" and size >= limit / 2):
            moved = _headings_at_end(parts[-1])
            parts.append(moved)
            size = sum(len(heading.text) + 2 for heading in moved)
        parts[-1].append(block)
        size += len(block.text) + 2
    separator = "." if "#" in document.name.rpartition("/")[2] else "#"
    for number, blocks in enumerate(parts, start=1):
        yield dataclasses.replace(document, name=f"{document.name}{separator}{number}", blocks=tuple(blocks))


def _headings_at_end(blocks: list[Block]) -> list[Block]:
    """Take the headings from the end of a part, which belong to what follows; one block is left."""
    start = len(blocks)
    while start > 1 and blocks[start - 1].kind == "heading":
        start -= 1
    moved = blocks[start:]
    del blocks[start:]
    return moved


def _cut_block(block: Block, limit: int) -> Iterator[Block]:
    """Yield a block in pieces of at most about `limit` characters, or as it is."""
    if len(block.text) <= limit or block.kind == "heading":
        yield block
    elif block.kind == "list" and len(block.items) > 1:
        middle = len(block.items) // 2
        for items in (block.items[:middle], block.items[middle:]):
            yield from _cut_block(_under(block, list_block([(0, item) for item in items])), limit)
    elif block.kind == "table" and len(block.rows) > 2:
        middle = 1 + (len(block.rows) - 1) // 2
        for rows in (block.rows[:middle], (block.rows[0], *block.rows[middle:])):
            yield from _cut_block(_under(block, table_block(list(rows))), limit)
    else:
        kind = block.kind if block.kind in ("code", "quote") else "paragraph"
        for text in split_long_text(block.text, limit):
            if text.strip():
                yield Block(kind, text.strip("\n"), block.headings)


def _under(original: Block, block: Block) -> Block:
    return dataclasses.replace(block, headings=original.headings)


def choose_validation(sizes: dict[str, int]) -> set[str]:
    """Return the hashes of the validation documents. `sizes`: bytes of each document, by its SHA-256.

    Neither split is empty if there are two documents with text.
    """
    total = sum(sizes.values())
    target = min(VALIDATION_SHARE * total, MAX_VALIDATION_BYTES)
    chosen: set[str] = set()
    num_bytes = 0
    for sha256 in sorted(sizes):
        if num_bytes >= target:
            break
        if num_bytes + sizes[sha256] <= MAX_VALIDATION_SHARE * total:
            chosen.add(sha256)
            num_bytes += sizes[sha256]
    return chosen or ({min(sizes, key=lambda sha256: (sizes[sha256], sha256))} if len(sizes) > 1 else set())
