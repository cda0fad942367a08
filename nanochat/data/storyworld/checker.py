"""Checker of texts: each sentence must be well-formed by the grammar and true in the world."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from nanochat.data.storyworld import world
from nanochat.data.storyworld.grammar import NAMES
from nanochat.data.storyworld.judge import Context, Judge
from nanochat.data.storyworld.parser import Parser
from nanochat.data.storyworld.patterns import vocabulary

MAX_TOKENS = 90  # words and marks of a sentence
_TOKEN = re.compile(r"[A-Za-z]+(?:['-][A-Za-z]+)*|\n+|[^\S\n]+|.")
_END_MARKS = (".", "!", "?")
_CAPITALIZED = frozenset(name.split()[0] for name in (*NAMES, *world.DAYS, "Prince", "I"))
Tokens = list[str]  # of one sentence: words, marks and blanks


@dataclass(frozen=True)
class Verdict:
    """A sentence of a text, with `ok` True if it is sound, else with the reason."""

    sentence: str
    ok: bool
    reason: str = ""


def check_text(text: str, *, truncated: bool = False) -> list[Verdict]:
    """Return a verdict on every sentence of a text, in order. Pronouns are resolved from the sentences before.

    `truncated`: the text may end in mid-sentence, as a sample limited by its length does; such a fragment gets no
    verdict.

    >>> [verdict.ok for verdict in check_text("Rusty the fox lives in the old barn. Rusty lives in the mill.")]
    [True, False]
    """
    verdicts: list[Verdict] = []
    context = Context()
    for pieces in _split_sentences(text):
        joined_context = context.copy()
        joined = _check_sentence([token for piece in pieces for token in piece], joined_context)
        if joined.ok or len(pieces) == 1:
            verdicts.append(joined)
            context = joined_context
        else:
            verdicts.extend(_check_sentence(piece, context) for piece in pieces)
    if truncated and verdicts and not verdicts[-1].sentence.rstrip('"').endswith(_END_MARKS):
        verdicts.pop()
    return verdicts


def sound_fraction(text: str, *, truncated: bool = False) -> float:
    """Return the fraction of sentences that are sound, 0 for a text without any; `truncated` as in `check_text`."""
    verdicts = check_text(text, truncated=truncated)
    return sum(verdict.ok for verdict in verdicts) / len(verdicts) if verdicts else 0.0


def _split_sentences(text: str) -> Iterator[list[Tokens]]:
    """Yield each sentence as a list of pieces, each a list of tokens.

    A sentence has several pieces where it may be several sentences: after a quotation that ends in a closing mark.
    """
    pieces: list[Tokens] = [[]]
    in_quote = False
    tokens = _TOKEN.findall(text)
    for i, token in enumerate(tokens):
        if token.startswith("\n"):
            if any(pieces[-1]):
                yield pieces
            pieces = [[]]
            in_quote = False
            continue
        if not pieces[-1] and token.isspace():
            continue
        pieces[-1].append(token)
        before = pieces[-1][-2] if len(pieces[-1]) > 1 else ""
        after = next((t for t in tokens[i + 1 :][:2] if not t.isspace() or "\n" in t), "")
        if token == '"':
            in_quote = not in_quote
            if not in_quote and before in _END_MARKS:
                if before == "." or not after or not after[0].isalpha():
                    yield pieces
                    pieces = [[]]
                elif after[0].isupper():
                    pieces.append([])
        elif token in _END_MARKS and not in_quote:
            yield pieces
            pieces = [[]]
    if any(pieces[-1]):
        yield pieces


def _check_sentence(tokens: Tokens, context: Context) -> Verdict:
    sentence = "".join(tokens).strip()
    words, reason = _to_words([token for token in tokens if not token.isspace()])
    if not reason:
        context.step(words)
        reason = _find_fault(words, context)
    return Verdict(sentence, not reason, reason)


def _to_words(tokens: Tokens) -> tuple[list[str], str]:
    """Return the words as spelled in the grammar, and ""; for an invalid sentence [], and the reason.

    >>> _to_words(["An", "owl", "can", "hoot", "."])
    (['a', 'owl', 'can', 'hoot', '.'], '')
    """
    if len(tokens) > MAX_TOKENS:
        return [], "too long"
    if not any(token[0].isalpha() for token in tokens):
        return [], "no words"
    words: list[str] = []
    is_start = True
    in_quote = False
    for i, token in enumerate(tokens):
        if token == '"':
            words.append("”" if in_quote else "“")
            in_quote = not in_quote
            is_start = in_quote
            continue
        if token[0].isalpha():
            if is_start and not token[0].isupper():
                return [], f"no capital letter: {token!r}"
            if is_start and token.removesuffix("'s") not in _CAPITALIZED:
                token = token[0].lower() + token[1:]
            is_start = False
            after = tokens[i + 1] if i + 1 < len(tokens) else ""
            if token in ("a", "an"):
                takes_an = after[:1].lower() in tuple("aeiou") or after == "hour"
                if (token == "an") != takes_an:
                    return [], f"wrong article: {token!r} before {after!r}"
                token = "a"
            if token not in vocabulary() and token.removesuffix("'s") not in vocabulary():
                return [], f"unknown word: {token!r}"
        elif token in _END_MARKS:
            is_start = in_quote
        elif token not in ",:":
            return [], f"unknown mark: {token!r}"
        words.append(token)
    return words, ""


def _find_fault(words: list[str], context: Context) -> str:
    """Return "" if one parse of the sentence is sound, else a reason; a false fact is preferred as the reason."""
    parser = Parser(words)
    parses = parser.sentence()
    if not parses:
        position = repr(words[parser.furthest]) if parser.furthest < len(words) else "'its end'"
        return f"not a sentence: stuck at {position}"
    reasons = []
    for findings in parses:
        judge = Judge(findings, words, context)
        reason = judge.reason()
        if not reason:
            context.now |= judge.resolved
            return ""
        reasons.append(reason)
    return min(reasons, key=lambda reason: not reason.startswith("false"))
