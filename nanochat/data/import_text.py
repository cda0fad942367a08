"""Import of a user's own folder or file as training and validation documents: txt, md, jsonl and parquet.

Rules, in the order in which they apply:
  * `data/source_files.py` finds the files; hidden, linked, unreadable and special ones are treated as it says.
  * A txt or md file is one document; a line of jsonl and a row of parquet are one document each. A null or blank text
    is left out.
  * txt, md and jsonl are UTF-8, UTF-16 or UTF-32 (`data/text_encoding.py`); a text column of parquet may have any of
    the types of `data/arrow_text.py`. Byte order marks are removed. Bytes that are no text become U+FFFD, in each
    format.
  * A document of more than `max_chars` characters is cut, at the end of a paragraph if possible, else of a line, else
    of a word. Outside a folder of parquet files, no document is longer than 1/64 of the whole text (but 2,000
    characters are always allowed), so that a single book gives several documents, and a single page two.
  * In a folder of parquet files alone, the last file by name that has text is the validation split, unless it is the
    only one. Otherwise a document is in the validation split if a hash of its text is in the lowest 1/32 of its range.
    If there is no such document, it is the one with the lowest hash; the training split is never empty.
  * A training document whose text is also in the validation split is left out.

The files must not change during the import. Everything that is left out or replaced is counted, and a notice says so.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import pyarrow as pa
import pyarrow.compute as pc

from nanochat.common import UserError
from nanochat.data.arrow_text import as_parquet_error, is_binary_type, open_parquet, to_text
from nanochat.data.source_files import find_text_files, some_names
from nanochat.data.text_encoding import TextEncoding, detect_encoding
from nanochat.data.text_source import split_long_text

VALIDATION_SHARE = 1 / 32
MAX_LINE_CHARS = 1 << 26  # of jsonl: a line is in memory as a whole
_ALWAYS_ALLOWED_CHARS = 2_000  # a small text does not lower `max_chars` below this
_MIN_CHARS_TO_CUT = 200  # a single document of this length gives two
_CHUNK_SIZE = 1 << 20  # characters read at a time
_BATCH_BYTES = 32_000_000  # of parquet, read at a time
_SURROGATES = re.compile("[\ud800-\udfff]")
_BYTE_ORDER_MARK = "\ufeff"


@dataclass
class TextFiles:
    """The readable files under a path, and their documents.

    Reading a file to its end counts what was left out or replaced in it; `notices` describes that. Errors raise
    UserError with the file, and for jsonl with the line.
    """

    source: Path
    text_column: str = "text"
    max_chars: int = 100_000
    follow_links: bool = False
    files: list[Path] = field(init=False)
    duplicates: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.files = find_text_files(self.source, self.follow_links)
        self._counts: dict[Path, Counter[str]] = {}  # by file that was read to its end
        self._encodings: dict[Path, TextEncoding] = {}
        self._fingerprint = self.fingerprint()
        self._validation_file = self._find_validation_file()
        if self._validation_file is None:
            self.max_chars = min(self.max_chars, max(_ALWAYS_ALLOWED_CHARS, self.text_bytes() // 64))

    def fingerprint(self) -> list[tuple[str, int, int]]:
        """Return each file's name, size and modification time, which identify the source without reading it."""
        base = self.source.resolve() if self.source.is_dir() else self.source.parent
        stats = [(path.relative_to(base).as_posix(), path.stat()) for path in self.files]
        return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]

    def text_bytes(self) -> int:
        """Return the approximate amount of text in bytes."""
        return sum(map(_text_bytes, self.files))

    def split(self) -> tuple[Iterator[str], Iterator[str]]:
        """Return iterators over the training and the validation documents, in the order of the files.

        The validation documents are to be read first: at the end of the others the files must be as they were.
        """
        if self._validation_file is not None:
            train = self._train_of_parquet(self._validation_file)
            return self._until_changed(train), self._documents([self._validation_file])
        bound = self._validation_bound()
        return (
            self._until_changed(text for text in self._documents(self.files) if _digest(text) >= bound),
            (text for text in self._documents(self.files) if _digest(text) < bound),
        )

    def notices(self) -> list[str]:
        """Return one line for each kind of text that was left out or replaced in the documents read so far."""
        lines = []
        total: Counter[str] = sum(self._counts.values(), Counter())
        encodings = self._encodings.items()
        binary = [path for path, encoding in encodings if encoding.name is None]
        unmarked = [path for path, encoding in encodings if not encoding.is_marked and encoding.name != "utf-8-sig"]
        unmarked = [path for path in unmarked if path not in binary]
        invalid = [path for path, encoding in encodings if not encoding.is_valid]
        invalid += [path for path, counts in self._counts.items() if counts["invalid rows"]]
        empty = [path for path, counts in self._counts.items() if not counts["documents"] and path not in binary]
        with_nul = [path for path, counts in self._counts.items() if counts["with NUL"]]
        if empty:
            lines.append(f"{len(empty)} files without text were skipped ({some_names(empty)})")
        if binary:
            lines.append(f"{len(binary)} files hold binary data, not text, and were skipped ({some_names(binary)})")
        if unmarked:
            names = some_names(unmarked)
            lines.append(f"{len(unmarked)} files without a byte order mark were read as UTF-16 or UTF-32 ({names})")
        if invalid:
            rows = f", in {total['invalid rows']} rows of parquet" if total["invalid rows"] else ""
            names = some_names(invalid)
            lines.append(f"{len(invalid)} files are not UTF-8; unreadable bytes became U+FFFD{rows} ({names})")
        if total["half pairs"]:
            lines.append(f"{total['half pairs']} lines of jsonl had half a surrogate pair, which became U+FFFD")
        if total["without text"]:
            lines.append(f"{total['without text']} rows or lines without text (null or blank) were left out")
        if total["with NUL"]:
            lines.append(f"{total['with NUL']} documents have NUL characters, which were kept ({some_names(with_nul)})")
        if self.duplicates:
            lines.append(f"{self.duplicates} training documents are in the validation split as well and were left out")
        return lines

    def _find_validation_file(self) -> Path | None:
        """Return the last of at least two parquet files with text, or None if there are other files too."""
        if any(path.suffix.lower() != ".parquet" for path in self.files):
            return None
        with_text = (path for path in reversed(self.files) if next(self._documents([path]), None) is not None)
        last = next(with_text, None)
        return None if next(with_text, None) is None else last

    def _until_changed(self, documents: Iterator[str]) -> Iterator[str]:
        """Yield the documents. Raises UserError at the end if a file has changed since the files were found."""
        yield from documents
        for old, new in zip(self._fingerprint, self.fingerprint(), strict=True):
            if old != new:
                raise UserError(
                    f"{self.source}: {new[0]} has changed during the import: import it when nothing writes to it"
                )

    def _train_of_parquet(self, validation_file: Path) -> Iterator[str]:
        validation_digests = {_digest(text) for text in self._documents([validation_file])}
        self.duplicates = 0
        for text in self._documents([path for path in self.files if path != validation_file]):
            if _digest(text) in validation_digests:
                self.duplicates += 1
            else:
                yield text

    def _validation_bound(self) -> int:
        """Return the digest below which a document is in the validation split: about 1 in 32, at least 1, never all."""
        lowest = 2**64
        highest = -1
        max_len = 0
        for text in self._documents(self.files):
            digest = _digest(text)
            lowest = min(lowest, digest)
            highest = max(highest, digest)
            max_len = max(max_len, len(text))
        if lowest >= highest and max_len >= _MIN_CHARS_TO_CUT:
            self.max_chars = max_len * 2 // 3
            return self._validation_bound()
        if lowest >= highest:
            content = "no text" if highest < 0 else "a single document"
            notices = "".join(f"; {notice}" for notice in self.notices())
            raise UserError(
                f"{self.source} holds {content}: at least two are needed, to train on and to validate with{notices}"
            )
        return min(max(int(VALIDATION_SHARE * 2**64), lowest + 1), highest)

    def _documents(self, files: list[Path]) -> Iterator[str]:
        for path in files:
            counts: Counter[str] = Counter()
            for text in self._read(path, counts):
                if text.strip():
                    counts["documents"] += 1
                    counts["with NUL"] += "\0" in text
                    yield from split_long_text(text, self.max_chars)
                elif path.suffix.lower() in (".jsonl", ".parquet"):
                    counts["without text"] += 1
            self._counts[path] = counts

    def _read(self, path: Path, counts: Counter[str]) -> Iterator[str]:
        """Yield the texts of a file without byte order marks. A null is the empty string."""
        try:
            if path.suffix.lower() == ".parquet":
                yield from read_parquet_texts(path, self.text_column, counts)
                return
            encoding = self._encodings[path] = detect_encoding(path)
            if encoding.name is None:
                return
            with open(path, encoding=encoding.name, errors="replace", newline=_newline(path)) as file:
                if path.suffix.lower() == ".jsonl":
                    yield from self._read_jsonl(path, file, counts)
                else:
                    yield from self._read_text(file)
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror or error}") from error

    def _read_text(self, file: TextIO) -> Iterator[str]:
        """Yield a text file in parts of at most max_chars, so that a file of any size fits into memory."""
        remainder = ""
        is_start = True
        while chunk := file.read(max(_CHUNK_SIZE, self.max_chars)):
            if is_start:
                chunk = chunk.lstrip(_BYTE_ORDER_MARK)  # the codec has removed the first, not those of joined files
            is_start = False
            parts = list(split_long_text(remainder + chunk, self.max_chars))
            remainder = parts.pop()
            yield from parts
        yield remainder

    def _read_jsonl(self, path: Path, file: TextIO, counts: Counter[str]) -> Iterator[str]:
        number = 0
        while line := file.readline(MAX_LINE_CHARS):
            number += 1
            place = f"{path}, line {number}"
            if len(line) == MAX_LINE_CHARS and not line.endswith("\n"):
                raise UserError(
                    f"{place}: more than {MAX_LINE_CHARS:,} characters; jsonl has one document on each line"
                )
            line = line.lstrip(_BYTE_ORDER_MARK)
            if line.strip():
                text = _text_of_line(line, self.text_column, place)
                if _SURROGATES.search(text):  # in JSON written as an escape
                    counts["half pairs"] += 1
                    text = _SURROGATES.sub("\ufffd", text)
                yield text.lstrip(_BYTE_ORDER_MARK)


