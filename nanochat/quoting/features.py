"""Features of a candidate for a question: what it shares with it, and where in the document it stands.

All are numbers between 0 and 1. The same features are fitted (fitting.py) and used (choice.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from nanochat.conversations.english import PRONOUNS
from nanochat.conversations.sentences import normalize, words
from nanochat.passages.terms import STOP_WORDS, all_terms
from nanochat.quoting.candidates import Candidate
from nanochat.quoting.question import AskedQuestion, stem

FEATURES = (
    *("in candidate", "in label", "in headings", "in passage", "nowhere", "nowhere, unknown"),
    *("asked of its words", "longest common run", "two in a run", "three in a run", "run of its words"),
    *("all asked in candidate", "all asked in candidate and headings"),
    *(
        "quotes a heading",
        "quotes something else",
        "candidate quoted, asks what is next",
        "candidate quoted, asks else",
    ),
    *("candidate quoted, asks who", "sentence before quoted, asks what is next", "sentence before quoted, asks else"),
    *("first, asks for the beginning", "first, asks about it", "first, asks else"),
    *("first of section asked for", "first of section, asks else", "last, asks for the end", "last, asks else"),
    *("speech, asks what was said", "speech, asks else", "reason, asks why", "digits, asks for a number"),
    *(
        "condition, asks when",
        "begins with the subject",
        "subject, then a word asked",
        "subject, then is a",
        "begins with a pronoun",
        "is a question",
        "sentence before asks it",
    ),
    *(
        "rank of the passage",
        "length",
        "is a list",
        "is a list, asks for one",
        "is an item",
        "is a sentence of an item",
    ),
    *("is a cell", "is a meaning", "all of its label is asked for"),
)
_REASONS = frozenset("because since therefore reason so due".split())
_CONDITIONS = frozenset("when if after before because once as until unless whenever".split())
_BE = [("is",), ("are",), ("was",), ("were",)]
_ARTICLES = [("a",), ("an",), ("the",), ("any",)]
_MEANS = [("refers", "to"), ("means", "that"), ("is", "defined"), ("are", "defined"), ("is", "called"), ("is", "known")]
_MARKS = ('"', "“", "”", "«", "„")


def features(question: AskedQuestion, candidates: Sequence[Candidate]) -> np.ndarray:
    """Return the features of each candidate: float64 (candidates, len(FEATURES))."""
    passages: dict[int, _PassageWords] = {}
    ranks: dict[tuple[str, str], int] = {}
    rows = []
    for candidate in candidates:
        place = (candidate.passage.document, candidate.passage.text)
        rank = ranks.setdefault(place, len(ranks))
        if rank not in passages:
            passages[rank] = _PassageWords(candidate)
        rows.append(_row(question, candidate, passages[rank], rank))
    return np.array(rows, dtype=np.float64).reshape(len(rows), len(FEATURES))


class _PassageWords:
    """Words of a passage, which its candidates share."""

    def __init__(self, candidate: Candidate) -> None:
        passage = candidate.passage
        self.stems = stems(passage.text)
        self.headings = {normalize(heading) for heading in passage.headings}
        self.heading_stems = stems(" ".join(passage.headings))
        self.last_heading = stems(passage.headings[-1]) if passage.headings else frozenset()
        self.text = f" {normalize(passage.text)} "


def stems(text: str) -> frozenset[str]:
    """Return the stems of the terms of a text."""
    return frozenset(map(stem, all_terms(text)))


def _row(question: AskedQuestion, candidate: Candidate, passage: _PassageWords, rank: int) -> list[float]:
    own, label = stems(candidate.text), stems(candidate.label)
    shares = dict.fromkeys(("own", "label", "headings", "passage", "nowhere", "unknown"), 0.0)
    for term, weight in question.terms.items():
        place = next(
            (
                name
                for name, known in (
                    *(("own", own), ("label", label)),
                    *(("headings", passage.heading_stems), ("passage", passage.stems)),
                )
                if term in known
            ),
            "nowhere",
        )
        shares[place] += weight
    total = sum(shares.values())
    for name in shares:
        shares[name] /= max(total, 1.0)
    has_unknown = bool(question.unknown - passage.heading_stems - passage.stems)
    content = {term for term in own if term not in STOP_WORDS}
    asked = set(question.terms)
    plain = tuple(words(candidate.text))
    run = longest_run(question.plain, plain)
    quotes = _Quotes(question, f" {normalize(candidate.text)} ", normalize(candidate.previous), passage)
    return [
        *(shares["own"], shares["label"], shares["headings"], shares["passage"], shares["nowhere"], float(has_unknown)),
        *(len(asked & content) / max(1, len(content)), min(run, 10) / 10, float(run >= 2), float(run >= 3)),
        min(1.0, run / max(1, len(plain))),
        *(float(bool(asked) and asked <= own), float(bool(asked) and asked <= own | passage.heading_stems)),
        *quotes.features(question.cues),
        *_place_features(question, candidate, passage),
        *_form_features(question, candidate, plain),
        *(1 / (1 + rank), min(1.0, math.log1p(len(candidate.text)) / 7)),
        *(float(candidate.kind == "list"), float(candidate.kind == "list" and "list" in question.cues)),
        *(float(candidate.kind == kind) for kind in ("item", "item sentence", "cell", "meaning")),
        float(bool(label) and label <= question.spoken),
    ]


def _place_features(question: AskedQuestion, candidate: Candidate, passage: _PassageWords) -> list[float]:
    cues, place, asked = question.cues, candidate.passage, set(question.terms)
    is_first = candidate.is_first and place.is_first
    begins_section = candidate.is_first and place.begins_section
    is_last = candidate.is_last and place.is_last
    asks_about = bool(cues & {"about", "definition"}) and not cues & {"end", "after", "begin"}
    is_section_asked = bool(asked & passage.last_heading) and asked <= passage.last_heading | passage.heading_stems
    return [
        *(float(is_first and "begin" in cues), float(is_first and asks_about)),
        float(is_first and "begin" not in cues and not asks_about),
        *(float(begins_section and is_section_asked), float(begins_section and not is_section_asked)),
        *(float(is_last and "end" in cues), float(is_last and "end" not in cues)),
    ]


def _form_features(question: AskedQuestion, candidate: Candidate, plain: Sequence[str]) -> list[float]:
    cues, asked = question.cues, set(question.terms)
    has_speech = any(mark in candidate.text for mark in _MARKS)
    place = _end_of_subject(asked, plain)
    is_kind = place > 0 and plain[place : place + 1] in _BE and plain[place + 1 : place + 2] in _ARTICLES
    is_meaning = place > 0 and plain[place : place + 2] in _MEANS
    return [
        *(float(has_speech and "say" in cues), float(has_speech and "say" not in cues)),
        float("why" in cues and not _REASONS.isdisjoint(plain)),
        float("number" in cues and any(character.isdigit() for character in candidate.text)),
        float("when" in cues and not _CONDITIONS.isdisjoint(plain[:2])),
        *(float(place > 0), float(0 < place < len(plain) and plain[place] in question.plain)),
        float(is_kind or is_meaning),
        *(float(bool(plain) and plain[0] in PRONOUNS), float(_is_question(candidate.text))),
        float(_is_question(candidate.previous) and bool(asked) and asked <= stems(candidate.previous)),
    ]


class _Quotes:
    """Shares of a question's quotations by what they are in a passage."""

    def __init__(self, question: AskedQuestion, text: str, previous: str, passage: _PassageWords) -> None:
        found = dict.fromkeys(("heading", "previous", "candidate", "other"), 0.0)
        for quotation in question.quotations:
            if quotation in passage.headings:
                place = "heading"
            elif f" {quotation} " in f" {previous} ":
                place = "previous"
            else:
                place = "candidate" if f" {quotation} " in text else "other"
            found[place] = 1.0
        self._found = found

    def features(self, cues: frozenset[str]) -> list[float]:
        found, follows = self._found, "after" in cues
        return [
            *(found["heading"], found["other"], found["candidate"] * follows, found["candidate"] * (not follows)),
            *(found["candidate"] * ("who" in cues), found["previous"] * follows, found["previous"] * (not follows)),
        ]


def longest_run(first: Sequence[str], second: Sequence[str]) -> int:
    """Return the length of the longest sequence of words that stands in both.

    >>> longest_run("who sat on the mat".split(), "the cat sat on the mat".split())
    4
    """
    places: dict[str, list[int]] = {}
    for index, word in enumerate(second):
        places.setdefault(word, []).append(index)
    best = 0
    lengths: dict[int, int] = {}  # of the runs that end at the word before: place of that word in `second` -> length
    for word in first:
        lengths = {index: lengths.get(index - 1, 0) + 1 for index in places.get(word, ())}
        best = max(best, *lengths.values()) if lengths else best
    return best


def _is_question(text: str) -> bool:
    return text.rstrip("\"'”’").endswith("?")


def _end_of_subject(asked: set[str], plain: Sequence[str]) -> int:
    """Return the place after the words asked for if a candidate begins with all of them, articles aside, else 0."""
    missing = set(asked)
    for place, word in enumerate(plain[:8]):
        missing.discard(stem(word))
        if asked and not missing:
            return place + 1
        if stem(word) not in asked and word not in STOP_WORDS:
            return 0
    return 0
