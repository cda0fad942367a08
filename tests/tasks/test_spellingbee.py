"""Spelling and counting letters: solutions, questions, scores."""

from __future__ import annotations

import re
from collections import Counter

import pytest
import regex

from nanochat.common import UserError
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
from tasks.words import load_words


def answer_parts(task: SpellingBee, index: int) -> dict[str, str]:
    """The answer of a row as {type of part: its text, joined}."""
    parts = task[index]["messages"][-1]["content"]
    types = ("text", "python", "python_output")
    return {part_type: "".join(part["text"] for part in parts if part["type"] == part_type) for part_type in types}


@pytest.mark.parametrize("style", SOLUTION_STYLES)
@pytest.mark.parametrize("split", ["train", "test"])
def test_the_solution_is_correct(style: str, split: str) -> None:
    task = SpellingBee(split, size=400, style=style)
    for index, conversation in enumerate(task):
        word, letter = conversation["word"], conversation["letter"]
        count = sum(character == letter for character in word)
        answer = answer_parts(task, index)
        assert calculate(answer["python"]) == answer["python_output"] == str(count)
        assert answer["text"].endswith(f"#### {count}")
        assert (" ".join(word) in answer["text"]) == (style != "call")
        assert task.evaluate(conversation, answer["text"])
        assert not task.evaluate(conversation, answer["text"].replace(f"#### {count}", f"#### {count + 1}"))
        assert not task.evaluate(conversation, str(count)), "the result follows ####"
        question = conversation["messages"][0]["content"]
        assert word in question
        assert letter in question


def test_the_call_counts_in_the_spelling_by_default() -> None:
    task = SpellingBee("train", size=1)
    word, letter = task[0]["word"], task[0]["letter"]
    assert answer_parts(task, 0)["python"] == f'"{" ".join(word)}".count("{letter}")'
    assert answer_parts(SpellingBee("train", size=1, style="word"), 0)["python"] == f'"{word}".count("{letter}")'


def test_the_tokenizer_does_not_split_a_word_after_a_double_quote() -> None:
    for word in load_words("test")[:100]:
        assert regex.findall(SPLIT_PATTERN, f'"{word}".count("r")')[0] == f'"{word}'
    assert regex.findall(SPLIT_PATTERN, "'strawberry'")[0] == "'s", "the reason for double quotes"


@pytest.mark.parametrize("task_class", [SpellingBee, SimpleSpelling])
def test_words_are_quoted_as_requested(task_class: type[SpellingBee]) -> None:
    def num_quoted(quoted: bool | None) -> int:
        rows = task_class("test", size=300, quoted=quoted)
        pairs = [(row["word"], row["messages"][0]["content"]) for row in rows]
        return sum(bool(re.search(rf"([\"']){word}\1", question)) for word, question in pairs)

    assert num_quoted(True) == 300
    assert num_quoted(False) == 0
    assert 100 < num_quoted(None) < 200


def test_some_letters_are_absent_and_every_template_occurs() -> None:
    rows = list(SpellingBee("train", size=2000))
    absent = sum(row["letter"] not in row["word"] for row in rows) / len(rows)
    assert 0.4 * RANDOM_LETTER_PROB < absent < RANDOM_LETTER_PROB
    assert set("qxzj") <= {row["letter"] for row in rows}
    assert max(row["word"].count(row["letter"]) for row in rows) >= 4
    occurrences: Counter[tuple[str, str]] = Counter()
    for row in rows:
        question, letter, word = row["messages"][0]["content"], row["letter"], row["word"]
        for mark in ("", "'", '"'):
            with_placeholder = question.replace(f"{mark}{word}{mark}", "{W}")
            matching = [
                template
                for template in COUNT_TEMPLATES
                if template.format(L=f"{mark}{letter}{mark}", W="{W}") == with_placeholder
            ]
            occurrences.update((template, mark) for template in matching)
    assert {template for template, _ in occurrences} == set(COUNT_TEMPLATES)
    assert all(count > 100 for count in Counter(mark for _, mark in occurrences.elements()).values())
    assert len(set(COUNT_TEMPLATES)) == len(COUNT_TEMPLATES)
    assert all("{L}" in template and "{W}" in template for template in COUNT_TEMPLATES)
    assert all("{W}" in template for template in SPELL_TEMPLATES)


def test_later_rows_are_other_questions() -> None:
    first, later = SpellingBee(size=500), SpellingBee(size=1_000_500, start=1_000_000)
    assert len(later) == 500
    questions = {row["messages"][0]["content"] for row in first}
    assert sum(row["messages"][0]["content"] in questions for row in later) < 5
    assert first[7] == SpellingBee(size=8)[7]


def test_spelling_is_scored_exactly() -> None:
    task = SimpleSpelling("test", size=50)
    for conversation in task:
        spelling = " ".join(conversation["word"])
        assert task.evaluate(conversation, spelling)
        assert task.evaluate(conversation, spelling + "\n")
        assert not task.evaluate(conversation, conversation["word"])
        assert not task.evaluate(conversation, spelling[:-2])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "val"}, "split is 'val': must be one of train, test"),
        ({"size": 0}, "size is 0: must be at least 1"),
        ({"style": "loud"}, "style is 'loud': must be one of word, letters, call"),
    ],
)
def test_impossible_options_are_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=f"SpellingBee: {message}"):
        SpellingBee(**options)  # type: ignore[arg-type]
