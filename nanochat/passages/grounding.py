r"""The user's message that has passages of the documents before the question, in training and in chat alike.

Passages are a quotation as in Markdown and e-mail: each of their lines begins with `> `, the first one is the headings
that the passage stands under, and a line of `>` alone separates two. The first line without the mark is empty, and the
question is all that follows:

    > Tea / How to brew
    > Boil water. Pour it over the leaves.
    >
    > Coffee
    > Grind the beans.

    How do I make tea?

The format needs no words of one language and few tokens. It has one meaning whatever the passages and the question
contain: no line of a passage is without the mark, and the first empty line ends the passages. Names of special tokens
in it are text, as everywhere in a user's message (`nanochat/tokenization/chat_format.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from nanochat.passages.passage import Passage

NUM_PASSAGES = 3  # before a question, in training, chat and evaluation alike, as far as MAX_CHARACTERS lets them
MAX_CHARACTERS = 800  # of the texts of all passages before a question
MAX_LABEL_CHARACTERS = 120  # of the headings of one passage


def grounded_question(passages: Sequence[Passage], question: str, max_characters: int = MAX_CHARACTERS) -> str:
    r"""Return the message of a user that has `passages`, the best one first, before a question.

    `max_characters`: limit of the passages' texts together. The one that exceeds it is cut at the end of a sentence,
    later ones are left out. Without passages, or with a limit of 0, the message is the question alone.

    >>> passage = Passage("tea.md", ("Tea", "How to brew"), "Boil water.\n\nPour it over the leaves.")
    >>> grounded_question([passage], " How do I make tea?\n")
    '> Tea / How to brew\n> Boil water.\n> Pour it over the leaves.\n\nHow do I make tea?'
    """
    quotes = []
    for passage in fit_passages(passages, max_characters):
        label = " ".join(_lines(passage.label))[:MAX_LABEL_CHARACTERS].rstrip()
        quotes.append("\n".join(f"> {line}" for line in [label, *passage.text.split("\n")]))
    return "\n\n".join(filter(None, ["\n>\n".join(quotes), question.strip()]))


def fit_passages(passages: Sequence[Passage], max_characters: int = MAX_CHARACTERS) -> list[Passage]:
    """Return the first passages, without blank lines, whose texts have at most `max_characters` together.

    The text that exceeds the limit is cut at the end of a sentence.
    """
    fitting = []
    for passage in passages:
        text = shorten("\n".join(_lines(passage.text)), max_characters)
        max_characters -= len(text)
        if text:
            fitting.append(replace(passage, text=text))
    return fitting


def shorten(text: str, max_characters: int) -> str:
    """Return the beginning of a text: at most `max_characters`, to the end of a sentence, a word or a character.

    >>> shorten("One two. Three four.", 14), shorten("One two three", 9), shorten("Onetwothree", 6)
    ('One two.', 'One two', 'Onetwo')
    """
    if len(text) <= max_characters:
        return text
    part = text[: max(max_characters, 0) + 1]
    for marks in ((". ", "! ", "? ", ".\n", "!\n", "?\n"), (" ", "\n")):
        end = max(part.rfind(mark) + len(mark) - 1 if mark in part else 0 for mark in marks)
        if 2 * end > max_characters:  # a very short beginning would leave most of what fits unused
            return part[:end].rstrip()
    return part[:-1].rstrip()


def _lines(text: str) -> list[str]:
    """The lines of a text that are not blank, ended by any of Unicode's line ends, without spaces around them."""
    return [line.strip() for line in text.splitlines() if line.strip()]
