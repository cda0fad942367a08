"""JSON files that may be damaged, or made by others: read within a limit, and compared with the types they should have.

    content = read_json(path)
    check_type(content, SomeTypedDict, "")  # raises UserError that names the key at fault

An error names the key, its value (cut short) and the rule, in one line.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from functools import cache
from pathlib import Path
from typing import Any

from nanochat.system.errors import UserError
from nanochat.system.files import read_regular_file
from nanochat.system.json_text import parse_json, short_repr

MAX_BYTES = 1 << 26  # of a file; much larger ones are no files of ours, and would fill the memory when parsed
_NAMES = {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "null"}
_SCALARS: dict[Any, frozenset[type]] = {
    int: frozenset({int}),
    float: frozenset({int, float}),
    str: frozenset({str}),
    bool: frozenset({bool}),
    type(None): frozenset({type(None)}),
}


def read_json(path: Path, max_bytes: int = MAX_BYTES) -> Any:
    """Return the content of a JSON file. Raises `UserError` that names a file that is not readable as JSON."""
    return parse_file(read_bytes(path, max_bytes), path)


def read_bytes(path: Path, max_bytes: int = MAX_BYTES) -> bytes:
    """Return the content of a regular file. Raises `UserError` that names a file that is missing or too large."""
    return read_regular_file(path, max_bytes)


def parse_file(content: bytes, path: Path, from_python: bool = False) -> Any:
    """Return the value of a file's JSON, as `parse_json` does. Raises `UserError` that names the file."""
    try:
        return parse_json(content, MAX_BYTES, from_python)
    except UserError as error:
        raise UserError(f"{path} cannot be read: {error}") from error


def check_type(value: object, expected: Any, name: str) -> None:
    """Raise `UserError` unless a value of a JSON file has the type `expected`. `name` of the value in the message.

    `expected`: int, float (also a whole number), str, bool, None, Any, X | Y, list[X], tuple[X, ...], dict[str, X], a
    TypedDict (more keys are allowed) or a dataclass (they are not). Whole numbers must fit into 64 bits.

    >>> check_type({"a": [1, 2]}, dict[str, list[int]], "content")
    >>> check_type({"a": [1, True]}, dict[str, list[int]], "content")
    Traceback (most recent call last):
    nanochat.system.errors.UserError: content.a[1] is True: must be a whole number
    """
    if expected is Any:
        return
    if (scalars := _SCALARS.get(expected)) is not None:
        if type(value) not in scalars or (type(value) is int and not -(2**63) <= value < 2**63):
            raise _wrong(value, name, expected)
        return
    origin, arguments = typing.get_origin(expected), typing.get_args(expected)
    if origin in (typing.Union, types.UnionType):
        if not any(_has_type(value, option) for option in arguments):
            raise _wrong(value, name, expected)
    elif origin in (list, tuple):
        if not isinstance(value, list):
            raise _wrong(value, name, expected)
        _check_items(((f"[{index}]", item) for index, item in enumerate(value)), arguments[0], name)
    elif origin is dict:
        if not isinstance(value, dict):
            raise _wrong(value, name, expected)
        _check_items(((f".{key}" if name else key, item) for key, item in value.items()), arguments[1], name)
    else:
        _check_fields(value, expected, name)


def _check_items(items: Any, expected: Any, name: str) -> None:
    for suffix, item in items:
        if expected is not Any:
            check_type(item, expected, name + suffix)


def _check_fields(value: object, expected: Any, name: str) -> None:
    """Check a TypedDict or a dataclass."""
    hints, required, is_open = _fields(expected)
    if not isinstance(value, dict):
        raise _wrong(value, name, dict)
    prefix = f"{name}." if name else ""
    for key in sorted(required - value.keys()):
        raise UserError(f"{prefix}{key} is missing")
    for key, item in value.items():
        if key in hints:
            check_type(item, hints[key], prefix + key)
        elif not is_open:
            raise UserError(f"{prefix}{short_repr(key)[1:-1]} is not a known key")


@cache
def _fields(expected: Any) -> tuple[dict[str, Any], frozenset[str], bool]:
    """Return the types of a class's fields, the names of those that must be there, and True if there may be others."""
    hints = typing.get_type_hints(expected)
    if not dataclasses.is_dataclass(expected):
        return hints, expected.__required_keys__, True
    missing = dataclasses.MISSING
    fields = dataclasses.fields(expected)
    required = {field.name for field in fields if field.default is missing and field.default_factory is missing}
    return hints, frozenset(required), False


def _has_type(value: object, expected: Any) -> bool:
    try:
        check_type(value, expected, "")
    except UserError:
        return False
    return True


def _wrong(value: object, name: str, expected: Any) -> UserError:
    options = (
        typing.get_args(expected) if typing.get_origin(expected) in (typing.Union, types.UnionType) else [expected]
    )
    rule = " or ".join(_describe(option) for option in options)
    return UserError(f"{short_repr(name)[1:-1] or 'the content'} is {short_repr(value)}: must be {rule}")


def _describe(expected: Any) -> str:
    kind = typing.get_origin(expected) or expected
    if kind in (list, tuple):
        return "a list"
    return _NAMES.get(kind, "an object with keys")
