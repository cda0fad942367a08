"""What turns text into ids: the Rust extension, or tiktoken behind the same interface where that is not built."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol, overload

import numpy as np
import tiktoken

if TYPE_CHECKING:
    from nanochat.tokenization._rustbpe import Encoder

TrainingTexts = Iterable[Any]
"""Strings, and Arrow arrays of strings, in any mixture."""

_NO_UTF8 = re.compile("([\udc80-\udcff]+)")  # how surrogateescape shows bytes that are no UTF-8


class TextEncoder(Protocol):
    """What the evaluation of a base model asks of a tokenizer, ours or another's."""

    adds_prefix_space: bool  # before a text that begins with none

    @overload
    def encode(self, text: str) -> list[int]: ...
    @overload
    def encode(self, text: list[str]) -> list[list[int]]: ...
    def encode(self, text: str | list[str]) -> list[int] | list[list[int]]:
        """The ids of one text, or of each in a list, with nothing around them."""

    def get_bos_token_id(self) -> int:
        """Id of the token that begins a document."""


def encode_continuation(tokenizer: TextEncoder, head: str, ids: list[int], end: str) -> tuple[list[int], list[int]]:
    """The ids of a text, here `head` with its `ids`, and of what follows it.

    Each is encoded by itself. Only where the tokenizer would add a space that nobody wrote, both are encoded together:
    a token that reaches over the border then belongs to the end.
    """
    if end.startswith(" ") or not tokenizer.adds_prefix_space:
        return ids, tokenizer.encode(end)
    whole = tokenizer.encode(head + end)
    pairs = enumerate(zip(ids, whole, strict=False))
    same = next((place for place, (one, other) in pairs if one != other), min(len(ids), len(whole) - 1))
    return whole[:same], whole[same:]


def encoder_class() -> type[Encoder] | type[TiktokenEncoder]:
    """The Rust extension's Encoder, else its stand-in. The ids are the same."""
    try:
        from nanochat.tokenization._rustbpe import Encoder
    except ImportError:
        return TiktokenEncoder
    return Encoder


def iter_strings(texts: Any) -> Iterator[Any]:
    """The texts of what the Rust extension takes, as Python objects: strings or bytes, Arrow arrays, or a mixture.

    >>> import pyarrow as pa
    >>> list(iter_strings(["a", pa.array(["b", "c"])]))
    ['a', 'b', 'c']
    """
    if hasattr(texts, "to_pylist"):
        texts = [texts]
    for text in texts:
        if hasattr(text, "to_pylist"):
            yield from text.to_pylist()
        else:
            yield text


class TiktokenEncoder:
    """The interface of the Rust extension's `Encoder`, by tiktoken: also its independent twin in the tests."""

    def __init__(self, pattern: str, tokens: Sequence[bytes], special_tokens: Sequence[str]) -> None:
        ranks = {token: rank for rank, token in enumerate(tokens)}
        specials = {name: len(ranks) + i for i, name in enumerate(special_tokens)}
        try:
            self._encoding = tiktoken.Encoding(
                "nanochat", pat_str=pattern, mergeable_ranks=ranks, special_tokens=specials
            )
        except ValueError as error:
            raise ValueError(f"split pattern: {error}") from error

    def encode(self, text: str | bytes) -> list[int]:
        """The ids of one text."""
        if isinstance(text, str):
            return self._encoding.encode_ordinary(text)
        ids: list[int] = []
        for i, part in enumerate(_NO_UTF8.split(text.decode("utf-8", "surrogateescape"))):
            if i % 2:
                ids += self._encoding._encode_single_piece(part.encode("utf-8", "surrogateescape"))
            else:
                ids += self._encoding.encode_ordinary(part)
        return ids

    def encode_lists(self, texts: Any, num_threads: int = 1) -> list[list[int]]:
        """The ids of each text as a list."""
        texts = list(iter_strings(texts))
        if all(isinstance(text, str) for text in texts):
            return self._encoding.encode_ordinary_batch(texts, num_threads=num_threads)
        return [self.encode(text) for text in texts]

    def encode_batch(self, texts: Any, num_threads: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """The ids of all texts, one after another, and the offsets."""
        rows = self.encode_lists(texts, num_threads)
        dtype = np.uint16 if self._encoding.n_vocab <= 1 << 16 else np.uint32
        ids = np.fromiter((i for row in rows for i in row), dtype=dtype, count=sum(map(len, rows)))
        return ids, np.cumsum([0, *map(len, rows)], dtype=np.int64)

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """The bytes of ids. Raises KeyError for an id that does not exist."""
        try:
            return self._encoding.decode_bytes(list(ids))
        except OverflowError as error:  # below 0, or beyond 32 bits
            raise KeyError(f"no token has one of these ids: {ids}") from error

    def decode_batch(self, rows: Sequence[Sequence[int]]) -> list[bytes]:
        """The bytes of each row of ids."""
        return [self.decode_bytes(ids) for ids in rows]
