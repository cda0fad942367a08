"""Spelling and counting letters; the words of train and test."""

from __future__ import annotations

import importlib
import re
from collections import Counter
from pathlib import Path

import pytest
import regex
from hypothesis import given
from hypothesis import strategies as st

from nanochat.common import UserError
from nanochat.data.shards import Manifest, write_shard
from nanochat.sandbox.calculator import calculate
from nanochat.tokenizer import SPLIT_PATTERN
from tasks.spellingbee import (
    COUNT_TEMPLATES,
    RANDOM_LETTER_PROB,
    SOLUTION_STYLES,
    SPELL_TEMPLATES,
    SimpleSpelling,
    SpellingBee,
)
from tasks.words import collect_world_words, invent_words, is_test_word, load_words


def answer_of(task: SpellingBee, index: int) -> dict[str, str]:
    """The parts of an answer by their kind; text is joined."""
    parts = task[index]["messages"][-1]["content"]
    kinds = ("text", "python", "python_output")
    return {kind: "".join(part["text"] for part in parts if part["type"] == kind) for kind in kinds}


def test_train_and_test_share_no_word() -> None:
    asked = {}
    for split in ("train", "test"):
        for task in (SpellingBee(split, size=6000), SimpleSpelling(split, size=6000)):
            asked[split] = {conversation["word"] for conversation in task}
            assert asked[split] == set(load_words(split)), "6,000 rows ask for every word"
    assert not asked["train"] & asked["test"]
    assert len(asked["test"]) >= 900
    assert len(asked["train"]) >= 4000


def test_a_word_stays_in_its_split_whatever_the_list(tmp_path: Path, shared_data: Path) -> None:
    small = tmp_path / "small.txt"
    small.write_text("\n".join(["apple", "pear", "plum", "cherry", *load_words("test")[:50]]), encoding="utf-8")
    english = tmp_path / "english.txt"
    english.write_bytes(b"\n".join((shared_data / "words_alpha.txt").read_bytes().split(b"\n")[::12]))
    for path in (small, english):
        train, test = set(load_words("train", path)), set(load_words("test", path))
        assert train
        assert test
        assert not train & test
        assert not train & set(load_words("test"))
        assert not test & set(load_words("train"))
    assert abs(len(load_words("test", english)) / len(load_words("train", english)) - 1 / 5) < 0.02


def test_words_of_the_world_and_made_up() -> None:
    real = collect_world_words()
    assert {"lantern", "hedgehog", "lighthouse"} <= set(real)
    assert len(real) > 1500
    invented = invent_words(real, 500)
    assert len(set(invented)) == 500
    assert not set(invented) & set(real)
    assert invented == invent_words(real, 500) != invent_words(real, 500, seed=1)
    prefixes, suffixes = {word[:2] for word in real}, {word[-1:] for word in real}
    for word in invented:
        assert re.fullmatch("[a-z]{3,10}", word)
        assert word[:2] in prefixes
        assert word[-1] in suffixes


@pytest.mark.parametrize("style", SOLUTION_STYLES)
@pytest.mark.parametrize("split", ["train", "test"])
def test_the_worked_answer_is_right(style: str, split: str) -> None:
    task = SpellingBee(split, size=400, style=style)
    for index, conversation in enumerate(task):
        word, letter = conversation["word"], conversation["letter"]
        count = sum(character == letter for character in word)
        answer = answer_of(task, index)
        assert calculate(answer["python"]) == answer["python_output"] == str(count)
        assert answer["text"].endswith(f"#### {count}")
        assert (" ".join(word) in answer["text"]) == (style != "call")
        assert task.evaluate(conversation, answer["text"])
        assert not task.evaluate(conversation, answer["text"].replace(f"#### {count}", f"#### {count + 1}"))
        assert not task.evaluate(conversation, str(count)), "the result stands after ####"
        question = conversation["messages"][0]["content"]
        assert word in question
        assert letter in question


def test_what_the_call_counts_in() -> None:
    task = SpellingBee("train", size=1)
    word, letter = task[0]["word"], task[0]["letter"]
    assert answer_of(task, 0)["python"] == f'"{" ".join(word)}".count("{letter}")'
    assert answer_of(SpellingBee("train", size=1, style="word"), 0)["python"] == f'"{word}".count("{letter}")'


def test_double_quotes_leave_a_word_whole() -> None:
    for word in load_words("test")[:100]:
        assert regex.findall(SPLIT_PATTERN, f'"{word}".count("r")')[0] == f'"{word}'
    assert regex.findall(SPLIT_PATTERN, "'strawberry'")[0] == "'s", "why the call has no single quotes"


