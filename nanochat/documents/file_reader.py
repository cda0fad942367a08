"""A file of any format as documents. It may be damaged or hostile: `reader_process.py` calls this in its process."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nanochat.common import UserError
from nanochat.data.text_source import SourceText, open_text
from nanochat.documents.converters import read_pdf, read_with_pandoc
from nanochat.documents.document import Block, Document
from nanochat.documents.formats import (
    BINARY,
    DAMAGED,
    MINIFIED,
    NO_TEXT,
    PANDOC_FORMATS,
    TOO_LARGE,
    UNREADABLE,
    ReadFailure,
    format_of,
)
from nanochat.documents.html_blocks import HtmlText, read_html
from nanochat.documents.markdown import read_markdown, read_text
from nanochat.documents.plain_text import read_code
from nanochat.documents.records import read_csv, read_json, read_jsonl, read_notebook, read_parquet
from nanochat.system.files import check_regular_file, read_regular_file

_STREAMED = {"markdown", "text", "code", "csv", "jsonl", "parquet"}  # may have any size
_MAX_LINE_CHARS = 5_000  # of code that a person wrote
_BINARY_FORMATS = {".docx", ".epub", ".odt"}


@dataclass(frozen=True)
class ReadOptions:
    """Settings of reading a file."""

    text_column: str = "text"
    legacy_encoding: str | None = None
    max_bytes: int = 64_000_000  # of a file that is in memory as a whole
    max_seconds: float = 30.0


@dataclass
class FileFacts:
    """Facts of a file that was read."""

    format: str = ""
    encoding: str = ""
    is_damaged: bool = False  # some bytes were no text, and became U+FFFD
    num_bad_lines: int = 0  # of jsonl, which are no JSON


def read_file(path: Path, name: str, options: ReadOptions, facts: FileFacts) -> Iterator[Document]:
    """Yield the documents of a file: one, or one for each record, or for each piece of a long text.

    `name`: of the file relative to its folder, for the names of the documents. Fills `facts`. Raises ReadFailure.
    """
    try:
        facts.format = format_of(path) or "text"
        check_regular_file(path, None if facts.format in _STREAMED else options.max_bytes)
        pages = _with_first(_pages(path, options, facts))
        if pages is None:
            raise ReadFailure(NO_TEXT)
        is_one, numbered = pages
        for number, page in numbered:
            yield Document(
                name if is_one else f"{name}#{number}",
                clean_title(page.title, page.blocks, path),
                tuple(_encodable(block) for block in page.blocks),
            )
    except UserError as error:
        message = str(error)
        raise ReadFailure(TOO_LARGE if "at most" in message else UNREADABLE, message.partition(str(path))[2]) from error
    except OSError as error:
        raise ReadFailure(UNREADABLE, error.strerror or str(error)) from error
    except RecursionError:
        raise ReadFailure(DAMAGED, "too many parts in each other") from None


def clean_title(title: str, blocks: list[Block], path: Path) -> str:
    """Return the title of a document: its own, else its first heading if that comes first, else the file's name."""
    first = blocks[0] if blocks and blocks[0].kind == "heading" else None
    shown = title or (first.text if first else "") or path.stem.replace("_", " ").replace("-", " ")
    return " ".join(_encodable_text(shown).split())[:200]


def _with_first(pages: Iterator[HtmlText]) -> tuple[bool, Iterator[tuple[int, HtmlText]]] | None:
    """Return True if there is one page only, and the pages with text with their numbers; None if there are none."""
    numbered = ((number, page) for number, page in enumerate(pages, start=1) if page.blocks)
    first = next(numbered, None)
    if first is None:
        return None
    second = next(numbered, None)

    def all_pages() -> Iterator[tuple[int, HtmlText]]:
        yield first
        if second is not None:
            yield second
        yield from numbered

    return second is None and first[0] == 1, all_pages()


def _pages(path: Path, options: ReadOptions, facts: FileFacts) -> Iterator[HtmlText]:
    suffix = path.suffix.lower()
    if facts.format == "parquet":
        counts: Counter[str] = Counter()
        yield from read_parquet(path, options.text_column, counts)
        facts.is_damaged = counts["invalid rows"] > 0
        return
    if facts.format == "pdf":
        yield read_pdf(path)
        return
    if suffix in _BINARY_FORMATS:
        yield read_with_pandoc(path, read_regular_file(path, options.max_bytes), options.max_seconds)
        return
    source = open_text(path, options.legacy_encoding)
    if source is None:
        raise ReadFailure(BINARY)
    facts.encoding, facts.is_damaged = source.encoding.removesuffix("-sig"), source.is_damaged
    if suffix in PANDOC_FORMATS:
        text = source.read(options.max_bytes)
        yield read_with_pandoc(path, text.encode("utf-8"), options.max_seconds)
    else:
        yield from _text_pages(source, options, facts)


def _text_pages(source: SourceText, options: ReadOptions, facts: FileFacts) -> Iterator[HtmlText]:
    """Yield the documents of a file of text."""
    if facts.format == "html":
        yield read_html(source.read(options.max_bytes))
    elif facts.format == "json":
        yield from read_json(source.read(options.max_bytes), options.text_column)
    elif facts.format == "notebook":
        yield read_notebook(source.read(options.max_bytes))
    elif facts.format == "jsonl":
        counts: Counter[str] = Counter()
        yield from read_jsonl(source, options.text_column, counts)
        facts.num_bad_lines = counts["bad lines"]
    elif facts.format == "csv":
        yield from read_csv(source, options.text_column)
    elif facts.format == "markdown":
        yield from map(read_markdown, source.pieces())
    elif facts.format == "code":
        yield from map(_code_page, source.pieces())
    else:
        yield from map(read_text, source.pieces())


def _code_page(text: str) -> HtmlText:
    if max(map(len, text.split("\n"))) > _MAX_LINE_CHARS:
        raise ReadFailure(MINIFIED)
    return HtmlText("", read_code(text))


def _encodable(block: Block) -> Block:
    """Return a block whose texts can be written as UTF-8: half a surrogate pair becomes U+FFFD."""
    if not _has_surrogate(block.text) and not any(map(_has_surrogate, block.headings)):
        return block
    fixed = _encodable_text
    rows = tuple(tuple(map(fixed, row)) for row in block.rows)
    headings = tuple(map(fixed, block.headings))
    return Block(block.kind, fixed(block.text), headings, block.level, tuple(map(fixed, block.items)), rows)


def _has_surrogate(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return True
    return False


def _encodable_text(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8") if _has_surrogate(text) else text
