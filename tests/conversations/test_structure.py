"""nanochat/conversations/structure.py: facts of headings, lists, tables and questions in the text."""

from __future__ import annotations

from typing import Any

import pytest

from nanochat.conversations.structure import clean_heading, is_narrative, structure_facts
from nanochat.documents.document import Block, Document

LEAD = "Green tea is made of leaves that are dried at once."


def facts(
    *blocks: Block, title: str = "Tea", is_english: bool = True
) -> list[tuple[str, dict[str, str], tuple[str, ...]]]:
    document = Document("a.md", title, blocks)
    return [(kind, slots, sentences) for kind, slots, sentences, _, _ in structure_facts(document, is_english)]


def heading(text: str, *above: str) -> Block:
    return Block("heading", text, above, level=len(above) + 1)


def paragraph(text: str, *headings: str) -> Block:
    return Block("paragraph", text, headings)


def test_a_heading_asks_for_the_first_sentences_under_it() -> None:
    found = facts(heading("2.1 Green tea", "Tea"), paragraph(f"{LEAD} The leaves {'more ' * 20} are dried."))
    assert ("section", {"heading": "Green tea", "parent": "Tea"}, (LEAD,)) in found


def test_a_section_may_begin_with_code() -> None:
    code = Block("code", "brew --tea", ("Tea", "Green tea"))
    found = facts(heading("Green tea", "Tea"), code, paragraph(LEAD))
    assert ("section", {"heading": "Green tea", "parent": "Tea"}, (LEAD,)) in found
    assert not facts(heading("Green tea", "Tea"), code)
    assert not facts(
        heading("Green tea", "Tea"), heading("Black tea", "Tea"), list_block("a pot", "a cup", headings=())
    )


@pytest.mark.parametrize(
    ("title", "first"),
    [
        ("Introduction", LEAD),  # says nothing by itself
        ("Key Terms", LEAD),
        ("Chapter Review", LEAD),
        ("for the density of the object. This yields", LEAD),  # the end of a broken line
        ("Green tea", "It is made of leaves that are dried at once."),  # what?
        ("Green tea", "See Figure 3 for the leaves."),
        ("Discuss the problems of tea today", LEAD),  # an exercise
        ("In this problem, let", LEAD),
        ("normal", "3. 0.025 or 2.5 percent is the middle of all teas."),
        ("http://example.org", LEAD),
        ("***", LEAD),
    ],
)
def test_sections_that_cannot_be_asked_for(title: str, first: str) -> None:
    found = facts(heading(title, "Tea"), paragraph(first))
    assert "section" not in {kind for kind, _, _ in found}


def test_a_heading_that_is_a_question_is_asked_as_it_stands() -> None:
    found = facts(heading("What Is Green Tea?", "Tea"), paragraph(LEAD))
    assert ("faq", {"question": "What Is Green Tea?"}, (LEAD,)) in found


@pytest.mark.parametrize(
    "text",
    [
        "Q: How hot is the water? A: The water has eighty degrees.",
        "Question 1: How hot is the water?\nAnswer: The water has eighty degrees.",
    ],
)
def test_labelled_questions(text: str) -> None:
    assert ("faq", {"question": "How hot is the water?"}, ("The water has eighty degrees.",)) in facts(paragraph(text))
    two = facts(*(paragraph(part) for part in ("Q: How hot is the water?", "A: The water has eighty degrees.")))
    assert ("faq", {"question": "How hot is the water?"}, ("The water has eighty degrees.",)) in two


def test_a_question_in_the_text_needs_an_answer_about_the_same() -> None:
    found = facts(paragraph("What is sociology? Sociology is the study of groups of people."))
    assert found[-1][:2] == ("faq", {"question": "What is sociology?"})
    to_the_reader = "Can you do a search for the name of the book? Go beyond the results of the search for the book."
    assert not facts(paragraph(to_the_reader))
    assert not [f for f in facts(paragraph("What is sociology? The hen was late for dinner again.")) if f[0] == "faq"]


def list_block(*items: str, headings: tuple[str, ...] = ("Tools",)) -> Block:
    return Block("list", "\n".join(f"- {item}" for item in items), headings, items=items)


def test_lists() -> None:
    found = facts(paragraph("The main tools are:"), list_block("a pot", "a cup of clay"))
    assert ("list", {"items": "What are the main tools"}, ("a pot", "a cup of clay")) in found
    found = facts(paragraph(LEAD), list_block("a pot", "a cup of clay"))
    assert ("list", {"heading": "Tools"}, ("a pot", "a cup of clay")) in found


