"""The choice of a reply to a question about documents: a quotation, a refusal, or the model's own words.

Each option has a score, a linear one, and the highest is chosen:

    a quotation      weights . features of the candidate (features.py)
    a refusal        a constant
    own words        a constant, less what the question's words outside of small talk count for

So a question that the documents do not answer is refused, unless its words are those of greetings and of questions
about the model itself: those the model answers freely. The weights are fitted on the training questions (fitting.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from nanochat.conversations.refusals import REFUSALS
from nanochat.conversations.sentences import normalize, words
from nanochat.passages.passage import Passage
from nanochat.quoting.candidates import Candidate, candidates, is_list
from nanochat.quoting.features import features
from nanochat.quoting.question import AskedQuestion, read_question
from nanochat.quoting.weights import QuotingWeights

NUM_PASSAGES = 16  # in which candidates are looked for: they need no room in a prompt
REFUSAL = REFUSALS[-1]


class QuotableIndex(Protocol):
    """The part of an index of passages that the choice needs."""

    def search(self, question: str, k: int = 3, context: str = "") -> list[Passage]:
        """Return the passages nearest to a question, the best one first."""
        ...

    def edges(self, passage: Passage) -> list[Passage]:
        """Return the first and the last passages of a passage's document."""
        ...

    def rarity(self, term: str) -> float:
        """Return 1 for a term that no passage has, less the more have it."""
        ...


@dataclass(frozen=True)
class Choice:
    """A reply: `text` of a quotation from `passage`, or of a refusal; own words if `text` is None."""

    text: str | None
    passage: Passage | None = None


@dataclass(frozen=True)
class Options:
    """The options for a reply: candidates with their features (n, F), and the share of words outside of small talk."""

    candidates: list[Candidate]
    features: np.ndarray
    foreign_share: float


def options(index: QuotableIndex, question: str, small_talk: frozenset[str], context: str = "") -> Options:
    """Return the options for a reply. `context`: the question before, if this one refers back to it.

    Raises UserError if the index turns out to be damaged.
    """
    asked = read_question(question, index.rarity)
    found = candidates(with_edges(index.search(question, NUM_PASSAGES, context), asked, index.edges))
    spoken = set(words(question))
    foreign = len(spoken - small_talk) / max(1, len(spoken))
    return Options(found, features(asked, found), foreign)


def choose(index: QuotableIndex, weights: QuotingWeights, question: str, context: str = "") -> Choice:
    """Return the best option for a reply. Raises UserError if the index turns out to be damaged."""
    found = options(index, question, weights.small_talk, context)
    scores = weights.scores(found.features, found.foreign_share)
    best = int(scores.argmax())
    if best < len(found.candidates):
        return Choice(found.candidates[best].text, found.candidates[best].passage)
    return Choice(REFUSAL if best == len(found.candidates) else None)


def with_edges(
    found: Sequence[Passage], question: AskedQuestion, edges: Callable[[Passage], Sequence[Passage]]
) -> list[Passage]:
    """Return passages, and the first and the last of each document that a question names, or asks to tell as a whole.

    The first and the last passage with prose are marked as such: a list before or after them is no part of the text.
    """
    passages = list(found)
    documents: dict[str, Passage] = {}
    for place, passage in enumerate(found):
        is_named = any(normalize(heading) in question.quotations for heading in passage.headings)
        if is_named or (place == 0 and question.cues & {"begin", "end", "about"}):
            documents.setdefault(passage.document, passage)
    for passage in documents.values():
        own = list(edges(passage))
        prose = [edge.number for edge in own if not all(map(is_list, edge.text.split("\n\n")))]
        for edge in own:
            is_first, is_last = edge.number in prose[:1], edge.number in prose[-1:]
            marked = replace(edge, is_first=is_first, is_last=is_last)
            places = [place for place, other in enumerate(passages) if other.number == edge.number]
            if places:
                passages[places[0]] = replace(marked, score=passages[places[0]].score)
            elif marked.is_first or marked.is_last:
                passages.append(marked)
    return passages
