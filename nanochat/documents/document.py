"""Documents of a user's own folder: blocks of plain text under headings, and their file, `documents.jsonl`.

    $NANOCHAT_BASE_DIR/documents/documents.jsonl     one document a line: {"name", "title", "split", "sha256", "blocks"}

`scripts/read_documents.py` writes it. Training, conversations made of the documents, and the search for passages read
it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanochat.common import UserError, base_dir, visible, written_atomically
from nanochat.system.files import flush_to_disk, open_regular_file
from nanochat.system.json_files import check_type
from nanochat.system.json_text import MAX_JSON_BYTES, parse_json

KINDS = ("heading", "paragraph", "list", "table", "definition", "quote", "code")
MAX_HEADING_LEVEL = 6
_REMEDY = "run python -m scripts.read_documents again"


@dataclass(frozen=True)
class Block:
    """A paragraph, or another part of a document that belongs together, under its headings."""

    kind: str  # one of KINDS
    text: str  # plain text, marks of the format removed; a list: its items, one a line, "- " before each
    headings: tuple[str, ...]  # the headings it stands under, outermost first; a heading: those above it
    level: int = 0  # of a heading, from 1
    items: tuple[str, ...] = ()  # of a list; of a definition: (term, definition)
    rows: tuple[tuple[str, ...], ...] = ()  # of a table, header first


@dataclass(frozen=True)
class Document:
    """The text of a file, of one record of a file (`a.jsonl#3`), or of one part of either (`a.md#2`, `a.jsonl#3.2`)."""

    name: str  # path relative to the folder, "/" between its parts, and a number as above; valid UTF-8
    title: str
    blocks: tuple[Block, ...]
    split: str = ""  # "train" or "val"; empty until the split is made
    sha256: str = ""  # of `text`, in hexadecimal; empty until the document is complete

    @property
    def text(self) -> str:
        """The text that is trained on: the blocks with a blank line between them, headings marked as in Markdown."""
        return "\n\n".join(map(block_text, self.blocks))

    def with_split(self, split: str) -> Document:
        """Return the document in a split, with the SHA-256 of its text."""
        return dataclasses.replace(self, split=split, sha256=text_sha256(self.text))


def block_text(block: Block) -> str:
    """Return the text of a block in the text of its document: a heading is marked, as the level would be lost.

    >>> block_text(Block("heading", "Rivers", (), level=2))
    '## Rivers'
    """
    if block.kind != "heading":
        return block.text
    return f"{'#' * max(1, min(block.level, MAX_HEADING_LEVEL))} {block.text}"


def text_sha256(text: str) -> str:
    """Return the SHA-256 of a text in UTF-8, in hexadecimal."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def documents_dir() -> Path:
    """Return the folder of what is made of a user's documents: `$NANOCHAT_BASE_DIR/documents`."""
    return base_dir() / "documents"


def default_documents_path() -> Path:
    """Return the path of the documents: `$NANOCHAT_BASE_DIR/documents/documents.jsonl`."""
    return documents_dir() / "documents.jsonl"


def load_documents(path: Path | None = None) -> Iterator[Document]:
    """Yield the documents of a file (default: `default_documents_path()`), one in memory at a time.

    Raises UserError if there is no such file, or with the number of a line that is no document.
    """
    source = path or default_documents_path()
    if not source.exists():
        raise UserError(
            f"no documents in {source.parent}: read some with python -m scripts.read_documents --source=DIR"
        )
    with open_regular_file(source) as file:
        for number, line in enumerate(iter(lambda: file.readline(MAX_JSON_BYTES + 1), b""), start=1):
            try:
                yield document_from_json(parse_json(line))
            except UserError as error:
                raise UserError(f"{source}, line {number}: {error}; {_REMEDY}") from error


def write_documents(documents: Iterable[Document], path: Path | None = None) -> int:
    """Write documents to a file, completely or not at all; return their number. Raises UserError if it cannot."""
    count = 0
    with written_atomically(path or default_documents_path()) as temporary, open(temporary, "wb") as file:
        for document in documents:
            file.write(document_to_json(document).encode("utf-8") + b"\n")
            count += 1
        file.flush()
        flush_to_disk(file.fileno())
    return count


def document_to_json(document: Document) -> str:
    """Return a document as one line of JSON. Fields of a block that are empty are left out."""
    blocks = [
        {key: value for key, value in vars(block).items() if value or key in ("kind", "text", "headings")}
        for block in document.blocks
    ]
    return json.dumps({**vars(document), "blocks": blocks}, ensure_ascii=False)


def document_from_json(content: Any) -> Document:
    """Return the document of a parsed line. Raises UserError that names the key at fault."""
    check_type(content, Document, "")
    for number, block in enumerate(content["blocks"]):
        if block["kind"] not in KINDS:
            raise UserError(f"blocks[{number}].kind is {visible(block['kind'])!r}: must be one of {', '.join(KINDS)}")
    return trusted_document(content)


def trusted_document(content: Any) -> Document:
    """Return the document of a parsed line that this process has written; `document_from_json` takes any line."""
    blocks = (
        Block(
            **{
                **block,
                "headings": tuple(block["headings"]),
                "items": tuple(block.get("items", ())),
                "rows": tuple(map(tuple, block.get("rows", ()))),
            }
        )
        for block in content["blocks"]
    )
    return Document(**{**content, "blocks": tuple(blocks)})
