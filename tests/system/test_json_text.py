"""JSON that is read strictly: everything but JSON of one meaning is refused in one line."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat.common import UserError
from nanochat.system.json_text import parse_json, short_repr
from tests.support.refusals import refusal

FAULTS: dict[str, tuple[bytes, str]] = {
    "cut": (b'{"a": ', "not JSON (Expecting value at character 7)"),
    "empty": (b"", "not JSON (Expecting value at character 1)"),
    "NaN": (b'{"a": NaN}', "NaN is no number of JSON"),
    "Infinity": (b"[-Infinity]", "-Infinity is no number of JSON"),
    "too large a number": (b"[1e999]", "the number '1e999' is too large"),
    "too many digits": (b"[" + b"9" * 5000 + b"]", "a number of 5,000 digits"),
    "millions of digits": (b"9" * 3_000_000, "a number of 3,000,000 digits"),
    "deep": (b"[" * 200_000, "brackets too deep"),
    "deep objects": (b'{"a":' * 200_000, "brackets too deep"),
    "a key twice": (b'{"a": 1, "b": {"c": 1, "c": 2}}', "the key 'c' comes twice"),
    "a key twice among many": (
        ("{" + ",".join(f'"{i % 99_999}":0' for i in range(100_000)) + "}").encode(),
        "the key '0' comes twice",
    ),
    "half a surrogate pair": (rb'["\ud83d"]', r"half a surrogate pair, \ud83d"),
    "half a pair as key": (rb'{"a\uDe00": 1}', r"half a surrogate pair, \ude00"),
    "not UTF-8": (b'["\xff"]', "not UTF-8 (invalid start byte at byte 2)"),
    "UTF-16": ('["a"]'.encode("utf-16"), "not UTF-8 but UTF-16"),
    "UTF-16 without a mark": ('["a"]'.encode("utf-16-le"), "it has NUL characters"),
    "UTF-32": ('["a"]'.encode("utf-32"), "not UTF-8 but UTF-32"),
    "too long": (b'"' + b"a" * 100 + b'"', "102 bytes of JSON: at most 64 are allowed"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_one_line(name: str) -> None:
    content, words = FAULTS[name]
    with pytest.raises(UserError) as caught:
        parse_json(content, 64) if name == "too long" else parse_json(content)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=9,
)


@given(json_values, st.booleans(), st.booleans())
def test_json_is_read_as_python_reads_it(value: Any, ascii_only: bool, marked: bool) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only)
    assert parse_json(text.encode("utf-8-sig" if marked else "utf-8")) == value == parse_json(text)


@given(json_values, st.integers(0, 200), st.integers(0, 255))
def test_a_changed_byte_is_never_a_traceback(value: Any, position: int, byte: int) -> None:
    content = bytearray(json.dumps(value), "utf-8")
    content[position % len(content)] = byte
    refusal(parse_json, bytes(content))


def test_surrogate_pairs_and_what_only_looks_like_half_of_one() -> None:
    assert parse_json(rb'["\ud83d\ude00", "\\ud83d"]') == ["\U0001f600", r"\ud83d"]


@pytest.mark.parametrize(
    "value", ["x" * 10**6, list(range(10**6)), {"a": [[[[[[]]]]]]}, 10**4000, dict.fromkeys("abcdefgh")]
)
def test_short_repr(value: object) -> None:
    assert len(short_repr(value)) <= 163
    assert "\n" not in short_repr("a\nb")
