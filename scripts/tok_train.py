"""Train the tokenizer on the training documents and save it in the base folder.

    python -m scripts.tok_train                                                # 2 billion characters, 65,536 tokens
    python -m scripts.tok_train --max_chars=2000000000 --vocab_size=65536 --doc_cap=10000
    python -m scripts.tok_train --vocab_size=8192                              # a laptop
    python -m scripts.tok_train --digits=1                                     # for export to GGUF

It needs a data set: `python -m nanochat.dataset -n 8`. Documents are streamed; only the distinct words are in memory.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.compute as pc
from tqdm import tqdm

from nanochat.checkpoints.run_lock import lock_run, run_locks
from nanochat.common import UserError, base_dir, print0
from nanochat.configurator import Settings, cli, setting
from nanochat.dataset import open_split
from nanochat.report import check_results_writable, log_section
from nanochat.tokenization.encoders import iter_strings
from nanochat.tokenizer import (
    MIN_VOCAB_SIZE,
    SPECIAL_TOKENS,
    TOKENIZER_FILE,
    Tokenizer,
    split_pattern,
    trainable_tokenizer_class,
)

# Text that tokenizers are known to get wrong: encoded and decoded again after training.
_TRICKY_TEXT = """Numbers: 1, 12, 123, 1234567. It's, WE'LL, they'Ve; o'clock.\tTabs\t and   spaces \r\n\r\n  and lines.
Other scripts: Привет, мир! 你好，世界。नमस्ते दुनिया, مرحبا بالعالم, ٣٤٥, Ⅳ, é = e\u0301, 👩‍👩‍👧‍👦🎉
\u00a0\u2003<|bos|> is text here, <|user_end|> too.\x00\x7f\ufffd   """


@dataclass(frozen=True)
class Config(Settings):
    max_chars: int = setting(2_000_000_000, "maximum number of characters to train on", at_least=1)
    doc_cap: int = setting(
        10_000, "maximum number of characters of each document; -1 = all of them", at_least=1, or_value=-1
    )
    vocab_size: int = setting(
        65_536, "number of tokens: 256 bytes, the merges and the special tokens", at_least=MIN_VOCAB_SIZE
    )
    digits: int = setting(2, "most digits of a token: numbers are cut into such groups", choices=(1, 2, 3))


@run_locks()
def main(config: Config) -> Tokenizer:
    """Train the tokenizer, check that it loses no text, save it, and write its section of the report."""
    start = time.perf_counter()
    tokenizer_dir = base_dir() / "tokenizer"
    check_results_writable("tok_train", tokenizer_dir / TOKENIZER_FILE)
    lock_run(tokenizer_dir, "wait for its end, or stop it")
    tokenizer_class = trainable_tokenizer_class()
    with TrainingProgressBar(config.vocab_size - MIN_VOCAB_SIZE) as progress_bar:
        texts = cap_documents(open_split("train").iter_arrays(), config.max_chars, config.doc_cap)
        try:
            tokenizer = tokenizer_class.train_from_iterator(
                texts, config.vocab_size, pattern=split_pattern(config.digits), progress=progress_bar
            )
        except UserError:  # of the data
            raise
        except ValueError as error:
            raise UserError(f"the tokenizer cannot be trained: {error}") from error
    seconds = time.perf_counter() - start
    _check_round_trip(tokenizer, config)

    keep_replaced(tokenizer)
    tokenizer.save(tokenizer_dir)
    vocab_size = tokenizer.get_vocab_size()
    notes = []
    if vocab_size < config.vocab_size:
        notes.append(f"The text has no more pairs to merge: {vocab_size:,} tokens, not {config.vocab_size:,}.")
    num_bytes = progress_bar.bytes_read
    size = f"{num_bytes / 1e6:,.1f} MB" if num_bytes >= 1_000_000 else f"{num_bytes / 1e3:,.1f} KB"
    print0(*notes, f"{size} of text, {vocab_size:,} tokens, {seconds:.1f} s: {tokenizer_dir}", sep="\n")
    _report(config, tokenizer, num_bytes, seconds, notes)
    return tokenizer


def keep_replaced(tokenizer: Tokenizer) -> None:
    """Keep a copy of the tokenizer that `tokenizer` replaces, if checkpoints were trained with it."""
    tokenizer_dir = base_dir() / "tokenizer"
    try:
        old = Tokenizer.from_directory(tokenizer_dir)
    except UserError:  # none, or one that could not be used
        return
    if old.hash() == tokenizer.hash():
        return
    from nanochat.checkpoint_manager import count_checkpoints_of, kept_tokenizer_dir  # torch

    if num_checkpoints := count_checkpoints_of(old.hash()):
        kept = kept_tokenizer_dir(old.hash())
        old.save(kept)
        print0(
            f"NOTICE: {num_checkpoints} checkpoint{'s' * (num_checkpoints > 1)} cannot be used with the new tokenizer; "
            f"the old one is kept: to use them again, copy {kept / TOKENIZER_FILE} to {tokenizer_dir}"
        )


def cap_documents(arrays: Iterable[Any], max_chars: int, doc_cap: int) -> Iterator[Any]:
    """Cut each document to `doc_cap` characters (-1 = do not cut), and stop after `max_chars` characters in total.

    The documents are read and yielded in Arrow arrays of strings, without a Python object for each.

    >>> import pyarrow as pa
    >>> documents = [pa.array(["abcdef", "gh"]), pa.array(["ijk"])]
    >>> [array.to_pylist() for array in cap_documents(documents, max_chars=7, doc_cap=4)]
    [['abcd', 'gh'], ['i']]
    """
    remaining = max_chars
    for array in arrays:
        if doc_cap != -1:
            array = pc.utf8_slice_codeunits(array, 0, doc_cap)  # Arrow counts characters here, despite the name
        ends = np.cumsum(pc.utf8_length(array), dtype=np.int64)
        num_uncut = int(np.searchsorted(ends, remaining, side="right"))  # documents that fit completely
        if num_uncut:
            yield array[:num_uncut]
            remaining -= int(ends[num_uncut - 1])
        if remaining and num_uncut < len(array):
            yield pc.utf8_slice_codeunits(array[num_uncut : num_uncut + 1], 0, remaining)
            remaining = 0
        if remaining == 0:
            return


class TrainingProgressBar:
    """Progress callback of the trainer: bars of bytes read, then of merges; only shown on a terminal."""

    def __init__(self, num_merges: int) -> None:
        self.bytes_read = 0
        self._num_merges = num_merges
        self._reading = tqdm(desc="reading", unit="B", unit_scale=True, disable=None)
        self._merging: tqdm | None = None

    def __call__(self, bytes_read: int, num_merges: int) -> None:
        self._reading.update(bytes_read - self.bytes_read)
        self.bytes_read = bytes_read
        if num_merges and self._merging is None:
            self._reading.close()
            self._merging = tqdm(desc="merging", unit=" merges", total=self._num_merges, disable=None)
        if self._merging is not None:
            self._merging.update(num_merges - self._merging.n)

    def __enter__(self) -> TrainingProgressBar:
        return self

    def __exit__(self, *_: object) -> None:
        self._reading.close()
        if self._merging is not None:
            self._merging.close()


def _check_round_trip(tokenizer: Tokenizer, config: Config) -> None:
    """Encode and decode some of the training text. Raises AssertionError if that changes the text."""
    arrays = cap_documents(open_split("train").iter_arrays(), min(config.max_chars, 100_000), config.doc_cap)
    for text in (_TRICKY_TEXT, *iter_strings(arrays)):
        if tokenizer.decode(tokenizer.encode(text)) != text:
            raise AssertionError(f"the new tokenizer does not give back {text[:80]!r}: nothing is saved")


def _report(config: Config, tokenizer: Tokenizer, bytes_read: int, seconds: float, notes: list[str]) -> None:
    merge_lengths = tokenizer.token_bytes()[256 : -len(SPECIAL_TOKENS)]
    metrics = {
        "vocabulary (tokens)": tokenizer.get_vocab_size(),
        "special tokens": len(SPECIAL_TOKENS),
        "text (MB)": bytes_read / 1e6,
        "speed (MB/s)": bytes_read / 1e6 / seconds,
        "mean length of a merged token (bytes)": sum(merge_lengths) / len(merge_lengths) if merge_lengths else None,
        "longest token (bytes)": max(merge_lengths, default=1),
    }
    log_section(
        "tok_train",
        {
            "title": "Tokenizer training",
            "seconds": seconds,
            "settings": config,
            "metrics": metrics,
            "headline": [],
            "notes": [*notes, f"Trained by {type(tokenizer).__name__}; hash {tokenizer.hash()[:16]}."],
        },
    )


if __name__ == "__main__":
    cli(Config, main, __doc__)
