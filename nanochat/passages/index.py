"""Search for the passages nearest to a question or an answer: a full-text index in SQLite's FTS5, ranked by bm25.

    $NANOCHAT_BASE_DIR/documents/passages.sqlite    the passages, and the index of their terms
    $NANOCHAT_BASE_DIR/documents/passages.json      `IndexFacts`: of which documents they are, and the SHA-256 of both

`nanochat/passages/build.py` writes both. The database is opened read-only, after its hash and its schema have been
compared: a file that is damaged, of other documents or of another program is refused with one line.
"""

from __future__ import annotations

import json
import math
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from nanochat.common import UserError
from nanochat.data.shard_checks import file_sha256
from nanochat.documents.document import default_documents_path
from nanochat.passages.passage import Passage
from nanochat.passages.terms import query_phrases, query_terms
from nanochat.system.console import visible_line
from nanochat.system.files import check_regular_file
from nanochat.system.json_files import check_type, read_json
from nanochat.system.json_text import short_repr

FORMAT = 1
APPLICATION_ID = 0x6E637078  # "ncpx", in the header of the database
MAX_TERMS = 32  # of a query; an answer has no more that matter
MAX_PARTS = 40  # of a query, phrases included
# Of a term in the title, in the other headings, in a heading whose first passage this is, in the text
WEIGHTS = (2.5, 2.5, 5.0, 1.0)
SCHEMA = (
    "CREATE TABLE passages (id INTEGER PRIMARY KEY, document TEXT, headings TEXT, text TEXT)",
    "CREATE VIRTUAL TABLE terms USING fts5 (title, headings, begun, text, content='', tokenize='porter ascii')",
)
REBUILD = "run python -m scripts.index_documents"
_COLUMNS = """
    SELECT own.document, own.headings, own.text, found.score, own.id, before.document IS NOT own.document,
        next.document IS NOT own.document, before.document IS NOT own.document OR before.headings IS NOT own.headings
    FROM {found} AS found JOIN passages AS own ON own.id = found.id
    LEFT JOIN passages AS before ON before.id = own.id - 1
    LEFT JOIN passages AS next ON next.id = own.id + 1
    ORDER BY found.score, own.id
"""
_SEARCH = _COLUMNS.format(
    found="""(
        SELECT rowid AS id, bm25(terms, ?, ?, ?, ?) AS score FROM terms WHERE terms MATCH ? ORDER BY score, id LIMIT ?
    )"""
)
_BETWEEN = _COLUMNS.format(found="(SELECT id, 0 AS score FROM passages WHERE id BETWEEN ? AND ?)")
_BEFORE = "SELECT id FROM passages WHERE id < ? AND document IS NOT ? ORDER BY id DESC LIMIT 1"
_AFTER = "SELECT id FROM passages WHERE id > ? AND document IS NOT ? ORDER BY id LIMIT 1"
_COUNT = "SELECT count(*) FROM terms WHERE terms MATCH ?"
MAX_COUNTS = 100_000  # of terms that are kept


@dataclass(frozen=True)
class IndexFacts:
    """The content of passages.json."""

    format: int
    documents_sha256: str  # of documents.jsonl
    index_sha256: str  # of passages.sqlite
    num_passages: int
    examples: tuple[str, ...]  # questions about the documents, for an empty conversation


def default_index_path() -> Path:
    """Return the path of the index: `$NANOCHAT_BASE_DIR/documents/passages.sqlite`."""
    return default_documents_path().with_name("passages.sqlite")


def fts5_fault() -> str | None:
    """Return why this Python cannot search for passages, or None if it can."""
    with _closed(sqlite3.connect(":memory:")) as connection:
        try:
            connection.execute(SCHEMA[1])
        except sqlite3.Error:
            return (
                f"SQLite {sqlite3.sqlite_version} of this Python has no FTS5, its full-text search: use another "
                "Python, such as the one that uv installs, to see the sources of answers"
            )
    return None


