"""Files of an evaluation bundle, a folder or a zip file from anywhere: nothing outside it is read, and not too much.

Names are plain and relative. A link that leads out of a folder is refused, as are links, encrypted members and unusual
compression in a zip file. The sizes that a zip file announces are checked before anything is unpacked, and zipfile does
not unpack more than was announced.
"""

from __future__ import annotations

import io
import os
import stat
import zipfile
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Protocol

from nanochat.common import UserError, as_user_error
from nanochat.system.files import check_name, check_regular_file, open_regular_file
from nanochat.system.json_text import encoding_by_mark, short_repr

MB = 1 << 20
MAX_MEMBERS = 10_000  # files and folders of a zip file
MAX_DIRECTORY_BYTES = 4 * MB  # of the list of its members
MAX_FILE_BYTES = 256 * MB
MAX_TOTAL_BYTES = 512 * MB  # of all members, unpacked; CORE has 24 MB
MAX_RATIO = 100  # of a member's size to its compressed size; that of CORE's files is at most 15
_ALWAYS_ALLOWED_BYTES = MB  # of a member, whatever its ratio


class BundleFiles(Protocol):
    """The files below the folder of a bundle that has core.yaml."""

    def place(self, name: str) -> str:
        """Return the path of a file for messages."""
        ...

    def has(self, name: str) -> bool:
        """Return True if there is a file of this name. Raises UserError for a link that leads out of the bundle."""
        ...

    def read_bytes(self, name: str, max_bytes: int) -> bytes:
        """Return the content of a file. Raises UserError if it has more than `max_bytes`, or cannot be read."""
        ...


def read_text(files: BundleFiles, name: str, max_bytes: int = MAX_FILE_BYTES) -> str:
    """Return the text of a file in UTF-8, without a byte order mark. Raises UserError, for other text with the line."""
    place = files.place(name)
    if not files.has(name):
        raise UserError(f"{place} is missing")
    content = files.read_bytes(name, max_bytes)
    if encoding := encoding_by_mark(content):
        raise UserError(f"{place}, line 1: not UTF-8 but {encoding}, by its byte order mark: save it as UTF-8")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise UserError(f"{place}, line {line}: not UTF-8 ({error.reason}): save it as UTF-8") from error


def check_plain_path(path: str) -> None:
    """Raise UserError unless a path from a bundle is relative and made of plain names: no `..`, no hidden ones."""
    for part in path.split("/"):
        check_name(part, f"a part of the path {short_repr(path)}")


@contextmanager
def open_files(path: Path) -> Iterator[BundleFiles]:
    """Open the folder or zip file of a bundle at the folder that has core.yaml: the top, or the only one below it."""
    if path.is_dir():
        with as_user_error(f"the evaluation bundle {path} cannot be read"):
            prefixes = ["", *(f"{name}/" for name in os.listdir(path))]
            roots = [prefix for prefix in prefixes if (path / prefix / "core.yaml").is_file()]
        yield _Folder(path, _only_root(path, roots))
        return
    check_regular_file(path)  # a pipe would wait for its other end
    with ExitStack() as stack:
        with as_user_error(f"the evaluation bundle {path} cannot be read"):
            file = stack.enter_context(_BoundedReader(io.FileIO(path)))
            archive = stack.enter_context(zipfile.ZipFile(file))
        _check_members(path, archive.infolist())
        roots = [name.removesuffix("core.yaml") for name in archive.namelist() if name.split("/", 1)[-1] == "core.yaml"]
        yield _Zip(path, archive, _only_root(path, roots))


def _only_root(path: Path, roots: list[str]) -> str:
    if "" in roots:
        return ""
    if len(roots) != 1:
        raise UserError(f"{path} is not an evaluation bundle: core.yaml is missing")
    return roots[0]


