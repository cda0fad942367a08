"""Conversion of a tokenizer to and from Hugging Face's two files, `tokenizer.json` and `tokenizer_config.json`.

nanochat stores a rank, the id, of each token: the adjacent pair whose token has the lowest rank is merged first.
Hugging Face stores ordered merge pairs. The pair that forms a token is found by encoding the token's own bytes
(`last_merge`), so both give the same ids for every text:

    ranks {a: 0, b: 1, c: 2, bc: 3, abc: 4}  ->  merges [b, c], [a, bc]

Three differences remain. Hugging Face encodes the name of a special token in a text as that token, where nanochat keeps
it text (`split_special_tokens=True` does the same there). The chat template renders a conversation as
`render_conversation` does, but keeps what follows the last answer, because it also renders prompts for an answer.
If a tool result follows text without a tool call, transformers' assistant mask may miss the last tokens of that text.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any, TypedDict

from nanochat.common import UserError
from nanochat.system.json_files import check_type
from nanochat.system.json_text import short_repr
from nanochat.tokenization.hugging_face_bpe import byte_level_alphabet
from nanochat.tokenizer import Tokenizer

BOS = "<|bos|>"
ASSISTANT_END = "<|assistant_end|>"

# `render_turns` in Jinja: it accepts and refuses what tests/support/conversation_cases.py lists. Of the keys that steer
# training or the prompt it knows the usual ones. Generation markers enclose the text that the model is trained on, in
# spans that end with a special token, because transformers cuts a span short if its last character has several tokens.
# Only a span before a tool result without a call ends otherwise. An answer of weight 0 has no markers.
#
# The markers are a tag of transformers, at which other programs with Jinja stop. So the template that all of them use
# is the same one without markers, and the one with markers is a second template, which is asked for by its name.
TRAINING_TEMPLATE = r"""
{{- bos_token -}}
{%- set ns = namespace(system='', due='user', said='', text='') -%}
{%- if not messages -%}{{- raise_exception('a conversation must have at least one message') -}}{%- endif -%}
{%- for message in messages -%}
    {%- set name = 'message ' ~ loop.index ~ ': ' -%}
    {%- if message is not mapping or message['role'] is not defined or message['content'] is not defined -%}
        {{- raise_exception(name ~ 'must have a role and a content') -}}
    {%- endif -%}
    {%- for key in ['tool_calls', 'function_call', 'tool_call_id', 'name', 'refusal', 'audio', 'reasoning_content',
                    'thinking', 'train', 'trainable', 'training', 'mask', 'loss'] -%}
        {%- if message[key] is defined and message[key] is not none and message[key] not in ['', [], {}] -%}
            {{- raise_exception(name ~ key ~ ': it is not used here, remove it') -}}
        {%- endif -%}
    {%- endfor -%}
    {%- set content = message['content'] -%}
    {%- set weight = message['weight'] if message['weight'] is defined else none -%}
    {%- if weight is not none -%}
        {%- if weight is boolean or weight is not number or weight not in [0, 1] -%}
            {{- raise_exception(name ~ 'weight must be 0 (not trained on) or 1 (trained on)') -}}
        {%- elif weight == 1 and message['role'] != 'assistant' -%}
            {{- raise_exception(name ~ 'weight is 1, but only the messages of the assistant are trained on') -}}
        {%- endif -%}
    {%- endif -%}
    {%- if content is string -%}
        {%- set parts = [{'type': 'text', 'text': content}] -%}
    {%- elif content is iterable and content is not mapping and (content or message['role'] == 'assistant') -%}
        {%- set parts = content -%}
    {%- else -%}
        {{- raise_exception(name ~ 'the content must be text or a list of parts') -}}
    {%- endif -%}
    {%- set kinds = ['text', 'python', 'python_output'] if message['role'] == 'assistant' else ['text'] -%}
    {%- set ns.text = '' -%}
    {%- for part in parts -%}
        {%- if part is not mapping or part['type'] not in kinds or part['text'] is not string -%}
            {{- raise_exception(name ~ 'a part must have a type (' ~ kinds|join(', ') ~ ') and a text') -}}
        {%- endif -%}
        {%- set ns.text = ns.text + part['text'] -%}
    {%- endfor -%}
    {%- if loop.first and message['role'] in ['system', 'developer'] -%}
        {%- set ns.system = ns.text + '\n\n' -%}
        {%- if loop.last -%}
            {{- raise_exception(name ~ 'a system message must be followed by a message of the user') -}}
        {%- endif -%}
    {%- elif message['role'] != ns.due -%}
        {{- raise_exception(name ~ 'a message of the ' ~ ns.due ~ ' is due') -}}
    {%- elif ns.due == 'user' -%}
        {{- '<|user_start|>' + ns.system + ns.text + '<|user_end|>' -}}
        {%- set ns.system = '' -%}
        {%- set ns.due = 'assistant' -%}
    {%- else -%}
        {{- '<|assistant_start|>' -}}
        {%- set ns.said = '' -%}
        {%- for part in parts -%}
            {%- if part['type'] == 'text' -%}
                {%- set ns.said = ns.said + part['text'] -%}
            {%- elif part['type'] == 'python' -%}
                {%- set ns.said = ns.said + '<|python_start|>' + part['text'] + '<|python_end|>' -%}
            {%- else -%}
                {%- if ns.said and weight == 0 -%}
                    {{- ns.said -}}
                {%- elif ns.said -%}
                    {%- generation -%}{{- ns.said -}}{%- endgeneration -%}
                {%- endif -%}
                {%- set ns.said = '' -%}
                {{- '<|output_start|>' + part['text'] + '<|output_end|>' -}}
            {%- endif -%}
        {%- endfor -%}
        {%- if weight == 0 -%}
            {{- ns.said + '<|assistant_end|>' -}}
        {%- else -%}
            {%- generation -%}{{- ns.said + '<|assistant_end|>' -}}{%- endgeneration -%}
        {%- endif -%}
        {%- set ns.due = 'user' -%}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant_start|>' -}}{%- endif -%}
