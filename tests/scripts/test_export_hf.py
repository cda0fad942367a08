"""An exported model in transformers: logits, greedy text, ids and conversations like ours; and back, byte for byte."""

from __future__ import annotations

import io
import json
import re
import sys
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

import huggingface_hub
import pyarrow.parquet as pq
import pytest
import tokenizers
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from nanochat import common
from nanochat.checkpoint_manager import Checkpoint, load_model, open_checkpoint, read_meta, run_dir, save_checkpoint
from nanochat.common import UserError
from nanochat.engine import Engine
from nanochat.export.hf_model import special_token_ids
from nanochat.export.hf_tokenizer import from_hf_tokenizer, last_merge, to_hf_tokenizer
from nanochat.gpt import GPT, GPTConfig
from nanochat.reporting.schema import log_section
from nanochat.runtime import Runtime
from nanochat.serving.chat_session import join, reply
from nanochat.tokenizer import (
    SPECIAL_TOKENS,
    SPLIT_PATTERN,
    HuggingFaceTokenizer,
    RustBPETokenizer,
    Tokenizer,
    get_tokenizer,
)
from nanochat.training.finetune import resolve_settings
from scripts import base_train, chat_rl, chat_sft, export_hf, import_hf, mid_train
from tests.support.talks import sums, task_entry, write_mixture, write_talks

TEXTS = [
    "The sheep said that the shepherd's dog isn't there; they'll see 1234567 of them.\n\n  def f(x):\n\treturn x\n",
    "Жили-были старик со старухой у самого синего моря. 从前有一个老人和他的妻子住在海边。😀👩‍🚀 naïve café\r\n",
]
TOKENIZER = RustBPETokenizer.train_from_iterator(TEXTS * 3, 400)
VOCAB = TOKENIZER.get_vocab_size()
CPU = Runtime(0, 0, 1, torch.device("cpu"), torch.float32, 42)
SHAPES = {
    "plain": GPTConfig(sequence_len=96, vocab_size=VOCAB, n_layer=3, n_head=2, n_kv_head=2, n_embd=64),
    "grouped": GPTConfig(sequence_len=96, vocab_size=VOCAB, n_layer=2, n_head=6, n_kv_head=2, n_embd=60),
    "one key-value head": GPTConfig(sequence_len=2048, vocab_size=VOCAB, n_layer=1, n_head=3, n_kv_head=1, n_embd=42),
}
NAMES = [*SHAPES, "trained"]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def random_model(config: GPTConfig) -> GPT:
    """A model whose zeroed matrices are random too, and whose end tokens are never the likeliest."""
    model = GPT(config)
    model.init_weights(0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, param in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight", "head.weight")):
                param.copy_(torch.randn(param.shape, generator=generator) * (3 / param.size(1) ** 0.5))
        model.head.weight[special_token_ids(TOKENIZER)["eos_token_id"]] = 0
    return model


def trained_model() -> GPT:
    """A model after a few steps on the texts."""
    model = random_model(SHAPES["grouped"])
    ids = torch.tensor([TOKENIZER.encode(text, prepend="<|bos|>")[:32] for text in TEXTS])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(8):
        optimizer.zero_grad()
        model(ids[:, :-1], ids[:, 1:]).backward()
        optimizer.step()
    return model


def save(model: GPT, source: str = "base", tokenizer: Tokenizer = TOKENIZER, **meta: Any) -> Path:
    """A checkpoint in the base folder, with its tokenizer."""
    tokenizer.save(common.base_dir() / "tokenizer")
    whole = {"compute_dtype": "float32", "tokenizer_hash": tokenizer.hash(), "model_config": asdict(model.config)}
    return save_checkpoint(run_dir(source, "d9"), 7, model.state_dict(), {}, {**whole, **meta})


def export(model: GPT, out: Path, **options: Any) -> Path:
    save(model)
    return export_hf.main(export_hf.Config(out=out, **options))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, tuple[GPT, Path]]]:
    """Our models, and where each was exported to."""
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        for name in NAMES:
            folder = tmp_path_factory.mktemp("hf")
            patch.setenv("NANOCHAT_BASE_DIR", str(folder / "base"))
            model = trained_model() if name == "trained" else random_model(SHAPES[name])
            found[name] = model, export(model, folder / "out")
    return found


