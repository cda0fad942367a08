"""Files of records: csv, json, jsonl, parquet, notebooks."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat.data.text_source import SourceText
from nanochat.documents.formats import DAMAGED, ReadFailure
from nanochat.documents.html_blocks import HtmlText
from nanochat.documents.records import read_csv, read_json, read_jsonl, read_notebook, read_parquet


def shown(pages: list[HtmlText]) -> list[list[tuple[str, str]]]:
    return [[(block.kind, block.text) for block in page.blocks] for page in pages]


def source(tmp_path: Path, text: str) -> SourceText:
    path = tmp_path / "file"
    path.write_text(text, encoding="utf-8", newline="")
    return SourceText(path, "utf-8")


def test_a_table(tmp_path: Path) -> None:
    pages = list(read_csv(source(tmp_path, 'river;km\n"Nile, white";6650\n\nPo;652\n'), "text"))
    assert shown(pages) == [[("table", "river | km\nNile, white | 6650\nPo | 652")]]
    assert pages[0].blocks[0].rows == (("river", "km"), ("Nile, white", "6650"), ("Po", "652"))


def test_a_long_table_becomes_several(tmp_path: Path) -> None:
    text = "a,b\n" + "".join(f"{n},{n * n}\n" for n in range(450))
    [page] = read_csv(source(tmp_path, text), "text")
    assert [len(block.rows) for block in page.blocks] == [201, 201, 51]
    assert {block.rows[0] for block in page.blocks} == {("a", "b")}


def test_rows_with_a_text_are_documents(tmp_path: Path) -> None:
    pages = list(read_csv(source(tmp_path, 'title,Story\nA,"Once.\n\nThen."\nB,Later.\n'), "story"))
    assert [page.title for page in pages] == ["A", "B"]
    assert shown(pages) == [[("paragraph", "Once."), ("paragraph", "Then.")], [("paragraph", "Later.")]]


def test_lines_of_json(tmp_path: Path) -> None:
    lines = [
        {"text": "# Rivers\n\nThey flow."},
        {"title": "T", "body": "Text."},
        {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]},
        [{"from": "human", "value": "Hi"}],
        {"name": "Nile", "km": 6650, "cities": ["Cairo", "Luxor"], "source": {"lake": "Victoria"}},
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines) + "\nno json\n"
    counts: Counter[str] = Counter()
    assert shown(list(read_jsonl(source(tmp_path, text), "text", counts))) == [
        [("heading", "Rivers"), ("paragraph", "They flow.")],
        [("paragraph", "Text.")],
        [("paragraph", "User: Hi"), ("paragraph", "Assistant: Hello")],
        [("paragraph", "Human: Hi")],
        [
            ("paragraph", "name: Nile\nkm: 6650"),
            ("heading", "cities"),
            ("list", "- Cairo\n- Luxor"),
            ("heading", "source"),
            ("paragraph", "lake: Victoria"),
        ],
    ]
    assert counts == {"bad lines": 1}
    with pytest.raises(ReadFailure, match="not JSON"):
        list(read_jsonl(source(tmp_path, "no\njson\n"), "text", counts))


def test_json() -> None:
    assert len(list(read_json('[{"text": "a"}, {"text": "b"}]', "text"))) == 2
    assert shown(list(read_json('["a", 1, true]', "text"))) == [[("list", "- a\n- 1\n- true")]]
    with pytest.raises(ReadFailure) as failure:
        list(read_json("[1,", "text"))
    assert failure.value.reason == DAMAGED


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=12,
)


@given(JSON)
def test_any_json_is_read(value: Any) -> None:
    for page in read_json(json.dumps(value, ensure_ascii=False), "text"):
        assert all(block.text for block in page.blocks)


def test_a_notebook() -> None:
    cells = [
        {"cell_type": "markdown", "source": ["# Rivers\n", "\n", "They flow."]},
        {"cell_type": "code", "source": "print(1)\n", "outputs": [{"text": "never read"}]},
        {"cell_type": "code", "source": []},
    ]
    page = read_notebook(json.dumps({"cells": cells}))
    assert shown([page]) == [[("heading", "Rivers"), ("paragraph", "They flow."), ("code", "print(1)")]]
    for wrong in ("{}", "[]", '{"cells": 1}', "x"):
        with pytest.raises(ReadFailure):
            read_notebook(wrong)


def test_parquet(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["One.", None, "# Two\n\nText."], "n": [1, 2, 3]}), tmp_path / "a.parquet")
    pages = list(read_parquet(tmp_path / "a.parquet", "text", Counter()))
    assert shown(pages) == [[("paragraph", "One.")], [], [("heading", "Two"), ("paragraph", "Text.")]]
    with pytest.raises(ReadFailure, match="column"):
        list(read_parquet(tmp_path / "a.parquet", "story", Counter()))