class PassageIndex:
    """An open index. Several threads may search it. Close it, or use it as a context."""

    def __init__(self, connection: sqlite3.Connection, path: Path, facts: IndexFacts) -> None:
        self.path = path
        self.facts = facts
        self._connection = connection
        self._lock = threading.Lock()
        self._rarities: dict[str, float] = {}

    @classmethod
    def open(cls, path: Path | None = None) -> PassageIndex:
        """Open the index at `path` (default: `default_index_path()`).

        Raises UserError if it is missing or damaged, does not belong to the documents.jsonl beside it, or if this
        Python's SQLite has no full-text search.
        """
        path = path or default_index_path()
        if fault := fts5_fault():
            raise UserError(fault)
        facts = read_facts(path)
        documents = path.with_name("documents.jsonl")
        if documents.exists() and file_sha256(documents) != facts.documents_sha256:
            raise UserError(f"{path} belongs to other documents than {documents}, which has changed: {REBUILD}")
        if file_sha256(path) != facts.index_sha256:
            raise UserError(
                f"{path} is damaged, or was changed: its SHA-256 is not the one in passages.json: {REBUILD}"
            )
        connection = sqlite3.connect(
            f"{path.absolute().as_uri()}?mode=ro&immutable=1", uri=True, check_same_thread=False
        )
        try:
            _check_database(connection, path)
        except BaseException:
            connection.close()
            raise
        return cls(connection, path, facts)

    def search(self, question: str, k: int = 3, context: str = "") -> list[Passage]:
        """Return the `k` passages nearest to a question, the best one first; fewer if fewer have a word of it.

        `context`: what was said before, whose words count as well, but less. Equal passages come in the order of the
        documents. Raises UserError if the database turns out to be damaged.
        """
        terms = query_terms(question)[:MAX_TERMS]
        if context:
            others = [term for term in query_terms(context) if term not in terms]
            terms = terms * 2 + others[: max(0, MAX_TERMS - len(terms))]  # a term that is given twice counts twice
        if not terms:
            return []
        parts = [*terms, *query_phrases(question)[: max(0, MAX_PARTS - len(terms))]]
        query = " OR ".join(f'"{part}"' for part in parts)
        with _as_user_error(self.path), self._lock:
            rows = self._connection.execute(_SEARCH, (*WEIGHTS, query, k)).fetchall()
            return [_passage(*row) for row in rows]

    def edges(self, passage: Passage) -> list[Passage]:
        """Return the first three passages and the last three of the document that a passage of this index is from.

        Raises UserError if the database turns out to be damaged.
        """
        with _as_user_error(self.path), self._lock:
            here = (passage.number, passage.document)
            before = self._connection.execute(_BEFORE, here).fetchone()
            after = self._connection.execute(_AFTER, here).fetchone()
            first = before[0] + 1 if before else 1
            last = after[0] - 1 if after else self.facts.num_passages
            ranges = ((first, min(first + 2, last)), (max(first + 3, last - 2), last))
            return [_passage(*row) for span in ranges for row in self._connection.execute(_BETWEEN, span).fetchall()]

    def rarity(self, term: str) -> float:
        """Return how rare a term of `terms.py` is: 1 if no passage has it, else less, near 0 if most passages do.

        Raises UserError if the database turns out to be damaged.
        """
        if term not in self._rarities:
            with _as_user_error(self.path), self._lock:
                (count,) = self._connection.execute(_COUNT, (f'"{term}"',)).fetchone()
            total = self.facts.num_passages
            rarity = 1.0 if not count else min(0.95, math.log(1 + total / count) / math.log(2 + total))
            if len(self._rarities) < MAX_COUNTS:
                self._rarities[term] = rarity
            return rarity
        return self._rarities[term]

    def close(self) -> None:
        """Close the database."""
        with self._lock:
            self._connection.close()

    def __enter__(self) -> PassageIndex:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_facts(path: Path) -> IndexFacts:
    """Read the passages.json of an index. Raises UserError if either is missing, or damaged."""
    facts_path = path.with_suffix(".json")
    for file in (path, facts_path):
        if not file.exists():
            raise UserError(f"{file} is missing: {REBUILD}")
        check_regular_file(file)
    try:
        content = read_json(facts_path)
        if isinstance(content, dict) and content.get("format", FORMAT) != FORMAT:
            raise UserError(f"format is {short_repr(content['format'])}; this version reads {FORMAT}")
        check_type(content, IndexFacts, "")
    except UserError as error:
        raise UserError(f"{facts_path} is damaged, or of another version: {error} ({REBUILD})") from None
    return IndexFacts(**{**content, "examples": tuple(content["examples"])})


def _check_database(connection: sqlite3.Connection, path: Path) -> None:
    """Raise UserError unless a database has the tables of an index, and nothing else that could act."""
    with _as_user_error(path):
        connection.execute("PRAGMA trusted_schema = OFF")
        connection.execute("PRAGMA cell_size_check = ON")
        ids = connection.execute("PRAGMA application_id").fetchone()
        own_tables = [row[0] for row in connection.execute("SELECT sql FROM sqlite_master ORDER BY rowid").fetchall()]
        # FTS5 keeps its data in tables of its own, which follow the virtual one.
        if ids != (APPLICATION_ID,) or tuple(own_tables[:2]) != SCHEMA or own_tables[2:] != _tables_of_fts5():
            raise UserError(f"{path} is no index of passages: {REBUILD}")


def _tables_of_fts5() -> list[Any]:
    with _closed(sqlite3.connect(":memory:")) as connection:
        for statement in SCHEMA:
            connection.execute(statement)
        return [row[0] for row in connection.execute("SELECT sql FROM sqlite_master ORDER BY rowid").fetchall()][2:]


def _passage(document: Any, headings: Any, text: Any, score: Any, *place: Any) -> Passage:
    """The passage of a row. Raises ValueError for a row that no index has."""
    names = json.loads(headings)
    number, *flags = place
    texts = [document, text, *names] if isinstance(names, list) else [None]
    if not all(isinstance(value, str) for value in texts):
        raise ValueError("a row has other types than a passage")
    return Passage(document, tuple(names), text, round(-score, 3), number, *map(bool, flags))


@contextmanager
def _as_user_error(path: Path) -> Iterator[None]:
    """Context that turns the errors of a damaged database into one line."""
    try:
        yield
    except UserError:
        raise
    except (sqlite3.Error, ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{path} cannot be read ({visible_line(str(error))[:200]}): {REBUILD}") from error


@contextmanager
def _closed(connection: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    try:
        yield connection
    finally:
        connection.close()
