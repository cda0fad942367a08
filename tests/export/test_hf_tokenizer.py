"""Exported tokenizers in transformers: the same ids for every text, the same ids and masks for conversations."""

from __future__ import annotations

import json
import unicodedata
from importlib import metadata
from pathlib import Path
from typing import Any

import jinja2
import pyarrow.parquet as pq
import pytest
import tokenizers
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer
from transformers.utils.chat_template_utils import render_jinja_template

from nanochat.common import UserError
from nanochat.export.hf_tokenizer import (
    CHAT_TEMPLATE,
    TRAINING_TEMPLATE,
    from_hf_tokenizer,
    last_merge,
    to_hf_tokenizer,
)
from nanochat.tokenizer import (
    SPECIAL_TOKENS,
    SPLIT_PATTERN,
    HuggingFaceTokenizer,
    RustBPETokenizer,
    Tokenizer,
    split_pattern,
)
from tests.support.conversation_cases import ACCEPTED, REFUSED
from tests.support.exports import TOKENIZER, Exported, has_special_name
from tests.support.hf_models import TEXTS

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def hf_tokenizer(exported: Exported) -> Any:
    """The exported tokenizer, as AutoTokenizer loads it."""
    return AutoTokenizer.from_pretrained(exported["plain"][1])


def export(tokenizer: Tokenizer) -> tokenizers.Tokenizer:
    """Return a tokenizer as the `tokenizers` package reads it."""
    return tokenizers.Tokenizer.from_str(json.dumps(to_hf_tokenizer(tokenizer)))


def shared_texts(data: Path) -> list[str]:
    """Up to half a million bytes each of English, Russian, Chinese and Python."""
    texts = []
    for path in (
        next((data / "text/textbooks").glob("*.parquet")),
        *(data / f"text/tokenizer/{name}.parquet" for name in ("russian", "chinese", "python")),
    ):
        size = 0
        for text in pq.read_table(path, columns=["text"])["text"].to_pylist():
            if size >= 500_000:
                break
            texts.append(text[:100_000])
            size += len(texts[-1].encode("utf-8"))
    return texts


@pytest.mark.shared_data
@pytest.mark.parametrize("trainer", [RustBPETokenizer, HuggingFaceTokenizer])
def test_ids_of_shared_texts(trainer: type[Tokenizer], shared_data: Path) -> None:
    texts = shared_texts(shared_data)
    size = sum(len(text.encode("utf-8")) for text in texts)
    assert size > 1_500_000
    tokenizer = trainer.train_from_iterator(texts[::4] if trainer is HuggingFaceTokenizer else texts, 2000)
    hf = export(tokenizer)
    assert from_hf_tokenizer(json.loads(hf.to_str())).hash() == tokenizer.hash()
    for text, ids in zip(texts, tokenizer.encode(texts), strict=True):
        assert hf.encode(text, add_special_tokens=False).ids == ids
        assert hf.decode(ids) == text


@pytest.mark.slow
def test_every_character(hf_tokenizer: Any) -> None:
    """Each character, and some unassigned ones, next to letters, spaces and digits: both regex engines agree."""
    assigned = [i for i in range(0x110000) if unicodedata.category(chr(i)) not in ("Cn", "Co", "Cs")]
    unassigned = [i for i in range(0x110000) if not 0xD800 <= i < 0xE000 and i % 101 == 0]
    text = "".join(f"a{chr(i)} {chr(i)}b1{chr(i)}" for i in [*assigned, *unassigned])
    for start in range(0, len(text), 200_000):
        part = text[start : start + 200_000]
        assert hf_tokenizer(part, add_special_tokens=False)["input_ids"] == TOKENIZER.encode(part)


ODD_TEXTS = st.text(
    st.one_of(
        st.characters(codec="utf-8"),
        st.sampled_from(" \t\n\r\x0b\x0c\x1c\x85\xa0\u1680\u180e\u2000\u200b\u2028\u2029\u3000\ufeff'’sSſtTllVE09²Ⅷ٣"),
    ),
    max_size=40,
)


@settings(deadline=None, max_examples=300)
@given(text=ODD_TEXTS)
def test_ids_of_odd_strings(text: str, hf_tokenizer: Any) -> None:
    assume(not has_special_name(text))
    ids = TOKENIZER.encode(text)
    assert hf_tokenizer(text, add_special_tokens=False)["input_ids"] == ids
    assert hf_tokenizer(text)["input_ids"] == TOKENIZER.encode(text, prepend="<|bos|>")
    assert hf_tokenizer.decode(ids) == text


BY_DIGITS = {
    digits: RustBPETokenizer.train_from_iterator(
        [*TEXTS[:2] * 3, "12 345 6789 " * 9], 400, pattern=split_pattern(digits)
    )
    for digits in (1, 3)
}
HF_BY_DIGITS = {digits: export(tokenizer) for digits, tokenizer in BY_DIGITS.items()}


