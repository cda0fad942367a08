"""Files of records and of data: csv, tsv, json, jsonl, parquet, and notebooks.

A record with a text, which is the value of `text_column` or of a field with another usual name, is a document of its
own; so is one with the messages of a conversation. Other rows of a csv file are tables, and other values of JSON become
headings (their keys), lists and lines of `key: value`.
"""

from __future__ import annotations

import csv
import itertools
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from nanochat.common import UserError
from nanochat.data.text_source import SourceText
from nanochat.documents.document import Block
from nanochat.documents.formats import DAMAGED, ReadFailure
from nanochat.documents.html_blocks import HtmlText, list_block, table_block, with_headings
from nanochat.documents.markdown import read_markdown, read_text
from nanochat.system.json_text import MAX_JSON_BYTES, parse_json

USUAL_TEXT_FIELDS = ("text", "content", "body", "story", "article", "document", "passage")
_TITLES = ("title", "name", "heading", "subject")
_MESSAGES = ("messages", "conversations", "conversation", "dialogue", "dialog")
_ROWS_OF_A_TABLE = 200
_ROWS_OF_A_DOCUMENT = 5_000
_MAX_DEPTH = 6  # of JSON that becomes headings; below it is text


def read_csv(source: SourceText, text_column: str) -> Iterator[HtmlText]:
    """Yield the documents of a table: its rows with a text, or else tables of up to 200 rows with its header."""
    lines = source.lines(MAX_JSON_BYTES)
    first = next((line for line in lines if line.strip()), "")
    delimiter = max(",;\t|", key=first.count)
    rows = csv.reader(itertools.chain([first], lines), delimiter=delimiter)
    try:
        header = tuple(cell.strip() for cell in next(rows, []))
        names = [name.lower() for name in header]
        text_name = next((name for name in (text_column.lower(), *USUAL_TEXT_FIELDS) if name in names), None)
        if text_name is None:
            yield from _tables(header, rows)
            return
        for row in rows:
            record = dict(zip(names, row, strict=False))
            yield _record_text(record, str(record.get(text_name, "")))
    except csv.Error as error:
        raise ReadFailure(DAMAGED, f"not a table ({error})") from None


def _tables(header: tuple[str, ...], rows: Iterable[list[str]]) -> Iterator[HtmlText]:
    cells = (tuple(" ".join(cell.split()) for cell in row) for row in rows)
    filled = (row for row in cells if any(row))
    while group := list(itertools.islice(filled, _ROWS_OF_A_DOCUMENT)):
        starts = range(0, len(group), _ROWS_OF_A_TABLE)
        yield HtmlText("", [table_block([header, *group[start : start + _ROWS_OF_A_TABLE]]) for start in starts])


def read_jsonl(source: SourceText, text_column: str, counts: Counter[str]) -> Iterator[HtmlText]:
    """Yield the documents of a file with a value on each line. Counts "bad lines", which are left out.

    Raises ReadFailure if no line is JSON.
    """
    num_good = 0
    fault = ""
    for line in source.lines(MAX_JSON_BYTES):
        if not line.strip():
            continue
        try:
            value = parse_json(line)
        except UserError as error:
            counts["bad lines"] += 1
            fault = fault or str(error)
            continue
        num_good += 1
        yield _value_text(value, text_column)
    if fault and not num_good:
        raise ReadFailure(DAMAGED, fault)


def read_json(text: str, text_column: str) -> Iterator[HtmlText]:
    """Yield the documents of a JSON file: the records of a list, or one. Raises ReadFailure for what is no JSON."""
    try:
        value = parse_json(text, max_bytes=len(text))
    except UserError as error:
        raise ReadFailure(DAMAGED, str(error)) from None
    if isinstance(value, list) and all(isinstance(record, dict) for record in value):
        for record in value:
            yield _value_text(record, text_column)
    else:
        yield _value_text(value, text_column)