@pytest.fixture(scope="module")
def theirs(exported: dict[str, tuple[GPT, Path]]) -> Any:
    """Their tokenizer, as AutoTokenizer loads it."""
    return AutoTokenizer.from_pretrained(exported["plain"][1])


def prompt(length: int, seed: int = 0) -> torch.Tensor:
    ids = torch.randint(0, VOCAB, (1, length), generator=torch.Generator().manual_seed(seed))
    ids[0, 0] = TOKENIZER.get_bos_token_id()
    return ids


# --- the model --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@torch.inference_mode()
def test_logits(name: str, exported: dict[str, tuple[GPT, Path]]) -> None:
    """At every position, to the end of the context; the weights that a wrong rotation or epsilon would betray."""
    model, folder = exported[name]
    other = AutoModelForCausalLM.from_pretrained(folder)
    assert type(other).__name__ == "NanoChatForCausalLM"
    assert other.dtype == torch.float32
    assert sum(p.numel() for p in other.parameters()) == sum(
        p.numel() for p in GPT(model.config).parameters()
    ) - 2 * model.config.n_embd * (model.config.padded_vocab_size - VOCAB)
    ids = torch.cat([prompt(min(96, model.config.sequence_len), seed) for seed in range(3)])
    ours, found = model(ids), other(ids).logits
    assert found.shape == ours.shape
    assert ours.std() > 1, "the weights say nothing"
    assert (found - ours).abs().max() < 1e-4
    long = prompt(model.config.sequence_len)
    assert (other(long).logits - model(long)).abs().max() < 1e-4


