"""The judgement of answers: equal to the sentences of the document, or supported by a passage."""

from __future__ import annotations

import re
from collections.abc import Sequence

from nanochat.conversations.english import FUNCTION_WORDS
from nanochat.conversations.sentences import content_words, normalize, split_sentences, words

MIN_SUPPORT = 0.7  # share of an answer's content words that must stand in the passage
_NUMBER = re.compile(r"\d[\d.,]{0,20}")


def answer_matches(answer: str, expected_sentences: Sequence[str]) -> bool:
    """Return True if an answer is the expected sentences, or the first ones of them, and nothing else.

    White space, case and punctuation do not count.

    >>> answer_matches("“Go away,” said the  hen", ['"Go away," said the hen.', "It was late."])
    True
    >>> answer_matches("The hen was late.", ['"Go away," said the hen.', "It was late."])
    False
    """
    reply = normalize(answer)
    given = ""
    for sentence in expected_sentences:
        given = f"{given} {normalize(sentence)}".strip()
        if reply == given:
            return bool(reply)
    return False


def is_supported(answer: str, passage: str) -> str:
    """Return an empty text if an answer written by another model stands in the passage, else what is wrong with it.

    Its numbers and names, and most of its other words, must be those of the passage.
    """
    known = content_words(passage)
    known_words = set(words(passage))
    if missing := [number for number in _numbers(answer) if number not in _numbers(passage)]:
        return f"a number that is not in the passage: {missing[0]}"
    for sentence in split_sentences(answer):
        for token in sentence.split()[1:]:
            name = (words(token) or [""])[0]
            is_name = token.strip("\"'“”‘(")[:1].isupper() and name not in FUNCTION_WORDS
            if is_name and name not in known_words and not content_words(name) <= known:
                return f"a name that is not in the passage: {name}"
    found = content_words(answer)
    if not found:
        return "no word that could be checked"
    if len(found & known) < MIN_SUPPORT * len(found):
        return "too many words that are not in the passage"
    return ""


def _numbers(text: str) -> set[str]:
    return {number.rstrip(".,") for number in _NUMBER.findall(text)}
