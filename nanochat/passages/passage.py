"""A passage of the documents: some hundred characters of one section, with the place that they are from."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Passage:
    """A piece of a document. `text` may have several lines; the higher `score`, the nearer it is to a query."""

    document: str  # name of the document: its path in the folder
    headings: tuple[str, ...]  # that it stands under, outermost first
    text: str
    score: float = 0.0
    # Its place, as the index tells it
    number: int = field(default=0, compare=False)  # in the index, from 1
    is_first: bool = field(default=False, compare=False)  # of its document
    is_last: bool = field(default=False, compare=False)
    begins_section: bool = field(default=False, compare=False)  # the first one under its headings

    @property
    def label(self) -> str:
        """The headings in one line, or the document's name without any.

        >>> Passage("a/tea.md", ("Tea", "How to brew"), "Boil water.").label
        'Tea / How to brew'
        """
        return " / ".join(filter(None, (" ".join(heading.split()) for heading in self.headings))) or self.document
