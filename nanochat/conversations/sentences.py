"""Sentences of a text, and the test that a sentence can stand alone as an answer.

The splitter knows the end marks of Latin, Chinese, Japanese, Indic and Arabic scripts, common English abbreviations,
initials, and quotations, inside of which it never splits.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

import regex

from nanochat.conversations.english import (
    ABBREVIATIONS,
    CONNECTIVES,
    FIRST_PERSON,
    FUNCTION_WORDS,
    POINTERS,
    PRONOUNS,
)

MAX_SENTENCE = 320  # characters of a sentence in an answer
MAX_WORDS = 50
MIN_WORDS = 4
MAX_QUOTED = 400  # characters: a quotation that is open for longer was opened by mistake
ENGLISH_SHARE = 0.16  # of function words among the words of an English text: in prose a half, in references a fifth
ENGLISH_SHARE_OF_SHORT = 0.2  # in less than SHORT_TEXT words, where other languages reach 0.18 by chance
SHORT_TEXT = 100

_END = re.compile(r"[.!?…]+|[。！？।؟]")
_WORD = regex.compile(r"[\p{L}\p{M}\p{N}]+(?:['’.-][\p{L}\p{M}\p{N}]+)*")  # with the vowel signs of Indic scripts
_BROKEN = re.compile(
    r"^\d{1,3}[.)]|[a-z)]\. [a-z]|\(\s?\)|\s[.,;]| (?:in|of|by|to) (?:is|are|was|were) |\*\*|\]\("
)  # a lost reference, two sentences, marks of a format
_CLOSERS = "\"'”’)]»」』*_"
_OPENERS = "\"'“‘([«「『*_"
_PAIRS = {"“": "”", "(": ")", "[": "]", "«": "»", "「": "」"}
_QUOTE_MARK = re.compile("[" + re.escape("".join(sorted({'"', *_PAIRS, *_PAIRS.values()}))) + "]")
_WIDE_ENDS = "。！？"
_POINTING_TEXT = (
    *(
        "the following",
        "as follows",
        " below",
        "the above",
        "this chapter",
        "this section",
        "this figure",
        "this table",
    ),
    *(
        "see figure",
        "see table",
        "figure shows",
        "table shows",
        "you learned",
        "as you have",
        "as we have",
        "we have seen",
    ),
    *(
        "previous section",
        "next section",
        "previous chapter",
        "next chapter",
        "this example",
        "click",
        "http:",
        "https:",
    ),
    *("in this module", "this exercise", "example above", "shown above", "the figure", "the table", "the diagram"),
    *("aforementioned", "the former", "the latter", "mentioned earlier", "discussed earlier", "in this case"),
    *("listed here", "copyright", "all rights reserved", "licensed under", "creative commons", "isbn"),
)


def squeeze(text: str) -> str:
    r"""Return a text with each run of white space as one space.

    >>> squeeze(" a  b\nc ")
    'a b c'
    """
    return " ".join(text.split())


def words(text: str) -> list[str]:
    """Return the words of a text in lower case, with inner apostrophes and hyphens.

    >>> words("It's a well-kept secret, isn't it?")
    ["it's", 'a', 'well-kept', 'secret', "isn't", 'it']
    """
    lower = text.lower()
    found: list[str] = _WORD.findall(lower)
    return [word.replace("’", "'") for word in found] if "’" in lower else found


def content_words(text: str) -> set[str]:
    """Return the words of a text that are no function words, in the form that `stem` gives them."""
    return {stem(word) for word in words(text) if word not in FUNCTION_WORDS}


@lru_cache(maxsize=1 << 16)
def stem(word: str) -> str:
    """Return a word without the commonest endings of English, so that "roars" and "roared" are alike.

    >>> [stem(word) for word in ("roars", "roared", "roaring", "boxes", "stories", "bus")]
    ['roar', 'roar', 'roar', 'box', 'story', 'bus']
    """
    word = word.removesuffix("'s")
    for ending, replacement, shortest in (
        *(("ies", "y", 5), ("ied", "y", 5), ("sses", "ss", 5), ("xes", "x", 4), ("ches", "ch", 6), ("shes", "sh", 6)),
        *(("ing", "", 6), ("ed", "", 5)),
    ):
        if word.endswith(ending) and len(word) >= shortest:
            return word[: len(word) - len(ending)] + replacement
    if word.endswith("s") and not word.endswith(("ss", "us", "is")) and len(word) > 3:
        return word[:-1]
    return word


def normalize(text: str) -> str:
    """Return the words of a text alone: two texts that differ in white space, case and punctuation become equal.

    >>> normalize("“No,”  said the hen.") == normalize('"No", said the hen')
    True
    """
    composed = unicodedata.normalize("NFKC", text).casefold().replace("’", "'")
    return " ".join(_WORD.findall(composed)) or " ".join(composed.split())


def letter_share(text: str) -> float:
    """Return the share of letters, with vowel signs, among the characters that are no white space.

    >>> letter_share("ab 12"), letter_share("")
    (0.5, 0.0)
    """
    visible = "".join(text.split())
    letters = sum(character.isalpha() or unicodedata.category(character)[0] == "M" for character in visible)
    return letters / max(1, len(visible))


def is_english(text: str) -> bool:
    """Return True if a text has the share of function words that English has. Short texts count by what they have."""
    found = words(text[:20_000])
    latin = sum(character.isascii() for character in text[:2_000])
    if not found or latin < 0.8 * len(text[:2_000]):
        return False
    share = ENGLISH_SHARE_OF_SHORT if len(found) < SHORT_TEXT else ENGLISH_SHARE
    return sum(word in FUNCTION_WORDS for word in found) >= share * len(found)


def split_sentences(text: str) -> list[str]:
    """Return the sentences of a paragraph, white space squeezed. Joined by spaces they are the squeezed text.

    >>> split_sentences('"Go away! I am tired," said Dr. Hen. It was late.')
    ['"Go away! I am tired," said Dr. Hen.', 'It was late.']
    """
    text = squeeze(text)
    sentences = []
    start = 0
    quoted = _QuoteState(text)
    for match in _END.finditer(text):
        if match.start() < start:
            continue
        end = match.end()
        while end < len(text) and text[end] in _CLOSERS:
            end += 1
        if not _is_border(text, match, end, start) or quoted.is_open(start, end):
            continue
        sentence = text[start:end].strip()
        if sentence:
            sentences.append(sentence)
        start = end
    if rest := text[start:].strip():
        sentences.append(rest)
    return sentences


class _QuoteState:
    """Says whether a quotation that begins in a sentence is still open at a place of the text."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._start = -1
        self._place = 0
        self._opened: list[tuple[str, int]] = []

    def is_open(self, start: int, end: int) -> bool:
        """Return True if a quotation opened after `start` is open at `end`. Both never decrease from call to call."""
        if start != self._start:
            self._start, self._place, self._opened = start, start, []
        for match in _QUOTE_MARK.finditer(self._text, self._place, end):
            character, place = match[0], match.start()
            if self._opened and character == self._opened[-1][0]:
                self._opened.pop()
            elif character == '"' or character in _PAIRS:
                self._opened.append((_PAIRS.get(character, '"'), place))
        self._place = end
        while self._opened and end - self._opened[0][1] > MAX_QUOTED:
            self._opened.pop(0)
        return bool(self._opened)


