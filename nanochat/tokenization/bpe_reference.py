r"""Byte-level BPE to read and learn from: a trainer, an encoder and a decoder in plain Python.

The Rust extension and the Hugging Face trainer compute the same vocabularies and ids, many times faster. Tests compare
both with this file. Read the functions from top to bottom; each builds on those before it.

1. Text is UTF-8 bytes. The first 256 token ids are the 256 single bytes, so that every text can be encoded.
2. A regular expression, the split pattern, cuts a text into words: a word with the space before it, a group of digits,
   a run of punctuation. Pairs are counted and merged within words only, so that "dog." and "dog!" do not become
   two more tokens beside "dog".
3. Training repeats one step: count all pairs of neighbouring ids, give the most frequent pair the next id, and replace
   the pair by that id wherever it occurs. When several pairs are equally frequent, the lowest pair of ids is merged.
4. Encoding repeats the merges on the bytes of each word, the earliest learned first.
5. Decoding joins the bytes of the ids.
6. Special tokens such as `<|bos|>` have the ids after the merges. They mark the structure of a conversation and have no
   bytes of text. Only the program inserts them; `encode` treats the characters "<|bos|>" as ordinary text, so that a
   user's message cannot end its own turn.

>>> tokens = train(["low lower lowest"], vocab_size=260, pattern=r"\w+|\W")
>>> tokens[256:]  # "lo" and "low" occur 3 times, "lowe" twice; then all pairs occur once, and the lowest is ("s", "t")
[b'lo', b'low', b'lowe', b'st']
>>> tokenizer = ReferenceTokenizer(tokens, pattern=r"\w+|\W", special_tokens=["<|bos|>"])
>>> tokenizer.encode("slow lower")
[115, 257, 32, 258, 114]
>>> tokenizer.decode([260, 115, 257, 32, 258, 114])
'<|bos|>slow lower'
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import regex

from nanochat.tokenizer import SPECIAL_TOKENS, SPLIT_PATTERN

Pair = tuple[int, int]
Word = tuple[int, ...]  # token ids


def split_words(text: str, pattern: str = SPLIT_PATTERN) -> list[bytes]:
    """Cut a text into words, as UTF-8 bytes.

    A space belongs to the word that follows it, contractions are words, and digits come in groups of two:

    >>> split_words("It's 2025, isn't it?")
    [b'It', b"'s", b' ', b'20', b'25', b',', b' isn', b"'t", b' it', b'?']
    """
    return [match.group().encode("utf-8") for match in regex.finditer(pattern, text)]


def count_pairs(word_counts: Mapping[Word, int]) -> Counter[Pair]:
    """Count the pairs of neighbouring ids in all words. `word_counts`: word -> number of its occurrences.

    >>> count_pairs({(1, 2, 3): 10, (2, 3): 5})
    Counter({(2, 3): 15, (1, 2): 10})
    """
    pair_counts: Counter[Pair] = Counter()
    for word, count in word_counts.items():
        for pair in pairwise(word):
            pair_counts[pair] += count
    return pair_counts


def most_frequent_pair(pair_counts: Mapping[Pair, int]) -> Pair:
    """Return the pair with the highest count; of equal counts, the lowest pair of ids.

    >>> most_frequent_pair({(7, 1): 4, (5, 9): 4, (5, 8): 3})
    (5, 9)
    """
    return min(pair_counts, key=lambda pair: (-pair_counts[pair], pair))


def merge_pair(word: Word, pair: Pair, new_id: int) -> Word:
    """Replace each occurrence of a pair by its new id, from left to right.

    >>> merge_pair((1, 2, 3, 1, 2), pair=(1, 2), new_id=9)
    (9, 3, 9)
    >>> merge_pair((1, 1, 1), pair=(1, 1), new_id=9)
    (9, 1)
    """
    merged: list[int] = []
    position = 0
    while position < len(word):
        if word[position : position + 2] == pair:
            merged.append(new_id)
            position += 2
        else:
            merged.append(word[position])
            position += 1
    return tuple(merged)


def train(texts: Iterable[str], vocab_size: int, pattern: str = SPLIT_PATTERN) -> list[bytes]:
    r"""Learn a vocabulary: return the bytes of every token by id, the 256 single bytes first, then the merges.

    Fewer than `vocab_size` tokens are returned if no pair is left to merge. Every step counts all pairs anew; the Rust
    trainer updates the counts instead.

    >>> train(["nana ana"], vocab_size=258, pattern=r"\w+")[256:]  # "n"+"a" and "a"+"n" occur twice; "a" < "n"
    [b'na', b'ana']
    """
    word_counts = Counter(tuple(word) for text in texts for word in split_words(text, pattern))
    tokens = [bytes([byte]) for byte in range(256)]
    while len(tokens) < vocab_size:
        pair_counts = count_pairs(word_counts)
        if not pair_counts:
            break
        pair = most_frequent_pair(pair_counts)
        merged_counts: Counter[Word] = Counter()
        for word, count in word_counts.items():
            merged_counts[merge_pair(word, pair, new_id=len(tokens))] += count
        word_counts = merged_counts
        tokens.append(tokens[pair[0]] + tokens[pair[1]])
    return tokens


def encode_word(word: bytes, ranks: Mapping[bytes, int]) -> list[int]:
    """Return the ids of one word. `ranks`: the bytes of each token -> its id.

    Of all neighbours whose concatenation is a token, the one with the lowest id, which was learned first, is merged,
    the leftmost of equals; this repeats until no two neighbours form a token. b"banana" with the merges "an" and "ana":

        b a n a n a -> b an a n a -> b an an a -> b an ana

    >>> ranks = {b"a": 0, b"b": 1, b"n": 2, b"an": 3, b"ana": 4}
    >>> encode_word(b"banana", ranks)
    [1, 3, 4]
    """
    parts = [bytes([byte]) for byte in word]
    while True:
        candidates = [
            (ranks[left + right], position)
            for position, (left, right) in enumerate(pairwise(parts))
            if left + right in ranks
        ]
        if not candidates:
            return [ranks[part] for part in parts]
        _, position = min(candidates)
        parts[position : position + 2] = [parts[position] + parts[position + 1]]


@dataclass(frozen=True)
class ReferenceTokenizer:
    r"""A vocabulary with its split pattern: text to ids and back.

    >>> tokenizer = ReferenceTokenizer([bytes([byte]) for byte in range(256)])
    >>> tokenizer.encode("é"), tokenizer.decode([195]), tokenizer.encode_special("<|bos|>")
    ([195, 169], '\ufffd', 256)
    """

    tokens: Sequence[bytes]  # by id
    pattern: str = SPLIT_PATTERN
    special_tokens: Sequence[str] = SPECIAL_TOKENS  # their ids follow those of `tokens`
    ranks: dict[bytes, int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "ranks", {token: rank for rank, token in enumerate(self.tokens)})

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, which never contain a special token."""
        return [i for word in split_words(text, self.pattern) for i in encode_word(word, self.ranks)]

    def encode_special(self, name: str) -> int:
        """Return the id of a special token."""
        return len(self.tokens) + list(self.special_tokens).index(name)

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Return the bytes of the ids, special tokens as their names."""
        names = [name.encode("utf-8") for name in self.special_tokens]
        return b"".join([*self.tokens, *names][i] for i in ids)

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of the ids; bytes that are not UTF-8, such as half a character, become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")
