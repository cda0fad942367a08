"""JSON files of others: what cannot be read is one line, and types are those of the annotations."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat.common import UserError
from nanochat.system.json_files import check_type, read_json

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda values: st.lists(values, max_size=4) | st.dictionaries(st.text(), values, max_size=4),
    max_leaves=10,
)


class Point(TypedDict):
    x: float
    name: str


class Named(Point, total=False):
    tags: list[str]
    sizes: dict[str, int]


@dataclass
class Shape:
    width: int
    height: int = 1
    parts: list[Point] = field(default_factory=list)
    note: str | None = None


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not JSON"),
        (b'{"a": ', "not JSON"),
        (b"\xff\xfe\x00", "UTF-16"),
        (b"\x80", "not UTF-8"),
        (b"[" * 100_000, "too deep"),
        (b'{"a": 1, "a": 2}', "comes twice"),
        (b"[1" + b"0" * 5000 + b"]", "digits"),
        (None, "No such file"),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, content: bytes | None, words: str) -> None:
    path = tmp_path / "a.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=words) as failure:
        read_json(path)
    assert str(failure.value).startswith(f"{path} cannot be read")
    assert "\n" not in str(failure.value)


def test_other_kinds_of_files(tmp_path: Path) -> None:
    """A pipe would be waited for; a device has no end."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "device").symlink_to("/dev/zero")
    for name in ("pipe", "device", "."):
        with pytest.raises(UserError, match="it is not a file"):
            read_json(tmp_path / name)
    (tmp_path / "large").write_text(json.dumps("a" * 100), encoding="utf-8")
    with pytest.raises(UserError, match="has 102 bytes: must have at most 101"):
        read_json(tmp_path / "large", max_bytes=101)
    assert read_json(tmp_path / "large", max_bytes=102) == "a" * 100


@pytest.mark.parametrize(
    ("value", "expected", "message"),
    [
        ({"x": 1, "name": "a", "more": None}, Named, None),
        ({"x": 1.5, "name": "a", "tags": ["b"], "sizes": {"c": 2}}, Named, None),
        ({"x": 1}, Named, "name is missing"),
        ([], Named, r"the content is \[\]: must be an object with keys"),
        ({"x": True, "name": "a"}, Named, "x is True: must be a number"),
        ({"x": 1, "name": None}, Named, "name is None: must be text"),
        ({"x": 1, "name": "a", "tags": "b"}, Named, "tags is 'b': must be a list"),
        ({"x": 1, "name": "a", "tags": ["b", 1]}, Named, r"tags\[1\] is 1: must be text"),
        ({"x": 1, "name": "a", "sizes": {"c": 1.5}}, Named, "sizes.c is 1.5: must be a whole number"),
        ({"x": 1, "name": "a", "sizes": {"\x1b[": "c" * 999}}, Named, r"sizes.\\x1b\[ is 'c{9,60}.*': must be a whole"),
        ({"width": 3, "parts": [{"x": 1, "name": "b"}], "note": "c"}, Shape, None),
        ({"width": 3, "parts": [{"x": 1}]}, Shape, r"parts\[0\].name is missing"),
        ({"width": 3, "depth": 1}, Shape, "depth is not a known key"),
        ({"height": 3}, Shape, "width is missing"),
        ({"width": 2**63}, Shape, "width is 9223372036854775808: must be a whole number"),
        ({"width": 3, "note": 1}, Shape, "note is 1: must be text or null"),
    ],
)  # fmt: skip
def test_types(value: Any, expected: Any, message: str | None) -> None:
    if message is None:
        check_type(value, expected, "")
        return
    with pytest.raises(UserError, match=f"^{message}") as failure:
        check_type(value, expected, "")
    assert len(str(failure.value)) < 400
    assert str(failure.value).isprintable()


@settings(deadline=None)
@given(JSON)
def test_what_passes_can_be_used(value: Any) -> None:
    """Whatever the value is, it is either refused or has the types that the code relies on."""
    for expected in (Named, Shape, dict[str, list[int]], float | None):
        try:
            check_type(value, expected, "")
        except UserError:
            continue
        if expected is Shape:
            Shape(**value)
        elif expected is Named:
            assert value["x"] + 1 > value["x"] - 1 or abs(value["x"]) > 1e15
        elif expected == dict[str, list[int]]:
            assert all(isinstance(item, int) for items in value.values() for item in items)
        else:
            assert value is None or value * 1.0 == value or abs(value) > 2**53
