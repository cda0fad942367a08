"""Encoders: text to ids with a trained vocabulary, in Rust or, where the extension is not built, by tiktoken.

    Encoder           the Rust extension's class (see `_rustbpe.pyi`): strings, bytes and Arrow arrays, in threads
    TiktokenEncoder   the same interface and the same ids, by the tiktoken package; the tests compare the two

`encoder_class` chooses between them. `TextEncoder` is the smaller interface that the evaluation of a base model needs,
which the tokenizers of other models offer as well.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, overload

import numpy as np
import tiktoken

if TYPE_CHECKING:
    from nanochat.tokenization._rustbpe import ArrowTexts, Encoder, Texts

TrainingTexts: TypeAlias = "Iterable[str | ArrowTexts] | ArrowTexts"
"""Strings and Arrow arrays of strings, in any mixture, or one such array."""

_SPACES = re.compile(r"\s+")
_MAX_SPACES = 1 << 16  # in a row; tiktoken's regular expressions fail (a panic in Rust) from about a million on
_NOT_UTF8 = re.compile("([\udc80-\udcff]+)")  # surrogateescape maps bytes that are not UTF-8 to these


class TextEncoder(Protocol):
    """Tokenizer interface that the evaluation of a base model needs: `Tokenizer`, or the tokenizer of another model."""

    adds_prefix_space: bool  # True if it puts a space before a text that does not begin with one, as SentencePiece does

    @overload
    def encode(self, text: str) -> list[int]: ...
    @overload
    def encode(self, text: list[str]) -> list[list[int]]: ...
    def encode(self, text: str | list[str]) -> list[int] | list[list[int]]:
        """Return the ids of one text, or of each text in a list, without special tokens around them."""

    def get_bos_token_id(self) -> int:
        """Return the id of the token that begins a document."""


def encode_continuation(
    tokenizer: TextEncoder, context: str, context_ids: list[int], continuation: str
) -> tuple[list[int], list[int]]:
    """Return the ids of a context and of the continuation that follows it. `context_ids`: the context's ids alone.

    The two are encoded separately, unless the tokenizer would add a space at the start of the continuation that the
    text does not have. In that case they are encoded together, and a token that spans the border belongs to the
    continuation.
    """
    if continuation.startswith(" ") or not tokenizer.adds_prefix_space:
        return context_ids, tokenizer.encode(continuation)
    joint_ids = tokenizer.encode(context + continuation)
    differing = (
        position
        for position, (context_id, joint_id) in enumerate(zip(context_ids, joint_ids, strict=False))
        if context_id != joint_id
    )
    border = next(differing, min(len(context_ids), len(joint_ids) - 1))
    return joint_ids[:border], joint_ids[border:]


def encoder_class() -> type[Encoder] | type[TiktokenEncoder]:
    """Return the Rust extension's `Encoder` if it is built, else `TiktokenEncoder`. Their ids are the same."""
    try:
        from nanochat.tokenization._rustbpe import Encoder
    except ImportError:
        return TiktokenEncoder
    return Encoder


def iter_strings(texts: Texts | TrainingTexts) -> Iterator[Any]:
    """Yield the texts that the Rust extension takes as Python objects: strings or bytes, also those in Arrow arrays.

    >>> import pyarrow as pa
    >>> list(iter_strings(["a", pa.array(["b", "c"])]))
    ['a', 'b', 'c']
    """
    items: Any = [texts] if hasattr(texts, "to_pylist") else texts
    for item in items:
        if hasattr(item, "to_pylist"):
            yield from item.to_pylist()
        else:
            yield item


def _has_long_run(text: str) -> bool:
    """Return True if a text has more spaces in a row than tiktoken can take."""
    return len(text) > _MAX_SPACES and any(
        match.end() - match.start() > _MAX_SPACES for match in _SPACES.finditer(text)
    )


class TiktokenEncoder:
    """The interface of the Rust extension's `Encoder`, implemented with tiktoken."""

    def __init__(self, pattern: str, tokens: Sequence[bytes], special_tokens: Sequence[str]) -> None:
        self._pattern = pattern
        ranks = {token: rank for rank, token in enumerate(tokens)}
        specials = {name: len(ranks) + i for i, name in enumerate(special_tokens)}
        try:
            self._encoding = tiktoken.Encoding(
                "nanochat", pat_str=pattern, mergeable_ranks=ranks, special_tokens=specials
            )
        except ValueError as error:
            raise ValueError(f"split pattern: {error}") from error

    def encode(self, text: str | bytes) -> list[int]:
        """Return the ids of one text. A run of bytes that are not UTF-8 is one word."""
        if isinstance(text, str):
            return self._encode_string(text)
        ids: list[int] = []
        for index, part in enumerate(_NOT_UTF8.split(text.decode("utf-8", "surrogateescape"))):
            if index % 2:  # the pattern's group: bytes that are not UTF-8
                ids += self._encoding._encode_single_piece(part.encode("utf-8", "surrogateescape"))
            else:
                ids += self._encode_string(part)
        return ids

    def _encode_string(self, text: str) -> list[int]:
        if _has_long_run(text):
            return self._encode_words(text)
        return self._encoding.encode_ordinary(text)

    def _encode_words(self, text: str) -> list[int]:
        """Return the ids of a text that tiktoken cannot cut into words: another library does, which is slower."""
        import regex  # takes time to import, and is rarely needed

        whole = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")  # as tiktoken treats half a pair
        words = (match.group().encode("utf-8") for match in regex.finditer(self._pattern, whole))
        return [token for word in words for token in self._encoding._encode_single_piece(word)]

    def encode_lists(self, texts: Texts, num_threads: int = 1) -> list[list[int]]:
        """Return the ids of each text as a list."""
        strings = list(iter_strings(texts))
        if all(isinstance(text, str) and not _has_long_run(text) for text in strings):
            return self._encoding.encode_ordinary_batch(strings, num_threads=num_threads)
        return [self.encode(text) for text in strings]

    def encode_batch(self, texts: Texts, num_threads: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """Return the ids of N texts in one array, and offsets (N + 1,): text i is `ids[offsets[i]:offsets[i + 1]]`."""
        rows = self.encode_lists(texts, num_threads)
        dtype = np.uint16 if self._encoding.n_vocab <= 1 << 16 else np.uint32
        ids = np.fromiter((i for row in rows for i in row), dtype=dtype, count=sum(map(len, rows)))
        return ids, np.cumsum([0, *map(len, rows)], dtype=np.int64)

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """Return the bytes of ids. Raises KeyError for an id that does not exist."""
        try:
            return self._encoding.decode_bytes(list(ids))
        except OverflowError as error:  # below 0, or beyond 32 bits
            wrong = next((i for i in ids if not 0 <= i < self._encoding.n_vocab), "unknown")
            raise KeyError(f"no token has the id {wrong}") from error

    def decode_batch(self, rows: Sequence[Sequence[int]]) -> list[bytes]:
        """Return the bytes of each row of ids."""
        return [self.decode_bytes(ids) for ids in rows]
