"""Words to spell: the user's list, or else the embedded world's words and invented words recombined from them.

The split of a word is a hash of its letters: train and test never share a word, even of different or growing lists.
`python -m dev.list_words` writes a list of the base data's words.
"""

from __future__ import annotations

import functools
import hashlib
import random
import re
from itertools import islice
from pathlib import Path

from nanochat.common import UserError, base_dir
from nanochat.system.files import read_regular_file
from nanochat.system.json_files import MAX_BYTES

FILE_NAME = "words.txt"
TEST_ONE_IN = 6  # one word in six is a test word
WORD_LENGTHS = range(3, 17)  # letters

NUM_STORIES = 300  # with the facts, they contain nine in ten of the world's words
NUM_INVENTED = 4000
MAX_INVENTED_LEN = 10

_UNPRONOUNCEABLE = re.compile(r"(.)\1\1|[^aeiouy]{4}|^[^aeiouy]*$")


def load_words(split: str, path: Path | None = None) -> tuple[str, ...]:
    """Return the words of a split, "train" or "test", sorted.

    They come from the file `path`, else from `words.txt` in nanochat's folder (`$NANOCHAT_BASE_DIR`), else from the
    embedded world. A file has one word per line; lines that are not a single word of 3 to 16 letters are skipped.
    Raises UserError for a file that cannot be read or has no word for the split.
    """
    assert split in ("train", "test"), f"no split {split!r}"
    if path is None and (base_dir() / FILE_NAME).is_file():
        path = base_dir() / FILE_NAME
    words = _read_word_list(path) if path else _embedded_words()
    selected = tuple(word for word in words if is_test_word(word) == (split == "test"))
    if not selected:
        raise UserError(
            f"{path}: no word to {split} with; the list must have some hundreds, one per line, of 3 to 16 letters"
        )
    return selected


def is_test_word(word: str) -> bool:
    """Return True if a word is reserved for testing: it is never spelled in training."""
    return hashlib.sha256(word.encode("utf-8")).digest()[0] % TEST_ONE_IN == 0


def collect_world_words() -> tuple[str, ...]:
    """Return the embedded world's words in lower case, sorted."""
    from nanochat.data.storyworld import generate_stories, list_facts

    sentences = [sentence for fact in list_facts() for sentence in fact.sentences]
    stories = islice(generate_stories("train", 0), NUM_STORIES)
    return tuple(sorted({word for text in (*sentences, *stories) for word in _lowercase_words(text)}))


def invent_words(real_words: tuple[str, ...], count: int, seed: int = 0) -> tuple[str, ...]:
    """Return `count` invented words, sorted: the beginning of one real word with the end of another.

    They consist of the tokens of real words in new combinations.
    """
    rng = random.Random(seed)
    known = frozenset(real_words)
    invented: set[str] = set()
    while len(invented) < count:
        first, second = rng.choice(real_words), rng.choice(real_words)
        word = first[: rng.randint(2, len(first) - 1)] + second[rng.randint(1, len(second) - 2) :]
        if word not in known and len(word) <= MAX_INVENTED_LEN and not _UNPRONOUNCEABLE.search(word):
            invented.add(word)
    return tuple(sorted(invented))


@functools.cache
def _embedded_words() -> tuple[str, ...]:
    real_words = collect_world_words()
    return tuple(sorted((*real_words, *invent_words(real_words, NUM_INVENTED))))


@functools.cache
def _read_word_list(path: Path) -> tuple[str, ...]:
    try:
        lines = read_regular_file(path, MAX_BYTES).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"word list {path}: not UTF-8 ({error})") from error
    except UserError as error:
        raise UserError(f"word list {error}") from error
    words = (line.strip().lower() for line in lines)
    return tuple(sorted({word for word in words if word.isalpha() and len(word) in WORD_LENGTHS}))


def _lowercase_words(text: str) -> list[str]:
    return [word for word in re.findall(r"[a-z]+", text.lower()) if len(word) in WORD_LENGTHS]
