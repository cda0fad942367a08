"""From a folder to clean documents in two splits: finds, reads, cleans, compares, cuts and writes.

The documents are read once, in processes (`reader_process.py`), into a temporary file; the later passes read that one,
so that only a few hundred bytes of each document are in memory. Everything depends on the files and settings alone: the
same folder gives the same bytes.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from tqdm import tqdm

from nanochat.common import UserError, as_write_error, base_dir
from nanochat.data.source_files import FileSearch
from nanochat.documents import converters
from nanochat.documents.cleaning import LineHashes, RepeatedPassages, find_boilerplate, line_hashes, without_lines
from nanochat.documents.document import Document, document_to_json, text_sha256, trusted_document, write_documents
from nanochat.documents.duplicates import Candidate, find_repeats, minhash
from nanochat.documents.file_reader import ReadOptions
from nanochat.documents.formats import (
    BROKEN,
    EXTRA,
    HIDDEN,
    OUTSIDE,
    REPEATED,
    SHOWN,
    SPECIAL,
    UNREADABLE,
    reason_to_leave_folder_out,
    reason_to_leave_out,
)
from nanochat.documents.provenance import Provenance
from nanochat.documents.reader_process import read_files
from nanochat.documents.split import check_amount, choose_validation, cut_document, max_chars

VERSION = 1  # of the rules: a new one reads everything again
_FILES_FOR_A_PROCESS = 50  # fewer files are not worth the start of another one
_REASONS = {"hidden": HIDDEN, "outside": OUTSIDE, "broken": BROKEN, "special": SPECIAL, "unreadable": UNREADABLE}


@dataclass(frozen=True)
class SourceFile:
    """A file of the source. `name`: relative to it, "/" between its parts, valid UTF-8."""

    path: Path
    name: str
    size: int
    modified: int  # time, in nanoseconds


@dataclass(frozen=True)
class Source:
    """The files of a folder, or one file, and what was left out by its name."""

    name: str  # of the folder or file
    files: list[SourceFile]
    left_out: list[tuple[str, str]]  # (reason, name)

    def fingerprint(self, *settings: object) -> str:
        """Return a hash of names, sizes and times of the files, and of what else decides the result."""
        extras = [converters.missing_extra(suffix) for suffix in (".rst", ".pdf")]
        files = [(file.name, file.size, file.modified) for file in self.files]
        content = json.dumps([VERSION, self.name, files, sorted(self.left_out), extras, settings], default=str)
        return hashlib.sha256(content.encode()).hexdigest()


def find_source(path: Path, follow_links: bool = False) -> Source:
    """Find the files of a folder. Raises UserError if there is no such folder or file, or nothing in it can be read."""
    shown = f"--source {path}"
    if not path.exists():
        raise UserError(f"{shown}: no such file or folder")
    root = path.resolve()
    own = base_dir().resolve()
    if root == own or own in root.parents:
        raise UserError(f"{shown}: it is in the base folder {own}, which is written to: name another folder")
    search = FileSearch(root, follow_links, lambda name: reason_to_leave_folder_out(name) is not None, {own})
    if root.is_dir():
        search.run()
    elif not root.is_file():
        raise UserError(f"{shown}: neither a file nor a folder; a pipe must be saved to a file first")
    else:
        search.add_file(root, root)
    base = root if root.is_dir() else root.parent
    left_out = [(_REASONS[kind], name_of(found, base)) for kind in _REASONS for found in search.skipped[kind]]
    left_out += [
        (reason_to_leave_folder_out(found.name) or "folder of this run", name_of(found, base))
        for found in search.skipped["folder"]
    ]
    files = []
    for found in search.files.values():
        reason = reason_to_leave_out(found) if root.is_dir() else None
        if reason is None and converters.missing_extra(found.suffix.lower()):
            reason = EXTRA
        if reason is not None:
            left_out.append((reason, name_of(found, base)))
        else:
            facts = found.stat()
            files.append(SourceFile(found, name_of(found, base), facts.st_size, facts.st_mtime_ns))
    source = Source(name_of(root, root.parent), sorted(files, key=lambda file: file.name), left_out)
    if not files:
        raise UserError(f"{shown}: {_nothing(source)}")
    return source


def name_of(path: Path, base: Path) -> str:
    """Return the name of a file relative to a folder as valid UTF-8: other bytes of it are written as `\\xe9`."""
    return os.fsencode(path.relative_to(base).as_posix()).decode("utf-8", "backslashreplace")


def _nothing(source: Source) -> str:
    if not source.left_out:
        return f"holds no files ({SHOWN} can be read)"
    provenance = Provenance(source.name, "")
    for reason, name in source.left_out:
        provenance.leave_out(reason, name)
    return f"holds nothing that can be read: {provenance.left_out_in_words()} ({SHOWN} can be read)"


class Spool:
    """Documents in a temporary file, read again in any order."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def write(self, document: Document) -> int:
        """Append a document; return its place."""
        place = self._file.seek(0, os.SEEK_END)
        self._file.write(document_to_json(document).encode("utf-8") + b"\n")
        return place

    def read(self, places: Iterable[int]) -> Iterator[Document]:
        """Yield the documents at some places."""
        for place in places:
            self._file.seek(place)
            yield trusted_document(json.loads(self._file.readline()))