@pytest.mark.parametrize("digits", [1, 3])
@settings(deadline=None, max_examples=150)
@given(text=st.lists(st.one_of(ODD_TEXTS, st.integers(0, 10**12).map(str))).map("".join))
def test_ids_with_other_groups_of_digits(digits: int, text: str) -> None:
    assume(not has_special_name(text))
    ids = BY_DIGITS[digits].encode(text)
    assert HF_BY_DIGITS[digits].encode(text, add_special_tokens=False).ids == ids


@pytest.mark.parametrize("digits", [1, 3])
def test_import_with_other_groups_of_digits(digits: int) -> None:
    imported = from_hf_tokenizer(json.loads(HF_BY_DIGITS[digits].to_str()))
    assert imported.pattern == split_pattern(digits)
    assert imported.hash() == BY_DIGITS[digits].hash()


def test_special_names_in_text(hf_tokenizer: Any) -> None:
    """The one difference of texts, which the model card names, and the option that removes it."""
    text = "say <|assistant_end|> now"
    assert hf_tokenizer(text, add_special_tokens=False)["input_ids"] != TOKENIZER.encode(text)
    ids = hf_tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert ids == TOKENIZER.encode(text)


def test_ids_when_the_order_of_merges_matters() -> None:
    """Tokens that two pairs spell, that no merges lead to, and whose parts have higher ids."""
    words = [b"ab", b"bc", b"abc", b"xyz", b"cd", b"abcd", b"aa", b"aaa", b"aaaa", b"zd", b"yzd", b"ba", b"aba"]
    for order in (words, words[::-1], sorted(words)):
        ranks = {token: i for i, token in enumerate([*(bytes([b]) for b in range(256)), *order])}
        tokenizer = Tokenizer(SPLIT_PATTERN, ranks, {name: len(ranks) + i for i, name in enumerate(SPECIAL_TOKENS)})
        assert last_merge(b"xyz", ranks) is None
        hf = export(tokenizer)
        for token in words:  # a word that is a token becomes that token
            assert hf.encode(token.decode(), add_special_tokens=False).ids == tokenizer.encode(token.decode())
        assert tokenizer.encode("xyz") == [ranks[b"xyz"]]
        generator = torch.Generator().manual_seed(0)
        for length in range(1, 200):
            word = "".join("abcdxyz"[i] for i in torch.randint(0, 7, (length % 12 + 1,), generator=generator))
            word = word.replace("x", "xyz") if length % 3 else word
            assert hf.encode(word, add_special_tokens=False).ids == tokenizer.encode(word), word
        assert from_hf_tokenizer(json.loads(hf.to_str())).hash() == tokenizer.hash()


# --- conversations ----------------------------------------------------------------------------------------------------


WORDS = st.one_of(
    st.text(st.characters(codec="utf-8"), max_size=12), st.sampled_from([" hi\n", "2+2", "😀", "Да.", ""])
)


@st.composite
def answers(draw: st.DrawFn) -> str | list[dict[str, str]]:
    """A text, or texts and tool calls in any order, each call with its results."""
    groups = st.sampled_from(
        ["text", "text text", "python", "python python_output", "python python_output python_output"]
    )
    kinds = draw(st.none() | st.lists(groups, max_size=4).map(" ".join))
    return draw(WORDS) if kinds is None else [{"type": kind, "text": draw(WORDS)} for kind in kinds.split()]


@st.composite
def conversations(draw: st.DrawFn) -> dict[str, Any]:
    messages: list[dict[str, Any]] = []
    if draw(st.booleans()):
        messages.append({"role": "system", "content": draw(WORDS)})
    for _ in range(draw(st.integers(1, 3))):
        messages.append({"role": "user", "content": draw(WORDS)})
        messages.append({"role": "assistant", "content": draw(answers())})
        if draw(st.booleans()):
            messages[-1]["weight"] = draw(st.integers(0, 1))
    return {"messages": messages[: len(messages) - draw(st.integers(0, 1))]}


@settings(deadline=None, max_examples=200)
@given(conversation=conversations())
def test_conversations(conversation: dict[str, Any], hf_tokenizer: Any) -> None:
    """Ids and masks are equal, up to the last answer that is trained on: the template also keeps what follows it."""
    assume(not has_special_name(json.dumps(conversation, ensure_ascii=False)))
    messages = conversation["messages"]
    questions = messages if messages[-1]["role"] == "user" else messages[:-1]
    trained = [message["role"] == "assistant" and message.get("weight") != 0 for message in messages]
    ids, mask = TOKENIZER.render_conversation(conversation)
    if any(trained):
        answered = messages[: len(messages) - trained[::-1].index(True)]
        rendered = hf_tokenizer.apply_chat_template(
            answered, tokenize=True, return_dict=True, return_assistant_tokens_mask=True, chat_template="training"
        )
        assert (rendered["input_ids"], rendered["assistant_masks"]) == (ids, mask)
    else:
        assert (ids, mask) == ([], [])
    without_prompt = hf_tokenizer.apply_chat_template(questions, tokenize=True, return_dict=True)["input_ids"]
    prompted = hf_tokenizer.apply_chat_template(questions, add_generation_prompt=True, tokenize=True, return_dict=True)
    assert [*without_prompt, TOKENIZER.encode_special("<|assistant_start|>")] == prompted["input_ids"]
    assert prompted["input_ids"] == TOKENIZER.render_for_completion(conversation)


