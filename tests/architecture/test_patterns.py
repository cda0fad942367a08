"""Regular expressions take time in proportion to a text, whatever the text is.

Every pattern in the code that is a constant searches in long texts made of its own characters and words. A pattern that
tries again from every character, or in several ways, would take hours; the limit is generous.
"""

from __future__ import annotations

import ast
import functools
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
NUM_CHARACTERS = 50_000  # half the square of which is more than a billion steps: a second, where they are simplest
MAX_SECONDS = 0.5  # of processor time, for a millisecond of work

# Patterns that are applied to the texts of the code itself, and to nobody else's: file -> beginnings of the patterns.
OWN_TEXTS = {
    "nanochat/data/storyworld/documents.py": ("([^.!?]+)",),
    "nanochat/data/storyworld/grammar.py": (r"\{[^}]*\}|",),
    "nanochat/data/storyworld/plots.py": (r"\{[^}]*\}", "[^.!?]+", '"([^"]*)"'),
}
ANCHORED = {"match": "match", "fullmatch": "fullmatch"}  # function -> the one to try; for all others it is search


class Pattern(NamedTuple):
    """A constant pattern, and a function of `re` that the code calls with it."""

    file: str
    text: str
    flags: int
    function: str


def patterns() -> Iterator[Pattern]:
    """Yield the constant patterns of the code."""
    for folder in ("nanochat", "tasks", "scripts"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            source = path.read_text(encoding="utf-8")
            tree = ast.parse(source)
            names = {  # a compiled pattern -> its name in the file
                id(node.value): node.targets[0].id
                for node in ast.walk(tree)
                if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
            }
            for node in ast.walk(tree):
                match node:
                    case ast.Call(
                        func=ast.Attribute(value=ast.Name(id="re"), attr=function),
                        args=[ast.Constant(value=str(text)), *others],
                    ):
                        words = {part.attr for other in [*others, *node.keywords] for part in ast.walk(other)
                                 if isinstance(part, ast.Attribute) and part.attr.isupper()}  # fmt: skip
                        flags = functools.reduce(int.__or__, (getattr(re, word) for word in words), 0)
                        calls = {function}
                        if function == "compile":
                            calls = set(re.findall(rf"\b{names.get(id(node), '')}\.(\w+)\(", source)) or {"search"}
                        for call in calls:
                            yield Pattern(path.relative_to(ROOT).as_posix(), text, flags, ANCHORED.get(call, "search"))


def long_texts(pattern: str) -> Iterator[str]:
    """Yield long texts of the pattern's characters and words, each with an end that does not match."""
    literal = re.sub(r"\\[a-zA-Z]", "", pattern)
    characters = sorted({*re.findall(r"[^\w\s\\]", literal), *" a1A\n"})
    words = sorted(set(re.findall(r"[A-Za-z]{2,}", literal)))
    openings = ["", *(opening for opening in ("?", "<<", "{", "[", "://", "```", "a") if opening in literal)]
    for unit in [*characters, *words, *(f"{character}a" for character in characters)]:
        text = unit * (NUM_CHARACTERS // len(unit)) + "\0"
        yield from (opening + text for opening in openings)
    yield "://" + "a" * NUM_CHARACTERS


def find_slow_text(pattern: Pattern) -> str | None:
    """Return the beginning of a text that takes longer than the limit, else None."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise TimeoutError

    search = getattr(re.compile(pattern.text, pattern.flags), pattern.function)
    previous = signal.signal(signal.SIGVTALRM, stop)
    try:
        for text in long_texts(pattern.text):
            signal.setitimer(signal.ITIMER_VIRTUAL, MAX_SECONDS)  # of this process, however busy the machine is
            try:
                search(text)
            except TimeoutError:
                return text[:20]
            finally:
                signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    finally:
        signal.signal(signal.SIGVTALRM, previous)
    return None


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no timers that interrupt a search")
def test_patterns() -> None:
    found = sorted(set(patterns()))
    assert len(found) > 50
    slow = [
        f"{pattern.file}: {pattern.text!r} in {beginning!r}..."
        for pattern in found
        if not pattern.text.startswith(OWN_TEXTS.get(pattern.file, ("\0",)))
        and (beginning := find_slow_text(pattern)) is not None
    ]
    assert not slow, "\n" + "\n".join(slow)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no timers that interrupt a search")
@pytest.mark.parametrize(
    ("function", "text"),
    [
        ("match", r"\s*(-)?\s*\$?\s*(-)?\s*[0-9]"),
        ("search", r"([A-Za-z][A-Za-z0-9+.-]*://)[^\s/@]*@"),
        ("search", r"([?&][\w.-]*(?:token|secret)[\w.-]*=)[^&]+"),
        ("search", r"(a+)+$"),
    ],
)
def test_slow_patterns_are_found(function: str, text: str) -> None:
    assert find_slow_text(Pattern("x.py", text, 0, function)) is not None
    assert find_slow_text(Pattern("x.py", r"[0-9]+", 0, function)) is None
