"""Every Arrow type of text gives the same strings, and bytes that are not UTF-8 are replaced and counted."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat.data.arrow_text import is_text_type, to_text

PLAIN = [
    getattr(pa, name)()
    for name in ("string", "large_string", "string_view", "binary", "large_binary", "binary_view")
    if hasattr(pa, name)
]
TEXT_TYPES = [*PLAIN, *(pa.dictionary(pa.int32(), kind) for kind in (pa.string(), pa.large_string(), pa.binary()))]


def _array(values: list[bytes | None], kind: pa.DataType) -> pa.Array:
    """Build an array of a text type from bytes, which Arrow does not check."""
    if pa.types.is_dictionary(kind):
        encoded = pa.array(values, pa.binary()).dictionary_encode()
        dictionary = _array(encoded.dictionary.to_pylist(), kind.value_type)
        return pa.DictionaryArray.from_arrays(encoded.indices.cast(kind.index_type), dictionary)
    if kind in (pa.string(), pa.binary()):
        return pa.array(values, pa.binary()).view(kind)
    if kind in (pa.large_string(), pa.large_binary()):
        return pa.array(values, pa.large_binary()).view(kind)
    return pa.array(values, pa.binary_view()).view(kind)


@pytest.mark.parametrize("kind", TEXT_TYPES, ids=str)
@settings(deadline=None)
@given(
    st.lists(st.none() | st.text(max_size=20).map(str.encode) | st.binary(max_size=6), max_size=12), st.integers(0, 3)
)
def test_all_types_give_what_python_decodes(kind: pa.DataType, values: list[bytes | None], start: int) -> None:
    column = pa.chunked_array([_array(values, kind)[start:], _array(values[:2], kind)], kind)
    expected, num_invalid = [], 0
    for value in [*values[start:], *values[:2]]:
        try:
            expected.append(None if value is None else value.decode())
        except UnicodeDecodeError:
            num_invalid += 1
            expected.append(value.decode("utf-8", "replace"))
    texts, count = to_text(column)
    assert texts.to_pylist() == expected
    assert count == num_invalid
    assert texts.type in (pa.string(), pa.large_string())


@pytest.mark.parametrize("kind", TEXT_TYPES, ids=str)
def test_what_parquet_stores_is_read(tmp_path: Path, kind: pa.DataType) -> None:
    table = pa.table({"text": _array([b"a", None, "é".encode(), b"a"], kind)})
    try:
        pq.write_table(table, tmp_path / "a.parquet")
    except pa.ArrowNotImplementedError:
        pytest.skip(f"this version of pyarrow cannot store {kind}")
    column = pq.read_table(tmp_path / "a.parquet").column("text")
    assert is_text_type(column.type)
    assert to_text(column)[0].to_pylist() == ["a", None, "é", "a"]


def test_a_column_of_nulls_and_an_extension_type() -> None:
    assert to_text(pa.chunked_array([pa.nulls(2)]))[0].to_pylist() == [None, None]
    kind = _Marked()
    column = pa.chunked_array([pa.ExtensionArray.from_storage(kind, pa.array(["a", None]))])
    assert is_text_type(kind)
    assert to_text(column)[0].to_pylist() == ["a", None]


class _Marked(pa.ExtensionType):
    def __init__(self) -> None:
        super().__init__(pa.string(), "nanochat.test")

    def __arrow_ext_serialize__(self) -> bytes:
        return b""


OTHER_TYPES = [
    *(pa.int64(), pa.float32(), pa.bool_(), pa.date32(), pa.binary(3)),
    *(pa.list_(pa.string()), pa.dictionary(pa.int8(), pa.int64())),
]


@pytest.mark.parametrize("kind", OTHER_TYPES, ids=str)
def test_other_types_are_not_text(kind: pa.DataType) -> None:
    assert not is_text_type(kind)


def test_a_valid_column_of_strings_is_not_copied() -> None:
    column = pa.chunked_array([pa.array(["é"] * 1000)])
    texts, _ = to_text(column)
    assert texts.chunk(0).buffers()[2].address == column.chunk(0).buffers()[2].address
