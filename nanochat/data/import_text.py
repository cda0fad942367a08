"""Import of a user's own folder or file as training and validation documents: txt, md, jsonl and parquet.

Rules, in the order in which they apply:
  * A txt or md file is one document; a line of jsonl and a row of parquet are one document each. Hidden files are
    skipped.
  * A document of more than `max_chars` characters is cut, at the end of a paragraph if possible, else of a line, else
    of a word. Outside a folder of parquet files, no document is longer than 1/64 of the whole text (but 2,000
    characters are always allowed), so that a single book gives several documents.
  * In a folder of parquet files alone, the last file by name is the validation split. Otherwise a document is in the
    validation split if a hash of its text is in the lowest 1/32 of its range. If there is no such document, it is the
    one with the lowest hash; the training split is never empty.
  * A training document whose text is also in the validation split is left out.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from nanochat.common import UserError, print0

SUFFIXES = (".txt", ".md", ".jsonl", ".parquet")
VALIDATION_SHARE = 1 / 32
_ALWAYS_ALLOWED_CHARS = 2_000  # a small text does not lower `max_chars` below this
_CHUNK_SIZE = 1 << 20  # characters or bytes read at a time


@dataclass
class TextFiles:
    """The readable files under a path, and their documents.

    Reading the documents records problems in `empty`, `not_utf8` and `duplicates`; `notices` describes them. Errors
    raise UserError with the file, and for jsonl with the line.
    """

    source: Path
    text_column: str = "text"
    max_chars: int = 100_000
    files: list[Path] = field(init=False)
    empty: set[Path] = field(default_factory=set, init=False)
    not_utf8: set[Path] = field(default_factory=set, init=False)
    duplicates: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.files = find_text_files(self.source)
        self._validation_file = self.files[-1] if len(self.files) > 1 and _all_parquet(self.files) else None
        if self._validation_file is None:
            self.max_chars = min(self.max_chars, max(_ALWAYS_ALLOWED_CHARS, self.text_bytes() // 64))

    def fingerprint(self) -> list[tuple[str, int, int]]:
        """Return each file's name, size and modification time, which identify the source without reading it."""
        base = self.source if self.source.is_dir() else self.source.parent
        stats = [(path.relative_to(base).as_posix(), path.stat()) for path in self.files]
        return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]

    def text_bytes(self) -> int:
        """Return the approximate amount of text in bytes."""
        return sum(map(_text_bytes, self.files))

    def split(self) -> tuple[Iterator[str], Iterator[str]]:
        """Return iterators over the training and the validation documents, in the order of the files."""
        if self._validation_file is not None:
            return self._train_of_parquet(self._validation_file), self._documents([self._validation_file])
        bound = self._validation_bound()
        return (
            (text for text in self._documents(self.files) if _digest(text) >= bound),
            (text for text in self._documents(self.files) if _digest(text) < bound),
        )

    def notices(self) -> list[str]:
        """Return one line for each kind of problem that reading the documents has met."""
        lines = []
        if self.empty:
            lines.append(f"{len(self.empty)} files without text were skipped ({_some_names(self.empty)})")
        if self.not_utf8:
            names = _some_names(self.not_utf8)
            lines.append(f"{len(self.not_utf8)} files are not UTF-8; unreadable bytes became U+FFFD ({names})")
        if self.duplicates:
            lines.append(f"{self.duplicates} training documents are in the validation split as well and were left out")
        return lines

    def _train_of_parquet(self, validation_file: Path) -> Iterator[str]:
        validation_digests = {_digest(text) for text in self._documents([validation_file])}
        self.duplicates = 0
        for text in self._documents(self.files[:-1]):
            if _digest(text) in validation_digests:
                self.duplicates += 1
            else:
                yield text

    def _validation_bound(self) -> int:
        """Return the digest below which a document is in the validation split: about 1 in 32, at least 1, never all."""
        lowest = 2**64
        highest = -1
        for text in self._documents(self.files):
            digest = _digest(text)
            lowest = min(lowest, digest)
            highest = max(highest, digest)
        if lowest >= highest:
            content = "no text" if highest < 0 else "a single document"
            raise UserError(f"{self.source} holds {content}: at least two are needed, to train on and to validate with")
        return min(max(int(VALIDATION_SHARE * 2**64), lowest + 1), highest)

    def _documents(self, files: list[Path]) -> Iterator[str]:
        for path in files:
            has_text = False
            for text in self._read(path):
                if text.strip():
                    has_text = True
                    yield from split_long_text(text, self.max_chars)
            if not has_text:
                self.empty.add(path)

    def _read(self, path: Path) -> Iterator[str]:
        try:
            if path.suffix.lower() == ".parquet":
                yield from _read_parquet(path, self.text_column)
                return
            encoding, is_valid = detect_encoding(path)
            if not is_valid:
                self.not_utf8.add(path)
            if path.suffix.lower() == ".jsonl":
                yield from self._read_jsonl(path, encoding)
            else:
                yield from self._read_text(path, encoding)
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror or error}") from error

    def _read_text(self, path: Path, encoding: str) -> Iterator[str]:
        """Yield a text file in parts of at most max_chars, so that a file of any size fits into memory."""
        remainder = ""
        with open(path, encoding=encoding, errors="replace") as file:
            while chunk := file.read(max(_CHUNK_SIZE, self.max_chars)):
                parts = list(split_long_text(remainder + chunk, self.max_chars))
                remainder = parts.pop()
                yield from parts
        yield remainder

    def _read_jsonl(self, path: Path, encoding: str) -> Iterator[str]:
        with open(path, encoding=encoding, errors="replace", newline="\n") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError) as error:
                    reason = getattr(error, "msg", str(error))
                    raise UserError(f"{path}, line {number}: not JSON ({reason})") from error
                text = row.get(self.text_column) if isinstance(row, dict) else None
                if not isinstance(text, str):
                    expected = f'an object with a string under "{self.text_column}"'
                    raise UserError(f"{path}, line {number}: expected {expected} (--text_column names another)")
                yield text.encode("utf-8", "replace").decode("utf-8")  # JSON may contain half a surrogate pair


