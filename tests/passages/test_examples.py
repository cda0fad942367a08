"""Example questions: from held-out documents, spread over them, and about a subject."""

from __future__ import annotations

import pytest

from nanochat.documents.document import Block, Document
from nanochat.passages.cutting import cut_passages
from nanochat.passages.examples import NUM_EXAMPLES, ExampleQuestions


def chosen(*documents: tuple[str, list[str]]) -> list[str]:
    """The questions for documents, each given by its split and the headings of its paragraphs."""
    examples = ExampleQuestions()
    for number, (split, headings) in enumerate(documents):
        blocks = tuple(Block("paragraph", "text", (heading,)) for heading in headings)
        document = Document(f"{number}.md", "", blocks, split)
        examples.add(document, cut_passages(document))
    return examples.chosen()


def test_held_out_documents_are_preferred() -> None:
    assert chosen(("train", ["Tea"]), ("val", ["Coffee", "Why milk?"])) == ['Tell me about "Coffee".', "Why milk?"]
    assert chosen(("train", ["Tea"])) == ['Tell me about "Tea".']
    assert chosen() == []


def test_they_are_spread_over_the_documents() -> None:
    questions = chosen(*(("val", [f"{letter}1", f"{letter}2", f"{letter}1"]) for letter in "abcdefgh"))
    assert len(questions) == NUM_EXAMPLES
    assert len({question.split('"')[1][0] for question in questions}) == NUM_EXAMPLES


@pytest.mark.parametrize(
    "heading", ["Introduction", "1. Summary", "Chapter 3", "Page 12", "Part II", "***", "12", "x" * 61, "See also:"]
)
def test_a_part_of_a_text_is_no_subject(heading: str) -> None:
    assert chosen(("val", [heading, "Tea"])) == ['Tell me about "Tea".']