@contextmanager
def new_spool(folder: Path) -> Iterator[Spool]:
    """Context with an empty spool in a folder; it and those of killed runs are removed."""
    with as_write_error(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob(".spool_*.tmp"):
            shutil.rmtree(left, ignore_errors=True)
        with (
            tempfile.TemporaryDirectory(prefix=".spool_", suffix=".tmp", dir=folder) as scratch,
            open(Path(scratch, "documents"), "w+b") as file,
        ):
            yield Spool(file)


def read_source(source: Source, spool: Spool, options: ReadOptions, provenance: Provenance) -> list[list[int]]:
    """Read all files into the spool. Returns the places of the documents of each file, in the order of the files."""
    for reason, name in source.left_out:
        provenance.leave_out(reason, name)
    places: list[list[int]] = [[] for _ in source.files]
    num_workers = min(os.cpu_count() or 1, 8, 1 + len(source.files) // _FILES_FOR_A_PROCESS)
    messages = read_files([(file.path, file.name) for file in source.files], options, num_workers)
    with tqdm(total=len(source.files), desc="reading", unit=" files", disable=None) as bar:
        for number, message in messages:
            if isinstance(message, Document):
                places[number].append(spool.write(message))
                continue
            if message.reason:
                places[number].clear()
            file = source.files[number]
            provenance.add_file(file.name, file.size, message, len(places[number]))
            bar.update()
    return places


@dataclass
class _Entry:
    """A document on its way through the cleaning. `file`: the number of its file."""

    place: int
    file: int
    candidate: Candidate
    lines: LineHashes


def clean_documents(
    spool: Spool, places_of_files: list[list[int]], min_similarity: float, provenance: Provenance
) -> list[int]:
    """Remove documents that others repeat, lines that repeat over the files, and passages that earlier documents have.

    Returns the places of the documents that are kept. Duplicates go first, as every line of a text in many copies
    repeats over the files; they are looked for again among the documents without these lines.
    """
    numbered = [(file, place) for file, places in enumerate(places_of_files) for place in places]
    documents = spool.read([place for _, place in numbered])
    with tqdm(desc="cleaning", total=2 * len(numbered), unit=" documents", disable=None) as bar:
        entries = []
        for (file, place), document in zip(numbered, documents, strict=True):
            bar.update()
            entries.append(_Entry(place, file, _candidate(document, min_similarity), line_hashes(document)))
        entries = _without_repeats(entries, min_similarity, provenance)
        if boilerplate := find_boilerplate(_lines_of_files(entries)):
            entries = _without_boilerplate(spool, entries, boilerplate, min_similarity, provenance)
            entries = _without_repeats(entries, min_similarity, provenance)
        kept = list(_without_repeated_passages(spool, [entry.place for entry in entries], provenance, bar))
        bar.update(bar.total - bar.n)
    return kept


def _candidate(document: Document, min_similarity: float) -> Candidate:
    text = document.text
    return Candidate(document.name, len(text), text_sha256(text), minhash(text if min_similarity < 1 else ""))


def _lines_of_files(entries: list[_Entry]) -> Iterator[list[LineHashes]]:
    for _, of_file in itertools.groupby(entries, key=lambda entry: entry.file):
        yield [entry.lines for entry in of_file]


def _without_repeats(entries: list[_Entry], min_similarity: float, provenance: Provenance) -> list[_Entry]:
    repeats = find_repeats([entry.candidate for entry in entries], min_similarity)
    for number, repeat in sorted(repeats.items()):
        provenance.add_repeat(entries[number].candidate.name, repeat, entries[repeat.kept].candidate.name)
    return [entry for number, entry in enumerate(entries) if number not in repeats]


def _without_boilerplate(
    spool: Spool, entries: list[_Entry], boilerplate: set[int], min_similarity: float, provenance: Provenance
) -> list[_Entry]:
    kept = []
    for entry, original in zip(entries, spool.read([entry.place for entry in entries]), strict=True):
        document, num_removed = without_lines(original, boilerplate)
        provenance.removed["lines"] += num_removed
        if num_removed and not document.blocks:
            provenance.leave_out(REPEATED, document.name)
            continue
        if num_removed:
            entry.place, entry.candidate = spool.write(document), _candidate(document, min_similarity)
        kept.append(entry)
    return kept


def _without_repeated_passages(spool: Spool, places: list[int], provenance: Provenance, bar: tqdm) -> Iterator[int]:
    passages = RepeatedPassages()
    for place, original in zip(places, spool.read(places), strict=True):
        bar.update()
        document, num_removed = passages.clean(original)
        provenance.removed["passages"] += num_removed
        if not document.blocks:
            provenance.leave_out(REPEATED, document.name)
        else:
            yield spool.write(document) if num_removed else place


def split_documents(spool: Spool, places: list[int], source: str) -> tuple[list[int], set[str]]:
    """Cut long documents. Returns the places of the parts, and the SHA-256 of the validation documents.

    Raises UserError if there is too little text.
    """
    total = [0, 0]  # characters, bytes
    for document in spool.read(places):
        total[0] += len(document.text)
        total[1] += len(document.text.encode("utf-8"))
    check_amount(total[1], source)
    limit = max_chars(total[0])
    parts: list[int] = []
    sizes: Counter[str] = Counter()
    for place, document in zip(places, spool.read(places), strict=True):
        for part in cut_document(document, limit):
            text = part.text
            sizes[text_sha256(text)] += len(text.encode("utf-8"))
            parts.append(place if part is document else spool.write(part))
    validation = choose_validation(sizes)
    if not validation:
        raise UserError(f"--source {source} holds one short text over and over: add other text")
    return parts, validation


def write_split(spool: Spool, places: list[int], validation: set[str], provenance: Provenance, path: Path) -> None:
    """Write the documents with their splits, completely or not at all, and record them."""

    def documents() -> Iterator[Document]:
        for document in tqdm(spool.read(places), desc="writing", total=len(places), unit=" documents", disable=None):
            text = document.text
            split = "val" if text_sha256(text) in validation else "train"
            document = document.with_split(split)
            provenance.add_document(document, len(text.encode("utf-8")))
            yield document

    write_documents(documents(), path)