@pytest.mark.parametrize("task_class", [SpellingBee, SimpleSpelling])
def test_words_are_quoted_as_asked(task_class: type[SpellingBee]) -> None:
    def number_quoted(choice: bool | None) -> int:
        rows = task_class("test", size=300, quoted=choice)
        pairs = [(row["word"], row["messages"][0]["content"]) for row in rows]
        return sum(bool(re.search(rf"([\"']){word}\1", question)) for word, question in pairs)

    assert number_quoted(True) == 300
    assert number_quoted(False) == 0
    assert 100 < number_quoted(None) < 200


def test_a_letter_may_be_absent_and_every_form_occurs() -> None:
    rows = list(SpellingBee("train", size=2000))
    absent = sum(row["letter"] not in row["word"] for row in rows) / len(rows)
    assert 0.4 * RANDOM_LETTER_PROB < absent < RANDOM_LETTER_PROB
    assert set("qxzj") <= {row["letter"] for row in rows}
    assert max(row["word"].count(row["letter"]) for row in rows) >= 4
    seen = Counter()
    for row in rows:
        question, letter, word = row["messages"][0]["content"], row["letter"], row["word"]
        for mark in ("", "'", '"'):
            plain = question.replace(f"{mark}{word}{mark}", "{W}")
            seen.update(
                [(form, mark) for form in COUNT_TEMPLATES if form.format(L=f"{mark}{letter}{mark}", W="{W}") == plain]
            )
    assert {form for form, _ in seen} == set(COUNT_TEMPLATES)
    assert all(count > 100 for count in Counter(mark for _, mark in seen.elements()).values())
    assert len(set(COUNT_TEMPLATES)) == len(COUNT_TEMPLATES)
    assert all("{L}" in form and "{W}" in form for form in COUNT_TEMPLATES)
    assert all("{W}" in form for form in SPELL_TEMPLATES)


def test_rows_further_on_are_other_questions() -> None:
    first, later = SpellingBee(size=500), SpellingBee(size=1_000_500, start=1_000_000)
    assert len(later) == 500
    questions = {row["messages"][0]["content"] for row in first}
    assert sum(row["messages"][0]["content"] in questions for row in later) < 5
    assert first[7] == SpellingBee(size=8)[7]


def test_spelling_is_exact() -> None:
    task = SimpleSpelling("test", size=50)
    for conversation in task:
        right = " ".join(conversation["word"])
        assert task.evaluate(conversation, right)
        assert task.evaluate(conversation, right + "\n")
        assert not task.evaluate(conversation, conversation["word"])
        assert not task.evaluate(conversation, right[:-2])


def test_the_base_folder_may_have_a_list(base_dir: Path) -> None:
    before = load_words("test")
    listed = "\ufeffApple\r\ncan't\r\n\r\n  Pear \r\nab\r\nstraße\r\n" + "\r\n".join(before[:3])
    (base_dir / "words.txt").write_text(listed, encoding="utf-8", newline="")
    assert sorted([*load_words("train"), *load_words("test")]) == sorted({"apple", "pear", "straße", *before[:3]})
    assert SpellingBee("train", size=4)[0]["word"] in {"apple", "pear", "straße"}


@given(st.text(min_size=1, max_size=20))
def test_every_word_has_one_split(word: str) -> None:
    assert is_test_word(word) is is_test_word(word)


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "No such file"), (b"", "no word to"), (b"a b\n12\n", "no word to"), (b"\xff\xfe", "UTF-8")],
)
def test_a_bad_list_is_named(content: bytes | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=rf"{re.escape(str(path))}.*{message}"):
        SpellingBee(word_list=path)[0]


@pytest.mark.parametrize("options", [{"split": "val"}, {"size": 0}, {"style": "loud"}])
def test_impossible_options_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(UserError, match="SpellingBee"):
        SpellingBee(**options)  # type: ignore[arg-type]


def test_a_list_is_made_of_the_base_data(base_dir: Path, tmp_path: Path) -> None:
    list_words = importlib.import_module("dev.list_words")
    text = "Anna saw lanterns and a red-hot lantern; the lantern isn't hers. " * 3 + "once Upon"
    folder = base_dir / "base_data"
    folder.mkdir()
    files = {name: write_shard([text] * 20, folder / name) for name in ("a.parquet", "b.parquet")}
    Manifest("my/folder", ("a.parquet",), "b.parquet", files, {}).save(folder)
    path = list_words.main(list_words.Config(min_count=40))
    assert path == base_dir / "words.txt"
    assert path.read_text(encoding="utf-8").split() == ["lantern", *"saw lanterns and the hers".split()]
    assert set(load_words("train")) | set(load_words("test")) == set(path.read_text(encoding="utf-8").split())
    assert len(list_words.main(list_words.Config(num=2, out=tmp_path / "w")).read_text(encoding="utf-8").split()) == 2
    with pytest.raises(UserError, match="no word occurs 999 times"):
        list_words.main(list_words.Config(min_count=999))
    with pytest.raises(UserError, match="at least 1"):
        list_words.Config(num=0)