@pytest.mark.parametrize("name", NAMES)
def test_greedy_text(name: str, exported: dict[str, tuple[GPT, Path]]) -> None:
    """64 tokens, with their cache and without, and in a batch that is padded on the left."""
    model, folder = exported[name]
    other = AutoModelForCausalLM.from_pretrained(folder)
    prompts = [prompt(length, length)[0].tolist() for length in (9, 17, 26)]
    engine = Engine(model, TOKENIZER)
    engine.end_ids = set()
    ours = [engine.generate_batch(p, max_tokens=64, temperature=0)[0][0] for p in prompts]
    assert all(len(o) == len(p) + 64 for o, p in zip(ours, prompts, strict=True))
    other.generation_config.eos_token_id = None  # 64 tokens, whatever they are
    options = {"max_new_tokens": 64, "do_sample": False}
    for cached in (True, False):
        ids = torch.tensor([prompts[1]])
        found = other.generate(ids, attention_mask=torch.ones_like(ids), use_cache=cached, **options)
        assert found[0].tolist() == ours[1]
    width = max(map(len, prompts))
    bos = TOKENIZER.get_bos_token_id()
    batch = torch.tensor([[bos] * (width - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    found = other.generate(batch, attention_mask=mask, **options)
    assert [row[width - len(p) :].tolist() for row, p in zip(found, prompts, strict=True)] == ours


def test_configuration(exported: dict[str, tuple[GPT, Path]]) -> None:
    """What must be explicit is, for transformers too, and it knows every field that decides the model."""
    model, folder = exported["grouped"]
    written = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    bos, end = TOKENIZER.get_bos_token_id(), TOKENIZER.encode_special("<|assistant_end|>")
    for where in (written, AutoConfig.from_pretrained(folder).to_dict()):
        assert where["intermediate_size"] == 4 * model.config.n_embd == 4 * where["hidden_size"]
        assert where["rope_parameters"]["rope_theta"] == 10_000
        assert (where["bos_token_id"], where["eos_token_id"], where["pad_token_id"]) == (bos, [end, bos], bos)
        assert (where["vocab_size"], where["num_key_value_heads"]) == (VOCAB, 2)
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    generation = loaded.generation_config
    assert (generation.bos_token_id, generation.eos_token_id, generation.pad_token_id) == (bos, [end, bos], bos)
    assert (
        written.keys() - {"origin", "model_type", "architectures", "dtype"}
        <= vars(AutoConfig.for_model("nanochat")).keys()
    )


# --- ids --------------------------------------------------------------------------------------------------------------


def fast(tokenizer: Tokenizer) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_str(json.dumps(to_hf_tokenizer(tokenizer)))


def shared_texts(data: Path) -> list[str]:
    """Half a million bytes each of English, Russian, Chinese, and what there is of Python."""
    found = []
    for path in (
        next((data / "text/textbooks").glob("*.parquet")),
        *(data / f"text/tokenizer/{name}.parquet" for name in ("russian", "chinese", "python")),
    ):
        size = 0
        for text in pq.read_table(path, columns=["text"])["text"].to_pylist():
            if size >= 500_000:
                break
            found.append(text[:100_000])
            size += len(found[-1].encode("utf-8"))
    return found


@pytest.mark.shared_data
@pytest.mark.parametrize("trainer", [RustBPETokenizer, HuggingFaceTokenizer])
def test_ids_of_shared_texts(trainer: type[Tokenizer], shared_data: Path) -> None:
    texts = shared_texts(shared_data)
    size = sum(len(text.encode("utf-8")) for text in texts)
    assert size > 1_500_000
    ours = trainer.train_from_iterator(texts[::4] if trainer is HuggingFaceTokenizer else texts, 2000)
    other = fast(ours)
    assert from_hf_tokenizer(json.loads(other.to_str())).hash() == ours.hash()
    for text, ids in zip(texts, ours.encode(texts), strict=True):
        assert other.encode(text, add_special_tokens=False).ids == ids
        assert other.decode(ids) == text


def test_every_character(theirs: Any) -> None:
    """Each, and some that have no name yet, beside letters, spaces and digits: both engines of patterns agree."""
    named = [i for i in range(0x110000) if unicodedata.category(chr(i)) not in ("Cn", "Co", "Cs")]
    rest = [i for i in range(0x110000) if not 0xD800 <= i < 0xE000 and i % 101 == 0]
    text = "".join(f"a{chr(i)} {chr(i)}b1{chr(i)}" for i in [*named, *rest])
    for start in range(0, len(text), 200_000):
        part = text[start : start + 200_000]
        assert theirs(part, add_special_tokens=False)["input_ids"] == TOKENIZER.encode(part)


def names_in(text: str) -> bool:
    return any(name in text for name in SPECIAL_TOKENS)


ODD = st.text(
    st.one_of(
        st.characters(codec="utf-8"),
        st.sampled_from(" \t\n\r\x0b\x0c\x1c\x85\xa0\u1680\u180e\u2000\u200b\u2028\u2029\u3000\ufeff'’sSſtTllVE09²Ⅷ٣"),
    ),
    max_size=40,
)


@settings(deadline=None, max_examples=300)
@given(text=ODD)
def test_ids_of_odd_strings(text: str, theirs: Any) -> None:
    assume(not names_in(text))
    ids = TOKENIZER.encode(text)
    assert theirs(text, add_special_tokens=False)["input_ids"] == ids
    assert theirs(text)["input_ids"] == TOKENIZER.encode(text, prepend="<|bos|>")
    assert theirs.decode(ids) == text


def test_ids_when_the_order_of_merges_matters() -> None:
    """Tokens that two pairs spell, that no merges lead to, and whose parts came later than they."""
    words = [b"ab", b"bc", b"abc", b"xyz", b"cd", b"abcd", b"aa", b"aaa", b"aaaa", b"zd", b"yzd", b"ba", b"aba"]
    for order in (words, words[::-1], sorted(words)):
        ranks = {token: i for i, token in enumerate([*(bytes([b]) for b in range(256)), *order])}
        ours = Tokenizer(SPLIT_PATTERN, ranks, {name: len(ranks) + i for i, name in enumerate(SPECIAL_TOKENS)})
        assert last_merge(b"xyz", ranks) is None
        other = fast(ours)
        for token in words:  # a word that is a token is that token
            assert other.encode(token.decode(), add_special_tokens=False).ids == ours.encode(token.decode())
        assert ours.encode("xyz") == [ranks[b"xyz"]]
        generator = torch.Generator().manual_seed(0)
        for length in range(1, 200):
            word = "".join("abcdxyz"[i] for i in torch.randint(0, 7, (length % 12 + 1,), generator=generator))
            word = word.replace("x", "xyz") if length % 3 else word
            assert other.encode(word, add_special_tokens=False).ids == ours.encode(word), word
        assert from_hf_tokenizer(json.loads(other.to_str())).hash() == ours.hash()


# --- conversations ----------------------------------------------------------------------------------------------------

WORDS = st.one_of(
    st.text(st.characters(codec="utf-8"), max_size=12), st.sampled_from([" hi\n", "2+2", "😀", "Да.", ""])
)


@st.composite
def answers(draw: st.DrawFn) -> str | list[dict[str, str]]:
    """A text, or texts and calls in any order, each call with its results."""
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
    return {"messages": messages[: len(messages) - draw(st.integers(0, 1))]}


@settings(deadline=None, max_examples=200)
@given(conversation=conversations())
def test_conversations(conversation: dict[str, Any], theirs: Any) -> None:
    """Ids and mask; the template keeps a last question without an answer, from which there is nothing to learn."""
    assume(not names_in(json.dumps(conversation, ensure_ascii=False)))
    messages = conversation["messages"]
    asked = messages if messages[-1]["role"] == "user" else messages[:-1]
    answered = messages[:-1] if asked is messages else messages
    ids, mask = TOKENIZER.render_conversation(conversation)
    if any(message["role"] == "assistant" for message in answered):
        found = theirs.apply_chat_template(answered, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
        assert (found["input_ids"], found["assistant_masks"]) == (ids, mask)
    else:
        assert (ids, mask) == ([], [])
    found = theirs.apply_chat_template(asked, tokenize=True, return_dict=True)["input_ids"]
    prompted = theirs.apply_chat_template(asked, add_generation_prompt=True, tokenize=True, return_dict=True)
    assert [*found, TOKENIZER.encode_special("<|assistant_start|>")] == prompted["input_ids"]
    assert prompted["input_ids"] == TOKENIZER.render_for_completion(conversation)


def test_a_result_after_text(theirs: Any) -> None:
    """Not after its call: transformers' mask ends at the first token of the text's last character, as the card says."""
    parts = [{"type": "text", "text": "a\x80"}, {"type": "python_output", "text": "4"}]
    messages = [{"role": "user", "content": ""}, {"role": "assistant", "content": parts}]
    ids, mask = TOKENIZER.render_conversation({"messages": messages})
    found = theirs.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    assert found["input_ids"] == ids
    assert (mask[4:8], found["assistant_masks"][4:8]) == ([1, 1, 1, 0], [1, 1, 0, 0])


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "assistant", "content": "Hi"}],
        [{"role": "user", "content": "Hi"}, {"role": "user", "content": "Hi"}],
        [{"role": "user", "content": "Hi"}, {"role": "system", "content": "Hi"}],
        [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}],
        [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": [{"type": "image", "text": "Hi"}]}],
    ],
)
def test_what_is_no_conversation(messages: list[dict[str, Any]], theirs: Any) -> None:
    with pytest.raises(UserError):
        TOKENIZER.render_conversation({"messages": messages})
    with pytest.raises(Exception, match=r"message [12]: "):
        theirs.apply_chat_template(messages)


