"""Text to token ids and back, and conversations to ids with a mask that says what the model learns to say.

Byte-level BPE: 256 tokens for the single bytes, then the merges, then nine special tokens. Text can never become a
special token, whatever it says. `RustBPETokenizer` is trained by our Rust extension, `HuggingFaceTokenizer` by the
`tokenizers` package where the extension could not be built; both encode alike and save the same `tokenizer.json`:

    {"format": 1, "pattern": str, "ranks": {base64 of the bytes: id}, "special_tokens": {name: id}}
"""

from __future__ import annotations

import base64
import codecs
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar, overload

import numpy as np

from nanochat.common import UserError, base_dir, print0, write_text_atomic
from nanochat.system.environment import usable_cores
from nanochat.tokenization.chat_format import Conversation, Span, document_text, render_turns
from nanochat.tokenization.encoders import TrainingTexts, encoder_class, iter_strings
from nanochat.tokenization.hugging_face_bpe import ProgressCallback, train_hugging_face

# GPT-4's pattern, with numbers in groups of at most two digits: better for small vocabularies than one or three.
SPLIT_PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)
SPECIAL_TOKENS = (
    "<|bos|>",  # begins every document and every conversation
    *("<|user_start|>", "<|user_end|>", "<|assistant_start|>", "<|assistant_end|>"),
    *("<|python_start|>", "<|python_end|>", "<|output_start|>", "<|output_end|>"),  # a tool call and its result
)
MIN_VOCAB_SIZE = 256 + len(SPECIAL_TOKENS)
FORMAT_VERSION, TOKENIZER_FILE = 1, "tokenizer.json"
T = TypeVar("T", bound="Tokenizer")


