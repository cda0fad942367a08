"""Our tokenizer against tiktoken and PyPI's rustbpe on random strings: a difference is printed, with exit code 1.

    python -m dev.fuzz_tokenizer                           # ten million strings
    python -m dev.fuzz_tokenizer --strings=100000 --seed=7
    cargo test --release --manifest-path rustbpe/Cargo.toml -- --ignored      # the splitter alone, against its regex

A round takes 20,000 strings: some are trained on, with one of the patterns (the trainer against rustbpe's), all are
encoded as text and, with bytes thrown in that are no UTF-8, as bytes (the encoder against tiktoken), and decoded.
"""

from __future__ import annotations

import itertools
import sys
import time
from dataclasses import dataclass

import numpy as np

from nanochat.configurator import Settings, cli, setting
from nanochat.tokenization.encoders import TiktokenEncoder
from nanochat.tokenizer import SPLIT_PATTERN
from rustbpe import Tokenizer as Peer  # type: ignore[attr-defined]  # mypy takes our folder of that name for it

ROUND = 20_000
PATTERNS = (
    SPLIT_PATTERN,
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s",
    r"\w+|\s+|[^\w\s]",  # none that the splitter knows: it runs on the regex engine
)
# White space of every kind, apostrophes and what follows them, digits and letters of other scripts, marks, signs, emoji
COMMON = (
    "aabbcesStTdDmMlLvVrREe'''’ʼſKK    \n\n\r\t\x0b\x0c\x1c\x85\xa0\u1680\u2000\u2003\u2028\u2029\u202f\u205f\u3000"
    '\u200b\u200d\ufeff0123٣४๓Ⅳ½²①.,!?-_=+#@<|>"()\u0301\u0308\u0483éñßıİǅʰªаяЖאبあア世界한ก𝔸𐍈𝟘😀👩🏽'
    "\x00\x7f\ufffd\U0010ffff"
)


@dataclass(frozen=True)
class Config(Settings):
    strings: int = setting(10_000_000, "how many strings", at_least=1)
    seed: int = setting(1, "of the random numbers")


def random_texts(rng: np.random.Generator, count: int) -> list[str]:
    """Strings of up to 24 characters: mostly common ones, often repeated, sometimes any of all planes.

    One in twenty is long, since the splitter takes 64 bytes at a time, and most of these have little beyond ASCII.
    """
    is_long = rng.random(count) < 0.05
    lengths = np.where(is_long, rng.integers(60, 400, count), rng.integers(0, 25, count))
    plain = np.where(is_long, rng.choice([0, 0.9, 0.99, 1], count), 0)
    total = int(lengths.sum())
    common = np.array([ord(character) for character in COMMON], np.uint32)
    codes = common[rng.integers(0, len(common), total)]
    anything = rng.random(total) < 0.06
    is_plain = rng.random(total) < np.repeat(plain, lengths)
    codes[is_plain] = rng.choice(common[common < 0x80], int(is_plain.sum()))
    anything &= ~is_plain
    codes[anything] = rng.integers(0, 0x110000, int(anything.sum()))
    codes[(codes >= 0xD800) & (codes < 0xE000)] = 0xFFFD
    repeated = np.flatnonzero(rng.random(total) < 0.3)
    codes[repeated] = codes[np.maximum(repeated - 1, 0)]
    text = codes.astype("<u4").tobytes().decode("utf-32-le")
    ends = np.cumsum(lengths)
    return [text[end - length : end] for end, length in zip(ends.tolist(), lengths.tolist(), strict=True)]


def spoiled(rng: np.random.Generator, texts: list[str]) -> list[bytes]:
    """The texts as bytes, one of them replaced by any other."""
    result = []
    for text, byte, place in zip(texts, rng.bytes(len(texts)), rng.random(len(texts)), strict=True):
        encoded = bytearray(text.encode())
        if encoded:
            encoded[int(place * len(encoded))] = byte
        result.append(bytes(encoded))
    return result


def check_round(rng: np.random.Generator, pattern: str, count: int) -> str | None:
    """One round; what differed, if anything."""
    from nanochat.tokenization import _rustbpe

    texts = random_texts(rng, count)
    trained_on = ["a", *texts[: count // 10]]
    tokens = _rustbpe.train(trained_on, int(rng.integers(256, 2000)), pattern)
    peer = Peer()
    peer.train_from_iterator(iter(trained_on), len(tokens), pattern=pattern)
    if [bytes(token) for token, _ in sorted(peer.get_mergeable_ranks(), key=lambda item: item[1])] != tokens:
        return f"the merges differ for {pattern}"
    if len(set(tokens)) != len(tokens):
        return f"a token came up twice for {pattern}"
    ours, twin = _rustbpe.Encoder(pattern, tokens, []), TiktokenEncoder(pattern, tokens, [])
    rows = ours.encode_lists(texts, 2)
    for text, ids in zip(texts, rows, strict=True):
        if twin.encode(text) != ids:
            return f"{text!r} gives {ids}, but {twin.encode(text)} by tiktoken, for {pattern}"
    if [text.decode() for text in ours.decode_batch(rows)] != texts:
        return f"a text does not come back, for {pattern}"
    damaged = spoiled(rng, texts[:1000])
    for piece, ids in zip(damaged, ours.encode_lists(damaged), strict=True):
        if twin.encode(piece) != ids or ours.decode_bytes(ids) != piece:
            return f"{piece!r} gives {ids}, but {twin.encode(piece)} by tiktoken, for {pattern}"
    return None


def main(config: Config) -> None:
    """Round after round."""
    rng = np.random.default_rng(config.seed)
    start, done = time.monotonic(), 0
    for number, pattern in enumerate(itertools.cycle(PATTERNS)):
        count = min(ROUND, config.strings - done)
        if count == 0:
            break
        if difference := check_round(rng, pattern, count):
            print(f"DIFFERENCE in round {number} of seed {config.seed}: {difference}")
            sys.exit(1)
        done += count
        if number % 50 == 49 or done == config.strings:
            print(f"{done:,} strings, no difference, {time.monotonic() - start:.0f} s", flush=True)


if __name__ == "__main__":
    cli(Config, main, __doc__)
