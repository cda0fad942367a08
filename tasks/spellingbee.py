"""Letters, which a model that reads tokens cannot see: spell a word, count a letter in it with the calculator.

    How many r are in "strawberry"?
    s t r a w b e r r y
    <|python_start|>"s t r a w b e r r y".count("r")<|python_end|><|output_start|>3<|output_end|>
    #### 3

The spelling comes first, a token a letter, and the call counts in it: so the model copies letters. A word it would
have to put together from other tokens than those of the question (` strawberry` begins with a space, `"strawberry`
with a quote), which small models do worse (dev/LOG.md). The call has double quotes, because the tokenizer splits
`'strawberry` after the s, as it does in "it's". No word is both in train and in test (tasks/words.py).
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nanochat.common import UserError
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

Parts = list[dict[str, str]]

ALPHABET = "abcdefghijklmnopqrstuvwxyz"
RANDOM_LETTER_PROB = 0.1  # the share of questions for any letter of the alphabet, which the word may not have

# {L} and {W}: the letter and the word, each with its quotes if it has any.
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
    """`apple` -> `a p p l e`: each letter is a token of its own."""
    return " ".join(word)


def _count(sequence: str, letter: str) -> Parts:
    return tool_call_parts(f'"{sequence}".count("{letter}")', str(sequence.count(letter)))


# How a question is worked out, by name: (word, letter) -> the parts before the result.
SOLUTION_STYLES: dict[str, Callable[[str, str], Parts]] = {
    "word": lambda word, letter: [text_part(f"{spell(word)}\n"), *_count(word, letter)],
    "letters": lambda word, letter: [text_part(f"{spell(word)}\n"), *_count(spell(word), letter)],
    "call": lambda word, letter: _count(word, letter),
}
DEFAULT_STYLE = "letters"


class _OfWords(Task):
    """A question about each word in turn, in a random order that is the same again in every round."""

    def __init__(
        self,
        split: str = "test",
        *,
        size: int = 1000,
        quoted: bool | None = None,
        word_list: str | Path | None = None,
        **rows: Any,
    ) -> None:
        """`size` rows; the word in quotes, or not, or in half of them (None); `word_list`: a file (tasks/words.py)."""
        super().__init__(**rows)
        if split not in ("train", "test") or size < 1:
            raise UserError(f"{self.name}: split is {split!r}, train and test are there; size is {size}, at least 1")
        self.split, self.size, self.quoted = split, size, quoted
        self.word_list = Path(word_list) if word_list else None

    @functools.cached_property
    def words(self) -> list[str]:
        """The words of the split, in the order in which they are asked."""
        found = list(load_words(self.split, self.word_list))
        row_rng(self.name, self.split).shuffle(found)
        return found

    def num_examples(self) -> int:
        return self.size

    def _mark(self, generator: random.Random) -> str:
        """What stands around the word: a quotation mark or nothing."""
        quoted = generator.random() < 0.5 if self.quoted is None else self.quoted
        return generator.choice("\"'") if quoted else ""


class SpellingBee(_OfWords):
    """How many of a letter are in a word; right is the number after `####`."""

    name = "SpellingBee"

    def __init__(self, split: str = "test", *, style: str = DEFAULT_STYLE, **options: Any) -> None:
        """`style`: one of STYLES; `options`: size, quoted, word_list, start, stop, step, shuffle."""
        super().__init__(split, **options)
        if style not in SOLUTION_STYLES:
            raise UserError(f"{self.name}: style is {style!r}; it must be one of {', '.join(SOLUTION_STYLES)}")
        self.style = style

    def get_example(self, index: int) -> Conversation:
        generator = row_rng(self.name, self.split, index)
        word = self.words[index % len(self.words)]
        letter = generator.choice(ALPHABET if generator.random() < RANDOM_LETTER_PROB else word)
        mark = self._mark(generator)
        around = mark if generator.random() < 0.5 else ""
        question = generator.choice(COUNT_TEMPLATES).format(L=f"{around}{letter}{around}", W=f"{mark}{word}{mark}")
        answer = [*SOLUTION_STYLES[self.style](word, letter), text_part(f"\n#### {word.count(letter)}")]
        return make_conversation(question, answer, word=word, letter=letter)

    def evaluate(self, conversation: Conversation, completion: str) -> bool:
        return final_numbers_match(conversation, completion)


class SimpleSpelling(_OfWords):
    """Spell a word; right is each letter, with spaces between them."""

    name = "SimpleSpelling"

    def get_example(self, index: int) -> Conversation:
        generator = row_rng(self.name, self.split, index)
        word = self.words[index % len(self.words)]
        mark = self._mark(generator)
        question = generator.choice(SPELL_TEMPLATES).format(W=f"{mark}{word}{mark}")
        return make_conversation(question, spell(word), word=word)

    def evaluate(self, conversation: Conversation, completion: str) -> bool:
        return completion.strip() == reference_text(conversation)