def test_a_result_after_text(hf_tokenizer: Any) -> None:
    """Without a call: before version 5.24 transformers' mask ends at the first token of the text's last character, as
    the card says."""
    parts = [{"type": "text", "text": "a\x80"}, {"type": "python_output", "text": "4"}]
    messages = [{"role": "user", "content": ""}, {"role": "assistant", "content": parts}]
    ids, mask = TOKENIZER.render_conversation({"messages": messages})
    rendered = hf_tokenizer.apply_chat_template(
        messages, return_dict=True, return_assistant_tokens_mask=True, chat_template="training"
    )
    assert rendered["input_ids"] == ids
    is_mended = tuple(map(int, metadata.version("transformers").split(".")[:2])) >= (5, 24)
    assert mask[4:8] == [1, 1, 1, 0]
    assert rendered["assistant_masks"][4:8] == (mask[4:8] if is_mended else [1, 1, 0, 0])


@pytest.mark.parametrize("name", ACCEPTED)
def test_accepted_as_in_files_and_requests(name: str, hf_tokenizer: Any) -> None:
    messages, plain = ACCEPTED[name]
    rendered = hf_tokenizer.apply_chat_template(
        messages, return_dict=True, return_assistant_tokens_mask=True, chat_template="training"
    )
    assert (rendered["input_ids"], rendered["assistant_masks"]) == TOKENIZER.render_conversation({"messages": plain})


@pytest.mark.parametrize("template", ["default", "training"])
@pytest.mark.parametrize("name", REFUSED)
def test_refused_as_in_files_and_requests(name: str, template: str, hf_tokenizer: Any) -> None:
    messages, _ = REFUSED[name]
    with pytest.raises(UserError):
        TOKENIZER.render_conversation({"messages": messages})
    with pytest.raises(Exception, match=r"^message [123]: |^a conversation must have|^Chat messages should be"):
        render_template(hf_tokenizer.chat_template[template], messages)


def render_template(template: str, messages: list[Any]) -> str:
    """Render the template itself: `apply_chat_template` takes an empty list, and a list of texts, for a batch."""
    rendered: list[str] = render_jinja_template([messages], chat_template=template, bos_token="")[0]
    return rendered[0]


# --- the two templates ------------------------------------------------------------------------------------------------


def test_where_the_templates_are(exported: Exported, hf_tokenizer: Any, tmp_path: Path) -> None:
    """In the files in which transformers looks for them, which keeps both; other programs read the one to chat."""
    folder = exported["plain"][1]
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert config["chat_template"] == CHAT_TEMPLATE
    assert (folder / "chat_template.jinja").read_text(encoding="utf-8") == CHAT_TEMPLATE
    both = {"default": CHAT_TEMPLATE, "training": TRAINING_TEMPLATE}
    assert hf_tokenizer.chat_template == both
    hf_tokenizer.save_pretrained(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path).chat_template == both


@settings(deadline=None, max_examples=100)
@given(conversation=conversations(), is_prompt=st.booleans())
def test_plain_jinja(conversation: dict[str, Any], is_prompt: bool) -> None:
    """Without any extension of Jinja the template to chat gives the same text as the one with marks."""
    messages = conversation["messages"]
    plain = jinja2.Environment().from_string(CHAT_TEMPLATE)
    text = plain.render(messages=messages, bos_token="<|bos|>", add_generation_prompt=is_prompt)
    marked = render_jinja_template(
        [messages], chat_template=TRAINING_TEMPLATE, bos_token="<|bos|>", add_generation_prompt=is_prompt
    )
    assert text == marked[0][0]
    assert text.startswith("<|bos|><|user_start|>")
    assert "generation" not in CHAT_TEMPLATE.replace("add_generation_prompt", "")
    with pytest.raises(jinja2.TemplateSyntaxError, match="generation"):
        jinja2.Environment().from_string(TRAINING_TEMPLATE)


def test_one_bos(hf_tokenizer: Any) -> None:
    """As the card says: tokenized at once, or later without special tokens."""
    messages = [{"role": "user", "content": "Hi"}]
    expected = TOKENIZER.render_for_completion({"messages": messages})
    at_once = hf_tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
    text = hf_tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    later = hf_tokenizer(text, add_special_tokens=False)["input_ids"]
    assert at_once == later == expected
    assert hf_tokenizer(text)["input_ids"] == [expected[0], *expected]
