"""Tokenizer: text to token ids and back, and conversations to ids with a mask of the tokens to train on.

Byte-level BPE: 256 tokens for the single bytes, then the merges, then nine special tokens. Encoding a text never yields
a special token, even if the text contains its name. `RustBPETokenizer` is trained by the Rust extension in `rustbpe/`,
`HuggingFaceTokenizer` by the `tokenizers` package on machines where the extension is not built. Both encode in the same
way and save the same file, `tokenizer.json`:

    {"format": 1, "pattern": str, "ranks": {base64 of the bytes: id}, "special_tokens": {name: id}, "sha256": str}

`sha256` is the hash of the file without this key. Files of earlier versions do not have it.

The parts of this module are in `nanochat/tokenization/`. Its `bpe_reference.py` is the algorithm in plain Python, to
read and learn from.
"""

from __future__ import annotations

import base64
import codecs
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, overload

import numpy as np

from nanochat.common import UserError, base_dir, print0, visible, write_text_atomic
from nanochat.system.environment import num_usable_cores
from nanochat.system.json_files import check_type, read_json
from nanochat.system.json_text import short_repr
from nanochat.tokenization.chat_format import Conversation, Span, document_text, render_turns
from nanochat.tokenization.encoders import TrainingTexts, encoder_class, iter_strings
from nanochat.tokenization.hugging_face_bpe import ProgressCallback, train_hugging_face
from nanochat.tokenization.render_batch import RenderedArrays, SpanTable

if TYPE_CHECKING:
    from nanochat.tokenization._rustbpe import Texts

MAX_DIGITS = 3


def split_pattern(digits: int) -> str:
    r"""Return the pattern that cuts a text into words, whose borders no merge crosses.

    It is GPT-4's pattern with numbers cut, from the left, into groups of at most `digits` digits, 1 to 3.

    >>> import regex
    >>> [regex.findall(split_pattern(digits), "in 12345") for digits in (1, 2, 3)]
    [['in', ' ', '1', '2', '3', '4', '5'], ['in', ' ', '12', '34', '5'], ['in', ' ', '123', '45']]
    """
    assert 1 <= digits <= MAX_DIGITS, f"{digits} digits"
    numbers = r"\p{N}" if digits == 1 else rf"\p{{N}}{{1,{digits}}}"
    words = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+"
    rest = r" ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
    return f"{words}|{numbers}|{rest}"


SPLIT_PATTERN = split_pattern(2)  # two digits suit small vocabularies better than one or three
SPECIAL_TOKENS = (
    "<|bos|>",  # begins every document and every conversation
    "<|user_start|>",
    "<|user_end|>",
    "<|assistant_start|>",
    "<|assistant_end|>",
    "<|python_start|>",  # the assistant calls the calculator
    "<|python_end|>",
    "<|output_start|>",  # the calculator's result
    "<|output_end|>",
)
MIN_VOCAB_SIZE = 256 + len(SPECIAL_TOKENS)
FORMAT = 1
TOKENIZER_FILE = "tokenizer.json"

# Text of every class of characters that a split pattern may leave out.
_PROBE = "It's A\u00c9\u4e2d\u0301 x_12345\t\n \r\n  +-*/ \u20ac\U0001f600\u00a0\u200b\x00\ufffd \n"

RenderedConversation = tuple[list[int], list[int]]
"""Ids and loss mask of a conversation, of equal length; 1 = trained on, 0 = not."""

T = TypeVar("T", bound="Tokenizer")


@dataclass(frozen=True)
class _SavedTokenizer:
    """The keys of tokenizer.json."""

    format: int
    pattern: str
    ranks: dict[str, int]
    special_tokens: dict[str, int]
    sha256: str = ""


