"""nanochat/eval/document_answers.py: prompts and scores of questions about the documents."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from nanochat.common import UserError
from nanochat.eval.document_answers import (
    Prompt,
    Question,
    Reply,
    document_metrics,
    make_prompt,
    read_questions,
    solved,
)
from nanochat.passages.passage import Passage
from tests.support.talks import TOKENIZER

HUT: Question = {"question": "What does a hut have?", "kind": "has", "expected": ["A hut has one door."]}
FOREIGN: Question = {"question": "Who is Velmora?", "kind": "foreign", "expected": []}
RIGHT = Passage("huts.md", ("Huts",), "A hut is small. A hut has\none door.")
WRONG = Passage("tea.md", ("Tea",), "Tea is made of leaves.")


def found(*passages: Passage) -> object:
    def search(_question: str, count: int) -> Sequence[Passage]:
        return passages[:count]

    return search


def text_of(prompt: Prompt) -> str:
    return TOKENIZER.decode(prompt.tokens)


def test_prompts_are_those_of_a_chat() -> None:
    prompt = make_prompt(HUT, TOKENIZER, 1000, found(WRONG, RIGHT), True)  # type: ignore[arg-type]
    expected = (
        "> Tea\n> Tea is made of leaves.\n>\n> Huts\n> A hut is small. A hut has\n> one door.\n\nWhat does a hut have?"
    )
    assert prompt.tokens == TOKENIZER.render_for_completion({"messages": [{"role": "user", "content": expected}]})
    assert (prompt.rank, prompt.is_given) == (2, True)
    bare = make_prompt(HUT, TOKENIZER, 1000, found(WRONG, RIGHT), False)  # type: ignore[arg-type]
    assert "Tea" not in text_of(bare)
    assert (bare.rank, bare.is_given) == (2, False)
    assert make_prompt(HUT, TOKENIZER, 1000, None, True) == make_prompt(HUT, TOKENIZER, 1000, None, False)


@pytest.mark.parametrize("max_tokens", [20, 60, 200, 500, 1000])
def test_prompts_fit(max_tokens: int) -> None:
    long = Passage("long.md", (), "It is a long way to go. " * 30)
    prompt = make_prompt(HUT, TOKENIZER, max_tokens, found(long, RIGHT), True)  # type: ignore[arg-type]
    assert len(prompt.tokens) <= max_tokens
    assert "hut have?" in text_of(prompt)
    assert prompt.rank == 2
    assert prompt.is_given is ("one door" in text_of(prompt))


def reply(question: Question, text: str, rank: int = 0, is_given: bool = False) -> Reply:
    return Reply(question, Prompt([], rank, is_given), text)


def test_scores() -> None:
    replies = [
        reply(HUT, "A hut has one door.", 1, True),
        reply(HUT, "A hut has two doors.", 1, True),
        reply(HUT, "That is not in the documents.", 3),
        reply(FOREIGN, "That is not in the documents."),
        reply(FOREIGN, "Velmora is a city."),
    ]
    metrics = document_metrics(replies, has_index=True, is_grounded=True)
    assert {name: (metric["n"], round(metric["value"], 3)) for name, metric in metrics.items()} == {
        "answered right": (3, 0.333),
        "refused, with an answer in the documents": (3, 0.333),
        "refused, without an answer in the documents": (2, 0.5),
        "right passage among the first 3": (3, 1.0),
        "right passage given to the model": (3, 0.667),
        "answered right, with the right passage": (2, 0.5),
    }
    assert len(document_metrics(replies, has_index=False, is_grounded=False)) == 3
    assert document_metrics([], True, True) == {}
    assert solved(replies)["correct"] == "10010"
    assert solved(replies)["problems"] != solved(replies[1:])["problems"]
    assert replies[2].to_json()["right"] is False


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "has no questions"),
        ('{"question": "a"}\n', "line 1: expected is missing"),
        ('{"question": "a", "kind": "x", "expected": []}\n{"question": 3}\n', "line 2"),
        ("no\n", "line 1: not JSON"),
    ],
)
def test_damaged_questions_are_one_line(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "test.jsonl"
    with pytest.raises(UserError, match="no questions in"):
        read_questions(path)
    path.write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        read_questions(path)
