"""A setting's value, from the text of a flag or from TOML; `kinds` are the types that it may have, as int and None."""

from __future__ import annotations

import types
from collections.abc import Callable
from pathlib import Path
from typing import Any


def _none(text: str) -> None:
    if text.lower() != "none":
        raise ValueError(text)


def _bool(text: str) -> bool:
    return {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}[text.lower()]


def _float(text: str) -> float:
    value = float(text)
    if value != value:
        raise ValueError("nan")
    return value


# In the order in which a text is tried when a setting allows several types: the narrowest first.
READERS: dict[Any, Callable[[str], Any]] = {
    types.NoneType: _none,
    bool: _bool,
    int: int,
    float: _float,
    Path: Path,
    str: str,
}


def from_text(text: str, kinds: tuple[Any, ...]) -> Any:
    """The value that a text stands for. Raises TypeError that says what was expected."""
    for kind, read in READERS.items():
        if kind in kinds:
            try:
                return read(text)
            except (ValueError, KeyError):
                continue  # the next type may fit
    raise TypeError(_expected(kinds))


def from_toml(value: Any, kinds: tuple[Any, ...]) -> Any:
    """A TOML value has its type; what TOML cannot say (none, a path) is a string, and a whole number is a float too.

    Raises TypeError that says what was expected.
    """
    if value == "none" and types.NoneType in kinds:
        return None
    if type(value) in kinds:
        return value
    if type(value) is int and float in kinds:
        return float(value)
    if isinstance(value, str) and Path in kinds:
        return Path(value)
    raise TypeError(_expected(kinds))


def _expected(kinds: tuple[Any, ...]) -> str:
    return f"expected {' or '.join(map(kind_name, kinds))}"


def kind_name(kind: type) -> str:
    """A type, as `--help` and messages call it."""
    return {types.NoneType: "none", bool: "true|false", str: "text"}.get(kind, kind.__name__)


def shown(value: object) -> str:
    """A value, as a flag would say it."""
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value) or '""'
