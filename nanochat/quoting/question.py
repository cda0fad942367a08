"""The parts of a question: quotations, cues (it asks who, why, for the end, ...) and the terms of its subject."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from nanochat.conversations.sentences import normalize, words
from nanochat.conversations.sentences import stem as _stem
from nanochat.passages.terms import STOP_WORDS, all_terms

MAX_QUESTION = 2000  # characters that count
MAX_TERMS = 64

# What a question is about in its form, by the words outside of quotations.
_CUES = {
    "begin": "begin begins began beginning start starts started opening open introduce introduced introduction first",
    "end": "end ends ended ending finish finishes finished last conclude concludes conclusion finally final",
    "after": "after next follow follows followed following continue continues go goes then afterwards subsequent",
    "about": "about summary summarise summarize describe explain introduce overview topic subject",
    "say": "say said says repeat quote speak spoke speaks ask asked answer answered words told tell reply replied",
    "who": "who whom whose",
    "why": "why reason reasons because cause",
    "when": "when if happens happen happened once until unless before after",
    "number": "many much number year date old long far often",
    "list": "list listed lists items points enumerate name steps types kinds examples all everything",
    "definition": "define definition meaning mean means explain describe",
    "table": "table column row entry cell",
}
CUES = {name: frozenset(text.split()) for name, text in _CUES.items()}
# Words by which one asks, whatever about. They need not stand in an answer.
ASKING_WORDS = STOP_WORDS | frozenset(
    "wonder know knows known like want need forgot forget remember remind find look see read reading heard hear think "
    "believe understand learn show help ask asks asking question questions answer answers document documents "
    "text texts story stories book books page passage passages section part heading title chapter file files "
    "sentence sentences "
    "word words line lines list listed item items point points table column row entry entries stand stands give given "
    "gives name names named enumerate continue go goes come comes follow follows following next after before begin "
    "begins beginning start starts end ends ending finish finished last first open introduce introduced introduction "
    "happen happens happened take took place fact facts information something anything everything thing things detail "
    "details main quote repeat spoke speak wonder curious exactly really kind briefly shortly short here now again "
    "thanks thank hello hi hey yes ok okay sure talk talking write make makes let lets just try can't don't".split()
)
_QUOTATION = re.compile('["\u201c\u201d\u201e\u00ab]([^"\u201c\u201d\u201e\u00ab\u00bb]+)["\u201c\u201d\u00bb]')


def stem(word: str) -> str:
    """Return a word without the commonest endings of English and the spelling that goes with them.

    >>> [stem(word) for word in ("lived", "live", "living", "stopped", "stop", "carrying", "carried")]
    ['liv', 'liv', 'liv', 'stop', 'stop', 'carry', 'carry']
    """
    root = _stem(word)
    if len(root) > 3 and root[-1] == root[-2] and root[-1] not in "aeiouls":
        root = root[:-1]
    return root.removesuffix("e") if len(root) > 3 else root


@dataclass(frozen=True)
class AskedQuestion:
    """The parts of a question that candidates are compared with.

    `quotations`: texts in quotation marks, as `normalize` writes them. `terms`: stem -> weight of each word of the
    subject outside of quotations, 1 for a word that no passage has. `unknown`: the stems that no passage has, those of
    quotations included. `cues`: names of CUES. `plain`: the words outside of quotations. `spoken`: all stems.
    """

    quotations: tuple[str, ...]
    terms: dict[str, float]
    unknown: frozenset[str]
    cues: frozenset[str]
    plain: tuple[str, ...]
    spoken: frozenset[str]


def read_question(text: str, rarity: Callable[[str], float]) -> AskedQuestion:
    """Return the parts of a question. `rarity`: term -> 1 for a term that no passage has, near 0 for one of each."""
    text = text[:MAX_QUESTION]
    quotations = [normalize(quotation) for quotation in _QUOTATION.findall(text)]
    outside = _QUOTATION.sub(" ", text)
    plain = words(outside)
    asked = dict.fromkeys(term for term in all_terms(outside)[:MAX_TERMS] if term not in ASKING_WORDS)
    weights = {term: rarity(term) for term in asked}
    quoted = {term for term in all_terms(" ".join(quotations))[:MAX_TERMS] if term not in STOP_WORDS}
    unknown = [term for term in {*asked, *quoted} if (weights[term] if term in weights else rarity(term)) >= 1]
    return AskedQuestion(
        tuple(dict.fromkeys(filter(None, quotations))),
        {stem(term): weight for term, weight in weights.items()},
        frozenset(map(stem, unknown)),
        frozenset(name for name, cue in CUES.items() if not cue.isdisjoint(plain)),
        tuple(plain),
        frozenset(map(stem, all_terms(text)[: 2 * MAX_TERMS])),
    )
