"""The tokenizer in the metadata of a GGUF file: tokens, merges, special tokens, and the engine's way to cut a text.

llama.cpp does not read a split pattern. It knows the patterns of some models by name ("pre-tokenizers"), of which two
are nanochat's with numbers in groups of one or of up to three digits. There is none with groups of two, nanochat's
default. A vocabulary that has tokens of several digits is cut in another way by such an engine than in training.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from nanochat.common import UserError
from nanochat.export.hf_tokenizer import CHAT_TEMPLATE, MAX_MERGE_WORK, last_merge
from nanochat.system.json_text import short_repr
from nanochat.tokenization.hugging_face_bpe import byte_level_alphabet
from nanochat.tokenizer import Tokenizer, split_pattern

NORMAL, CONTROL = 1, 3  # kinds of tokens
CHAT_TEMPLATE_KEY = "tokenizer.chat_template"
# Digits of a number's groups -> pre-tokenizer of llama.cpp with this pattern.
PRE_TOKENIZERS = {1: "bailingmoe", 3: "llama-bpe"}


@dataclass(frozen=True)
class Splitting:
    """The pre-tokenizer of a file, and if it cuts every text as the model's tokenizer does."""

    pre_tokenizer: str
    is_exact: bool


def choose_splitting(tokenizer: Tokenizer, allow_other_digits: bool) -> Splitting:
    """Return the pre-tokenizer for a tokenizer.

    Raises UserError for a pattern that no pre-tokenizer has. `allow_other_digits`: for the default pattern, numbers in
    groups of two digits, return the one with groups of up to three instead, which agrees on numbers of one or two.
    """
    for digits, name in PRE_TOKENIZERS.items():
        if tokenizer.pattern == split_pattern(digits):
            return Splitting(name, is_exact=True)
    if tokenizer.pattern != split_pattern(2):
        raise UserError(f"no engine has the split pattern {short_repr(tokenizer.pattern)}: the ids would differ")
    joined = [token for token in tokenizer.ranks if joins_digits(token)]
    if not joined:  # no merge crosses the border between two digits, so cutting there changes nothing
        return Splitting(PRE_TOKENIZERS[1], is_exact=True)
    if allow_other_digits:
        return Splitting(PRE_TOKENIZERS[3], is_exact=False)
    example = short_repr(joined[0].decode(errors="replace"))
    raise UserError(
        f"the vocabulary has {len(joined)} tokens of two digits, such as {example}: no engine cuts numbers in groups "
        "of two, so numbers of three and more digits would be read in other groups than in training. Train a "
        "tokenizer with `tok_train --digits=1` (or 3) for an exact file, or accept it with --allow_other_digits"
    )


def joins_digits(token: bytes) -> bool:
    r"""Return True if a token may hold parts of two digits or numerals in a row, also ones of several bytes.

    >>> [joins_digits(token) for token in (b"7", b"42", b" 4", b"\xc2", b"\xb2\xc2", "日本".encode())]
    [False, True, False, False, True, False]
    """
    characters = token.decode("utf-8", errors="surrogateescape")
    pieces: list[bool] = []  # of each character, or part of one: it may be a numeral
    previous_is_part = False
    for character in characters:
        byte = ord(character) - 0xDC00
        if 0x80 <= byte <= 0xFF:
            # A byte that starts a character begins another piece; one that continues belongs to the piece before.
            if byte >= 0xC0 or not previous_is_part:
                pieces.append(True)
            previous_is_part = True
        else:
            pieces.append(unicodedata.category(character).startswith("N"))
            previous_is_part = False
    return any(left and right for left, right in pairwise(pieces))


def gguf_merges(tokenizer: Tokenizer) -> list[str]:
    """Return the merges, "LEFT RIGHT" in the spelling of byte-level BPE, in the order in which they are applied.

    Raises UserError for a token that no merges lead to: an engine would never produce it.
    """
    spelling = _spelling()
    merges = []
    for token in tokenizer.ranks:
        if len(token) == 1:
            continue
        pair = last_merge(token, tokenizer.ranks)
        if pair is None:
            text = short_repr(token.decode(errors="replace"))
            raise UserError(f"no merges lead to the token {text}: engines of GGUF files would never produce it")
        merges.append(" ".join("".join(spelling[byte] for byte in part) for part in pair))
    return merges


def gguf_tokenizer(tokenizer: Tokenizer, splitting: Splitting) -> dict[str, Any]:
    """Return the keys `tokenizer.*` of a GGUF file and their values.

    `<|assistant_end|>` ends an answer, and so does `<|bos|>`. `<|python_end|>` ends it too, for clients that compute
    the result of a tool call and let the model go on. The engine puts `<|bos|>` before each text.
    """
    spelling = _spelling()
    names = sorted(tokenizer.special_tokens, key=lambda name: tokenizer.special_tokens[name])
    special = tokenizer.special_tokens
    return {
        "tokenizer.ggml.model": "gpt2",  # byte-level BPE
        "tokenizer.ggml.pre": splitting.pre_tokenizer,
        "tokenizer.ggml.tokens": ["".join(spelling[byte] for byte in token) for token in tokenizer.ranks] + names,
        "tokenizer.ggml.token_type": [NORMAL] * len(tokenizer.ranks) + [CONTROL] * len(names),
        "tokenizer.ggml.merges": gguf_merges(tokenizer),
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.bos_token_id": special["<|bos|>"],
        "tokenizer.ggml.eos_token_id": special["<|assistant_end|>"],
        "tokenizer.ggml.eot_token_id": special["<|bos|>"],
        "tokenizer.ggml.eom_token_id": special["<|python_end|>"],
        CHAT_TEMPLATE_KEY: CHAT_TEMPLATE,
    }


def from_gguf_tokenizer(keys: Mapping[str, Any]) -> Tokenizer:
    """Return the tokenizer of a file's keys, which cuts texts as the engine does with this file.

    Raises UserError if the file's tokenizer is not one that `gguf_tokenizer` writes.
    """
    digits_of = {name: digits for digits, name in PRE_TOKENIZERS.items()}
    byte_of = {letter: byte for byte, letter in enumerate(_spelling())}
    try:
        pre_tokenizer = keys["tokenizer.ggml.pre"]
        kinds = keys["tokenizer.ggml.token_type"]
        names = keys["tokenizer.ggml.tokens"]
        if sum(len(name) ** 2 for name in names) > MAX_MERGE_WORK:
            raise UserError("its tokens are longer than those of any vocabulary in use")
        ids = {kind: [i for i, k in enumerate(kinds) if k == kind] for kind in (NORMAL, CONTROL)}
        ranks = {bytes(byte_of[letter] for letter in names[i]): i for i in ids[NORMAL]}
        tokenizer = Tokenizer(split_pattern(digits_of[pre_tokenizer]), ranks, {names[i]: i for i in ids[CONTROL]})
        expected = gguf_tokenizer(tokenizer, Splitting(pre_tokenizer, is_exact=True))
        odd = [key for key in expected if key != CHAT_TEMPLATE_KEY and keys.get(key) != expected[key]]
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise UserError(f"its tokenizer is not one of nanochat's: {short_repr(error)}") from error
    if odd:
        raise UserError(f"its tokenizer is not one of nanochat's: {odd[0]} is {short_repr(keys.get(odd[0]))}")
    return tokenizer


def _spelling() -> list[str]:
    return list(byte_level_alphabet())