class _Folder:
    """A bundle in a folder."""

    def __init__(self, path: Path, root: str) -> None:
        self._folder = path / root
        self._limits = path.resolve()

    def place(self, name: str) -> str:
        return str(self._folder / name)

    def has(self, name: str) -> bool:
        path = self._folder / name
        if not path.is_file():  # also for a device or a pipe
            return False
        if not path.resolve().is_relative_to(self._limits):
            raise UserError(f"{path} is a link that leads out of the bundle: copy the file into it")
        return True

    def read_bytes(self, name: str, max_bytes: int) -> bytes:
        with as_user_error(f"{self.place(name)} cannot be read"), open_regular_file(self._folder / name) as file:
            content = file.read(max_bytes + 1)
        return _not_too_long(content, self.place(name), max_bytes)


class _Zip:
    """A bundle in a zip file, whose members have been checked."""

    def __init__(self, path: Path, archive: zipfile.ZipFile, root: str) -> None:
        self._path = path
        self._archive = archive
        self._root = root

    def place(self, name: str) -> str:
        return f"{self._path}/{self._root}{name}"

    def has(self, name: str) -> bool:
        return self._root + name in self._archive.NameToInfo

    def read_bytes(self, name: str, max_bytes: int) -> bytes:
        # zipfile raises many types of errors for a damaged file. It ends a member at the size that was announced.
        with (
            as_user_error(f"{self.place(name)} cannot be read"),
            self._archive.open(self._root + name) as file,
        ):
            content = bytearray()
            while len(content) <= max_bytes and (block := file.read(MB)):
                content += block
            if len(content) <= max_bytes and len(content) != self._archive.getinfo(self._root + name).file_size:
                raise UserError("its size is not the one that the zip file announces")
        return _not_too_long(bytes(content), self.place(name), max_bytes)


class _BoundedReader(io.BufferedReader):
    """A file of which one call reads a bounded amount: zipfile reads the list of members at once, whatever its size."""

    def read(self, size: int | None = -1, /) -> bytes:
        is_bounded = size is not None and 0 <= size <= MAX_DIRECTORY_BYTES
        content = super().read(size if is_bounded else MAX_DIRECTORY_BYTES + 1)
        if len(content) > MAX_DIRECTORY_BYTES:
            raise UserError("its list of files is too long")
        return content


def _check_members(path: Path, members: list[zipfile.ZipInfo]) -> None:
    """Raise UserError for members that a bundle does not have, and for more data than it may have."""
    if len(members) > MAX_MEMBERS:
        raise UserError(f"{path} has {len(members):,} files: a bundle has at most {MAX_MEMBERS:,}")
    total = sum(member.file_size for member in members)
    if total > MAX_TOTAL_BYTES:
        raise UserError(
            f"{path} has {total / MB:,.0f} MB when unpacked: a bundle has at most {MAX_TOTAL_BYTES // MB:,} MB"
        )
    if sum(member.compress_size for member in members) > path.stat().st_size:
        raise UserError(f"{path}: its files overlap, so their sizes are wrong: pack the bundle again")
    names = [member.filename for member in members]
    for member in members:
        if fault := _find_fault(member):
            raise UserError(f"{path}: its file {short_repr(member.filename)} {fault}")
    if len(set(names)) < len(names):
        twice = next(name for name, count in Counter(names).items() if count > 1)
        raise UserError(f"{path} has the file {short_repr(twice)} twice")


def _find_fault(member: zipfile.ZipInfo) -> str | None:
    parts = member.filename.removesuffix("/").split("/")
    if "\\" in member.filename or any(part in ("", ".", "..") for part in parts):
        return "has a name that is no plain, relative path: pack the bundle again"
    if stat.S_ISLNK(member.external_attr >> 16):
        return "is a link: pack the file itself (zip does so without -y)"
    if member.flag_bits & 0x1:
        return "is encrypted: pack it without a password"
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return "is compressed in an unusual way: pack it with deflate"
    is_large = member.file_size > _ALWAYS_ALLOWED_BYTES
    if is_large and member.file_size > MAX_RATIO * member.compress_size:
        return f"is {member.file_size / MB:,.0f} MB from {member.compress_size:,} bytes: no text is so repetitive"
    return None


def _not_too_long(content: bytes, place: str, max_bytes: int) -> bytes:
    if len(content) > max_bytes:
        raise UserError(f"{place} has more than {max_bytes:,} bytes, the most that is read of it")
    return content