def _is_border(text: str, match: re.Match[str], end: int, start: int) -> bool:
    """Return True if an end mark ends a sentence: what follows begins one, and it belongs to no abbreviation."""
    if match[0] in _WIDE_ENDS:
        return True
    if end < len(text) and not text[end].isspace():
        return False
    following = text[end:].lstrip() if end + 40 > len(text) else text[end : end + 40].lstrip()
    following = following.lstrip(_OPENERS)
    if following and (following[0].islower() or not (following[0].isalnum())):
        return False
    if match[0] != ".":
        return True
    before = text[max(start, match.start() - 20) : match.start()].rpartition(" ")[2].strip(_OPENERS)
    is_initial = len(before) == 1 and before.isupper() and bool(following)
    is_number = before.isdigit() and len(before) <= 2 and match.start() - start <= 3
    return not (is_initial or is_number or before.lower() in ABBREVIATIONS)


def is_balanced(text: str) -> bool:
    """Return True if the quotation marks and brackets of a text come in pairs."""
    return text.count('"') % 2 == 0 and all(text.count(a) == text.count(b) for a, b in _PAIRS.items())


@lru_cache(maxsize=1 << 12)  # each sentence is looked at for several kinds of facts
def is_whole(sentence: str) -> bool:
    """Return True for a whole sentence of prose, not too short or long, begun and ended as sentences are."""
    found = words(sentence)
    if not MIN_WORDS <= len(found) <= MAX_WORDS or len(sentence) > MAX_SENTENCE:
        return False
    bare_start, bare_end = sentence.lstrip(_OPENERS), sentence.rstrip(_CLOSERS)
    if not bare_start or not (bare_start[0].isupper() or bare_start[0].isdigit()):
        return False
    if not bare_end.endswith((".", "!", "?")) or bare_end.endswith("..") or "..." in sentence or "…" in sentence:
        return False
    if _BROKEN.search(sentence) or bare_end.endswith(("e.g.", "i.e.", "vs.", "cf.")):
        return False
    letters = sum(map(str.isalpha, sentence)) + sum(map(str.isspace, sentence))
    if letters < 0.8 * len(sentence) or any(mark in sentence for mark in "|{}<>=\\^_~`"):
        return False
    capital = sum(word[0].isupper() for word in _WORD.findall(sentence))
    return is_balanced(sentence) and capital <= 0.6 * len(found)


def stands_alone(sentence: str, *, allow_first_person: bool = False) -> bool:
    """Return True if a whole English sentence can be understood without the sentences before it.

    It neither begins with a pronoun, a connective or a pointer ("This", "However", "Such"), nor points to other places
    of its document ("the following", "see Figure 2"). With `allow_first_person`, "I", "we" and "my" are accepted.
    """
    if not is_whole(sentence):
        return False
    found = words(sentence)
    lower = f" {sentence.lower()}"
    first = found[0].split("'")[0]
    if first in PRONOUNS or first in CONNECTIVES or first in POINTERS or found[0] in CONNECTIVES:
        return False
    if not allow_first_person and FIRST_PERSON.intersection(found):
        return False
    if any(phrase in lower for phrase in _POINTING_TEXT) or sentence.rstrip(_CLOSERS).endswith("?"):
        return False
    return not (found[0] == "in" and len(found) > 1 and found[1] in ("addition", "contrast", "other", "this", "these"))
