"""Encodings of text files: UTF-8, UTF-16 and UTF-32, with or without a byte order mark.

A mark decides. Without one a file is UTF-8, unless that would give text full of control characters, or it is not valid
UTF-8 and is text in UTF-16 or UTF-32. What is neither is binary data if it has NUL bytes, and else UTF-8 with some
bytes of another encoding, which are replaced by U+FFFD.
"""

from __future__ import annotations

import codecs
import unicodedata
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

_SAMPLE_BYTES = 1 << 16
_BLOCK_BYTES = 1 << 20
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark is its beginning
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_UNMARKED = ("utf-32-le", "utf-32-be", "utf-16-le", "utf-16-be")
_SPACES = "\t\n\v\f\r" + chr(27)  # with the escape of coloured output
_CONTROL_BYTES = bytes(set(range(32)) - set(_SPACES.encode()))


@dataclass(frozen=True)
class TextEncoding:
    """The encoding of a file. `name`: Python's, or None for binary data."""

    name: str | None
    is_marked: bool = False  # True if the file begins with a byte order mark
    is_valid: bool = True  # True if the whole file can be decoded


def detect_encoding(path: Path) -> TextEncoding:
    """Return the encoding of a file, which is read completely to find out whether it is valid."""
    with open(path, "rb") as file:
        sample = file.read(_SAMPLE_BYTES)
        name, is_marked = guess_encoding(sample, is_complete=not file.peek(1))
        if name is None:
            return TextEncoding(None)
        file.seek(0)
        decoder = codecs.getincrementaldecoder(name)(errors="strict")
        try:
            while block := file.read(_BLOCK_BYTES):
                decoder.decode(block)
            decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            return TextEncoding(name, is_marked, is_valid=False)
    return TextEncoding(name, is_marked)


def guess_encoding(sample: bytes, is_complete: bool = True) -> tuple[str | None, bool]:
    """Return the name of a text's encoding, None for binary data, and True if it has a byte order mark.

    `sample`: the text, or its beginning if not `is_complete`.

    >>> guess_encoding("Привет, мир!".encode("utf-16-le"))
    ('utf-16-le', False)
    """
    for mark, name in _MARKS:
        if sample.startswith(mark) and (name != "utf-32" or _decode(sample, name, is_complete) is not None):
            return name, True
    is_utf8 = _decode(sample, "utf-8", is_complete) is not None
    # A tab or a line break is also half of a letter of India in UTF-16; text has NULs there instead of spaces.
    controls = bytes(range(32)) if b"\0" in sample else _CONTROL_BYTES
    num_controls = len(sample) - len(sample.translate(None, controls))
    if is_utf8 and num_controls * 10 < len(sample) * 3:
        return "utf-8-sig", False
    likeness = {name: _likeness(sample, name, is_utf8) for name in _UNMARKED}
    best = max(likeness, key=lambda name: likeness[name])
    if likeness[best] > 0:
        return best, False
    is_binary = b"\0" in sample if not is_utf8 else bool(sample)
    return (None if is_binary else "utf-8-sig"), False


def _likeness(sample: bytes, name: str, is_utf8: bool) -> float:
    """Return how much a sample looks like text in an encoding: the share of spaces, ASCII and common punctuation.

    0 if it cannot be such text.
    """
    text = _decode(sample, name, is_complete=False)
    if not text:
        return 0.0
    num_odd = sum(map(_is_odd, text))
    num_common = sum(char in _SPACES or " " <= char <= "~" or char in "\u3000\u3001\u3002\uff0c" for char in text)
    if num_odd * 100 > len(text) or num_common * 100 < len(text):
        return 0.0
    if is_utf8 and name.startswith("utf-16"):
        # Bytes below 128 only, as of Latin or Cyrillic letters in UTF-16: then most characters are of one block of 256.
        # ASCII with NULs between the words has no such block.
        [(_, num_in_block)] = Counter(ord(char) >> 8 for char in text).most_common(1)
        if num_in_block * 2 < len(text):
            return 0.0
    return num_common / len(text)


def _is_odd(char: str) -> bool:
    """Return True for a character that text hardly has: a control character, an unassigned or a private one."""
    return char not in _SPACES and unicodedata.category(char) in ("Cc", "Cn", "Co", "Cs")


def _decode(sample: bytes, name: str, is_complete: bool) -> str | None:
    try:
        return codecs.getincrementaldecoder(name)(errors="strict").decode(sample, final=is_complete)
    except UnicodeDecodeError:
        return None
