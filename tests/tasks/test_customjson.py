"""The user's own conversations: every fault is named by file and line, before any training."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nanochat.common import UserError
from nanochat.tokenization.chat_format import render_turns
from tasks.customjson import CustomJSON, file_sha256, parse_conversation, read_conversations

QUESTION = {"role": "user", "content": "Q"}
ANSWER = {"role": "assistant", "content": "A"}
VALID_LINE = json.dumps([QUESTION, ANSWER])


def write_lines(tmp_path: Path, *lines: str | bytes, end: bytes = b"\n") -> Path:
    path = tmp_path / "my.jsonl"
    path.write_bytes(b"".join((line.encode() if isinstance(line, str) else line) + end for line in lines))
    return path


def test_lists_and_objects_are_read(tmp_path: Path) -> None:
    parts = [{"type": "python", "text": "1+1"}, {"type": "python_output", "text": "2"}]
    with_tool = [{"role": "system", "content": "S"}, QUESTION, {"role": "assistant", "content": parts}]
    path = write_lines(tmp_path, VALID_LINE, json.dumps({"messages": with_tool, "id": 7}))
    assert read_conversations(path) == [{"messages": [QUESTION, ANSWER]}, {"messages": with_tool}]
    assert len(CustomJSON("all", path=path)) == 2


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_blank_lines_bom_and_line_ends(end: bytes, tmp_path: Path) -> None:
    path = write_lines(
        tmp_path, b"\xef\xbb\xbf" + VALID_LINE.encode(), "", "  \t", VALID_LINE, " " + VALID_LINE + " ", end=end
    )
    assert len(read_conversations(path)) == 3
    path.write_bytes(path.read_bytes().rstrip())
    assert len(read_conversations(path)) == 3


def test_a_huge_line_is_read(tmp_path: Path) -> None:
    long = "word\u2028 " * 500_000
    path = write_lines(tmp_path, json.dumps([QUESTION, {**ANSWER, "content": long}], ensure_ascii=False), VALID_LINE)
    assert read_conversations(path)[0]["messages"][1]["content"] == long


INVALID: list[tuple[str | bytes, str]] = [
    ("{", "not JSON"),
    ("[" * 200_000, "not JSON"),
    ("[" + "9" * 5000 + "]", "not JSON|message 1"),
    (b'["\xff"]', "not UTF-8"),
    (b"\xff\xfe[\x00]\x00", "not UTF-8"),
    ("null", "a conversation must be"),
    ("[]", "at least one message"),
    ("{}", "a conversation must be"),
    ('"text"', "a conversation must be"),
    ('{"messages": {}}', "a conversation must be"),
    (json.dumps([[QUESTION, ANSWER]]), "one conversation per line"),
    (json.dumps([QUESTION]), "nothing to learn"),
    (json.dumps([{"role": "system", "content": "S"}, QUESTION]), "nothing to learn"),
    (json.dumps([ANSWER]), "message 1: role 'assistant' where 'user' is due"),
    (json.dumps([QUESTION, QUESTION]), "message 2: role 'user' where"),
    (json.dumps([QUESTION, {"role": "assistant"}]), "message 2: must have"),
    (json.dumps([QUESTION, {"role": "assistant", "content": 5}]), "message 2: .* int"),
    (
        json.dumps([QUESTION, {"role": "assistant", "content": [{"type": "bash", "text": ""}]}]),
        "message 2: a part must be",
    ),
    (json.dumps([QUESTION, {"role": ["assistant"], "content": "A"}]), "message 2"),
    (json.dumps([{**QUESTION, "content": "\ud83d"}, ANSWER]), r"half a surrogate pair, \\ud83d"),
]


@pytest.mark.parametrize(("line", "message"), INVALID, ids=lambda value: str(value)[:30])
def test_a_fault_is_named_by_file_and_line(line: str | bytes, message: str, tmp_path: Path) -> None:
    path = write_lines(tmp_path, VALID_LINE, "", line, VALID_LINE)
    with pytest.raises(UserError, match=rf"^{re.escape(str(path))}, line 3: .*(?:{message})"):
        CustomJSON(path=path)


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize(
    "conversation",
    [
        {"messages": [QUESTION, ANSWER]},
        [QUESTION, ANSWER],
        {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
        {"instruction": "a", "input": "", "output": "b"},
    ],
)
def test_a_json_list_names_its_conversion(tmp_path: Path, conversation: Any, indent: int | None) -> None:
    """On one line or on several; the command of the message makes a file that is read."""
    path, new = tmp_path / "old.json", tmp_path / "new.jsonl"
    path.write_text(json.dumps([conversation, conversation], indent=indent), encoding="utf-8")
    with pytest.raises(UserError, match=r"line 1: .*must have one conversation per line") as caught:
        read_conversations(path)
    command = str(caught.value).partition("JSON list: python -c ")[2].partition(" OLD.json > NEW.jsonl")[0]
    done = subprocess.run([sys.executable, "-c", command.strip('"'), str(path)], stdout=subprocess.PIPE, check=True)
    new.write_bytes(done.stdout)
    assert len(read_conversations(new)) == 2


def test_a_missing_or_empty_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.jsonl: No such file"):
        CustomJSON(path=tmp_path / "none.jsonl")
    with pytest.raises(UserError, match=r"Is a directory|Permission"):
        CustomJSON(path=tmp_path)
    with pytest.raises(UserError, match="has no conversations"):
        CustomJSON(path=write_lines(tmp_path, "", " "))
    with pytest.raises(UserError, match="CustomJSON has no split 'val': must be one of train, test, all"):
        CustomJSON("val", path=write_lines(tmp_path, VALID_LINE))


def test_every_twentieth_conversation_is_held_out(tmp_path: Path) -> None:
    lines = [json.dumps([{**QUESTION, "content": str(i)}, ANSWER]) for i in range(45)]
    path = write_lines(tmp_path, *lines)
    rows = {
        split: [int(row["messages"][0]["content"]) for row in CustomJSON(split, path=path)]
        for split in ("train", "test")
    }
    assert rows["test"] == [19, 39]
    assert sorted(rows["train"] + rows["test"]) == list(range(45))


def test_the_hash_depends_on_the_content(tmp_path: Path) -> None:
    first = file_sha256(write_lines(tmp_path, VALID_LINE))
    assert first == file_sha256(write_lines(tmp_path, VALID_LINE))
    assert first != file_sha256(write_lines(tmp_path, VALID_LINE, VALID_LINE))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["role", "content", "type"]), inner),
    max_leaves=6,
)
messages = st.fixed_dictionaries(
    {
        "role": st.sampled_from(["system", "user", "assistant"]) | json_values,
        "content": st.text(max_size=5) | json_values,
    }
)


@given(st.lists(messages | json_values, max_size=4))
@example([QUESTION, ANSWER])
def test_any_json_is_a_conversation_or_a_user_error(value: list[Any]) -> None:
    try:
        conversation = parse_conversation(json.dumps(value).encode())
    except UserError:
        return
    spans = [span for turn in render_turns(conversation) for span in turn]
    assert any(span.is_trained for span in spans)
    assert all(span.text.encode() is not None for span in spans)


@given(st.binary(max_size=60))
def test_any_bytes_are_a_conversation_or_a_user_error(line: bytes) -> None:
    try:
        parse_conversation(line)
    except UserError:
        pass