def read_notebook(text: str) -> HtmlText:
    """Return the cells of a Jupyter notebook: its Markdown and its code, without outputs. Raises ReadFailure."""
    try:
        notebook = parse_json(text, max_bytes=len(text))
    except UserError as error:
        raise ReadFailure(DAMAGED, str(error)) from None
    cells = notebook.get("cells") if isinstance(notebook, dict) else None
    if not isinstance(cells, list):
        raise ReadFailure(DAMAGED, "no notebook: it has no cells")
    blocks: list[Block] = []
    for cell in cells:
        content = cell.get("source") if isinstance(cell, dict) else None
        if isinstance(content, list):
            content = "".join(map(str, content))
        if not isinstance(content, str) or not content.strip():
            continue
        if cell.get("cell_type") == "code":
            blocks.append(Block("code", content.strip("\n"), ()))
        else:
            blocks.extend(read_markdown(content).blocks)
    return HtmlText("", with_headings(blocks))


def read_parquet(path: Path, text_column: str, counts: Counter[str]) -> Iterator[HtmlText]:
    """Yield the documents of a parquet file, one for each row. Raises ReadFailure."""
    from nanochat.data.import_text import read_parquet_texts  # pyarrow, which other formats do not need

    try:
        for text in read_parquet_texts(path, text_column, counts):
            yield read_text(text)
    except UserError as error:
        raise ReadFailure(DAMAGED, str(error).removeprefix(f"{path}: ")) from error


def _value_text(value: Any, text_column: str) -> HtmlText:
    """Return the document of a value of JSON."""
    if isinstance(value, str):
        return read_text(value)
    if isinstance(value, dict):
        for key in (text_column, *USUAL_TEXT_FIELDS):
            if isinstance(value.get(key), str):
                return _record_text(value, value[key])
        for key in _MESSAGES:
            if turns := _turns(value.get(key)):
                return HtmlText(_title(value), [Block("paragraph", turn, ()) for turn in turns])
    elif turns := _turns(value):
        return HtmlText("", [Block("paragraph", turn, ()) for turn in turns])
    return HtmlText(_title(value), with_headings(list(_value_blocks(value, 1))))


def _record_text(record: dict[str, Any], text: str) -> HtmlText:
    page = read_text(text)
    return HtmlText(_title(record) or page.title, page.blocks)


def _title(record: Any) -> str:
    values = (record.get(key) for key in _TITLES) if isinstance(record, dict) else ()
    return next((" ".join(value.split()) for value in values if isinstance(value, str) and value.strip()), "")


def _turns(messages: Any) -> list[str]:
    """Return the messages of a conversation as "Speaker: text", or [] if this is none."""
    if not isinstance(messages, list) or not messages or not all(isinstance(message, dict) for message in messages):
        return []
    pairs = [
        (next((m[key] for key in ("role", "from", "speaker") if key in m), None), m.get("content", m.get("value")))
        for m in messages
    ]
    turns = [(role, text.strip()) for role, text in pairs if isinstance(role, str) and isinstance(text, str)]
    return [f"{role.capitalize()}: {text}" for role, text in turns if text] if len(turns) == len(pairs) else []


def _value_blocks(value: Any, level: int) -> Iterator[Block]:
    """Yield the blocks of any value of JSON, without their headings."""
    if isinstance(value, dict):
        yield from _object_blocks(value, level)
    elif isinstance(value, list) and value and not any(isinstance(item, (dict, list)) for item in value):
        yield list_block([(0, _scalar(item)) for item in value])
    elif isinstance(value, list):
        for item in value:
            yield from _value_blocks(item, level)
    elif value is not None and (text := _scalar(value)):
        yield from read_text(text).blocks if "\n" in text else [Block("paragraph", text, ())]


def _object_blocks(value: dict[str, Any], level: int) -> Iterator[Block]:
    lines = []
    nested = []
    for key, item in value.items():
        is_short = not isinstance(item, (dict, list, str)) or (isinstance(item, str) and "\n" not in item)
        if item is None or item in ("", [], {}):
            continue
        if is_short:
            lines.append(f"{key}: {_scalar(item)}")
        elif level >= _MAX_DEPTH:
            lines.append(f"{key}: {json.dumps(item, ensure_ascii=False)}")
        else:
            nested.append((key, item))
    if lines:
        yield Block("paragraph", "\n".join(lines), ())
    for key, item in nested:
        if key.strip():
            yield Block("heading", " ".join(key.split()), (), level=level)
        yield from _value_blocks(item, level + 1)


def _scalar(value: Any) -> str:
    return value.strip() if isinstance(value, str) else json.dumps(value)
