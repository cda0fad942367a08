"""Example questions for an empty conversation, from headings of the documents that no training text has."""

from __future__ import annotations

from collections.abc import Iterable

from nanochat.documents.document import Document
from nanochat.passages.passage import Passage

NUM_EXAMPLES = 4
MAX_HEADING_CHARACTERS = 60
# Headings that name a part of any text, and no subject; and words that begin such a heading, before a number.
_GENERAL = frozenset(
    "abstract|acknowledgements|acknowledgments|appendix|conclusion|conclusions|contents|copyright|discussion|example|"
    "examples|exercises|faq|glossary|index|introduction|key concepts|key equations|key terms|learning objectives|"
    "licence|license|note|notes|overview|preface|problems|questions|readme|references|results|see also|summary|"
    "table of contents|untitled|usage".split("|")
)
_NUMBERED = ("chapter", "figure", "page", "part", "section", "table", "unit")


class ExampleQuestions:
    """Headings of the held-out documents (of all, if none is held out), from which a few examples are chosen."""

    def __init__(self) -> None:
        self._headings: dict[str, list[str]] = {"train": [], "val": []}

    def add(self, document: Document, passages: Iterable[Passage]) -> None:
        """Take the headings of a document that a text stands under."""
        found = self._headings["val" if document.split == "val" else "train"]
        found += dict.fromkeys(filter(_is_subject, (passage.headings[-1] for passage in passages if passage.headings)))

    def chosen(self) -> list[str]:
        """Return the questions, about headings that are spread over the documents."""
        headings = list(dict.fromkeys(self._headings["val"] or self._headings["train"]))
        count = min(NUM_EXAMPLES, len(headings))
        return [heading_question(headings[(2 * index + 1) * len(headings) // (2 * count)]) for index in range(count)]


def heading_question(heading: str) -> str:
    """Return a question about what stands under a heading.

    >>> heading_question("How to brew tea"), heading_question("Who was she?")
    ('Tell me about "How to brew tea".', 'Who was she?')
    """
    heading = " ".join(heading.split())
    return heading if heading.endswith("?") else f'Tell me about "{heading}".'


def _is_subject(heading: str) -> bool:
    words = "".join(character if character.isalpha() else " " for character in heading.casefold()).split()
    is_numbered = words[:1] and words[0] in _NUMBERED and len(words) <= 2
    return (
        bool(words) and len(heading) <= MAX_HEADING_CHARACTERS and " ".join(words) not in _GENERAL and not is_numbered
    )
