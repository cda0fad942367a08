"""Facts of a document: what can be asked about it, and the sentences that answer.

A fact has the slots of the question forms of its kind (forms.py), and an answer of whole sentences of the document. The
structure of a document (headings, lists, tables) is read by structure.py, its sentences by statements.py. Texts in
other languages than English give the kinds that need no grammar.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from nanochat.conversations.english import EMPTY_HEADINGS
from nanochat.conversations.sentences import content_words, is_english, normalize, words
from nanochat.conversations.statements import Statements
from nanochat.conversations.structure import RawFact, structure_facts
from nanochat.documents.document import Document

KINDS = {
    "section": "the first sentences under a heading",
    "definition": "what something is",
    "list": "the items of a list",
    "table": "a cell by its row and column",
    "faq": "a question and its answer in the text",
    "summary": "the first sentences of a document",
    "ending": "the last sentence of a story",
    "next": "the sentence of a story that follows another",
    "agent": "who or what did something",
    "has": "what something has",
    "can": "what something can do",
    "about": "the one sentence about something",
    "speech": "who said something",
    "said": "what someone said",
    "cause": "what happens when, if, after or before something",
    "reason": "why something is so",
    "year": "what happened in a year",
}
"""Kinds of facts, with a description of the answer."""

PROSE = ("paragraph", "list", "quote")  # blocks by which the language of a document is told

VAGUE_KINDS = ("said", "has", "can", "about", "year")
"""Kinds whose question names the document if it has fewer than two words that say what is meant: "What did Ma say?"."""


@dataclass(frozen=True)
class Fact:
    """An answer of the documents and the slots of its questions."""

    kind: str
    slots: Mapping[str, str]
    sentences: tuple[str, ...]  # of the answer, as they stand in the document, white space squeezed
    document: str = ""
    title: str = ""  # of the document; empty if it has none that can be quoted
    headings: tuple[str, ...] = ()
    separator: str = " "  # between the sentences of the answer
    is_val_document: bool = False
    is_english: bool = True
    needs_title: bool = False  # the question is clear only with the title
    key: str = field(default="", compare=False)

    @property
    def answer(self) -> str:
        """The sentences, joined; a list with its marks."""
        return self.separator.lstrip("\n ") + self.separator.join(self.sentences)


class DocumentFacts(NamedTuple):
    """The facts of a document, the proper names in it, and the stems of all its words."""

    facts: list[Fact]
    names: frozenset[str]
    vocabulary: set[str]


def document_facts(document: Document) -> DocumentFacts:
    """Return the facts of a document, each question once. A question with two answers in it is left out."""
    facts = []
    title = usable_title(document.title)
    english = is_english(" ".join(block.text for block in document.blocks if block.kind in PROSE)[:40_000])
    statements = Statements(document) if english else None
    for kind, slots, sentences, headings, separator in _raw_facts(document, statements):
        fact = Fact(kind, slots, tuple(sentences), document.name, title, headings, separator)
        key = f"{kind} {normalize(' '.join(slots.values()))}"
        is_vague = kind in VAGUE_KINDS and len(content_words(" ".join(slots.values()))) < 2
        fact = replace(fact, needs_title=is_vague and bool(title))
        facts.append(replace(fact, is_val_document=document.split == "val", is_english=english, key=key))
    vocabulary = content_words(" ".join((document.title, *(block.text for block in document.blocks))))
    return DocumentFacts(list(_unambiguous(facts)), statements.names if statements else frozenset(), vocabulary)


def _raw_facts(document: Document, statements: Statements | None) -> Iterator[RawFact]:
    yield from structure_facts(document, is_english=statements is not None)
    if statements is not None:
        yield from statements.facts()


def _unambiguous(facts: Iterable[Fact]) -> Iterator[Fact]:
    by_key: dict[str, list[Fact]] = {}
    for fact in facts:
        by_key.setdefault(fact.key, []).append(fact)
    for same in by_key.values():
        if len({normalize(fact.answer) for fact in same}) == 1:
            yield same[0]


def resolve_between_documents(facts: Iterable[Fact]) -> list[Fact]:
    """Return facts of all documents, marked where the question is clear only with the title.

    A question that several documents answer differently gets `needs_title`; without a title of its own it is left out.
    Of equal questions with equal answers the first one stays.
    """
    facts = list(facts)
    answers: dict[str, set[str]] = {}
    titled: Counter[tuple[str, str]] = Counter()
    for fact in facts:
        answers.setdefault(fact.key, set()).add(normalize(fact.answer))
        titled[fact.key, normalize(fact.title)] += 1
    resolved = []
    seen = set()
    for fact in facts:
        needs_title = len(answers[fact.key]) > 1 or fact.needs_title
        if needs_title and (not fact.title or titled[fact.key, normalize(fact.title)] > 1):
            continue
        identity = (fact.key, normalize(fact.answer))
        if identity in seen:
            continue
        seen.add(identity)
        resolved.append(replace(fact, needs_title=needs_title))
    return resolved


def usable_title(title: str) -> str:
    """Return a title that can be quoted in a question, or an empty text: not a path, not a whole paragraph.

    >>> usable_title("What type of teeth?"), usable_title("src/a_b.py"), usable_title("x" * 200)
    ('What type of teeth?', '', '')
    """
    title = " ".join(title.split()).strip(' #*_:."“”')
    has_letters = sum(character.isalpha() for character in title) >= max(3, len(title) // 2)
    is_path = any(mark in title for mark in "/\\_|<>{}`") or (
        title.rpartition(".")[2].isalnum() and "." in title[-6:-1]
    )
    is_empty = "-".join(words(title)) in EMPTY_HEADINGS
    is_file = any(word.isdigit() and len(word) > 2 and word.startswith("0") for word in words(title))  # shard 00002
    return (
        title
        if has_letters and not is_empty and len(title) <= 80 and not is_path and not is_file and '"' not in title
        else ""
    )