class Tokenizer:
    r"""A trained vocabulary. Subclasses differ in how they train only; all encode with what `encoder_class` finds.

    >>> tokenizer = Tokenizer(r"\w|\W", {bytes([b]): b for b in range(256)}, dict(zip(SPECIAL_TOKENS, range(256, 265))))
    >>> ids, offsets = tokenizer.encode_arrays(["été", "!"])
    >>> offsets.tolist(), tokenizer.decode_batch([ids, [256]]), list(tokenizer.decode_stream(ids))
    ([0, 5, 6], ['été!', '<|bos|>'], ['', 'é', 't', '', 'é', '!', ''])
    """

    def __init__(self, pattern: str, ranks: Mapping[bytes, int], special_tokens: Mapping[str, int]) -> None:
        """`ranks`: the bytes of every token but the special ones -> id. Raises UserError for parts that do not fit."""
        _check_vocabulary(ranks, special_tokens)
        self.pattern = pattern
        self.adds_prefix_space = False  # as some of other models do
        self.ranks = dict(sorted(ranks.items(), key=lambda item: item[1]))
        self.special_tokens = dict(special_tokens)
        names = sorted(special_tokens, key=lambda name: special_tokens[name])
        try:
            self._encoder = encoder_class()(pattern, list(self.ranks), names)
        except ValueError as error:
            raise UserError(str(error)) from error

    # Training, saving, loading

    @classmethod
    def train_from_iterator(
        cls: type[T],
        texts: TrainingTexts,
        vocab_size: int,
        *,
        pattern: str = SPLIT_PATTERN,
        progress: ProgressCallback | None = None,
    ) -> T:
        """Train on texts, read once. `vocab_size` counts everything: 256 bytes + merges + 9 special tokens.

        The vocabulary is smaller than asked for if the texts have no more pairs to merge.
        Raises ValueError for a vocabulary under the minimum, a bad pattern, or texts without a word.
        """
        if vocab_size < MIN_VOCAB_SIZE:
            raise UserError(
                f"vocab_size {vocab_size}: must be at least {MIN_VOCAB_SIZE}: 256 bytes and the special tokens"
            )
        tokens = cls._train(texts, vocab_size - len(SPECIAL_TOKENS), pattern, progress)
        ranks = {token: rank for rank, token in enumerate(tokens)}
        return cls(pattern, ranks, {name: len(ranks) + i for i, name in enumerate(SPECIAL_TOKENS)})

    @classmethod
    def _train(
        cls, texts: TrainingTexts, num_tokens: int, pattern: str, progress: ProgressCallback | None
    ) -> list[bytes]:
        """The bytes of at most `num_tokens` tokens by id, the 256 single bytes first."""
        raise NotImplementedError(f"{cls.__name__} cannot be trained: use RustBPETokenizer or HuggingFaceTokenizer")

    def save(self, folder: Path) -> None:
        """Write `tokenizer.json` into `folder`, whole or not at all."""
        write_text_atomic(folder / TOKENIZER_FILE, self._json)

    @classmethod
    def load(cls: type[T], folder: Path) -> T:
        """Read what `save` wrote. Raises UserError that says what is wrong with a missing or damaged file."""
        path = folder / TOKENIZER_FILE
        try:
            with open(path, encoding="utf-8") as file:
                saved = json.load(file)
        except FileNotFoundError as error:
            raise UserError(f"no tokenizer at {path}: train one with `python -m scripts.tok_train`") from error
        except (OSError, ValueError) as error:
            raise UserError(
                f"{path} cannot be read ({error}): train a new one with `python -m scripts.tok_train`"
            ) from error
        if not isinstance(saved, dict) or saved.get("format") != FORMAT_VERSION:
            found = saved.get("format") if isinstance(saved, dict) else None
            raise UserError(f"{path}: format {found!r}, but this program reads format {FORMAT_VERSION}")
        try:
            ranks = {base64.b64decode(token, validate=True): int(rank) for token, rank in saved["ranks"].items()}
            return cls(saved["pattern"], ranks, saved["special_tokens"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            why = f"{error} is missing" if isinstance(error, KeyError) else str(error)
            raise UserError(f"{path} is damaged: {why}") from error

    @cached_property
    def _json(self) -> str:
        ranks = {base64.b64encode(token).decode("ascii"): rank for token, rank in self.ranks.items()}
        content = {
            "format": FORMAT_VERSION,
            "pattern": self.pattern,
            "ranks": ranks,
            "special_tokens": self.special_tokens,
        }
        return json.dumps(content, indent=1) + "\n"

    @cached_property
    def _hash(self) -> str:
        return hashlib.sha256(self._json.encode("utf-8")).hexdigest()

    def hash(self) -> str:
        """SHA-256 of `tokenizer.json`, in hexadecimal: equal for equal tokenizers, written into every checkpoint."""
        return self._hash

    # Facts

    def get_vocab_size(self) -> int:
        """Number of ids, special tokens included."""
        return len(self.ranks) + len(self.special_tokens)

    def get_bos_token_id(self) -> int:
        """Id of `<|bos|>`, which begins every document."""
        return self.encode_special("<|bos|>")

    def encode_special(self, name: str) -> int:
        """Id of a special token, by name. Raises ValueError for an unknown name."""
        if name not in self.special_tokens:
            raise ValueError(f"{name!r} is no special token: {', '.join(self.special_tokens)}")
        return self.special_tokens[name]

    def token_bytes(self) -> list[int]:
        """Raw bytes of text that each id stands for, by id; 0 for special tokens. Some are parts of characters."""
        return [len(token) for token in self.ranks] + [0] * len(self.special_tokens)

    # Text

    @overload
    def encode(
        self, text: str, prepend: int | str | None = None, append: int | str | None = None, num_threads: int = 8
    ) -> list[int]: ...
    @overload
    def encode(
        self, text: list[str], prepend: int | str | None = None, append: int | str | None = None, num_threads: int = 8
    ) -> list[list[int]]: ...
    def encode(
        self,
        text: str | list[str],
        prepend: int | str | None = None,
        append: int | str | None = None,
        num_threads: int = 8,
    ) -> list[int] | list[list[int]]:
        """The ids of one text, or of each in a list; names of special tokens in it are ordinary text.

        `prepend` and `append`: special tokens around each text, an id or a name. `num_threads`: at most the cores.
        """
        before = [] if prepend is None else [self.encode_special(prepend) if isinstance(prepend, str) else prepend]
        after = [] if append is None else [self.encode_special(append) if isinstance(append, str) else append]
        if isinstance(text, str):
            return before + self._encoder.encode(text) + after
        rows = self._encoder.encode_lists(text, min(num_threads, usable_cores()))
        return [before + row + after for row in rows] if before or after else rows

    def encode_arrays(self, texts: Any, num_threads: int = 8) -> tuple[np.ndarray, np.ndarray]:
        """The ids of all texts, one after another, and offsets (N + 1,): text i has `ids[offsets[i]:offsets[i + 1]]`.

        `texts`: strings, bytes, or an Arrow array of either, which is read in place. ids are uint16 for a vocabulary of
        up to 65,536, else uint32; offsets are int64. Many times faster than lists.
        """
        ids, offsets = self._encoder.encode_batch(texts, min(num_threads, usable_cores()))
        return np.asarray(ids), np.asarray(offsets)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; bytes that are no UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """The raw bytes of ids, special tokens by their names. Raises KeyError for an id that does not exist."""
        return self._encoder.decode_bytes(ids)

    def decode_batch(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """`decode` of each row."""
        return [text.decode("utf-8", errors="replace") for text in self._encoder.decode_batch(rows)]

    def decode_stream(self, ids: Iterable[int]) -> Iterator[str]:
        """The text as the ids come in: at each what is whole characters by then, and at the end what is left."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        for i in ids:
            yield decoder.decode(self.decode_bytes([i]))
        yield decoder.decode(b"", final=True)

    # Conversations

    def render_conversation(
        self, conversation: Conversation, max_tokens: int | None = None
    ) -> tuple[list[int], list[int]]:
        """A whole conversation as (ids, mask), both (T,), T <= max_tokens; mask 1 = the model learns to say this token.

        One that is too long ends after the last answer that fits whole. If not even the first does, that answer is cut.
        If nothing of that fits, or there is no answer, nothing is to be learnt: ([], []), which the caller leaves out.
        A question after the last answer is left out. Of a document all is learnt that fits.
        Raises UserError that names the message for what is no conversation.
        """
        if (text := document_text(conversation)) is not None:
            ids = self.encode(text, prepend=self.get_bos_token_id())[:max_tokens]
            return (ids, [0] + [1] * (len(ids) - 1)) if len(ids) > 1 else ([], [])
        ids, mask = [self.get_bos_token_id()], [0]
        end = 0  # of the last answer that fits
        for turn in render_turns(conversation):
            for token_ids, trained in map(self._encode_span, turn):
                ids += token_ids
                mask += [int(trained)] * len(token_ids)
            if max_tokens is None or len(ids) <= max_tokens:
                end = len(ids) if mask[-1] else end
            else:
                end = end or max_tokens
                break
        ids, mask = ids[:end], mask[:end]
        return (ids, mask) if any(mask) else ([], [])

    def render_for_completion(self, conversation: Conversation) -> list[int]:
        """The ids up to `<|assistant_start|>` of the last answer, for the model to give. What it said is left out."""
        turns = render_turns(conversation)
        asked = turns[: len(turns) - (len(turns) % 2 == 0)]
        ids = [self.get_bos_token_id()]
        for span in (span for turn in asked for span in turn):
            ids += self._encode_span(span)[0]
        return [*ids, self.encode_special("<|assistant_start|>")]

    def _encode_span(self, span: Span) -> tuple[list[int], bool]:
        return ([self.encode_special(span.text)] if span.is_special else self.encode(span.text)), span.is_trained

    def visualize_tokenization(self, ids: Sequence[int], mask: Sequence[int]) -> str:
        """The tokens with bars between them, for a terminal: green is trained on, red is not."""
        colours = {0: "\033[31m", 1: "\033[32m"}
        return "|".join(f"{colours[m]}{self.decode([i])}\033[0m" for i, m in zip(ids, mask, strict=True))


class RustBPETokenizer(Tokenizer):
    """Trained by the Rust extension."""

    @classmethod
    def _train(
        cls, texts: TrainingTexts, num_tokens: int, pattern: str, progress: ProgressCallback | None
    ) -> list[bytes]:
        from nanochat.tokenization import _rustbpe

        return _rustbpe.train(texts, num_tokens, pattern, progress=progress)


class HuggingFaceTokenizer(Tokenizer):
    """Trained by Hugging Face tokenizers: slower, and other merges among pairs of equal count."""

    @classmethod
    def _train(
        cls, texts: TrainingTexts, num_tokens: int, pattern: str, progress: ProgressCallback | None
    ) -> list[bytes]:
        return train_hugging_face(iter_strings(texts), num_tokens, pattern, progress)


def trainable_tokenizer_class() -> type[Tokenizer]:
    """The class to train with: RustBPETokenizer; without the extension, a notice and HuggingFaceTokenizer."""
    try:
        from nanochat.tokenization import _rustbpe  # noqa: F401
    except ImportError as error:
        print0(f"The Rust extension is not built ({error}): training with Hugging Face tokenizers, which is slower.")
        return HuggingFaceTokenizer
    return RustBPETokenizer


def get_tokenizer() -> Tokenizer:
    """The tokenizer of the base folder, as `scripts.tok_train` left it. Raises UserError if there is none."""
    return Tokenizer.load(base_dir() / "tokenizer")


def _check_vocabulary(ranks: Mapping[bytes, int], special_tokens: Mapping[str, int]) -> None:
    ids: list[Any] = [*ranks.values(), *special_tokens.values()]
    if sorted(ids) != list(range(len(ids))) or (special_tokens and min(special_tokens.values()) < len(ranks)):
        raise UserError("the ids must count up from 0 without gaps, special tokens last")
    if missing := [byte for byte in range(256) if bytes([byte]) not in ranks]:
        raise UserError(
            f"{len(missing)} single bytes have no token, for one 0x{missing[0]:02x}: some text could not be encoded"
        )
    if absent := [name for name in SPECIAL_TOKENS if name not in special_tokens]:
        raise UserError(f"the special token {absent[0]} is missing")
