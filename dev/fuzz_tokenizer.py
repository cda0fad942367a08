"""Compare the tokenizer with tiktoken and PyPI's rustbpe on random strings; exit with code 1 at a difference.

    python -m dev.fuzz_tokenizer                           # ten million strings
    python -m dev.fuzz_tokenizer --strings=100000 --seed=7
    cargo test --release --manifest-path rustbpe/Cargo.toml -- --ignored      # the splitter and its regex

A round has 20,000 strings and one of the split patterns. The trainer is compared with rustbpe on a tenth of them. The
encoder is compared with tiktoken on all of them, and on a thousand with one byte replaced, which are often not UTF-8.
All are decoded again.
"""

from __future__ import annotations

import itertools
import sys
import time
from dataclasses import dataclass

import numpy as np

from nanochat.configurator import Settings, cli, setting
from nanochat.tokenization.encoders import TiktokenEncoder
from nanochat.tokenizer import split_pattern
from rustbpe import Tokenizer as Peer  # type: ignore[attr-defined]  # mypy finds the folder of that name instead

STRINGS_PER_ROUND = 20_000
PATTERNS = (
    *map(split_pattern, (1, 2, 3)),
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s",
    r"\w+|\s+|[^\w\s]",  # not built into the splitter, which uses the regex engine for it
)
# All white space, apostrophes and the letters after them, digits and letters of other scripts, marks, signs and emoji.
COMMON = (
    "aabbcesStTdDmMlLvVrREe'''’ʼſKK    \n\n\r\t\x0b\x0c\x1c\x85\xa0\u1680\u2000\u2003\u2028\u2029\u202f\u205f\u3000"
    '\u200b\u200d\ufeff0123٣४๓Ⅳ½²①.,!?-_=+#@<|>"()\u0301\u0308\u0483éñßıİǅʰªаяЖאبあア世界한ก𝔸𐍈𝟘😀👩🏽'
    "\x00\x7f\ufffd\U0010ffff"
)


@dataclass(frozen=True)
class Config(Settings):
    strings: int = setting(10_000_000, "number of strings", at_least=1)
    seed: int = setting(1, "seed of the random strings")


def random_texts(rng: np.random.Generator, count: int) -> list[str]:
    """Return strings of up to 24 characters: mostly those of COMMON, often repeated, sometimes any of Unicode.

    One in twenty is longer, because the splitter scans blocks of 64 bytes; most of these are largely ASCII.
    """
    is_long = rng.random(count) < 0.05
    lengths = np.where(is_long, rng.integers(60, 400, count), rng.integers(0, 25, count))
    ascii_share = np.where(is_long, rng.choice([0, 0.9, 0.99, 1], count), 0)
    total = int(lengths.sum())
    common = np.array([ord(character) for character in COMMON], np.uint32)
    codes = common[rng.integers(0, len(common), total)]
    is_any = rng.random(total) < 0.06
    is_ascii = rng.random(total) < np.repeat(ascii_share, lengths)
    codes[is_ascii] = rng.choice(common[common < 0x80], int(is_ascii.sum()))
    is_any &= ~is_ascii
    codes[is_any] = rng.integers(0, 0x110000, int(is_any.sum()))
    codes[(codes >= 0xD800) & (codes < 0xE000)] = 0xFFFD
    repeated = np.flatnonzero(rng.random(total) < 0.3)
    codes[repeated] = codes[np.maximum(repeated - 1, 0)]
    text = codes.astype("<u4").tobytes().decode("utf-32-le")
    ends = np.cumsum(lengths)
    return [text[end - length : end] for end, length in zip(ends.tolist(), lengths.tolist(), strict=True)]


def replace_bytes(rng: np.random.Generator, texts: list[str]) -> list[bytes]:
    """Return the texts in UTF-8, each with one random byte replaced."""
    result = []
    for text, byte, position in zip(texts, rng.bytes(len(texts)), rng.random(len(texts)), strict=True):
        encoded = bytearray(text.encode())
        if encoded:
            encoded[int(position * len(encoded))] = byte
        result.append(bytes(encoded))
    return result


def check_round(rng: np.random.Generator, pattern: str, count: int) -> str | None:
    """Run one round; return a description of the first difference, or None."""
    from nanochat.tokenization import _rustbpe

    texts = random_texts(rng, count)
    training_texts = ["a", *texts[: count // 10]]
    tokens = _rustbpe.train(training_texts, int(rng.integers(256, 2000)), pattern)
    peer = Peer()
    peer.train_from_iterator(iter(training_texts), len(tokens), pattern=pattern)
    peer_tokens = [bytes(token) for token, _ in sorted(peer.get_mergeable_ranks(), key=lambda item: item[1])]
    if peer_tokens != tokens:
        return f"the merges differ for {pattern}"
    if len(set(tokens)) != len(tokens):
        return f"a token is in the vocabulary twice, for {pattern}"

    encoder = _rustbpe.Encoder(pattern, tokens, [])
    tiktoken_encoder = TiktokenEncoder(pattern, tokens, [])
    rows = encoder.encode_lists(texts, 2)
    for text, ids in zip(texts, rows, strict=True):
        if tiktoken_encoder.encode(text) != ids:
            return f"{text!r} gives {ids}, but {tiktoken_encoder.encode(text)} with tiktoken, for {pattern}"
    if [text.decode() for text in encoder.decode_batch(rows)] != texts:
        return f"a text is not decoded to itself, for {pattern}"

    byte_texts = replace_bytes(rng, texts[:1000])
    for data, ids in zip(byte_texts, encoder.encode_lists(byte_texts), strict=True):
        if tiktoken_encoder.encode(data) != ids or encoder.decode_bytes(ids) != data:
            return f"{data!r} gives {ids}, but {tiktoken_encoder.encode(data)} with tiktoken, for {pattern}"
    return None


def main(config: Config) -> None:
    """Run rounds until all strings are compared, or until the first difference."""
    rng = np.random.default_rng(config.seed)
    start = time.monotonic()
    num_done = 0
    for number, pattern in enumerate(itertools.cycle(PATTERNS)):
        count = min(STRINGS_PER_ROUND, config.strings - num_done)
        if count == 0:
            break
        if difference := check_round(rng, pattern, count):
            print(f"DIFFERENCE in round {number} of seed {config.seed}: {difference}")
            sys.exit(1)
        num_done += count
        if number % 50 == 49 or num_done == config.strings:
            print(f"{num_done:,} strings, no difference, {time.monotonic() - start:.0f} s", flush=True)


if __name__ == "__main__":
    cli(Config, main, __doc__)