def find_text_files(source: Path) -> list[Path]:
    """Return the readable files under a path, sorted by name. Raises UserError if there are none."""
    if source.is_file():
        paths = [source]
    elif source.is_dir():
        paths = []
        for folder, subfolders, names in os.walk(source):
            subfolders[:] = [name for name in subfolders if not name.startswith(".")]
            paths += [Path(folder, name) for name in names if not name.startswith(".")]
        paths = sorted(path for path in paths if path.is_file())
    else:
        raise UserError(f"--source {source}: no such file or folder (the other sources are hub and storyworld)")
    readable = [path for path in paths if path.suffix.lower() in SUFFIXES]
    if not readable:
        raise UserError(f"--source {source}: none of its {len(paths)} files can be read ({', '.join(SUFFIXES)} can)")
    if len(readable) < len(paths):
        others = set(paths) - set(readable)
        print0(f"{len(others)} files of other kinds are skipped ({_some_names(others)})")
    return readable


def detect_encoding(path: Path) -> tuple[str, bool]:
    """Return the encoding of a file, and True if the whole file is valid in that encoding.

    The encoding is UTF-16 if the file begins with its byte order mark, else UTF-8.
    """
    with open(path, "rb") as file:
        byte_order_mark = file.read(2)
        is_utf16 = byte_order_mark in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
        encoding = "utf-16" if is_utf16 else "utf-8-sig"
        file.seek(0)
        decoder = codecs.getincrementaldecoder(encoding)(errors="strict")
        try:
            while block := file.read(_CHUNK_SIZE):
                decoder.decode(block)
            decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            return encoding, False
    return encoding, True


def split_long_text(text: str, max_chars: int) -> Iterator[str]:
    """Cut a text into parts of at most `max_chars` characters.

    A part ends at the last blank line in its second half, else at the last line break there, else at the last space
    there, else at `max_chars`.

    >>> list(split_long_text("One two.\\n\\nThree four.", max_chars=15))
    ['One two.\\n\\n', 'Three four.']
    """
    start = 0
    while len(text) - start > max_chars:
        end = start + max_chars
        for separator in ("\n\n", "\n", " "):
            position = text.rfind(separator, start + max_chars // 2, end)
            if position >= 0:
                end = min(end, position + len(separator))
                break
        yield text[start:end]
        start = end
    yield text[start:]


def _read_parquet(path: Path, column: str) -> Iterator[str]:
    try:
        with pq.ParquetFile(path) as file:
            if column not in file.schema_arrow.names:
                names = ", ".join(file.schema_arrow.names)
                raise UserError(f"{path} has no column {column!r}, but {names} (--text_column names another)")
            column_type = file.schema_arrow.field(column).type
            if not (pa.types.is_string(column_type) or pa.types.is_large_string(column_type)):
                raise UserError(f"{path}: column {column!r} holds {column_type}, not text")
            for batch in file.iter_batches(batch_size=1024, columns=[column], use_threads=False):
                yield from (text for text in batch.column(0).to_pylist() if text)
    except pa.ArrowException as error:
        raise UserError(f"{path} cannot be read as parquet: {str(error).splitlines()[0]}") from error


def _text_bytes(path: Path) -> int:
    if path.suffix.lower() != ".parquet":
        return path.stat().st_size
    try:
        with pq.ParquetFile(path) as file:
            return sum(file.metadata.row_group(i).total_byte_size for i in range(file.num_row_groups))
    except pa.ArrowException as error:
        raise UserError(f"{path} cannot be read as parquet: {str(error).splitlines()[0]}") from error


def _all_parquet(files: list[Path]) -> bool:
    return all(path.suffix.lower() == ".parquet" for path in files)


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8"), digest_size=8).digest(), "big")


def _some_names(paths: set[Path]) -> str:
    names = sorted(path.name for path in paths)
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
