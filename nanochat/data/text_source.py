"""Text of a file in any encoding: UTF-8, UTF-16 and UTF-32 (`text_encoding.py`), else a legacy one.

Legacy encodings, as cp1251 and Shift-JIS, do not say what they are, so charset-normalizer guesses from the text. In a
text that is UTF-8 but for a few bytes, these bytes become U+FFFD.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nanochat.data.text_encoding import detect_encoding
from nanochat.system.files import open_regular_file, read_regular_file

MAX_PIECE_CHARS = 1_000_000  # a longer text is read in pieces, each a document of its own
_SAMPLE_BYTES = 1 << 18
_MIN_PIECE_CHARS = 1 << 20  # read at a time
# Of those that Python knows, the ones that files are found in; the guess among fewer is right more often.
LEGACY = tuple("cp1252 cp1250 cp1254 cp1251 koi8_r cp1253 cp1255 cp1256 shift_jis euc_jp gb18030 big5 euc_kr".split())
_LATIN = ("cp1252", "cp1250", "cp1254")
_SIGNS_IN_WORDS = re.compile("[^\\W\\d_][\u00b9\u00b3\u00bf\u00b6\u00bc\u00be\u00a3]")  # what cp1252 makes of Polish


@dataclass(frozen=True)
class SourceText:
    """The encoding of a file, as Python names it, and True if some of its bytes are no text in it."""

    path: Path
    encoding: str
    is_damaged: bool = False

    def read(self, max_bytes: int) -> str:
        """Return the whole text with `\\n` line ends. Raises UserError for a file of more than `max_bytes`."""
        text = read_regular_file(self.path, max_bytes).decode(self.encoding, errors="replace")
        return _clean(text.replace("\r\n", "\n").replace("\r", "\n"))

    def pieces(self, max_chars: int = MAX_PIECE_CHARS) -> Iterator[str]:
        """Yield the text in pieces of at most `max_chars`, cut at blank lines if possible: a file may have any size."""
        with open(self.path, encoding=self.encoding, errors="replace", newline=None) as file:
            rest = ""
            while chunk := file.read(max(_MIN_PIECE_CHARS, max_chars)):
                parts = list(split_long_text(rest + _clean(chunk), max_chars))
                rest = parts.pop()
                yield from parts
            yield rest

    def lines(self, max_chars: int) -> Iterator[str]:
        """Yield the lines. One of more than `max_chars` is cut there, so that it is no valid record."""
        with open(self.path, encoding=self.encoding, errors="replace", newline=None) as file:
            while line := file.readline(max_chars):
                yield _clean(line)


def open_text(path: Path, legacy_encoding: str | None = None) -> SourceText | None:
    """Find the encoding of a file, which is read to its end. Returns None for binary data.

    `legacy_encoding`: of files that are not Unicode; None guesses it for each file.
    """
    found = detect_encoding(path)
    if found.name is None:
        return None
    if found.is_valid or found.is_marked or not found.name.startswith("utf-8"):
        return SourceText(path, found.name, not found.is_valid)
    with open_regular_file(path) as file:
        sample = file.read(_SAMPLE_BYTES)
        while sample.isascii() and (more := file.read(_SAMPLE_BYTES)):
            sample = more
    text = sample.decode("utf-8", errors="replace")
    num_damaged = text.count("\ufffd")
    if num_damaged * 5 < sum(char > "\x7f" for char in text):
        return SourceText(path, "utf-8-sig", is_damaged=True)
    return SourceText(path, legacy_encoding or guess_legacy_encoding(sample))


def guess_legacy_encoding(sample: bytes) -> str:
    """Return the most likely of `LEGACY` for bytes that are no Unicode text.

    >>> guess_legacy_encoding("Съешь же ещё этих мягких французских булок, да выпей чаю".encode("cp1251"))
    'cp1251'
    """
    from charset_normalizer import from_bytes

    line_end = sample.rfind(b"\n") + 1  # a sample may end within a character
    guesses = from_bytes(sample[:line_end] if line_end > len(sample) // 2 else sample, cp_isolation=list(LEGACY))
    best = guesses.best()
    if best is None or best.encoding in _LATIN:  # these differ in a few letters only, so the most common one is likely
        text = sample.decode("cp1252", errors="replace")
        is_other = best is not None and len(_SIGNS_IN_WORDS.findall(text)) > 2
        likely = [guess.encoding for guess in guesses if best and guess.chaos <= best.chaos + 0.02]
        if is_other:
            return next((name for name in likely if name != "cp1252" and name in _LATIN), "cp1250")
        return "cp1252" if best is None or "cp1252" in likely or _is_same(sample, best.encoding) else best.encoding
    return str(best.encoding)


def _is_same(sample: bytes, encoding: str) -> bool:
    return sample.decode(encoding, errors="replace") == sample.decode("cp1252", errors="replace")


def _clean(text: str) -> str:
    """Remove byte order marks, of files that were joined, and NULs and escapes, which are no text."""
    return text.translate(_NO_TEXT) if _CONTROL.search(text) else text


_CONTROL = re.compile("[\x00-\x08\x0e-\x1f\x7f\ufeff\ud800-\udfff]")
_NO_TEXT = dict.fromkeys([*range(9), *range(14, 32), 127, 0xFEFF]) | dict.fromkeys(range(0xD800, 0xE000), "\ufffd")


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
