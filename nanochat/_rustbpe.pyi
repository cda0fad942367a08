"""The Rust extension: byte-level BPE. Its sources are in rustbpe/."""

from collections.abc import Callable, Iterable

def train(
    texts: Iterable[str],
    vocab_size: int,
    pattern: str,
    *,
    num_threads: int | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> list[bytes]:
    """Train byte-level BPE; returns the bytes of every token by id: 256 single bytes, then the merges.

    `pattern` cuts the texts into words that merges never cross. The pair with the highest count is merged first, the
    lower pair of ids among equals: the result does not depend on `num_threads` (default: all cores), nor on the order
    of the texts. Fewer than `vocab_size` tokens come back if no pair is left. `progress(bytes_read, merges_done)` is
    called about ten times a second. Python's lock is released meanwhile; Ctrl-C and exceptions of `texts` come through.

    Raises ValueError for a pattern that is not a regular expression, `vocab_size` under 256, and texts without words.
    """
