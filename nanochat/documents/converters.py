"""Formats that need the extra `documents`: pandoc (docx, epub, odt, rst, tex, ...) and pypdf.

pandoc runs as a program with `--sandbox`, in which it opens no other file and no address, with bounded memory and time.
Both are made for hostile files as little as any parser is, so `reader_process.py` runs them apart from the command.
"""

from __future__ import annotations

import logging
import re
import subprocess
import zipfile
from collections import Counter
from contextlib import suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from nanochat.documents.document import Block
from nanochat.documents.formats import (
    DAMAGED,
    ENCRYPTED,
    EXTRA,
    PANDOC_FORMATS,
    PDF,
    SCANNED,
    TOO_LARGE,
    TOO_MUCH_MEMORY,
    TOO_SLOW,
    ReadFailure,
)
from nanochat.documents.html_blocks import HtmlText, read_html
from nanochat.documents.plain_text import read_plain_text

_ZIPPED = {".docx", ".epub", ".odt"}
MAX_UNZIPPED_BYTES = 500_000_000
MAX_PANDOC_MEMORY = "1G"
MAX_HTML_BYTES = 64_000_000


@cache
def find_pandoc() -> str | None:
    """Return the path of pandoc, or None if it is not installed."""
    try:
        import pypandoc

        return str(pypandoc.get_pandoc_path())
    except (ImportError, OSError):
        return None


def missing_extra(suffix: str) -> bool:
    """Return True if a format needs a part of the extra `documents` that is not installed."""
    module = "pypandoc" if suffix in PANDOC_FORMATS else "pypdf" if suffix == PDF else None
    return module is not None and find_spec(module) is None


def read_with_pandoc(path: Path, content: bytes, max_seconds: float) -> HtmlText:
    """Return the blocks of a file that pandoc knows. Raises ReadFailure.

    `content`: of the file, in UTF-8 if the format is a text.
    """
    pandoc = find_pandoc()
    if pandoc is None:
        raise ReadFailure(EXTRA)
    suffix = path.suffix.lower()
    if suffix in _ZIPPED:
        _check_zip(path)
    command = [
        *(pandoc, "--sandbox", "--from", PANDOC_FORMATS[suffix], "--to", "html", "--wrap=none", "--quiet"),
        *(["--standalone"] if suffix != ".rst" else []),  # with the title; of rst it would make one of a heading
        *("+RTS", f"-M{MAX_PANDOC_MEMORY}", "-RTS"),
    ]
    try:
        done = subprocess.run(command, input=content, capture_output=True, timeout=max_seconds, check=False)
    except subprocess.TimeoutExpired:
        raise ReadFailure(TOO_SLOW) from None
    if done.returncode in (251, -6, -9) or b"heap overflow" in done.stderr.lower() or b"heap exhausted" in done.stderr:
        raise ReadFailure(TOO_MUCH_MEMORY)
    if done.returncode:
        lines = [line.strip() for line in done.stderr.decode("utf-8", "replace").splitlines() if line.strip()]
        raise ReadFailure(DAMAGED, " ".join(lines)[:200] or f"pandoc ended with {done.returncode}")
    if len(done.stdout) > MAX_HTML_BYTES:
        raise ReadFailure(TOO_LARGE, f"{len(done.stdout):,} bytes of text")
    page = read_html(done.stdout.decode("utf-8", "replace"))
    return HtmlText("" if page.title in ("-", "<stdin>", "stdin") else page.title, page.blocks)


def _check_zip(path: Path) -> None:
    """Raise ReadFailure unless a file is a zip file that is not encrypted, and unpacks to a bounded size."""
    try:
        with zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise ReadFailure(DAMAGED, str(error)[:200]) from None
    size = sum(info.file_size for info in infos)
    if size > MAX_UNZIPPED_BYTES:
        raise ReadFailure(TOO_LARGE, f"unpacks to {size:,} bytes")
    if any(info.flag_bits & 1 for info in infos):
        raise ReadFailure(ENCRYPTED)


# --- pdf --------------------------------------------------------------------------------------------------------------


def read_pdf(path: Path) -> HtmlText:
    """Return the blocks of a PDF file, page headers and footers removed. Raises ReadFailure."""
    if missing_extra(PDF):
        raise ReadFailure(EXTRA)
    import pypdf
    from pypdf.errors import PyPdfError

    logging.getLogger("pypdf").setLevel(logging.CRITICAL)
    try:
        with open(path, "rb") as file:
            reader = pypdf.PdfReader(file)
            if reader.is_encrypted and not reader.decrypt(""):
                raise ReadFailure(ENCRYPTED)
            pages = [page.extract_text() for page in reader.pages]
            title = _pdf_title(reader)
    except (ReadFailure, MemoryError):
        raise
    except (PyPdfError, Exception) as error:  # pypdf raises errors of every type for damaged files
        needs_cryptography = "cryptography" in str(error)
        raise ReadFailure(
            ENCRYPTED if needs_cryptography else DAMAGED, f"{type(error).__name__}: {error}"[:200]
        ) from None
    blocks = blocks_of_pages(pages)
    if not blocks and pages:
        raise ReadFailure(SCANNED)
    return HtmlText(title, blocks)


def _pdf_title(reader: Any) -> str:
    with suppress(Exception):
        return " ".join(str(reader.metadata.title or "").split()) if reader.metadata else ""
    return ""


def blocks_of_pages(pages: list[str]) -> list[Block]:
    """Return the blocks of the pages of a PDF file: lines are joined to paragraphs, which go on over pages.

    Lines at the top and bottom that are alike on a third of the pages are left out, digits aside.
    """
    lines_of_pages = [[line.strip() for line in page.splitlines() if line.strip()] for page in pages]
    edges = Counter(key for lines in lines_of_pages for key in {_edge_key(line) for line in lines[:2] + lines[-2:]})
    repeated = {key for key, count in edges.items() if count >= max(3, len(pages) / 3)}
    kept: list[str] = []
    for lines in lines_of_pages:
        for number, line in enumerate(lines):
            is_edge = number < 2 or number >= len(lines) - 2
            if not (is_edge and (_edge_key(line) in repeated or line.isdigit())):
                kept.append(line)
    if not kept:
        return []
    width = sorted(map(len, kept))[int(len(kept) * 0.9)]  # of a full line
    paragraphs: list[str] = []
    is_complete = True
    for line in kept:
        if not is_complete and re.search(r"[^\W\d_]-$", paragraphs[-1]) and line[0].islower():
            paragraphs[-1] = paragraphs[-1][:-1] + line
        elif not is_complete:
            paragraphs[-1] += " " + line
        else:
            paragraphs.append(line)
        ends_a_sentence = line[-1] in '.!?:"\u201d\u2019)'
        is_complete = len(line) < width * (0.8 if ends_a_sentence else 0.5)
    return read_plain_text("\n\n".join(paragraphs))


def _edge_key(line: str) -> str:
    return re.sub(r"\d+", "0", line)
