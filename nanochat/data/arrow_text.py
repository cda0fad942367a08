"""Text columns of parquet files, of every Arrow type that holds text, as Arrow strings of valid UTF-8.

    string, large_string, string_view                    text
    binary, large_binary, binary_view                    text if it is UTF-8
    dictionary of one of these                           pandas' categories, and strings that repeat
    an extension type stored as one of these             for example JSON

Parquet does not check that its strings are UTF-8, and neither does Arrow when it reads them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from nanochat.common import UserError

_PLAIN_TYPES = tuple(
    getattr(pa, name)()
    for name in ("string", "large_string", "string_view", "binary", "large_binary", "binary_view")
    if hasattr(pa, name)
)


def open_parquet(path: Path, column: str | None = None, remedy: str = "") -> Any:
    """Open a parquet file. Raises UserError unless it is parquet and has one such column, of text.

    `remedy`: added to the message if the file is damaged.
    """
    with as_parquet_error(path, remedy):
        if path.exists() and not path.is_file():
            raise UserError(f"{path} is not a regular file{remedy}")  # opening a pipe would wait for ever
        file = pq.ParquetFile(path)
        schema = file.schema_arrow
        names = list(schema.names)
    if column is None:
        return file
    fault = None
    if column not in names:
        found = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
        fault = f"{path} has no column {column!r}, but {found or 'none'} (--text_column names another)"
    elif names.count(column) > 1:
        fault = f"{path} has {names.count(column)} columns {column!r}: rename all but one"
    elif not is_text_type(schema.field(column).type):
        fault = f"{path}: column {column!r} holds {schema.field(column).type}, not text"
    if fault is not None:
        file.close()
        raise UserError(fault)
    return file


@contextmanager
def as_parquet_error(path: Path, remedy: str = "") -> Iterator[None]:
    """Context of reads with pyarrow, which raises errors of many types for a damaged file, as one-line UserErrors."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path} cannot be read as parquet ({reason}){remedy}") from error


def is_binary_type(arrow_type: Any) -> bool:
    """Return True for an Arrow type of bytes, which are text only if they are UTF-8, or a dictionary of it."""
    if pa.types.is_dictionary(arrow_type):
        return is_binary_type(arrow_type.value_type)
    return "binary" in str(arrow_type)


def is_text_type(arrow_type: Any) -> bool:
    """Return True if `to_text` reads columns of this Arrow type.

    >>> [is_text_type(kind) for kind in (pa.string(), pa.dictionary(pa.int8(), pa.binary()), pa.int64())]
    [True, True, False]
    """
    if isinstance(arrow_type, pa.BaseExtensionType):
        return is_text_type(arrow_type.storage_type)
    if pa.types.is_dictionary(arrow_type):
        return is_text_type(arrow_type.value_type)
    return arrow_type in _PLAIN_TYPES or pa.types.is_null(arrow_type)


def to_text(column: Any) -> tuple[Any, int]:
    """Return an Arrow column of text as string or large_string, and the number of values that were not UTF-8.

    Their unreadable bytes become U+FFFD, as in txt files. Nulls stay. A column of valid strings is returned as it is.
    """
    column_type = column.type
    if column_type not in (pa.string(), pa.large_string()):
        chunks = [_as_binary(chunk) for chunk in column.chunks]
        column = pa.chunked_array(chunks, pa.large_binary())
        column_type = pa.large_string()
    # Arrow checks UTF-8 only when it casts bytes to strings.
    as_bytes = column.cast(pa.binary() if column_type == pa.string() else pa.large_binary())
    try:
        return as_bytes.cast(column_type), 0
    except pa.ArrowInvalid:
        pass
    num_invalid = 0
    chunks = []
    for chunk in as_bytes.chunks:
        texts: list[str | None] = []
        for value in chunk.to_pylist():
            text = None if value is None else value.decode("utf-8", "replace")
            num_invalid += text is not None and "\ufffd" in text and text.encode("utf-8") != value
            texts.append(text)
        chunks.append(pa.array(texts, pa.large_string()))
    return pa.chunked_array(chunks, pa.large_string()), num_invalid


def _as_binary(array: Any) -> Any:
    """Return an array of a text type as large_binary, whose offsets have room for the text of any dictionary."""
    if isinstance(array.type, pa.BaseExtensionType):
        return _as_binary(array.storage)
    if pa.types.is_dictionary(array.type):
        values = _as_binary(array.dictionary)
        return pa.DictionaryArray.from_arrays(array.indices, values).dictionary_decode()
    return array.cast(pa.large_binary())
