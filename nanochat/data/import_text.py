"""A user's own folder or file as training and validation documents: txt, md, jsonl and parquet.

Rules, in the order in which they apply:
  * A txt or md file is one document, a line of jsonl and a row of parquet are one each. Hidden files are left alone.
  * A document of more than `max_chars` characters is cut, at the end of a paragraph if there is one, else of a line,
    else of a word. Outside a folder of parquet no document keeps more than a 64th of all the text (though 2,000
    characters are always allowed), so that a single book can be divided too.
  * Validation is the last file by name in a folder of parquet alone. Otherwise a document belongs to it when a hash of
    its text falls into one 32nd of all values; if none does, the document of the lowest hash; never all of them.
  * A training document that also stands in validation, word for word, is left out.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from nanochat.common import UserError, as_user_error, print0

SUFFIXES = (".txt", ".md", ".jsonl", ".parquet")
VALIDATION_SHARE = 1 / 32
_SMALLEST_CUT = 2_000  # characters
_CHUNK = 1 << 20  # characters or bytes read at a time


@dataclass
class TextFiles:
    """The readable files under a path, and their documents.

    Reading notes what was odd in `empty`, `not_utf8` and `duplicates`; `notices()` tells the user. Errors are
    UserErrors that name the file, and the line in a jsonl file.
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
        self._held_out = self.files[-1] if len(self.files) > 1 and _all_parquet(self.files) else None
        if self._held_out is None:
            self.max_chars = min(self.max_chars, max(_SMALLEST_CUT, self.text_bytes() // 64))

    def fingerprint(self) -> list[tuple[str, int, int]]:
        """What tells this source from another without reading it: each file's name, size and time of change."""
        base = self.source if self.source.is_dir() else self.source.parent
        facts = [(path.relative_to(base).as_posix(), path.stat()) for path in self.files]
        return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in facts]

    def text_bytes(self) -> int:
        """About how much text there is, in bytes."""
        return sum(map(_text_bytes, self.files))

    def split(self) -> tuple[Iterator[str], Iterator[str]]:
        """Iterators over the training and the validation documents, in the order of the files."""
        if self._held_out is not None:
            return self._train_of_shards(self._held_out), self._documents([self._held_out])
        bound = self._validation_bound()
        return (
            (text for text in self._documents(self.files) if _digest(text) >= bound),
            (text for text in self._documents(self.files) if _digest(text) < bound),
        )

    def notices(self) -> list[str]:
        """One line for each kind of oddity met while reading."""
        found = []
        if self.empty:
            found.append(f"{len(self.empty)} files without text were skipped ({_some(self.empty)})")
        if self.not_utf8:
            count = len(self.not_utf8)
            found.append(f"{count} files are not UTF-8; what could not be read became U+FFFD ({_some(self.not_utf8)})")
        if self.duplicates:
            found.append(f"{self.duplicates} training documents also stand in validation and were left out")
        return found

    def _train_of_shards(self, held_out: Path) -> Iterator[str]:
        validation = {_digest(text) for text in self._documents([held_out])}
        self.duplicates = 0
        for text in self._documents(self.files[:-1]):
            if _digest(text) in validation:
                self.duplicates += 1
            else:
                yield text

    def _validation_bound(self) -> int:
        """The documents whose digest is below this go to validation: about one in 32, at least one, never all."""
        lowest, highest = 2**64, -1
        for text in self._documents(self.files):
            digest = _digest(text)
            lowest, highest = min(lowest, digest), max(highest, digest)
        if lowest >= highest:
            found = "no text" if highest < 0 else "a single document"
            raise UserError(f"{self.source} holds {found}: at least two are needed, to train on and to validate with")
        return min(max(int(VALIDATION_SHARE * 2**64), lowest + 1), highest)

    def _documents(self, files: list[Path]) -> Iterator[str]:
        for path in files:
            some = False
            for text in self._read(path):
                if text.strip():
                    some = True
                    yield from split_long_text(text, self.max_chars)
            if not some:
                self.empty.add(path)

    def _read(self, path: Path) -> Iterator[str]:
        try:
            if path.suffix.lower() == ".parquet":
                yield from _read_parquet(path, self.text_column)
                return
            encoding, clean = detect_encoding(path)
            if not clean:
                self.not_utf8.add(path)
            read = self._read_jsonl if path.suffix.lower() == ".jsonl" else self._read_text
            yield from read(path, encoding)
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror or error}") from error

    def _read_text(self, path: Path, encoding: str) -> Iterator[str]:
        """A text file as one document, in pieces of at most max_chars so that a file of any size fits."""
        held = ""
        with open(path, encoding=encoding, errors="replace") as file:
            while chunk := file.read(max(_CHUNK, self.max_chars)):
                pieces = list(split_long_text(held + chunk, self.max_chars))
                held = pieces.pop()
                yield from pieces
        yield held

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
                    wanted = f'an object with a string under "{self.text_column}"'
                    raise UserError(f"{path}, line {number}: expected {wanted} (--text_column names another)")
                yield text.encode("utf-8", "replace").decode("utf-8")  # JSON can spell half a surrogate pair


