"""The Rust extension: byte-level BPE training, encoding and decoding. Sources: rustbpe/.

Everything here may be called from several threads at once. The wheel (abi3) loads in every Python from 3.10 on that
has the global interpreter lock. A free-threaded Python (3.14t) must build the package from source; that build compiles,
but has not been run yet. Without the extension, tiktoken and Hugging Face's trainer are used instead.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, final

class ArrowStream(Protocol):
    """A chunked array of strings or bytes that exports itself as a stream by the Arrow PyCapsule interface."""

    def __arrow_c_stream__(self, requested_schema: object = None) -> object: ...

class ArrowArray(Protocol):
    """An array of strings or bytes that exports itself by the Arrow PyCapsule interface."""

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
    r"""Train byte-level BPE. Returns the bytes of every token by id: 256 single bytes, then the result of each merge.

    Args:
        texts: Strings, Arrow arrays of strings, or a single such array. Arrays are read in place, without a Python
            object for each text.
        vocab_size: Number of tokens, at least 256. Fewer are returned if no pair is left to merge.
        pattern: Regular expression that splits the texts into words. Merges never cross words.
        num_threads: Threads that count words; None means one per core.
        progress: Called as `progress(bytes_read, num_merges)` about ten times a second.

    The pair with the highest count is merged first, the lowest pair of ids among equals. So the result does not depend
    on `num_threads` or on the order of the texts. Python's lock is released during the training. Ctrl-C and exceptions
    of `texts` and `progress` stop it.

    Raises ValueError if the pattern is not a regular expression, `vocab_size` is less than 256, the texts have no
    words, or an array has null or invalid UTF-8 texts.

    >>> train(["nana ana"], 258, r"\w+")[256:]
    [b'na', b'ana']
    >>> import pyarrow
    >>> train(pyarrow.array(["nana", "ana"]), 258, r"\w+")[256:]
    [b'na', b'ana']
    """

@final
class IntArray:
    r"""An array of integers. `numpy.asarray` makes a view of it without a copy.

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
    r"""A vocabulary with its split pattern. Special tokens in a text are encoded as ordinary text.

    >>> encoder = Encoder(r"\w+|\W", [bytes([b]) for b in range(256)] + [b"ab"], ["<|bos|>"])
    >>> encoder.encode("ab c")
    [256, 32, 99]
    """

    def __new__(cls, pattern: str, tokens: Sequence[bytes], special_tokens: Sequence[str]) -> Encoder:
        """Create an encoder. `tokens[id]` are the bytes of a token. The special tokens get the ids that follow.

        Raises ValueError if the pattern is not a regular expression, a single byte has no token, or a token is empty or
        a duplicate.
        """

    def encode(self, text: str | bytes) -> list[int]:
        r"""Return the ids of one text. A run of bytes that are not UTF-8 is one word. A lone surrogate becomes U+FFFD.

        >>> encoder.encode("abab"), encoder.encode(b"\xffab")
        ([256, 256], [255, 256])
        """

    def encode_batch(self, texts: Texts, num_threads: int = 1) -> tuple[IntArray, IntArray]:
        """Return the ids of all texts in one array, and the offsets: text i has `ids[offsets[i]:offsets[i + 1]]`.

        The ids are uint16 for up to 65,536 tokens, else uint32. The offsets, one more than texts, are int64.
        Arrow arrays (string, large_string, binary, large_binary, without nulls) are read in place.

        >>> import numpy
        >>> ids, offsets = encoder.encode_batch(["abc", "", "d"], num_threads=2)
        >>> numpy.asarray(ids).tolist(), numpy.asarray(offsets).tolist()
        ([256, 99, 100], [0, 2, 2, 3])
        """

    def encode_lists(self, texts: Texts, num_threads: int = 1) -> list[list[int]]:
        """Return the ids of each text as a list.

        >>> encoder.encode_lists(["abc", "", "d"])
        [[256, 99], [], [100]]
        """

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """Return the bytes of ids. Special tokens give their names. Raises KeyError for an id that does not exist.

        >>> encoder.decode_bytes([257, 256, 99])
        b'<|bos|>abc'
        """

    def decode_batch(self, rows: Sequence[Sequence[int]]) -> list[bytes]:
        """Return the bytes of each row of ids.

        >>> encoder.decode_batch([[256, 99], []])
        [b'abc', b'']
        """

