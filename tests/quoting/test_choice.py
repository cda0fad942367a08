"""The choice of a reply about small documents, with the default weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from nanochat.common import UserError
from nanochat.conversations.refusals import is_refusal
from nanochat.passages.index import PassageIndex
from nanochat.passages.passage import Passage
from nanochat.quoting.choice import choose, with_edges
from nanochat.quoting.question import read_question
from nanochat.quoting.weights import default_weights
from tests.support.documents import make_index


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PassageIndex]:
    with make_index(tmp_path_factory.mktemp("index")) as index:
        yield index


@pytest.mark.parametrize(
    ("question", "quotation", "document"),
    [
        ("What is tea?", "Tea is a drink made of leaves.", "drinks/tea.md"),
        ("Who is awake for the whole night?", "A cup of it keeps Ngozi awake for the whole night.", "drinks/coffee.md"),
        ('What follows "Tea is a drink made of leaves"?', "It came from China.", "drinks/tea.md"),
        ('How does "Coffee" begin?', "Grind the beans.", "drinks/coffee.md"),
        ('How does "Coffee" end?', "A cup of it keeps Ngozi awake for the whole night.", "drinks/coffee.md"),
        ("日本の首都は", "東京都は日本の首都です。", "旅行/東京.txt"),
    ],
)
def test_what_the_documents_answer_is_quoted(index: PassageIndex, question: str, quotation: str, document: str) -> None:
    choice = choose(index, default_weights(), question)
    assert choice.text == quotation
    assert choice.passage is not None
    assert choice.passage.document == document


@pytest.mark.parametrize(
    "question", ["Who is the president of Velmora?", 'How does "Songs of Lumkel" end?', "What is a glacier?", "qwxz"]
)
def test_what_they_do_not_answer_is_refused(index: PassageIndex, question: str) -> None:
    choice = choose(index, default_weights(), question)
    assert choice.text is not None
    assert is_refusal(choice.text)
    assert choice.passage is None


@pytest.mark.parametrize("question", ["Hello!", "Who are you?", "What can you do?", "Thank you!", "How are you?"])
def test_small_talk_is_left_to_the_model(index: PassageIndex, question: str) -> None:
    assert choose(index, default_weights(), question).text is None


def test_a_question_that_refers_back(index: PassageIndex) -> None:
    choice = choose(index, default_weights(), "And how does it finish?", "Tell me about coffee.")
    assert choice.passage is not None
    assert choice.passage.document == "drinks/coffee.md"


@pytest.mark.parametrize("question", ["", " ", '"', "?" * 5000, '" OR 1', "\x00\ud800", "a" * 100_000])
def test_any_question_has_a_reply(index: PassageIndex, question: str) -> None:
    choice = choose(index, default_weights(), question)
    assert choice.text is None or choice.text


def passage(number: int, text: str, **place: bool) -> Passage:
    return Passage("race.md", ("The Race",), text, number=number, **place)  # type: ignore[arg-type]


def test_the_edges_of_a_document_that_is_named() -> None:
    found = [passage(4, "They ran.")]
    edges = [passage(1, "Once.", is_first=True), passage(8, "It ended."), passage(9, "- Text: A. B", is_last=True)]
    asked = read_question('How does "The Race" end?', lambda _: 0.5)
    own = with_edges(found, asked, lambda _: edges)
    assert [(each.number, each.is_first, each.is_last) for each in own] == [
        (4, False, False),
        (1, True, False),
        (8, False, True),  # the last one with prose
    ]
    other = read_question("Who ran?", lambda _: 0.5)
    assert with_edges(found, other, lambda _: edges) == found
    again = with_edges([passage(8, "It ended."), *found], asked, lambda _: edges)
    assert [each.number for each in again] == [8, 4, 1]
    assert again[0].is_last


def test_a_damaged_index_is_named(tmp_path: Path) -> None:
    index = make_index(tmp_path)
    index.close()
    with pytest.raises(UserError, match="cannot be read"):
        choose(index, default_weights(), "What is tea?")
