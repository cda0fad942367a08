"""Byte-level BPE training with Hugging Face's `tokenizers`, for machines on which the Rust extension is not built."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator

ProgressCallback = Callable[[int, int], object]
"""Called repeatedly during training with the number of bytes of text read and of merges learned so far."""


def train_hugging_face(
    texts: Iterable[str], num_tokens: int, pattern: str, progress: ProgressCallback | None
) -> list[bytes]:
    """Train on texts, which are read once, as a stream.

    Return the bytes of at most `num_tokens` tokens by id, the 256 single bytes first. Pairs of equal count may be
    merged in another order than by the Rust extension. Raises ValueError for an invalid pattern and for empty texts.

    >>> train_hugging_face(["nana"], 258, r"\\w+", None)[256:]
    [b'na', b'nana']
    """
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

    bytes_read = 0

    def counted() -> Iterator[str]:
        nonlocal bytes_read
        for text in texts:
            bytes_read += len(text.encode("utf-8"))
            if progress:
                progress(bytes_read, 0)
            yield text

    try:
        split = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    except Exception as error:  # the package raises plain exceptions
        raise ValueError(f"split pattern: {error}") from error
    model = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    model.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=num_tokens, initial_alphabet=alphabet, show_progress=False)
    model.train_from_iterator(counted(), trainer)
    if not bytes_read:
        raise ValueError("nothing to train on: the texts are empty")
    merges = json.loads(model.to_str())["model"]["merges"]
    if progress:
        progress(bytes_read, len(merges))
    byte_of = {character: byte for byte, character in enumerate(byte_level_alphabet())}
    tokens = [bytes([byte]) for byte in range(256)]
    tokens += [bytes(byte_of[character] for character in left + right) for left, right in merges]
    return list(dict.fromkeys(tokens))  # two merges may spell the same token


def byte_level_alphabet() -> list[str]:
    """Return the character that represents each byte in Hugging Face's byte-level vocabularies, as GPT-2 defined it.

    A visible Latin-1 character represents itself; the other bytes get the characters from U+0100 on, in order.

    >>> alphabet = byte_level_alphabet()
    >>> alphabet[ord("a")], alphabet[ord(" ")]
    ('a', '\u0120')
    """
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    substitutes = iter(range(0x100, 0x200))
    return [chr(byte) if byte in visible else chr(next(substitutes)) for byte in range(256)]
