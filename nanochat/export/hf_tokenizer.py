"""Our tokenizer as Hugging Face's two files, and back: `tokenizer.json` and `tokenizer_config.json`.

Ours says which bytes have a token, and the token of the lowest id is merged first; theirs says which pairs may be
merged, in order. The one pair that really makes a token is found by encoding the token itself, so the ids are the same
for every text. The exception: theirs reads the name of a special token in a text as that token, where ours leaves it
text (`split_special_tokens=True` does the same there). The chat template gives what `render_conversation` does, but for
such names; for a last question without an answer, which it keeps, since an answer is asked for in this way too; and for
the mask of a text before a tool's result that follows no call.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from nanochat.common import UserError
from nanochat.tokenization.hugging_face_bpe import byte_level_alphabet
from nanochat.tokenizer import Tokenizer

BOS = "<|bos|>"
ASSISTANT_END = "<|assistant_end|>"

# `render_turns` in Jinja. What the model learns to say stands between generation markers, in spans as long as can be:
# they end in a special token, since transformers cuts short a span whose last character is of several tokens. A
# tool's result can follow a text without a call: there it does so.
CHAT_TEMPLATE = r"""
{{- bos_token -}}
{%- set ns = namespace(system='', due='user', said='') -%}
{%- for message in messages -%}
    {%- set content = message['content'] -%}
    {%- if message['role'] != 'assistant' and content is not string -%}
        {{- raise_exception('message ' ~ loop.index ~ ': the content must be text') -}}
    {%- endif -%}
    {%- if loop.first and message['role'] == 'system' -%}
        {%- set ns.system = content + '\n\n' -%}
    {%- elif message['role'] != ns.due -%}
        {{- raise_exception('message ' ~ loop.index ~ ': a message of the ' ~ ns.due ~ ' is due') -}}
    {%- elif ns.due == 'user' -%}
        {{- '<|user_start|>' + ns.system + content + '<|user_end|>' -}}
        {%- set ns.system = '' -%}
        {%- set ns.due = 'assistant' -%}
    {%- else -%}
        {{- '<|assistant_start|>' -}}
        {%- set ns.said = '' -%}
        {%- for part in ([{'type': 'text', 'text': content}] if content is string else content) -%}
            {%- if part['type'] == 'text' -%}
                {%- set ns.said = ns.said + part['text'] -%}
            {%- elif part['type'] == 'python' -%}
                {%- set ns.said = ns.said + '<|python_start|>' + part['text'] + '<|python_end|>' -%}
            {%- elif part['type'] == 'python_output' -%}
                {%- if ns.said -%}
                    {%- generation -%}{{- ns.said -}}{%- endgeneration -%}
                {%- endif -%}
                {%- set ns.said = '' -%}
                {{- '<|output_start|>' + part['text'] + '<|output_end|>' -}}
            {%- else -%}
                {{- raise_exception('message ' ~ loop.index ~ ': a part is text, python or python_output') -}}
            {%- endif -%}
        {%- endfor -%}
        {%- generation -%}{{- ns.said + '<|assistant_end|>' -}}{%- endgeneration -%}
        {%- set ns.due = 'user' -%}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant_start|>' -}}{%- endif -%}
""".strip()


def to_hf_tokenizer_config(context: int) -> dict[str, Any]:
    """`tokenizer_config.json`, for a model of this context in tokens."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": context,
        "model_input_names": ["input_ids", "attention_mask"],
        "bos_token": BOS,
        "eos_token": ASSISTANT_END,
        "pad_token": BOS,  # never a target, so a loss that leaves the padding out forgets nothing
        "padding_side": "left",
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }


def to_hf_tokenizer(tokenizer: Tokenizer) -> dict[str, Any]:
    """The content of `tokenizer.json` as the `tokenizers` package reads it. A text is given `<|bos|>` in front."""
    letters = byte_level_alphabet()
    pieces = {token: "".join(letters[byte] for byte in token) for token in tokenizer.ranks}
    pairs = (last_merge(token, tokenizer.ranks) for token in tokenizer.ranks)
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    specials = sorted(tokenizer.special_tokens.items(), key=lambda item: item[1])
    bos = {"SpecialToken": {"id": BOS, "type_id": 0}}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": tokenizer.pattern}, "behavior": "Isolated", "invert": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, "content": name, **flags} for name, i in specials],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [bos, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [bos, *({"Sequence": {"id": name, "type_id": 0}} for name in "AB")],
            "special_tokens": {BOS: {"id": BOS, "ids": [tokenizer.get_bos_token_id()], "tokens": [BOS]}},
        },
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": True,  # a word that is a token is that token, however merges would go
            "vocab": {pieces[token]: rank for token, rank in tokenizer.ranks.items()},
            "merges": [[pieces[left], pieces[right]] for left, right in filter(None, pairs)],
        },
    }


def last_merge(token: bytes, ranks: Mapping[bytes, int]) -> tuple[bytes, bytes] | None:
    """The two tokens whose merge makes this one, wherever it is made; None for a byte, and if no merges lead to it.

    The merges inside a token's bytes do not depend on what stands around it as long as none crosses its ends.

    >>> last_merge(b"abc", {b"a": 0, b"b": 1, b"c": 2, b"bc": 3, b"ab": 4, b"abc": 5})
    (b'a', b'bc')
    """
    parts = [bytes([byte]) for byte in token]
    while len(parts) > 1:
        joined = [ranks.get(left + right, len(ranks)) for left, right in pairwise(parts)]
        i = joined.index(min(joined))
        if joined[i] == len(ranks):
            return None
        if len(parts) == 2:
            return parts[0], parts[1]
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return None


def from_hf_tokenizer(content: Any) -> Tokenizer:
    """Our tokenizer from the content of such a `tokenizer.json`.

    Raises UserError for one that is not of this kind: other steps than a split and byte-level BPE, special tokens other
    than ours, or merges in another order than that of the ids.
    """
    byte_of = {letter: byte for byte, letter in enumerate(byte_level_alphabet())}
    try:
        split, model = content["pre_tokenizer"]["pretokenizers"][0], content["model"]
        specials = {token["content"]: token["id"] for token in content["added_tokens"]}
        words = {piece: i for piece, i in model["vocab"].items() if piece not in specials}
        ranks = {bytes(byte_of[letter] for letter in piece): i for piece, i in words.items()}
        tokenizer = Tokenizer(split["pattern"]["Regex"], ranks, specials)
        merges = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
        found = (words, merges, _pre_tokenizer(content), content["normalizer"])
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise UserError(f"it is no byte-level BPE like ours: {error!r}") from error
    ours = to_hf_tokenizer(tokenizer)
    if found != (ours["model"]["vocab"], ours["model"]["merges"], _pre_tokenizer(ours), None):
        raise UserError("it merges or splits in another way than ours: the ids would differ")
    return tokenizer


def _pre_tokenizer(content: Mapping[str, Any]) -> list[Any]:
    """What decides where a text is cut; offsets do not."""
    steps = content["pre_tokenizer"]["pretokenizers"]
    return [{key: value for key, value in step.items() if key != "trim_offsets"} for step in steps]
