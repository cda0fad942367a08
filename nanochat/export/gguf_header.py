"""Check of a GGUF file's header: every length in it lies within the file, before the package `gguf` reads it.

The package believes all lengths: a damaged one would have it read for years. The format, in little-endian numbers:

    "GGUF", version u32, number of tensors u64, number of keys u64
    key:     name, type u32, value; an array: type of its items u32, number of items u64, items
    tensor:  name, number of dimensions u32, each dimension u64, type u32, offset of its data u64
    text:    number of bytes u64, bytes
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

from nanochat.common import UserError
from nanochat.system.files import open_regular_file

VERSIONS = (2, 3)
MAX_DIMENSIONS = 4
# Type of a value -> bytes.
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_TEXT, _ARRAY = 8, 9


class _Header:
    """Reads numbers and texts one after another, and never past the end."""

    def __init__(self, content: mmap.mmap) -> None:
        self._content = content
        self._at = 0

    def number(self, layout: str) -> int:
        """Return the next number, of a layout of the module `struct`."""
        size = struct.calcsize(layout)
        self.skip(size)
        return int(struct.unpack_from(layout, self._content, self._at - size)[0])

    def skip(self, num_bytes: int) -> None:
        """Pass over some bytes. Raises UserError if the file ends before."""
        if num_bytes > len(self._content) - self._at:
            raise UserError(f"it ends within its header: {num_bytes:,} bytes are due at byte {self._at:,}")
        self._at += num_bytes

    def text(self) -> None:
        """Pass over a text."""
        self.skip(self.number("<Q"))

    def value(self, kind: int) -> None:
        """Pass over a value of a type. Raises UserError for a type that does not exist, and for arrays of arrays."""
        if kind == _TEXT:
            self.text()
        elif kind == _ARRAY:
            item_kind, count = self.number("<I"), self.number("<Q")
            if item_kind == _TEXT:
                for _ in range(count):  # each takes 8 bytes at least, so the end of the file bounds them
                    self.text()
            else:
                self.skip(count * self._size(item_kind))
        else:
            self.skip(self._size(kind))

    def _size(self, kind: int) -> int:
        if kind not in _SIZES:
            raise UserError(f"byte {self._at:,} of its header says type {kind}, which does not exist here")
        return _SIZES[kind]


def check_header(path: Path, max_bytes: int) -> None:
    """Raise UserError in one line unless a file is GGUF whose header is whole. Memory stays small for any file."""
    with open_regular_file(path, max_bytes) as file:
        try:
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError as error:  # an empty file cannot be mapped
            raise UserError(f"{path} cannot be read as GGUF: it is empty") from error
        with content:
            try:
                _walk(_Header(content), content[:4])
            except UserError as error:
                raise UserError(f"{path} cannot be read as GGUF: {error}") from error


def _walk(header: _Header, magic: bytes) -> None:
    header.skip(4)
    if magic != b"GGUF":
        raise UserError(f"it begins with {magic!r}, not with b'GGUF'")
    version = header.number("<I")
    if version not in VERSIONS:
        raise UserError(f"its version is {version}: must be one of {VERSIONS}")
    num_tensors, num_keys = header.number("<Q"), header.number("<Q")
    for _ in range(num_keys):
        header.text()
        header.value(header.number("<I"))
    for _ in range(num_tensors):
        header.text()
        num_dimensions = header.number("<I")
        if num_dimensions > MAX_DIMENSIONS:
            raise UserError(f"a tensor has {num_dimensions:,} dimensions: at most {MAX_DIMENSIONS} are possible")
        header.skip(8 * num_dimensions + 4 + 8)