@pytest.mark.parametrize(
    "items",
    [
        ("License: [CC-BY]", "Text: Ursula Nafula", "Language: en"),
        ("Home", "About", "Contact"),
        ("[Home page](http://a)", "[About us](http://b)"),
        tuple(f"point number {number}" for number in range(30)),
        ("only one item",),
    ],
)
def test_navigation_and_long_lists_are_left_out(items: tuple[str, ...]) -> None:
    assert not facts(list_block(*items))


def test_items_with_a_meaning_are_facts_of_their_own() -> None:
    found = facts(list_block("seed: the number that all choices follow from", "depth: the number of layers"))
    assert found[0] == ("about", {"subject": "seed"}, ("seed: the number that all choices follow from",))
    credits_ = list_block("Text: Ursula Nafula", "Illustration: Rob Owen, Wiehan de Jager")  # Tell me about Text.
    assert not facts(credits_)
    notes = facts(list_block("Note: the server must be closed", "Warning: this is slow"))
    assert [kind for kind, _, _ in notes] == ["list"]


def test_definition_blocks() -> None:
    def block(term: str, meaning: str) -> Block:
        return Block("definition", f"{term}: {meaning}", ("Tea",), items=(term, meaning))

    assert facts(block("Oolong", "A tea between green and black."))[0][:2] == (
        "definition",
        {"term": "Oolong", "is": "is"},
    )
    assert facts(block("Several cups", "pour them one after the other."))[0][:2] == (
        "about",
        {"subject": "Several cups"},
    )
    assert not facts(block("Important", "The water must not boil at all."))
    assert not facts(block("Oolong", "tea"))


def test_a_table_is_asked_by_row_and_column() -> None:
    rows: Any = (("Tea", "Water temperature", "URL"), ("Green", "80 degrees", ""), ("Black", "95 degrees", "x"))
    found = facts(Block("table", "", ("Tea",), rows=rows))
    assert ("table", {"row": "Green", "column": "water temperature"}, ("80 degrees",)) in found
    assert ("table", {"row": "Black", "column": "URL"}, ("x",)) in found
    assert len(found) == 3, "an empty cell is no answer"
    rows = (("Tea", "What is in it", "Use Case"), ("Green", "leaves of tea", "breakfast"))
    found = facts(Block("table", "", ("Tea",), rows=rows))
    assert [slots for _, slots, _ in found] == [
        {"row": "Green", "label": "What is in it"},  # "the what is in it of Green" is no English
        {"row": "Green", "column": "use case"},
    ]


@pytest.mark.parametrize(
    "rows",
    [(), (("a", "b"),), (("a",), ("b",)), (("a", "b"), ("c",)), (("a", "b"), ("x", "1"), ("x", "2"))],
)
def test_tables_without_one_answer_are_left_out(rows: tuple[tuple[str, ...], ...]) -> None:
    assert not facts(Block("table", "", (), rows=rows))


def test_other_scripts_have_sections_only() -> None:
    blocks = (heading("茶的历史", "绿茶"), paragraph("绿茶是用茶叶做的一种茶。它很好喝。"), list_block("一", "二"))
    expected = ("section", {"heading": "茶的历史", "parent": "绿茶"}, ("绿茶是用茶叶做的一种茶。",))
    assert facts(*blocks, is_english=False) == [expected]
    code = paragraph("```bash\nplaywright-cli route-list --status=404 '**/*.jpg'\n```")
    assert not facts(heading("Routes", "Tool"), code, is_english=False)


def test_a_story_has_an_end_and_sequels() -> None:
    story = [
        paragraph("Once there was a hen. She was very hungry and sad. She saw her friend, and they ran home."),
        paragraph("Her friend was tired. They met a jackal on the road. The hen said that he was late."),
        paragraph("This story was translated by A. Name. It is suitable for children."),
    ]
    document = Document("a.md", "The hen", tuple(story[:2]))
    assert is_narrative(document)
    kinds = {kind: sentences for kind, _, sentences, _, _ in structure_facts(document, True)}
    assert kinds["ending"] == ("The hen said that he was late.",)
    assert "next" in kinds
    about_the_file = {kind for kind, *_ in structure_facts(Document("a.md", "The hen", tuple(story)), True)}
    assert "ending" not in about_the_file


@pytest.mark.parametrize(
    ("text", "expected"),
    [("- Analyze the factors", "Analyze the factors"), ("IV. War", "War"), ("1.2.3 Peace:", "Peace"), ("x" * 99, "")],
)
def test_clean_heading(text: str, expected: str) -> None:
    assert clean_heading(text) == expected