def find_text_files(source: Path) -> list[Path]:
    """The readable files under a path, sorted by name. UserError if the path does not exist or holds none."""
    if source.is_file():
        found = [source]
    elif source.is_dir():
        found = []
        for folder, subfolders, names in os.walk(source):
            subfolders[:] = [name for name in subfolders if not name.startswith(".")]
            found += [Path(folder, name) for name in names if not name.startswith(".")]
        found = sorted(path for path in found if path.is_file())
    else:
        raise UserError(f"--source {source}: no such file or folder (hub and storyworld are the other sources)")
    readable = [path for path in found if path.suffix.lower() in SUFFIXES]
    if not readable:
        raise UserError(f"--source {source}: none of its {len(found)} files can be read ({', '.join(SUFFIXES)} can)")
    if len(readable) < len(found):
        others = set(found) - set(readable)
        print0(f"{len(others)} files of other kinds are left aside ({_some(others)})")
    return readable


def detect_encoding(path: Path) -> tuple[str, bool]:
    """The encoding of a file (UTF-8, unless a byte order mark says UTF-16), and whether all of it can be read so."""
    with open(path, "rb") as file:
        start = file.read(2)
        name = "utf-16" if start in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"
        file.seek(0)
        decoder = codecs.getincrementaldecoder(name)(errors="strict")
        try:
            while block := file.read(_CHUNK):
                decoder.decode(block)
            decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            return name, False
    return name, True


def read_utf8(file: Any) -> str:
    """All of a file, a path or one in a zip file. Raises UserError that names the file, and the line if it has one."""
    if not file.is_file():
        raise UserError(f"{file} is missing")
    with as_user_error(f"{file} cannot be read"):  # zipfile raises errors of all kinds where a file is damaged
        content = file.read_bytes()
    try:
        text: str = content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise UserError(f"{file}, line {line}: not UTF-8 ({error})") from error
    return text


def split_long_text(text: str, limit: int) -> Iterator[str]:
    """Pieces of at most `limit` characters, cut after a blank line, else a line, else a space in their later half.

    >>> list(split_long_text("One two.\\n\\nThree four.", 15))
    ['One two.\\n\\n', 'Three four.']
    """
    start = 0
    while len(text) - start > limit:
        end = start + limit
        for mark in ("\n\n", "\n", " "):
            place = text.rfind(mark, start + limit // 2, end)
            if place >= 0:
                end = min(end, place + len(mark))
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
            kind = file.schema_arrow.field(column).type
            if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
                raise UserError(f"{path}: column {column!r} holds {kind}, not text")
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


def _some(paths: set[Path]) -> str:
    names = sorted(path.name for path in paths)
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
