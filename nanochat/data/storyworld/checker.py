"""Judges sentences: well-formed by the grammar, and true to the world?"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from nanochat.data.storyworld import world
from nanochat.data.storyworld.grammar import NAMES
from nanochat.data.storyworld.judge import Context, Judge
from nanochat.data.storyworld.parser import Parser
from nanochat.data.storyworld.patterns import vocabulary

LONGEST = 90  # words and marks of a sentence
_TOKEN = re.compile(r"[A-Za-z]+(?:['-][A-Za-z]+)*|\n+|[^\S\n]+|.")
_ENDS = (".", "!", "?")
_CAPITALS = frozenset(name.split()[0] for name in (*NAMES, *world.DAYS, "Prince", "I"))


@dataclass(frozen=True)
class Verdict:
    """A sentence as it stands in the text, whether it is sound, and if not, why."""

    sentence: str
    ok: bool
    reason: str = ""


def check_text(text: str, *, truncated: bool = False) -> list[Verdict]:
    """A verdict on every sentence of a text, in order; pronouns are understood from the sentences before.

    `truncated` says that the text may end in mid-sentence, as a sample cut by its length does: such an end is left out.

    >>> [verdict.ok for verdict in check_text("Rusty the fox lives in the old barn. Rusty lives in the mill.")]
    [True, False]
    """
    verdicts: list[Verdict] = []
    context = Context()
    for pieces in _sentences(text):
        joined = _judge([token for piece in pieces for token in piece], trial := context.copy())
        if joined.ok or len(pieces) == 1:
            verdicts.append(joined)
            context = trial
        else:
            verdicts.extend(_judge(piece, context) for piece in pieces)
    if truncated and verdicts and not verdicts[-1].sentence.rstrip('"').endswith(_ENDS):
        verdicts.pop()
    return verdicts


def sound_fraction(text: str, *, truncated: bool = False) -> float:
    """The share of sentences that are sound, 0 for a text without any; `truncated` as in `check_text`."""
    verdicts = check_text(text, truncated=truncated)
    return sum(verdict.ok for verdict in verdicts) / len(verdicts) if verdicts else 0.0


def _sentences(text: str) -> Iterator[list[list[str]]]:
    """Sentences as tokens, blanks included; one that may be two, for a quotation ends in it, comes in pieces."""
    pieces: list[list[str]] = [[]]
    quoted = False
    tokens = _TOKEN.findall(text)
    for i, token in enumerate(tokens):
        if token.startswith("\n"):
            if any(pieces[-1]):
                yield pieces
            pieces, quoted = [[]], False
            continue
        if not pieces[-1] and token.isspace():
            continue
        pieces[-1].append(token)
        before = pieces[-1][-2] if len(pieces[-1]) > 1 else ""
        after = next((t for t in tokens[i + 1 :][:2] if not t.isspace() or "\n" in t), "")
        if token == '"':
            quoted = not quoted
            if not quoted and before in _ENDS:
                if before == "." or not after or not after[0].isalpha():
                    yield pieces
                    pieces = [[]]
                elif after[0].isupper():
                    pieces.append([])
        elif token in _ENDS and not quoted:
            yield pieces
            pieces = [[]]
    if any(pieces[-1]):
        yield pieces


def _judge(tokens: list[str], context: Context) -> Verdict:
    sentence = "".join(tokens).strip()
    words, reason = _words([token for token in tokens if not token.isspace()])
    if not reason:
        context.step(words)
        reason = _reason(words, context)
    return Verdict(sentence, not reason, reason)


def _words(tokens: list[str]) -> tuple[list[str], str]:
    """The words as the grammar writes them, or what is wrong with them."""
    if len(tokens) > LONGEST:
        return [], "too long"
    if not any(token[0].isalpha() for token in tokens):
        return [], "no words"
    words: list[str] = []
    start, quoted = True, False
    for i, token in enumerate(tokens):
        if token == '"':
            words.append("”" if quoted else "“")
            quoted = not quoted
            start = quoted
            continue
        if token[0].isalpha():
            bare = token.removesuffix("'s")
            if start and not token[0].isupper():
                return [], f"no capital letter: {token!r}"
            if start and bare not in _CAPITALS:
                token = token[0].lower() + token[1:]
            start = False
            after = tokens[i + 1] if i + 1 < len(tokens) else ""
            if token in ("a", "an"):
                if (token == "an") != (after[:1].lower() in tuple("aeiou") or after == "hour"):
                    return [], f"wrong article: {token!r} before {after!r}"
                token = "a"
            if token not in vocabulary() and token.removesuffix("'s") not in vocabulary():
                return [], f"unknown word: {token!r}"
        elif token in _ENDS:
            start = quoted
        elif token not in ",:":
            return [], f"unknown mark: {token!r}"
        words.append(token)
    return words, ""


def _reason(words: list[str], context: Context) -> str:
    parser = Parser(words)
    parses = parser.sentence()
    if not parses:
        stuck = words[parser.furthest] if parser.furthest < len(words) else "its end"
        return f"not a sentence: stuck at {stuck!r}"
    reasons = []
    for findings in parses:
        judge = Judge(findings, words, context)
        if not (reason := judge.reason()):
            context.now |= judge.resolved
            return ""
        reasons.append(reason)
    return min(reasons, key=lambda reason: not reason.startswith("false"))
