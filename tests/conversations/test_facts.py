"""nanochat/conversations/facts.py: each question once, and with one answer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from nanochat.conversations.facts import (
    KINDS,
    Fact,
    document_facts,
    resolve_between_documents,
    usable_title,
)
from nanochat.conversations.forms import CORES
from nanochat.conversations.sentences import normalize, split_sentences, squeeze
from nanochat.documents.document import Block, Document
from tests.support.tale_documents import chapter, documents, story


def test_the_answers_stand_in_the_document() -> None:
    for document in (story(1), chapter(2)):
        facts = document_facts(document).facts
        assert len(facts) > 5
        text = normalize(" ".join((document.text, *(" ".join(map(" ".join, b.rows)) for b in document.blocks), *(
            " ".join(b.items) for b in document.blocks))))  # fmt: skip
        for fact in facts:
            assert fact.kind in KINDS
            assert fact.document == document.name
            assert all(normalize(sentence) in text for sentence in fact.sentences), fact


def test_a_question_with_two_answers_in_a_document_is_left_out() -> None:
    text = "A hut has one door and two windows. A hut has a roof of green grass. A lion has very sharp teeth."
    facts = document_facts(Document("a.md", "T", (Block("paragraph", text, ()),))).facts
    subjects = [fact.slots["subject"] for fact in facts if fact.kind == "has"]
    assert subjects == ["a lion"]


def test_a_question_with_two_answers_in_two_documents_needs_the_title() -> None:
    fact = Fact("has", {"do": "did", "subject": "the king"}, ("The king had a cat.",), "a", "One", key="has king")
    other = replace(fact, sentences=("The king had a dog.",), document="b", title="Two")
    assert [fact.needs_title for fact in resolve_between_documents([fact, other])] == [True, True]
    assert resolve_between_documents([fact, replace(other, title="One")]) == []
    assert [f.title for f in resolve_between_documents([fact, replace(other, title="")])] == ["One"]
    same = resolve_between_documents([fact, replace(fact, document="b", title="Two")])
    assert [(found.document, found.needs_title) for found in same] == [("a", False)]


def test_texts_in_other_languages_neither_fail_nor_give_nonsense() -> None:
    texts = {
        "ru": ("История чая", "Чай пришёл в Россию из Китая в семнадцатом веке. Его пили купцы."),
        "zh": ("茶的历史", "绿茶是用茶叶做的一种茶。它很好喝。"),
        "ar": ("تاريخ الشاي", "وصل الشاي إلى المغرب في القرن الثامن عشر. شربه الناس."),
        "hi": ("चाय का इतिहास", "चाय सत्रहवीं सदी में चीन से आई थी। लोग उसे पीते थे।"),
        "de": (
            "Geschichte des Tees",
            "Der Tee kam im siebzehnten Jahrhundert aus China nach Europa. Man trank ihn gern.",
        ),
    }
    for language, (heading, text) in texts.items():
        blocks = (Block("heading", heading, ("x",), level=2), Block("paragraph", text, ("x", heading)))
        [fact] = document_facts(Document(language, "", blocks)).facts
        assert (fact.kind, fact.is_english) == ("section", False)
        assert fact.sentences == (split_sentences(text)[0],)


@pytest.mark.parametrize("kind", ["heading", "paragraph", "list", "table", "definition", "quote", "code"])
@pytest.mark.parametrize(
    "text", ["", " ", "\n", "?", '"', "“" * 500, "a" * 10_000, ". " * 500, "\u202e\x00\ufffd", "(" * 99]
)
def test_strange_blocks_give_no_facts_and_no_error(kind: str, text: str) -> None:
    block = Block(kind, text, (text,), 1, (text, text), ((text, text), (text, text)))
    facts = document_facts(Document("a", text, (block, block, block))).facts
    assert all(len(fact.answer) < 1000 and fact.answer == fact.answer.strip() for fact in facts)


@pytest.mark.parametrize(
    "title", ["a/b.md", "notes.txt", "Introduction", "shard 00002", "{x}", "123", 'a "b" c', "", "\n", "x" * 81]
)
def test_titles_that_cannot_be_quoted(title: str) -> None:
    assert usable_title(title) == ""


@pytest.mark.slow
@pytest.mark.shared_data
def test_stories_of_a_real_folder(shared_data: Path) -> None:
    facts = []
    for path in sorted((shared_data / "text" / "folder").rglob("*.md"))[:40]:
        lines = path.read_text(encoding="utf-8").split("\n\n")
        blocks = tuple(Block("paragraph", line.lstrip("#\n "), ()) for line in lines if line.lstrip("#\n "))
        document = Document(path.name, path.stem, blocks)
        found = document_facts(document).facts
        assert all(normalize(sentence) in normalize(document.text) for fact in found for sentence in fact.sentences)
        facts += found
    assert len({fact.kind for fact in facts}) >= 6
    assert len(facts) > 200
    assert not any("License" in fact.answer or "Illustration" in fact.answer for fact in facts)


def test_every_kind_has_forms() -> None:
    assert set(KINDS) | {"items", "cell"} == set(CORES)
    assert {fact.kind for document in documents(4) for fact in document_facts(document).facts} >= {
        *("section", "definition", "list", "table", "summary", "ending", "next", "agent", "speech", "cause"),
    }
    assert squeeze(" a ") == "a"
