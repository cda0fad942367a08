"""Spelling tasks: spell a word, or count a letter in it with the calculator. A model that reads tokens sees no letters.

    How many r are in "strawberry"?
    s t r a w b e r r y
    <|python_start|>"s t r a w b e r r y".count("r")<|python_end|><|output_start|>3<|output_end|>
    #### 3

The spelling comes first, one token per letter, and the call counts in the spelling, so the model only copies letters. A
call with the unspelled word would need other tokens than the question (" strawberry" begins with a space, '"strawberry'
with a quotation mark), and small models are worse at that (dev/LOG.md). The call uses double quotes because the
tokenizer splits `'strawberry` after the s, as in "it's". No word occurs in both train and test (tasks/words.py).
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nanochat.common import UserError
from nanochat.system.files import expand_path
from nanochat.tokenization.chat_format import Conversation
from tasks.common import (
    Task,
    final_numbers_match,
    make_conversation,
    reference_text,
    row_rng,
    text_part,
    tool_call_parts,
)
from tasks.words import load_words

Parts = list[dict[str, str]]  # of an assistant message

ALPHABET = "abcdefghijklmnopqrstuvwxyz"
RANDOM_LETTER_PROB = 0.1  # of asking for a random letter of the alphabet, which may not occur in the word

# {L} and {W}: the letter and the word, each with its quotation marks, if any.
COUNT_TEMPLATES = """
How many {L} are in {W}?
How many {L} are in the word {W}?
How many {L} are there in {W}?
How many {L} are there in the word {W}?
How many {L} does {W} have?
How many {L} does the word {W} have?
How many {L} does the word {W} contain?
How many {L} can you find in {W}?
How many times does {L} occur in {W}?
How many times does {L} appear in the word {W}?
How many times does the letter {L} occur in the word {W}?
How often is {L} in {W}?
How often does the letter {L} appear in {W}?
Count the {L} in {W}.
Count the letter {L} in the word {W}.
Count how many {L} are in {W}.
Count how many times {L} is in the word {W}.
Tell me how many {L} are in {W}.
Tell me how many times the letter {L} is in the word {W}.
What is the number of {L} in {W}?
In the word {W}, how many {L} are there?
In {W}, how often does {L} occur?
The word is {W}. How many {L} does it have?
Please count the {L} in {W}.
Please tell me how many {L} the word {W} has.
Do you know how many {L} are in {W}?
Can you count the {L} in the word {W}?
""".strip().split("\n")

SPELL_TEMPLATES = """
Spell {W}.
Spell the word {W}.
Spell the word {W}
Please spell {W}.
Please spell the word {W}.
How do you spell {W}?
How is the word {W} spelled?
How do you write {W}, letter by letter?
Can you spell {W}?
Can you spell the word {W} for me?
What are the letters of {W}?
Which letters does the word {W} have?
Say the letters of the word {W}.
Write {W} letter by letter.
Write the word {W} with a space after each letter.
Spell it out: {W}
""".strip().split("\n")


def spell(word: str) -> str:
    """Separate the letters of a word by spaces: each letter becomes one token.

    >>> spell("apple")
    'a p p l e'
    """
    return " ".join(word)


def _count_parts(sequence: str, letter: str) -> Parts:
    return tool_call_parts(f'"{sequence}".count("{letter}")', str(sequence.count(letter)))


# Ways to solve a counting question, by name: (word, letter) -> the parts of the answer before the result.
SOLUTION_STYLES: dict[str, Callable[[str, str], Parts]] = {
    "word": lambda word, letter: [text_part(f"{spell(word)}\n"), *_count_parts(word, letter)],
    "letters": lambda word, letter: [text_part(f"{spell(word)}\n"), *_count_parts(spell(word), letter)],
    "call": lambda word, letter: _count_parts(word, letter),
}
DEFAULT_STYLE = "letters"


class _WordTask(Task):
    """Questions about the words of a split in a fixed random order, which repeats after the last word."""

    def __init__(
        self,
        split: str = "test",
        *,
        size: int = 1000,
        quoted: bool | None = None,
        word_list: str | Path | None = None,
        **kwargs: Any,
    ) -> None:
        """Generate `size` rows. `quoted`: put the word in quotation marks (None: in half of the rows).

        `word_list`: a file of words to use instead of the default list (tasks/words.py).
        """
        super().__init__(**kwargs)
        if split not in ("train", "test"):
            raise UserError(f"{self.name}: split is {split!r}: must be one of train, test")
        if size < 1:
            raise UserError(f"{self.name}: size is {size}: must be at least 1")
        self.split = split
        self.size = size
        self.quoted = quoted
        self.word_list = expand_path(word_list) if word_list else None

    @functools.cached_property
    def words(self) -> list[str]:
        """The words of the split, in the order in which they are asked."""
        words = list(load_words(self.split, self.word_list))
        row_rng(self.name, self.split).shuffle(words)
        return words

    def num_examples(self) -> int:
        return self.size

    def _draw_quotation_mark(self, rng: random.Random) -> str:
        """Return a quotation mark to put around the word, or "" for none."""
        is_quoted = rng.random() < 0.5 if self.quoted is None else self.quoted
        return rng.choice("\"'") if is_quoted else ""


class SpellingBee(_WordTask):
    """Count a letter in a word.

    A completion is correct if the number after its last `####` equals the letter's count.
    """

    name = "SpellingBee"

    def __init__(self, split: str = "test", *, style: str = DEFAULT_STYLE, **options: Any) -> None:
        """`style`: a key of SOLUTION_STYLES; `options`: size, quoted, word_list, start, stop, step, shuffle."""
        super().__init__(split, **options)
        if style not in SOLUTION_STYLES:
            raise UserError(f"{self.name}: style is {style!r}: must be one of {', '.join(SOLUTION_STYLES)}")
        self.style = style

    def get_example(self, index: int) -> Conversation:
        rng = row_rng(self.name, self.split, index)
        word = self.words[index % len(self.words)]
        letter = rng.choice(ALPHABET if rng.random() < RANDOM_LETTER_PROB else word)
        word_mark = self._draw_quotation_mark(rng)
        letter_mark = word_mark if rng.random() < 0.5 else ""
        question = rng.choice(COUNT_TEMPLATES).format(
            L=f"{letter_mark}{letter}{letter_mark}", W=f"{word_mark}{word}{word_mark}"
        )
        answer = [*SOLUTION_STYLES[self.style](word, letter), text_part(f"\n#### {word.count(letter)}")]
        return make_conversation(question, answer, word=word, letter=letter)

    def evaluate(self, conversation: Conversation, completion: str) -> bool:
        return final_numbers_match(conversation, completion)


class SimpleSpelling(_WordTask):
    """Spell a word; a completion is correct if it has every letter, separated by spaces."""

    name = "SimpleSpelling"

    def get_example(self, index: int) -> Conversation:
        rng = row_rng(self.name, self.split, index)
        word = self.words[index % len(self.words)]
        mark = self._draw_quotation_mark(rng)
        question = rng.choice(SPELL_TEMPLATES).format(W=f"{mark}{word}{mark}")
        return make_conversation(question, spell(word), word=word)

    def evaluate(self, conversation: Conversation, completion: str) -> bool:
        return completion.strip() == reference_text(conversation)
