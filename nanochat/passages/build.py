"""The index of passages, written from the documents: complete, or not at all, and equal bytes for equal documents."""

from __future__ import annotations

import dataclasses
import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from nanochat.common import UserError, check_writable, write_json_atomic, written_atomically
from nanochat.data.shard_checks import file_sha256
from nanochat.documents.document import default_documents_path, load_documents
from nanochat.passages.cutting import cut_passages
from nanochat.passages.examples import ExampleQuestions
from nanochat.passages.index import APPLICATION_ID, FORMAT, SCHEMA, IndexFacts, fts5_fault, read_facts
from nanochat.passages.passage import Passage
from nanochat.passages.terms import all_terms
from nanochat.system.files import flush_to_disk

_SETTINGS = (
    "PRAGMA journal_mode = OFF",  # the file is new: until it is renamed, nobody else reads it
    "PRAGMA synchronous = OFF",  # it is flushed once, at its end
    f"PRAGMA application_id = {APPLICATION_ID}",
)


def build_index(documents_path: Path | None = None) -> IndexFacts:
    """Index the passages of documents.jsonl, into files beside it. Returns the facts that passages.json has.

    Raises UserError if the documents cannot be read or have no text, or the index cannot be written.
    """
    source = documents_path or default_documents_path()
    path = source.with_name("passages.sqlite")
    if fault := fts5_fault():
        raise UserError(fault)
    check_writable(path.parent)
    examples = ExampleQuestions()
    with written_atomically(path) as temporary:
        passages = _passages(source, examples)
        try:
            num_passages = _write(temporary, passages)
        except sqlite3.Error as error:  # as of a full disk
            raise UserError(f"cannot write {path}: {error}") from error
        if not num_passages:
            raise UserError(f"{source} has no text to search in: read other files with scripts.read_documents")
        index_sha256 = file_sha256(temporary)
    facts = IndexFacts(FORMAT, file_sha256(source), index_sha256, num_passages, tuple(examples.chosen()))
    write_json_atomic(path.with_suffix(".json"), dataclasses.asdict(facts))
    return facts


def current_facts(documents_path: Path | None = None) -> IndexFacts | None:
    """Return the facts of an index that is there and complete, and belongs to documents.jsonl; else None."""
    source = documents_path or default_documents_path()
    path = source.with_name("passages.sqlite")
    try:
        facts = read_facts(path)
        is_current = file_sha256(source) == facts.documents_sha256 and file_sha256(path) == facts.index_sha256
    except UserError:
        return None
    return facts if is_current else None


def _passages(source: Path, examples: ExampleQuestions) -> Iterator[Passage]:
    for document in load_documents(source):
        passages = cut_passages(document)
        examples.add(document, passages)
        yield from passages


def _write(path: Path, passages: Iterator[Passage]) -> int:
    """Write the database, and return the number of passages."""
    path.unlink(missing_ok=True)  # of a process of this number that was killed
    number = 0
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?nolock=1", uri=True, isolation_level=None)) as connection:
        for statement in (*_SETTINGS, *SCHEMA, "BEGIN"):
            connection.execute(statement)
        previous: tuple[str, ...] = ("",)
        for number, passage in enumerate(passages, 1):
            row = (number, passage.document, json.dumps(passage.headings, ensure_ascii=False), passage.text)
            connection.execute("INSERT INTO passages VALUES (?, ?, ?, ?)", row)
            place = (passage.document, *passage.headings)
            begun = [] if place == previous else passage.headings[_num_common(place, previous) - 1 :]
            previous = place
            texts = (passage.headings[:1], passage.headings[1:], begun, [passage.text])
            terms = [" ".join(all_terms("\n".join(text))) for text in texts]
            connection.execute(
                "INSERT INTO terms (rowid, title, headings, begun, text) VALUES (?, ?, ?, ?, ?)", (number, *terms)
            )
        connection.execute("INSERT INTO terms (terms) VALUES ('optimize')")
        connection.execute("COMMIT")
    with open(path, "rb") as file:
        flush_to_disk(file.fileno())
    return number


def _num_common(place: tuple[str, ...], other: tuple[str, ...]) -> int:
    """Number of parts that two places share at their beginning; at least 1, for the document."""
    shared = [a == b for a, b in zip(place, other, strict=False)]
    return max(1, shared.index(False) if False in shared else len(shared))
