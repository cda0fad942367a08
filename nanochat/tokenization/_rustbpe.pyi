"""The Rust extension: byte-level BPE. Its sources are in rustbpe/.

All of it may be used from several threads at once. The wheel (abi3) is for every Python from 3.10 on that has the
global lock. A free-threaded one (3.14t) does not load it: there the package must be built from source, which compiles
but has not been run yet; without that, tiktoken and Hugging Face's trainer take over.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, final

class ArrowStream(Protocol):
    """A chunked array of strings or bytes that exports itself by Arrow's C data interface, as a stream of arrays."""

    def __arrow_c_stream__(self, requested_schema: object = None) -> object: ...

class ArrowArray(Protocol):
    """An array of strings or bytes that exports itself by Arrow's C data interface."""

    def __arrow_c_array__(self, requested_schema: object = None) -> object: ...

ArrowTexts = ArrowStream | ArrowArray
Texts = Iterable[str] | Iterable[bytes] | ArrowTexts

def train(
    texts: Iterable[str | ArrowTexts] | ArrowTexts,
    vocab_size: int,
    pattern: str,
    *,
    num_threads: int | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> list[bytes]:
    r"""Train byte-level BPE; returns the bytes of every token by id: 256 single bytes, then the merges.

    `texts`: strings, Arrow arrays of strings, or one such array; arrays are read in place and make no Python object.
    `pattern` cuts the texts into words that merges never cross. The pair with the highest count is merged first, the
    lower pair of ids among equals: the result does not depend on `num_threads` (default: all cores), nor on the order
    of the texts. Fewer than `vocab_size` tokens come back if no pair is left. `progress(bytes_read, merges_done)` is
    called about ten times a second. Python's lock is released meanwhile; Ctrl-C and exceptions of `texts` come through.

    Raises ValueError for a pattern that is not a regular expression, `vocab_size` under 256, texts without words, nulls
    and what is not UTF-8 in an array.

    >>> train(["nana ana"], 258, r"\w+")[256:]
    [b'na', b'ana']
    >>> import pyarrow
    >>> train(pyarrow.array(["nana", "ana"]), 258, r"\w+")[256:]
    [b'na', b'ana']
    """

@final
class IntArray:
    r"""An array of integers; `numpy.asarray` looks at it without a copy.

    >>> import numpy
    >>> encoder = Encoder(r"\w+", [bytes([b]) for b in range(256)], [])
    >>> ids, _ = encoder.encode_batch(["ab"])
    >>> len(ids), numpy.asarray(ids)
    (2, array([97, 98], dtype=uint16))
    """

    @property
    def __array_interface__(self) -> dict[str, Any]: ...
    def __len__(self) -> int: ...

@final
class Encoder:
    r"""A vocabulary with its split pattern; text is never a special token. Safe to use from several threads at once.

    >>> encoder = Encoder(r"\w+|\W", [bytes([b]) for b in range(256)] + [b"ab"], ["<|bos|>"])
    >>> encoder.encode("ab c")
    [256, 32, 99]
    """

    def __new__(cls, pattern: str, tokens: Sequence[bytes], special_tokens: Sequence[str]) -> Encoder:
        """`tokens` by id, all 256 single bytes among them; the special tokens have the ids that follow.

        Raises ValueError for a bad pattern, a missing byte, or a token that is empty or there twice.
        """

    def encode(self, text: str | bytes) -> list[int]:
        r"""The ids of one text. Bytes that are no UTF-8 are words of their own; a lone surrogate becomes U+FFFD.

        >>> encoder.encode("abab"), encoder.encode(b"\xffab")
        ([256, 256], [255, 256])
        """

    def encode_batch(self, texts: Texts, num_threads: int = 1) -> tuple[IntArray, IntArray]:
        """The ids of all texts, one after another, and the offsets: text i has `ids[offsets[i]:offsets[i + 1]]`.

        ids are uint16 for up to 65,536 tokens, else uint32; offsets, one more than texts, are int64.
        Arrow arrays (string, large_string, binary, large_binary, without nulls) are read in place.

        >>> import numpy
        >>> ids, offsets = encoder.encode_batch(["abc", "", "d"], num_threads=2)
        >>> numpy.asarray(ids).tolist(), numpy.asarray(offsets).tolist()
        ([256, 99, 100], [0, 2, 2, 3])
        """

    def encode_lists(self, texts: Texts, num_threads: int = 1) -> list[list[int]]:
        """The ids of each text as a list.

        >>> encoder.encode_lists(["abc", "", "d"])
        [[256, 99], [], [100]]
        """

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """The bytes of ids, special tokens by their names. Raises KeyError for an id that does not exist.

        >>> encoder.decode_bytes([257, 256, 99])
        b'<|bos|>abc'
        """

    def decode_batch(self, rows: Sequence[Sequence[int]]) -> list[bytes]:
        """`decode_bytes` of each row.

        >>> encoder.decode_batch([[256, 99], []])
        [b'abc', b'']
        """