class Tokenizer:
    r"""A trained vocabulary with its split pattern. Subclasses differ only in their trainer.

    >>> tokenizer = Tokenizer(r"\w|\W", {bytes([b]): b for b in range(256)}, dict(zip(SPECIAL_TOKENS, range(256, 265))))
    >>> ids, offsets = tokenizer.encode_arrays(["été", "!"])
    >>> offsets.tolist(), tokenizer.decode_batch([ids, [256]]), list(tokenizer.decode_stream(ids))
    ([0, 5, 6], ['été!', '<|bos|>'], ['', 'é', 't', '', 'é', '!', ''])
    """

    def __init__(self, pattern: str, ranks: Mapping[bytes, int], special_tokens: Mapping[str, int]) -> None:
        """Check the vocabulary and build its encoder, the Rust extension's if it is built, else tiktoken's.

        `ranks`: the bytes of each token -> its id, which is also its rank: the lower it is, the earlier it is merged.
        `special_tokens`: name -> id. Raises UserError if the ids have gaps, or a byte or a special token has no id.
        """
        _check_vocabulary(ranks, special_tokens)
        self.pattern = pattern
        self.adds_prefix_space = False  # field of TextEncoder; tokenizers of some other models add one
        self.ranks = dict(sorted(ranks.items(), key=lambda item: item[1]))
        self.special_tokens = dict(special_tokens)
        names = sorted(special_tokens, key=lambda name: special_tokens[name])
        try:
            self._encoder = encoder_class()(pattern, list(self.ranks), names)
        except ValueError as error:
            raise UserError(str(error)) from error

    # --- training, saving, loading ---

    @classmethod
    def train_from_iterator(
        cls: type[T],
        text_iterator: TrainingTexts,
        vocab_size: int,
        *,
        pattern: str = SPLIT_PATTERN,
        progress: ProgressCallback | None = None,
    ) -> T:
        """Train on texts (strings, bytes or Arrow arrays), which are read once, as a stream.

        `vocab_size` is the total: 256 bytes + merges + 9 special tokens. The vocabulary is smaller if the texts have no
        more pairs to merge. Raises UserError for a `vocab_size` below MIN_VOCAB_SIZE, and ValueError for an invalid
        pattern and for texts without a word.
        """
        if vocab_size < MIN_VOCAB_SIZE:
            raise UserError(
                f"vocab_size {vocab_size}: must be at least {MIN_VOCAB_SIZE}, the 256 bytes and the special tokens"
            )
        tokens = cls._train(text_iterator, vocab_size - len(SPECIAL_TOKENS), pattern, progress)
        ranks = {token: rank for rank, token in enumerate(tokens)}
        return cls(pattern, ranks, {name: len(ranks) + i for i, name in enumerate(SPECIAL_TOKENS)})

    @classmethod
    def _train(
        cls, texts: TrainingTexts, num_tokens: int, pattern: str, progress: ProgressCallback | None
    ) -> list[bytes]:
        """Return the bytes of at most `num_tokens` tokens by id, the 256 single bytes first."""
        raise NotImplementedError(f"{cls.__name__} cannot be trained: use RustBPETokenizer or HuggingFaceTokenizer")

    def save(self, directory: str | Path) -> None:
        """Write `tokenizer.json` into a directory, completely or not at all."""
        text = json.dumps({**self._content, "sha256": self.hash()}, indent=1) + "\n"
        write_text_atomic(Path(directory) / TOKENIZER_FILE, text)

    @classmethod
    def from_directory(cls: type[T], directory: str | Path) -> T:
        """Read `tokenizer.json` from a directory. Raises UserError if the file is missing or damaged."""
        path = Path(directory) / TOKENIZER_FILE
        if not path.exists():
            raise UserError(f"no tokenizer at {path}: train one with `python -m scripts.tok_train`")
        try:
            saved = read_json(path)
        except UserError as error:
            raise UserError(f"{error}: train a new one with `python -m scripts.tok_train`") from error
        if not isinstance(saved, dict) or saved.get("format") != FORMAT:
            version = saved.get("format") if isinstance(saved, dict) else None
            raise UserError(f"{path}: format {short_repr(version)}, but this program reads format {FORMAT}")
        try:
            check_type(saved, _SavedTokenizer, "")
            ranks = {_token_bytes(token): rank for token, rank in saved["ranks"].items()}
            tokenizer = cls(saved["pattern"], ranks, saved["special_tokens"])
            if tokenizer.decode(tokenizer.encode(_PROBE)) != _PROBE:
                raise UserError("its split pattern loses a part of the text")
            if "sha256" in saved and saved["sha256"] != tokenizer.hash():
                raise UserError("it was changed after it was written: its SHA-256 differs")
        except UserError as error:
            raise UserError(f"{path} is damaged: {error}") from error
        return tokenizer

    @cached_property
    def _content(self) -> dict[str, Any]:
        ranks = {base64.b64encode(token).decode("ascii"): rank for token, rank in self.ranks.items()}
        return {"format": FORMAT, "pattern": self.pattern, "ranks": ranks, "special_tokens": self.special_tokens}

    @cached_property
    def _hash(self) -> str:
        return hashlib.sha256((json.dumps(self._content, indent=1) + "\n").encode("utf-8")).hexdigest()

    def hash(self) -> str:
        """Return the SHA-256 of `tokenizer.json` without its key `sha256`: equal for equal tokenizers."""
        return self._hash

    # --- vocabulary ---

    def get_vocab_size(self) -> int:
        """Return the number of ids, special tokens included."""
        return len(self.ranks) + len(self.special_tokens)

    def get_bos_token_id(self) -> int:
        """Return the id of `<|bos|>`, which begins every document."""
        return self.encode_special("<|bos|>")

    def encode_special(self, name: str) -> int:
        """Return the id of a special token. Raises ValueError for an unknown name."""
        if name not in self.special_tokens:
            raise ValueError(f"{name!r} is not a special token: choose one of {', '.join(self.special_tokens)}")
        return self.special_tokens[name]

    def token_bytes(self) -> list[int]:
        """Return the number of bytes of text in each token, by id; 0 for special tokens."""
        return [len(token) for token in self.ranks] + [0] * len(self.special_tokens)

    # --- text ---

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
        """Return the ids of one text, or of each text in a list. Names of special tokens in a text are ordinary text.

        `prepend` and `append`: a special token, by id or name, before and after each text. `num_threads`: threads for a
        list, limited to the usable cores.
        """
        before = self._special_ids(prepend)
        after = self._special_ids(append)
        if isinstance(text, str):
            return before + self._encoder.encode(text) + after
        rows = self._encoder.encode_lists(text, min(num_threads, num_usable_cores()))
        return [before + row + after for row in rows] if before or after else rows

    def _special_ids(self, token: int | str | None) -> list[int]:
        if token is None:
            return []
        return [self.encode_special(token) if isinstance(token, str) else token]

    def encode_arrays(self, texts: Texts, num_threads: int = 8) -> tuple[np.ndarray, np.ndarray]:
        """Return the ids of N texts in one array, and offsets (N + 1,): text i is `ids[offsets[i]:offsets[i + 1]]`.

        `texts`: strings, bytes, or an Arrow array of either, which is read in place. `ids` is uint16 for a vocabulary
        of up to 65,536 tokens, else uint32; `offsets` is int64. This is many times faster than `encode` of a list.
        """
        ids, offsets = self._encoder.encode_batch(texts, min(num_threads, num_usable_cores()))
        return np.asarray(ids), np.asarray(offsets)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids; bytes that are not UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """Return the bytes of ids, special tokens as their names. Raises KeyError for an id that does not exist."""
        return self._encoder.decode_bytes(ids)

    def decode_batch(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """Return the text of each row of ids, as `decode` does."""
        return [text.decode("utf-8", errors="replace") for text in self._encoder.decode_batch(rows)]

    def decode_stream(self, ids: Iterable[int]) -> Iterator[str]:
        """Yield the text that each id completes, in whole characters (see `StreamDecoder`), and at the end the rest."""
        decoder = StreamDecoder(self)
        for token_id in ids:
            yield decoder.decode(token_id)
        yield decoder.flush()

    # --- conversations ---

    def render_conversation(self, conversation: Conversation, max_tokens: int | None = None) -> RenderedConversation:
        """Return the ids of a conversation and a mask, both of length T <= max_tokens; 1 = trained on, 0 = not.

        The assistant's texts, tool calls and end token are trained on; the user's messages and tool results are not:

            <|bos|> <|user_start|> 2+2? <|user_end|> <|assistant_start|> 4 <|assistant_end|>
               0          0         0        0               0           1         1

        A conversation that is too long is cut after the last answer that fits completely; if the first answer does not
        fit, it is cut within that answer. A user message after the last answer is left out. The result is ([], []) if
        no token to train on remains. In a document, `{"text": str}`, all tokens after `<|bos|>` are trained on.
        Raises UserError with the number of the message if the conversation is malformed.
        """
        text = document_text(conversation)
        if text is not None:
            ids = self.encode(text, prepend=self.get_bos_token_id())[:max_tokens]
            return (ids, [0] + [1] * (len(ids) - 1)) if len(ids) > 1 else ([], [])

        ids = [self.get_bos_token_id()]
        mask = [0]
        end = 0  # of the last answer that fits
        for turn in render_turns(conversation):
            for span in turn:
                span_ids = self._encode_span(span)
                ids += span_ids
                mask += [int(span.is_trained)] * len(span_ids)
            if max_tokens is not None and len(ids) > max_tokens:
                end = end or max_tokens
                break
            if mask[-1]:
                end = len(ids)
        ids = ids[:end]
        mask = mask[:end]
        return (ids, mask) if any(mask) else ([], [])

    def render_conversations(
        self, conversations: Iterable[Conversation], max_tokens: int | None = None
    ) -> list[RenderedArrays]:
        r"""Return ids and mask of each conversation as `render_conversation` does, in arrays, many times faster.

        The conversations are read one by one, and a malformed one raises its UserError before the next one is read.

        >>> special_tokens = dict(zip(SPECIAL_TOKENS, range(256, 265)))
        >>> tokenizer = Tokenizer(r"\w|\W", {bytes([b]): b for b in range(256)}, special_tokens)
        >>> messages = [{"role": "user", "content": "2?"}, {"role": "assistant", "content": "3"}]
        >>> [(ids, mask)] = tokenizer.render_conversations([{"messages": messages}])
        >>> ids.tolist(), mask.astype(int).tolist()
        ([256, 257, 50, 63, 258, 259, 51, 260], [0, 0, 0, 0, 0, 0, 1, 1])
        """
        table = SpanTable.from_conversations(conversations)
        text_ids, offsets = self.encode_arrays(table.texts)
        return table.to_arrays(text_ids, offsets, self.special_tokens, max_tokens)

    def render_for_completion(self, conversation: Conversation) -> list[int]:
        """Return the prompt for the last answer: all ids up to and including its `<|assistant_start|>`.

        The conversation ends with a user message, or with an assistant message, which is left out.
        """
        turns = render_turns(conversation)
        if len(turns) % 2 == 0:  # the last turn is the assistant's
            turns = turns[:-1]
        ids = [self.get_bos_token_id()]
        for turn in turns:
            for span in turn:
                ids += self._encode_span(span)
        return [*ids, self.encode_special("<|assistant_start|>")]

    def _encode_span(self, span: Span) -> list[int]:
        return [self.encode_special(span.text)] if span.is_special else self.encode(span.text)

    def visualize_tokenization(self, ids: Sequence[int], mask: Sequence[int]) -> str:
        """Return the tokens separated by bars, in a terminal's colors: green = trained on (mask 1), red = not."""
        colors = {0: "\033[31m", 1: "\033[32m"}
        return "|".join(f"{colors[m]}{visible(self.decode([i]))}\033[0m" for i, m in zip(ids, mask, strict=True))


class StreamDecoder:
    r"""Incremental decoder: the text of token ids as they arrive, in whole characters only.

    A token may end within a character of several bytes; these bytes are held until the character is complete.

    >>> tokenizer = Tokenizer(r"\w|\W", {bytes([b]): b for b in range(256)}, dict(zip(SPECIAL_TOKENS, range(256, 265))))
    >>> decoder = StreamDecoder(tokenizer)
    >>> decoder.decode(0xC3), decoder.decode(0xA9), decoder.decode(0xC3), decoder.flush()
    ('', 'é', '', '\ufffd')
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def decode(self, token_id: int) -> str:
        """Return the characters that this id completes; bytes that are not UTF-8 become U+FFFD."""
        return self._utf8.decode(self._tokenizer.decode_bytes([token_id]))

    def flush(self) -> str:
        """Return U+FFFD if an incomplete character is held, else "", and start anew."""
        return self._utf8.decode(b"", final=True)


class RustBPETokenizer(Tokenizer):
    """Tokenizer trained by the Rust extension."""

    @classmethod
    def _train(
        cls, texts: TrainingTexts, num_tokens: int, pattern: str, progress: ProgressCallback | None
    ) -> list[bytes]:
        from nanochat.tokenization import _rustbpe

        return _rustbpe.train(texts, num_tokens, pattern, progress=progress)


class HuggingFaceTokenizer(Tokenizer):
    """Tokenizer trained by Hugging Face's `tokenizers`: slower, and it orders pairs of equal count differently."""

    @classmethod
    def _train(
        cls, texts: TrainingTexts, num_tokens: int, pattern: str, progress: ProgressCallback | None
    ) -> list[bytes]:
        return train_hugging_face(iter_strings(texts), num_tokens, pattern, progress)


def trainable_tokenizer_class() -> type[Tokenizer]:
    """Return RustBPETokenizer if the Rust extension is built, else print a notice and return HuggingFaceTokenizer."""
    try:
        from nanochat.tokenization import _rustbpe  # noqa: F401
    except ImportError as error:
        print0(f"The Rust extension is not built ({error}): training with Hugging Face tokenizers, which is slower.")
        return HuggingFaceTokenizer
    return RustBPETokenizer


def get_tokenizer() -> Tokenizer:
    """Load the tokenizer that `scripts.tok_train` saved in `$NANOCHAT_BASE_DIR`. Raises UserError if there is none."""
    return Tokenizer.from_directory(base_dir() / "tokenizer")


def _token_bytes(text: str) -> bytes:
    """Return the bytes of a token in tokenizer.json. Raises UserError if it is written in another way."""
    try:
        token = base64.b64decode(text, validate=True)
    except ValueError as error:
        raise UserError(f"the token {short_repr(text)} is not base64 ({error})") from error
    if not token or base64.b64encode(token).decode("ascii") != text:
        raise UserError(f"the token {short_repr(text)} is not base64 as it is written")
    return token


def _check_vocabulary(ranks: Mapping[bytes, int], special_tokens: Mapping[str, int]) -> None:
    """Raise UserError unless every byte, every merge and every special token has an id, without gaps, in this order."""
    ids = [*ranks.values(), *special_tokens.values()]
    if sorted(ids) != list(range(len(ids))) or (special_tokens and min(special_tokens.values()) < len(ranks)):
        raise UserError("the ids must count up from 0 without gaps, special tokens last")
    missing_bytes = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if missing_bytes:
        raise UserError(
            f"{len(missing_bytes)} single bytes have no token, the first is 0x{missing_bytes[0]:02x}: "
            "not every text could be encoded"
        )
    missing_names = [name for name in SPECIAL_TOKENS if name not in special_tokens]
    if missing_names:
        raise UserError(f"the special token {missing_names[0]} is missing")
