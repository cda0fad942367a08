"""Example questions for an empty conversation, from headings of the documents that no training text has."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

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
    """Questions about the held-out documents (all, if none is held out), from which a few examples are chosen."""

    def __init__(self) -> None:
        self._questions: dict[str, list[str]] = {"train": [], "val": []}

    def add(self, document: Document, passages: Iterable[Passage]) -> None:
        """Take the headings of a document that a text stands under."""
        found = self._questions["val" if document.split == "val" else "train"]
        places = dict.fromkeys(passage.headings for passage in passages if passage.headings)
        found += [heading_question(headings) for headings in places if _is_subject(headings[-1])]

    def chosen(self) -> list[str]:
        """Return questions that are spread over the documents."""
        questions = list(dict.fromkeys(self._questions["val"] or self._questions["train"]))
        count = min(NUM_EXAMPLES, len(questions))
        return [questions[(2 * index + 1) * len(questions) // (2 * count)] for index in range(count)]


def heading_question(headings: Sequence[str]) -> str:
    """Return a question about what stands under the last of some headings. The first one is a title.

    >>> heading_question(["The Race"]), heading_question(["Tea", "leaves"]), heading_question(["Who was she?"])
    ('Tell me about "The Race".', 'Tell me about leaves.', 'Who was she?')
    """
    heading = " ".join(headings[-1].split())
    if heading.endswith("?"):
        return heading
    return f'Tell me about "{heading}".' if len(headings) == 1 else f"Tell me about {heading.rstrip('.:')}."


def _is_subject(heading: str) -> bool:
    words = "".join(character if character.isalpha() else " " for character in heading.casefold()).split()
    is_numbered = words[:1] and words[0] in _NUMBERED and len(words) <= 2
    return (
        bool(words) and len(heading) <= MAX_HEADING_CHARACTERS and " ".join(words) not in _GENERAL and not is_numbered
    )