def test_special_names_in_text(theirs: Any) -> None:
    """The one difference, which the card names, and the way around it."""
    text = "say <|assistant_end|> now"
    assert theirs(text, add_special_tokens=False)["input_ids"] != TOKENIZER.encode(text)
    found = theirs(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert found == TOKENIZER.encode(text)


# --- back -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_there_and_back(
    name: str, exported: dict[str, tuple[GPT, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The imported checkpoint has the tokenizer's hash and the logits of the first; its export is the same bytes."""
    model, folder = exported[name]
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "other"))
    path = import_hf.main(import_hf.Config(folder=folder))
    assert path.name == "step_000007"
    loaded, tokenizer, meta = load_model("base", CPU)
    assert meta["compute_dtype"] == "float32"
    assert tokenizer.hash() == TOKENIZER.hash()
    ids = prompt(40)
    assert torch.equal(loaded(ids), model(ids))
    again = export_hf.main(export_hf.Config(model_tag=path.parent.name, out=tmp_path / "again"))
    for file in ("model.safetensors", "tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (again / file).read_bytes() == (folder / file).read_bytes(), file
    with pytest.raises(UserError, match="holds checkpoints already"):
        import_hf.main(import_hf.Config(folder=folder))


def test_back_from_transformers(exported: dict[str, tuple[GPT, Path]], tmp_path: Path, base_dir: Path) -> None:
    """What transformers has saved itself, in bf16, is imported too, as another stage."""
    model, folder = exported["one key-value head"]
    AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(tmp_path / "theirs")
    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path / "theirs")
    import_hf.main(import_hf.Config(folder=tmp_path / "theirs", source="sft", model_tag="x"))
    loaded, _, _ = load_model("sft", CPU, model_tag="x")
    assert get_tokenizer().hash() == TOKENIZER.hash()
    rows = loaded.embed.weight[:VOCAB]
    assert torch.equal(rows, model.embed.weight[:VOCAB].bfloat16().float())
    assert F.cosine_similarity(loaded(prompt(20)).flatten(), model(prompt(20)).flatten(), dim=0) > 0.99
    assert base_dir.is_dir()


def test_what_an_import_is_for(tmp_path: Path, run_here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Midtraining, with steps as long as in the run before it was exported, SFT, the engine and chat take it."""
    save(random_model(SHAPES["grouped"]), settings={"total_batch_size": 192})
    folder = export_hf.main(export_hf.Config(out=tmp_path / "hf"))
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(run_here / "other"))
    import_hf.main(import_hf.Config(folder=folder))
    talks = write_talks(tmp_path / "sums.jsonl", sums(40))
    mixture = str(write_mixture(tmp_path / "mixture.toml", task_entry(talks)))
    fast: dict[str, Any] = {"mixture": mixture, "num_iterations": 1, "device_batch_size": 1, "compile": "off"}
    mid_train.main(mid_train.Config(device="cpu", **fast))
    assert open_checkpoint(run_dir("mid", "d2")).meta["settings"]["total_batch_size"] == 192
    chat_sft.main(chat_sft.Config(device="cpu", source="base", total_batch_size=96, **fast))
    for source in ("base", "sft"):
        model, tokenizer, _ = load_model(source, CPU)
        engine = Engine(model, tokenizer)
        assert len(engine.generate_batch(prompt(5)[0].tolist(), max_tokens=3)[0][0]) == 8
        assert join(reply(engine, [{"role": "user", "content": "Hi"}], max_tokens=4))


def test_steps_of_an_unknown_length(
    exported: dict[str, tuple[GPT, Path]], base_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where the imported folder does not say how long they were, that is said, and base_train's default taken."""
    path = import_hf.main(import_hf.Config(folder=exported["one key-value head"][1]))
    origin = Checkpoint(path, read_meta(path))
    assert path.is_relative_to(base_dir)
    capsys.readouterr()
    assert resolve_settings(mid_train.Config(), origin).total_batch_size == base_train.Config().total_batch_size
    assert "does not record its total_batch_size: using 524,288 tokens" in capsys.readouterr().out
    assert resolve_settings(mid_train.Config(total_batch_size=2048), origin).total_batch_size == 2048
    assert not capsys.readouterr().out


@pytest.mark.parametrize(("script", "source"), [(mid_train, "mid"), (chat_sft, "sft"), (chat_rl, "rl")])
def test_an_import_is_not_resumed(
    script: Any, source: str, exported: dict[str, tuple[GPT, Path]], base_dir: Path, refusal: Callable[..., str]
) -> None:
    path = import_hf.main(import_hf.Config(folder=exported["plain"][1], source=source))
    assert path.is_relative_to(base_dir)
    for flag in ("--resume", "--resume_from_step=7"):
        assert "was imported, without an optimizer state, and cannot be resumed" in refusal(script, flag)


def test_weights_in_several_files(
    exported: dict[str, tuple[GPT, Path]], tmp_path: Path, base_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As transformers writes a large model: the weights of all files; what is wrong with one is said with its name."""
    model, folder = exported["grouped"]
    AutoModelForCausalLM.from_pretrained(folder).save_pretrained(tmp_path / "theirs", max_shard_size="50KB")
    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path / "theirs")
    files = sorted((tmp_path / "theirs").glob("model-*.safetensors"))
    assert len(files) > 2
    import_hf.main(import_hf.Config(folder=tmp_path / "theirs"))
    loaded, _, _ = load_model("base", CPU)
    assert torch.equal(loaded(prompt(40)), model(prompt(40)))
    index = tmp_path / "theirs" / "model.safetensors.index.json"
    content = json.loads(index.read_text(encoding="utf-8"))
    whole = files[1].read_bytes()
    for broken, message in (
        (lambda: files[1].write_bytes(whole[:-9]), f"{files[1]} cannot be read"),
        (files[1].unlink, f"{files[1]} cannot be read"),
        (
            lambda: index.write_text(json.dumps({**content, "weight_map": {"a": "../x"}}), encoding="utf-8"),
            "weight_map",
        ),
        (
            lambda: index.write_text(json.dumps({"weight_map": {"a": files[0].name}}), encoding="utf-8"),
            "one of them only",
        ),
        (index.unlink, "model.safetensors cannot be read"),
    ):
        broken()
        with pytest.raises(UserError, match=re.escape(message)):
            import_hf.main(import_hf.Config(folder=tmp_path / "theirs", model_tag="other"))
    assert capsys.readouterr().out.count("Imported") == 1
    assert [path.name for path in (base_dir / "base_checkpoints").iterdir()] == ["d2"]


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("config.json", None, "config.json cannot be read"),
        ("tokenizer.json", None, "tokenizer.json cannot be read"),
        ("model.safetensors", None, "model.safetensors cannot be read"),
        ("config.json", {"model_type": "llama"}, "model_type is 'llama': only 'nanochat'"),
        ("config.json", {"hidden_size": None}, "hidden_size is None"),
        ("config.json", {"intermediate_size": 8192}, "intermediate_size is 8192: a model of nanochat has 240"),
        ("config.json", {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, "rope_parameters is"),
        ("config.json", {"num_hidden_layers": 3}, "model.layers.2.*in one of them only"),
        ("config.json", {"num_key_value_heads": 6}, "k_proj.weight has the shape"),
        ("config.json", {"vocab_size": 300}, r"it has \d+ tokens, the model 300"),
        ("tokenizer.json", {"model": {}}, "no byte-level BPE as nanochat has it"),
        ("tokenizer.json", {"added_tokens": []}, "tokenizer.json: "),
        ("tokenizer.json", {"normalizer": {"type": "NFC"}}, "the ids would differ"),
    ],
)  # fmt: skip
def test_what_cannot_be_imported(
    file: str,
    change: dict[str, Any] | None,
    message: str,
    exported: dict[str, tuple[GPT, Path]],
    tmp_path: Path,
    base_dir: Path,
) -> None:
    for path in exported["grouped"][1].iterdir():
        if path.name != file:
            (tmp_path / path.name).write_bytes(path.read_bytes())
        elif change:
            content = json.loads(path.read_text(encoding="utf-8"))
            (tmp_path / file).write_text(json.dumps(content | change), encoding="utf-8")
    with pytest.raises(UserError, match=message) as error:
        import_hf.main(import_hf.Config(folder=tmp_path))
    assert "\n" not in str(error.value)
    assert not list(base_dir.iterdir()), "nothing is left of it"


def test_another_vocabulary(exported: dict[str, tuple[GPT, Path]], base_dir: Path) -> None:
    RustBPETokenizer.train_from_iterator(TEXTS, 300).save(base_dir / "tokenizer")
    with pytest.raises(UserError, match="another vocabulary"):
        import_hf.main(import_hf.Config(folder=exported["plain"][1]))


# --- the folder, the card, the hub ------------------------------------------------------------------------------------


def test_what_must_not_be_replaced(tmp_path: Path, base_dir: Path) -> None:
    """A new or empty folder is filled; a full one is not, and not even --overwrite replaces what is no model."""
    save(random_model(SHAPES["grouped"]), "sft")
    out = tmp_path / "out"
    out.mkdir()
    export_hf.main(export_hf.Config(source="sft", out=out))
    (out / "mine.txt").touch()
    with pytest.raises(UserError, match="is not empty"):
        export_hf.main(export_hf.Config(source="sft", out=out))
    export_hf.main(export_hf.Config(source="sft", out=out, overwrite=True))
    assert not (out / "mine.txt").exists()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").touch()
    with pytest.raises(UserError, match="is not empty"):
        export_hf.main(export_hf.Config(source="sft", out=tmp_path / "other", overwrite=True))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([base_dir.name, "out", "other"])


@pytest.mark.parametrize("length", [250, 300])
def test_a_name_that_is_too_long(length: int, tmp_path: Path, base_dir: Path) -> None:
    """For the disk, or once the name of the folder beside it is made of it."""
    save(random_model(SHAPES["grouped"]))
    with pytest.raises(UserError, match=r"cannot write .*too long"):
        export_hf.main(export_hf.Config(out=tmp_path / ("x" * length)))
    assert [path.name for path in tmp_path.iterdir()] == [base_dir.name]


def test_a_folder_that_cannot_be_read(tmp_path: Path, base_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody knows what is in it, so it stays."""
    save(random_model(SHAPES["grouped"]))
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").touch()
    listed = Path.iterdir

    def iterdir(self: Path) -> Iterator[Path]:  # rights do not stop a test that root runs
        if self == out:
            raise PermissionError(13, "Permission denied", str(self))
        return listed(self)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    with pytest.raises(UserError, match=r"cannot write .*Permission denied"):
        export_hf.main(export_hf.Config(out=out, overwrite=True))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([base_dir.name, "out"])
    assert (out / "mine.txt").exists()


def test_a_failure_leaves_nothing(tmp_path: Path, base_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    save(random_model(SHAPES["grouped"]))
    monkeypatch.setattr(export_hf, "save_file", full)
    with pytest.raises(UserError, match="No space left"):
        export_hf.main(export_hf.Config(out=tmp_path / "out"))
    assert [path.name for path in tmp_path.iterdir()] == [base_dir.name]


@pytest.mark.usefixtures("base_dir")
def test_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no rl checkpoint"):
        export_hf.main(export_hf.Config(source="rl", out=tmp_path / "out"))
    with pytest.raises(UserError, match="--out is missing"):
        export_hf.Config()


@pytest.mark.usefixtures("base_dir")
def test_the_card(tmp_path: Path) -> None:
    """It says what was measured of this stage, how to load the model, and what differs."""
    interval = {"value": 0.25, "n": 44, "interval": [0.1, 0.4]}
    partial = {"without n": {"value": 0.5, "interval": [0.375, 0.625]}, "bare": {"value": 0.75}}
    metrics = {"ChatCORE": 0.123, "GSM8K": interval, **partial}
    log_section("chat_eval_sft", {"metrics": metrics, "notes": ["Step 7."], "checkpoint": "d9:7"})
    log_section("base_loss", {"metrics": {"validation bits per byte": 9.87}, "checkpoint": "d9:7"})
    save(random_model(SHAPES["grouped"]), "sft", loop={"history": [{"step": 5, "val_bpb": 1.875}, {"loss": 3.25}]})
    card = (export_hf.main(export_hf.Config(source="sft", out=tmp_path / "out")) / "README.md").read_text("utf-8")
    assert huggingface_hub.ModelCard(card).data.library_name == "transformers"
    for text in (
        "1.875",
        "3.25",
        "ChatCORE: 0.123",
        "0.2500 (95% interval 0.1000 to 0.4000, n = 44)",
        "without n: 0.5000 (95% interval 0.3750 to 0.6250)\n",
        "bare: 0.7500\n",
        "Step 7.",
        "step 7",
    ):
        assert text in card, text
    assert "9.87" not in card
    assert "split_special_tokens=True" in card
    assert "apply_chat_template(messages, add_generation_prompt=True" in card


@pytest.mark.usefixtures("base_dir")
def test_the_card_has_no_metrics_of_another_model(tmp_path: Path) -> None:
    """The report holds the last evaluation of each kind: of this checkpoint, of others, or of nobody knows which."""
    save(random_model(SHAPES["grouped"]))
    for i, checkpoint in enumerate(("d9:7", "d12:7", "d9:8", "d12:8", None)):
        log_section("base_loss", {"metrics": {"validation bits per byte": 9.87}, "checkpoint": checkpoint})
        log_section("base_eval", {"metrics": {"CORE": 0.654}, "checkpoint": checkpoint})
        card = (export_hf.main(export_hf.Config(out=tmp_path / str(i))) / "README.md").read_text("utf-8")
        assert ("9.87" in card, "0.654" in card, "None were recorded" in card) == (i == 0, i == 0, i > 0), checkpoint


class Hub:
    """What stands in for the hub's client, and remembers what was asked of it."""

    calls: ClassVar[list[tuple[Any, ...]]] = []
    error: ClassVar[Exception | None] = None

    def create_repo(self, name: str, private: bool, exist_ok: bool) -> None:
        if self.error:
            raise self.error
        self.calls.append((name, private, exist_ok))

    def upload_folder(self, repo_id: str, folder_path: Path, commit_message: str) -> None:
        self.calls.append((repo_id, sorted(path.name for path in folder_path.iterdir()), bool(commit_message)))


FILES = ["README.md", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json"]


@pytest.mark.usefixtures("base_dir")
def test_push(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is uploaded without a yes: from the terminal, or from --yes where there is none."""
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    monkeypatch.setattr(Hub, "calls", [])
    save(random_model(SHAPES["grouped"]))

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    def push(name: str, stdin: io.StringIO, **options: Any) -> list[tuple[Any, ...]]:
        monkeypatch.setattr(sys, "stdin", stdin)
        export_hf.main(export_hf.Config(out=tmp_path / name, push="me/d9", **options))
        return Hub.calls

    with pytest.raises(UserError, match="add --yes"):
        push("a", io.StringIO("y\n"))
    assert not (tmp_path / "a").exists()
    assert push("b", Terminal("\n")) == push("b2", Terminal("")) == []  # the second is Ctrl-D
    assert (tmp_path / "b2").is_dir()
    uploaded = [("me/d9", True, True), ("me/d9", [*FILES, "tokenizer_config.json"], True)]
    assert push("c", Terminal("y\n")) == uploaded
    assert push("d", io.StringIO(), yes=True) == uploaded * 2
    monkeypatch.setattr(Hub, "error", RuntimeError("401 Unauthorized\nsee https://..."))
    with pytest.raises(UserError, match=r"failed \(401 Unauthorized\); .* is complete"):
        push("e", io.StringIO(), yes=True)
    with pytest.raises(UserError, match="OWNER/NAME"):
        export_hf.Config(out=tmp_path, push="d9")