""".strip()
CHAT_TEMPLATE = TRAINING_TEMPLATE.replace("{%- generation -%}", "").replace("{%- endgeneration -%}", "")
# Template -> its file in an exported folder, where transformers looks for it. `CHAT_TEMPLATE` is in
# tokenizer_config.json, too, for programs that read only that.
TEMPLATE_FILES = {
    CHAT_TEMPLATE: "chat_template.jinja",
    TRAINING_TEMPLATE: "additional_chat_templates/training.jinja",
}


MAX_MERGE_WORK = 10**8  # sum of the squared lengths of all tokens, to which the time of `last_merge` is proportional


class _AddedToken(TypedDict):
    id: int
    content: str


class _Model(TypedDict):
    vocab: dict[str, int]
    merges: list[Any]


class _PreTokenizer(TypedDict):
    pretokenizers: list[dict[str, Any]]


class _HFTokenizer(TypedDict):
    """The keys of Hugging Face's tokenizer.json that `from_hf_tokenizer` reads."""

    added_tokens: list[_AddedToken]
    model: _Model
    pre_tokenizer: _PreTokenizer


def to_hf_tokenizer_config(context_len: int) -> dict[str, Any]:
    """Return the content of `tokenizer_config.json`. `context_len`: maximum number of tokens of an input."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": context_len,
        "model_input_names": ["input_ids", "attention_mask"],
        "bos_token": BOS,
        "eos_token": ASSISTANT_END,
        "pad_token": BOS,  # never a target, so a loss that ignores padding ignores no other token
        "padding_side": "left",
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }


def to_hf_tokenizer(tokenizer: Tokenizer) -> dict[str, Any]:
    """Return the content of `tokenizer.json` for the `tokenizers` package, which puts `<|bos|>` before a text."""
    letters = byte_level_alphabet()
    spelling = {token: "".join(letters[byte] for byte in token) for token in tokenizer.ranks}
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
            "ignore_merges": True,  # a word that is a token becomes that token, even if no merges lead to it
            "vocab": {spelling[token]: rank for token, rank in tokenizer.ranks.items()},
            "merges": [[spelling[left], spelling[right]] for left, right in filter(None, pairs)],
        },
    }


def last_merge(token: bytes, ranks: Mapping[bytes, int]) -> tuple[bytes, bytes] | None:
    """Return the two tokens whose merge forms `token`; None for a byte, and for a token that no merges lead to.

    The pair is the same in every text: merges inside a token's bytes do not depend on the bytes around them, as long as
    no merge crosses the token's ends.

    >>> last_merge(b"abc", {b"a": 0, b"b": 1, b"c": 2, b"bc": 3, b"ab": 4, b"abc": 5})
    (b'a', b'bc')
    """
    parts = [bytes([byte]) for byte in token]
    while len(parts) > 1:
        pair_ranks = [ranks.get(left + right, len(ranks)) for left, right in pairwise(parts)]
        i = pair_ranks.index(min(pair_ranks))
        if pair_ranks[i] == len(ranks):
            return None
        if len(parts) == 2:
            return parts[0], parts[1]
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return None


def from_hf_tokenizer(content: Any) -> Tokenizer:
    """Return the tokenizer of a `tokenizer.json`'s content.

    Raises UserError if nanochat would give other ids: for steps other than a split and byte-level BPE, for other
    special tokens, and for merges in another order than that of the ids.
    """
    byte_of = {letter: byte for byte, letter in enumerate(byte_level_alphabet())}
    try:
        check_type(content, _HFTokenizer, "")
    except UserError as error:
        raise UserError(f"the tokenizer is not a byte-level BPE with a split pattern: {error}") from error
    try:
        if sum(len(spelling) ** 2 for spelling in content["model"]["vocab"]) > MAX_MERGE_WORK:
            raise UserError("its tokens are longer than those of any vocabulary in use")
        split = content["pre_tokenizer"]["pretokenizers"][0]
        model = content["model"]
        specials = {token["content"]: token["id"] for token in content["added_tokens"]}
        vocab = {spelling: i for spelling, i in model["vocab"].items() if spelling not in specials}
        ranks = {bytes(byte_of[letter] for letter in spelling): i for spelling, i in vocab.items()}
        tokenizer = Tokenizer(split["pattern"]["Regex"], ranks, specials)
        merges = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
        steps = (vocab, merges, _pre_tokenizer_steps(content), content["normalizer"])
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        reason = short_repr(error)
        raise UserError(f"the tokenizer is not a byte-level BPE with a split pattern: {reason}") from error
    exported = to_hf_tokenizer(tokenizer)
    expected = (exported["model"]["vocab"], exported["model"]["merges"], _pre_tokenizer_steps(exported), None)
    if steps != expected:
        raise UserError("the tokenizer merges or splits text in a way that nanochat does not: the ids would differ")
    return tokenizer


def _pre_tokenizer_steps(content: Mapping[str, Any]) -> list[Any]:
    """Return the steps that split a text, without the option that only concerns offsets."""
    steps = content["pre_tokenizer"]["pretokenizers"]
    return [{key: value for key, value in step.items() if key != "trim_offsets"} for step in steps]
