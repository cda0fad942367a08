"""JSON from files and requests of other people, read strictly: every fault is one line.

Python's parser accepts more than JSON (NaN, Infinity), takes the last of two equal keys in silence, and raises errors
of several types. `parse_json` accepts JSON only, of a bounded size, and raises `UserError`.
"""

from __future__ import annotations

import codecs
import json
import math
import re
import reprlib
from collections import Counter
from typing import Any, NoReturn

from nanochat.system.errors import UserError

MAX_JSON_BYTES = 1 << 24  # of one value: a line of a JSONL file, or a small file
MAX_DIGITS = 400  # of a whole number; Python reads longer ones in quadratic time, or not at all

_MARKS = (
    (codecs.BOM_UTF32_LE, "UTF-32"),  # before UTF-16, whose mark is its beginning
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")

_short = reprlib.Repr()
_short.maxstring = _short.maxother = _short.maxlong = 60
_short.maxlevel = 3


def short_repr(value: object) -> str:
    """Return the `repr` of a value for an error message, shortened to about a line whatever the value is.

    >>> short_repr("x" * 1000), short_repr({"a": [1, [2, [3]]]})
    ("'xxxxxxxxxxxxxxxxxxxxxxxxxxx...xxxxxxxxxxxxxxxxxxxxxxxxxxxx'", "{'a': [1, [2, [...]]]}")
    """
    text = _short.repr(value)
    return text if len(text) <= 160 else f"{text[:160]}..."


def parse_json(content: bytes | str, max_bytes: int = MAX_JSON_BYTES, from_python: bool = False) -> Any:
    r"""Return the value of a JSON text in UTF-8. A byte order mark at its beginning is skipped.

    Raises UserError for a text of more than `max_bytes`, another encoding, anything that is not JSON (NaN and Infinity
    too), a key that an object has twice, a number that is too long or too large for a float, brackets too deep to be
    read, and half a surrogate pair, which is no text. `from_python`: what Python's
    own `json` writes is accepted, NaN, Infinity and half a surrogate pair, which a path can hold.

    >>> parse_json(b'\xef\xbb\xbf{"a": [1, 2.5]}')
    {'a': [1, 2.5]}
    >>> parse_json('{"a": 1, "a": 2}')
    Traceback (most recent call last):
    nanochat.system.errors.UserError: not JSON with one meaning (the key 'a' comes twice in an object)
    """
    if len(content) > max_bytes:
        raise UserError(f"{len(content):,} bytes of JSON: at most {max_bytes:,} are allowed")
    text = _decode(content) if isinstance(content, bytes) else content.removeprefix("\ufeff")
    try:
        value = json.loads(
            text,
            object_pairs_hook=_unique,
            parse_constant=float if from_python else _no_constant,
            parse_float=_finite,
            parse_int=_short_integer,
        )
        if not from_python and _SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except json.JSONDecodeError as error:
        raise UserError(f"not JSON ({error.msg} at character {error.pos + 1})") from None
    except UnicodeEncodeError as error:
        code = ord(error.object[error.start])
        raise UserError(f"half a surrogate pair, \\u{code:04x}: text must be valid Unicode") from None
    except RecursionError:
        raise UserError("not JSON that can be read (brackets too deep)") from None
    return value


def encoding_by_mark(content: bytes) -> str | None:
    """Return "UTF-16" or "UTF-32" if a content begins with the byte order mark of that encoding, else None."""
    return next((encoding for mark, encoding in _MARKS if content.startswith(mark)), None)


def _decode(content: bytes) -> str:
    if encoding := encoding_by_mark(content):
        raise UserError(f"not UTF-8 but {encoding}, by its byte order mark: save it as UTF-8")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"not UTF-8 ({error.reason} at byte {error.start}): save it as UTF-8") from None
    if "\0" in text:
        raise UserError("not JSON (it has NUL characters, as UTF-16 without a byte order mark does: save it as UTF-8)")
    return text


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise UserError(f"not JSON with one meaning (the key {short_repr(twice)} comes twice in an object)")
    return result


def _no_constant(name: str) -> NoReturn:
    raise UserError(f"not JSON ({name} is no number of JSON)")


def _finite(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise UserError(f"not JSON that can be read (the number {short_repr(digits)} is too large)")
    return number


def _short_integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise UserError(f"not JSON that can be read (a number of {len(digits):,} digits)")
    return int(digits)