# Only `nanochat.layers.cpu_kernels` calls the following functions. Addresses and strides are trusted.

def softcap_terms(
    is_bf16: bool,
    raw: int,
    count: int,
    len: int,
    stride: int,
    cap: float,
    sums: int,
    grads: int,
    num_threads: int,
) -> None:
    """Write the sums and, if `grads` is not 0, the gradients of `count` rows of raw logits."""

def causal_attention(
    sizes: tuple[int, int, int, int],
    q: tuple[int, int, int, int],
    k: tuple[int, int, int, int],
    v: tuple[int, int, int, int],
    out: tuple[int, int, int, int],
    log_sums: int,
    num_threads: int,
) -> None:
    """Write the result and the logarithms of the sums, (B, H, T), of causal attention in float32.

    `sizes`: B, H, T, D. A tensor: its address, and the strides of batch, heads and positions in elements.
    """

def causal_attention_grads(
    sizes: tuple[int, int, int, int],
    q: tuple[int, int, int, int],
    k: tuple[int, int, int, int],
    v: tuple[int, int, int, int],
    out: tuple[int, int, int, int],
    log_sums: int,
    d_out: tuple[int, int, int, int],
    d_q: tuple[int, int, int, int],
    d_k: tuple[int, int, int, int],
    d_v: tuple[int, int, int, int],
    num_threads: int,
) -> None:
    """Write the gradients by q, k and v, given that by the result."""

def amx_attention_grads(
    sizes: tuple[int, int, int, int],
    q: tuple[int, int, int, int],
    k: tuple[int, int, int, int],
    v: tuple[int, int, int, int],
    out: tuple[int, int, int, int],
    log_sums: int,
    d_out: tuple[int, int, int, int],
    d_q: tuple[int, int, int, int],
    d_k: tuple[int, int, int, int],
    d_v: tuple[int, int, int, int],
    num_threads: int,
) -> None:
    """Write the gradients by q, k and v in bfloat16, with AMX; D is a multiple of 32.

    Raises RuntimeError on a processor without AMX. Where AMX is advertised and does not work, it ends the process.
    """

def has_vectors() -> bool:
    """Return True if these functions have vector instructions on this processor, without which torch's are faster."""

def has_amx() -> bool:
    """Return True if this processor has AMX, and the system lets this process use it."""

def read_bandwidth(num_bytes: int, num_threads: int) -> float:
    """Measure the bytes per second at which `num_threads` threads read an array of `num_bytes`."""

@final
class NativeGPT:
    """The forward pass of a model on the CPU, with packed weights and a KV cache in blocks. Sources: rustgpt/.

    Only `nanochat.inference.native_step` calls it. Arrays are given as (address, number of elements) and are trusted:
    the caller keeps them alive. Their contents are checked.
    """

    def __new__(
        cls,
        *,
        context_len: int,
        vocab_size: int,
        n_layer: int,
        n_head: int,
        n_kv_head: int,
        head_dim: int,
        softcap: float,
        format: str,
        num_blocks: int,
        num_threads: int,
        is_bf16: bool,
        embedding: tuple[int, int],
        head: tuple[int, int],
        rope_cos: tuple[int, int],
        rope_sin: tuple[int, int],
        matrices: Sequence[Sequence[tuple[int, int]]],
        cpu: str | None = None,
    ) -> NativeGPT:
        """Pack the weights: float32, or bfloat16 if `is_bf16`, as `format` "float32", "bfloat16" or "int8".

        `matrices`: of each layer q, k, v, o, up and down, (n_out, n_in) each. `cpu`: "avx512", "avx2", "neon",
        "portable" or None for the fastest. Raises ValueError if an array has the wrong size or the processor does not
        support `cpu`.
        """

    def forward(
        self,
        tokens: tuple[int, int],
        positions: tuple[int, int],
        rows: tuple[int, int],
        block_tables: tuple[int, int],
        table_len: int,
        wanted: tuple[int, int],
        logits: tuple[int, int],
    ) -> None:
        """Run a step, int32 arrays as in `StepTokens`, and write float32 logits. Raises RuntimeError if it is wrong."""

    def copy_block(self, source: int, target: int) -> None:
        """Copy a block of the cache."""

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights that a step reads."""