def _text_of_line(line: str, key: str, place: str) -> str:
    """Return the text of a line of jsonl; null is the empty string. Raises UserError with the place of the line."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        if isinstance(error, json.JSONDecodeError):
            reason = error.msg
        else:
            reason = "brackets too deep" if isinstance(error, RecursionError) else "a number with too many digits"
        raise UserError(f"{place}: not JSON that can be read ({reason})") from error
    if not isinstance(row, dict):
        found = _KINDS.get(type(row), "a number")
    elif key not in row:
        found = f"an object with {_keys(row)}"
    elif row[key] is None:
        return ""
    elif isinstance(row[key], str):
        return str(row[key])
    else:
        found = f"{_KINDS.get(type(row[key]), 'a number')} under it"
    expected = f"an object with a string under {json.dumps(key)}"
    raise UserError(f"{place}: expected {expected}, found {found} (--text_column names another)")


_KINDS: dict[type, str] = {
    dict: "an object",
    list: "a list",
    str: "a string",
    bool: "true or false",
    type(None): "null",
}


def _keys(row: dict[str, Any]) -> str:
    names = [ascii(name[:40])[1:-1] for name in list(row)[:8]]
    return (", ".join(names) + (", ..." if len(row) > 8 else "")) or "no keys"


def read_parquet_texts(path: Path, column: str, counts: Counter[str]) -> Iterator[str]:
    """Yield the texts of a column, without byte order marks; a null is the empty string. Counts "invalid rows"."""
    with open_parquet(path, column) as file:
        num_rows = max(1, file.metadata.num_rows)
        _check_text_bytes(path, _mean_text_bytes(file, column))
        batch_size = min(1024, max(1, _BATCH_BYTES * num_rows // max(1, _text_bytes(path))))
        batches = file.iter_batches(batch_size=batch_size, columns=[column], use_threads=False)
        while True:
            with as_parquet_error(path):
                batch = next(batches, None)
                if batch is None:
                    return
                array = batch.column(batch.schema.get_field_index(column))
                texts, num_invalid = to_text(pa.chunked_array([array]))
                _check_text_bytes(path, pc.max(pc.binary_length(texts)).as_py() or 0)
                values = texts.to_pylist()
            if num_invalid * 2 > len(values) and is_binary_type(array.type):
                raise UserError(f"{path}: column {column!r} holds {array.type} that is not UTF-8, not text")
            counts["invalid rows"] += num_invalid
            yield from ((value or "").lstrip(_BYTE_ORDER_MARK) for value in values)


def _mean_text_bytes(file: Any, column: str) -> int:
    """Return the mean size of the texts of the row group where it is largest, by its metadata: nothing is unpacked."""
    index = file.schema_arrow.get_field_index(column)
    if file.metadata.num_columns != len(file.schema_arrow.names):
        return 0  # a nested column: columns of the file and of the schema have other numbers
    groups = (file.metadata.row_group(number) for number in range(file.num_row_groups))
    return max((group.column(index).total_uncompressed_size // max(1, group.num_rows) for group in groups), default=0)


def _check_text_bytes(path: Path, size: int) -> None:
    if size > MAX_LINE_CHARS:
        raise UserError(
            f"{path}: a text of about {size:,} bytes: at most {MAX_LINE_CHARS:,} are allowed; split it into rows"
        )


def _text_bytes(path: Path) -> int:
    if path.suffix.lower() != ".parquet":
        return path.stat().st_size
    with as_parquet_error(path), open_parquet(path) as file:
        sizes = [file.metadata.row_group(group).total_byte_size for group in range(file.num_row_groups)]
    return max(0, int(sum(sizes)))


def _newline(path: Path) -> str | None:
    """Return the line ends to convert: those of all systems in prose; jsonl has only one, and others inside strings."""
    return "\n" if path.suffix.lower() == ".jsonl" else None


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8"), digest_size=8).digest(), "big")
