"""Words to spell: a list of the user's, else those of the embedded world with others made up of their pieces.

Whether a word is for training or for testing depends on nothing but its letters, so the two never share one, whatever
list they come from and however it grows. `python -m dev.list_words` makes a list of the base data's words.
"""

from __future__ import annotations

import functools
import hashlib
import random
import re
from itertools import islice
from pathlib import Path

from nanochat.common import UserError, base_dir

FILE_NAME = "words.txt"
TEST_PART = 6  # one word in six is for testing
WORD_LENGTHS = range(3, 17)  # letters of a word that is asked for

NUM_STORIES = 300  # they and the facts hold nine in ten of the world's words
NUM_MADE_UP = 4000

_UNSAYABLE = re.compile(r"(.)\1\1|[^aeiouy]{4}|^[^aeiouy]*$")


def load_words(split: str, path: Path | None = None) -> tuple[str, ...]:
    """The words of a split, "train" or "test", sorted: of the file `path`, else of `words.txt` in the base folder, else
    embedded ones. Such a file has one word a line; what is no single word of 3 to 16 letters is left out.

    Raises UserError for a file that cannot be read, or that has no word for this split.
    """
    assert split in ("train", "test"), f"no split {split!r}"
    if path is None and (base_dir() / FILE_NAME).is_file():
        path = base_dir() / FILE_NAME
    found = _read(path) if path else _embedded()
    chosen = tuple(word for word in found if is_test_word(word) == (split == "test"))
    if not chosen:
        raise UserError(
            f"{path}: no word to {split} with; it should have some hundreds, one a line, of 3 to 16 letters"
        )
    return chosen


def is_test_word(word: str) -> bool:
    """Whether a word is one of those that are never spelled in training."""
    return hashlib.sha256(word.encode("utf-8")).digest()[0] % TEST_PART == 0


def collect_world_words() -> tuple[str, ...]:
    """The embedded world's words in small letters, sorted."""
    from nanochat.data.storyworld import generate_stories, list_facts

    sentences = [sentence for fact in list_facts() for sentence in fact.sentences]
    found = {
        word for text in [*sentences, *islice(generate_stories("train", 0), NUM_STORIES)] for word in _plain_words(text)
    }
    return tuple(sorted(found))


def invent_words(real: tuple[str, ...], count: int, seed: int = 0) -> tuple[str, ...]:
    """`count` words that begin as one real word does and end as another, and are neither, sorted.

    So they have the tokens of real words, in new orders.
    """
    generator = random.Random(seed)
    found: set[str] = set()
    known = frozenset(real)
    while len(found) < count:
        first, second = generator.choice(real), generator.choice(real)
        word = first[: generator.randint(2, len(first) - 1)] + second[generator.randint(1, len(second) - 2) :]
        if word not in known and len(word) <= 10 and not _UNSAYABLE.search(word):
            found.add(word)
    return tuple(sorted(found))


@functools.cache
def _embedded() -> tuple[str, ...]:
    real = collect_world_words()
    return tuple(sorted((*real, *invent_words(real, NUM_MADE_UP))))


@functools.cache
def _read(path: Path) -> tuple[str, ...]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise UserError(f"word list {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"word list {path}: it is not UTF-8 ({error})") from error
    lowered = (line.strip().lower() for line in lines)
    return tuple(sorted({word for word in lowered if word.isalpha() and len(word) in WORD_LENGTHS}))


def _plain_words(text: str) -> list[str]:
    return [word for word in re.findall(r"[a-z]+", text.lower()) if len(word) in WORD_LENGTHS]
