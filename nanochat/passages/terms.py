"""Text to the terms that passages are found by, for any script and whatever a user types.

A term is a word in lower case without accents, or, in scripts without spaces between words, two neighbouring characters
(in the index also each character). The index stems English terms; both sides of a search take them from here, so that
they agree. A term consists of letters, digits and vowel signs only: nothing in it is syntax of a query.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from itertools import pairwise

MAX_TERM_CHARACTERS = 40  # longer words, as of encoded data, are cut

# Accents, and the vowel points of Hebrew and Arabic, which most texts leave out
_POINTS = re.compile("[\u0300-\u036f\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7\u064b-\u065f\u0670]")
# Scripts without spaces (Thai, Lao, Tibetan, Burmese, Khmer, kana, Chinese characters), and Korean, whose words take
# endings
_UNSPACED = "\u0e01-\u0e3a\u0e40-\u0e4e\u0e80-\u0ece\u0f40-\u0fbc\u1000-\u109f\u1780-\u17d3\u3041-\u30ff\u3400-\u4dbf"
_UNSPACED += "\u4e00-\u9fff\uf900-\ufaff\uac00-\ud7a3\U00020000-\U0003ffff"
_IS_UNSPACED = re.compile(f"[{_UNSPACED}]")
# Vowel signs of India's scripts are no word characters for `re`: the blocks but their punctuation (U+0964, U+0965)
_WORD = re.compile(f"[{_UNSPACED}]+|(?:[^\\W_{_UNSPACED}]|[\u0900-\u0963\u0966-\u0dff])+")
_QUOTATION = re.compile('["\u201c\u201d\u201e\u00ab]([^"\u201c\u201d\u201e\u00ab\u00bb]+)["\u201c\u201d\u00bb]')
_ASCII_WORD = re.compile("[a-z0-9]+")

# Words that stand in most questions, and say nothing about their subject.
STOP_WORDS = frozenset(
    "a about all also am an and any are as at be because been being but by can could d describe did do does doing each "
    "explain for from give had has have he her here hers him his how i if in into is it its ll let m many me mean more "
    "most much must my no nor not of on one only or other our out please re s said say says shall she should so some "
    "such t tell than that the their them then there these they this those through to too up us ve very was we were "
    "what when where which while who whom whose why will with would you your "
    "al au auf aus aux avec bei by ce ces che con da dans das de dem den der des di die du e ein eine einem einen "
    "einer el en er es est et fur gli ich il in ist je la las le les los mit nicht oder para per por pour que qui sich "
    "sie sind son su sur un una und une uno von was wer wie wo y zu zum zur".split()
)
# Words that stand for something said before.
_BACK_WORDS = frozenset(
    "another he her hers him his it its one ones she that their theirs them there these they this those "
    "dieser diese dieses er es ihm ihr ihre ihn sein seine sie celui celle elle elles il ils leur lui son ella ellas "
    "ellos esto".split()
)


def all_terms(text: str) -> list[str]:
    """Return the terms of a text that is indexed, in its order, repeated as they are.

    >>> all_terms("Élan vital, don't: 東京都")
    ['elan', 'vital', 'don', 't', '東', '京', '都', '東京', '京都']
    """
    return [term for word in _words(text) for term in _terms_of_word(word, with_characters=True)]


def query_terms(text: str) -> list[str]:
    """Return the terms of a question, each once, without stop words unless there are no others.

    >>> query_terms('What is the "capital" OR NEAR(Japan)? capital'), query_terms("Who is he?"), query_terms("東京都")
    (['capital', 'near', 'japan'], ['who', 'is', 'he'], ['東京', '京都'])
    """
    terms = list(dict.fromkeys(_query_form(text)))
    return [term for term in terms if term not in STOP_WORDS] or terms


def query_phrases(text: str) -> list[str]:
    """Return the phrases of a question: its quotations, and neighbouring terms that are no stop words.

    >>> query_phrases('In "The Bohr Model", what took place?')
    ['the bohr model', 'bohr model', 'took place']
    """
    quotations = [_query_form(quotation) for quotation in _QUOTATION.findall(text)]
    terms = _query_form(text)
    pairs = [list(pair) for pair in pairwise(terms) if STOP_WORDS.isdisjoint(pair)]
    return list(dict.fromkeys(" ".join(phrase) for phrase in quotations + pairs if len(phrase) > 1))


def refers_back(question: str) -> bool:
    """Return True if a question can only be understood with the one before it, by its words.

    >>> refers_back("And where does he live?"), refers_back("Why?"), refers_back("Where do lions live?")
    (True, True, False)
    """
    words = _words(question)
    return words[:1] == ["and"] or STOP_WORDS.issuperset(words) or not _BACK_WORDS.isdisjoint(words)


def _query_form(text: str) -> list[str]:
    return [term for word in _words(text) for term in _terms_of_word(word)]


def _words(text: str) -> list[str]:
    """The words of a text in one form, and its stretches of unspaced scripts."""
    if text.isascii():
        return _ASCII_WORD.findall(text.lower())
    decomposed = unicodedata.normalize("NFKD", text).casefold()
    return _WORD.findall(unicodedata.normalize("NFC", _POINTS.sub("", decomposed)))


def _terms_of_word(word: str, with_characters: bool = False) -> Sequence[str]:
    if word.isascii() or len(word) == 1 or not _IS_UNSPACED.match(word):
        return (word[:MAX_TERM_CHARACTERS],)
    pairs = [word[index : index + 2] for index in range(len(word) - 1)]
    return [*word, *pairs] if with_characters else pairs
