"""Models and tokenizers of transformers as evaluation loads them: text, bytes, samples, and what is refused."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from nanochat.common import UserError
from nanochat.eval.core_prompts import encode_example
from nanochat.eval.hf_causal import HFTokenizer, generate_hf_samples, load_hf_model
from nanochat.runtime import Runtime
from nanochat.tokenization import hugging_face_bpe
from tests.support.hf_models import (
    ARCHITECTURES,
    BASE_SHAPE,
    GPT2_SHAPE,
    TEXTS,
    byte_level_tokenizer,
    log_probs_alone,
    save_hf_model,
    sentence_piece_tokenizer,
)

CPU = Runtime(0, 0, 1, torch.device("cpu"), torch.float32, 42)


@pytest.mark.parametrize("legacy", [False, True])
def test_the_added_space_is_never_in_the_ids(legacy: bool) -> None:
    """The ids of an option are those of its whole text, also if the continuation begins without a space."""
    tokenizer = HFTokenizer(sentence_piece_tokenizer(legacy))
    assert tokenizer.adds_prefix_space
    pairs = [("The sheep\n", "said"), ("The sheep\nA:", " said"), ("", "The"), ("she", "ep"), ("sh", "eep")]
    for (context, continuation), name in zip(pairs, ("s", "▁s", "▁", "e", "▁she"), strict=True):
        [(ids, count)] = encode_example([(context, continuation)], tokenizer, 64, 0).options
        assert ids[1:] == tokenizer.inner(context + continuation, add_special_tokens=False)["input_ids"]
        assert tokenizer.inner.convert_ids_to_tokens(ids[-count]) == name


def test_bytes_of_the_first_tokens() -> None:
    """The bytes of a text's first tokens: exact for byte-level tokens, else up to a character."""
    for make_tokenizer in (byte_level_tokenizer, sentence_piece_tokenizer, partial(sentence_piece_tokenizer, False)):
        tokenizer = HFTokenizer(make_tokenizer())
        for text in TEXTS:
            ids = tokenizer.encode(text)
            sizes = [tokenizer.count_bytes(text, count) for count in range(len(ids) + 1)]
            assert sizes == sorted(sizes)
            assert (sizes[0], sizes[-1]) == (0, len(text.encode("utf-8")))
            if make_tokenizer is byte_level_tokenizer:
                assert sizes == [len(_bytes_of(tokenizer, ids[:count])) for count in range(len(ids) + 1)]


def _bytes_of(tokenizer: HFTokenizer, ids: list[int]) -> bytes:
    """Return the bytes that the ids of a byte-level tokenizer spell."""
    alphabet = hugging_face_bpe.byte_level_alphabet()
    letters = {letter: byte for byte, letter in enumerate(alphabet)}
    return bytes(letters[letter] for name in tokenizer.inner.convert_ids_to_tokens(ids) for letter in name)


def test_the_head_is_float32(tmp_path: Path) -> None:
    """Also if the other weights are not (float64 in place of bf16). The tied embedding keeps its dtype."""
    folder = str(save_hf_model("gpt2", tmp_path / "x"))
    losses: list[list[float]] = []
    samples = []
    for dtype in (torch.float32, torch.float64):
        model, tokenizer = load_hf_model(folder, replace(CPU, compute_dtype=dtype))
        assert model.head is not None
        assert (model.head.weight.dtype, model.inner.get_input_embeddings().weight.dtype) == (torch.float32, dtype)
        ids = torch.tensor([tokenizer.encode(TEXTS[0])[:40]])
        losses.append(model(ids[:, :-1], ids[:, 1:]).flatten().tolist())
        samples.append(generate_hf_samples(model, tokenizer, ["The sheep"], 5))
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)
    assert samples[0] == samples[1]


@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
def test_samples_are_the_most_likely_text(architecture: str, tmp_path: Path) -> None:
    """Token by token as without a cache; no more than the context holds; no penalty that the folder recommends."""
    model, tokenizer = load_hf_model(str(save_hf_model(architecture, tmp_path / architecture)), CPU)
    model.inner.generation_config.repetition_penalty = 9.0
    model_end = model.inner.generation_config.eos_token_id
    [sample] = generate_hf_samples(model, tokenizer, ["The sheep"], 12)
    start = [tokenizer.get_bos_token_id()] if tokenizer.has_bos else []
    assert tokenizer.has_bos == (architecture not in ("llama", "mamba"))
    ids = start + tokenizer.encode("The sheep")
    prompt_len = len(ids)
    # The tokenizer's training numbers its tokens differently from run to run, so any token may come up: also that of
    # the model's own configuration, which ends a text, too.
    ends = {tokenizer.inner.eos_token_id, model_end}
    while len(ids) < prompt_len + 12 and ids[-1] not in ends:
        ids.append(int(log_probs_alone(model.inner, ids)[-1].argmax()))
    generated = ids[prompt_len:-1] if ids[-1] in ends else ids[prompt_len:]
    assert sample["prompt"] == "The sheep"
    assert sample["prompt"] + sample["text"] == tokenizer.decode(ids[len(start) : prompt_len] + generated)
    first, second, third = (generate_hf_samples(model, tokenizer, ["The"] * 2, 9, 1.0, seed) for seed in (1, 1, 2))
    assert first == second != third
    assert first[0]["text"] != first[1]["text"]
    [long] = generate_hf_samples(model, tokenizer, ["sheep " * 60], 99)
    assert long["prompt"] in "sheep " * 60  # its beginning: GPT-2 has position embeddings for the context only
    assert model.context_len > 64 or len(long["prompt"]) < 200


# --- refused ----------------------------------------------------------------------------------------------------------


def bert(folder: Path) -> str:
    """A model with attention in both directions, which transformers loads as a causal model nevertheless."""
    config = transformers.BertConfig(**BASE_SHAPE, intermediate_size=64, is_decoder=False)
    transformers.BertLMHeadModel(config).save_pretrained(folder)
    byte_level_tokenizer().save_pretrained(folder)
    return str(folder)


def t5(folder: Path) -> str:
    """An encoder-decoder model."""
    config = transformers.T5Config(vocab_size=330, d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    transformers.T5ForConditionalGeneration(config).save_pretrained(folder)
    byte_level_tokenizer().save_pretrained(folder)
    return str(folder)


def without_a_weight(folder: Path) -> str:
    """A model without one weight, which transformers would initialise at random."""
    path = save_hf_model("gpt2", folder) / "model.safetensors"
    weights = load_file(path)
    weights.pop("transformer.h.1.mlp.c_fc.weight")
    save_file(weights, path, metadata={"format": "pt"})
    return str(folder)


def without_ends(folder: Path) -> str:
    """A tokenizer with neither a bos nor an eos token."""
    save_hf_model("gpt2", folder)
    tokenizer = byte_level_tokenizer()
    tokenizer.bos_token = tokenizer.eos_token = None
    tokenizer.save_pretrained(folder)
    return str(folder)


def truncated(folder: Path) -> str:
    """A model with a truncated file of weights."""
    path = save_hf_model("gpt2", folder) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    return str(folder)


def with_a_smaller_model(folder: Path) -> str:
    """A tokenizer with more tokens than the model."""
    save_hf_model("gpt2", folder)
    config = transformers.GPT2Config(**{**GPT2_SHAPE, "vocab_size": 100})
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    return str(folder)


def no_tokenizer(folder: Path) -> str:
    """A folder without tokenizer files, of which transformers makes an empty tokenizer."""
    save_hf_model("gpt2", folder)
    for path in folder.glob("tokenizer*"):
        path.unlink()
    return str(folder)


def own_code(folder: Path) -> str:
    """A model with code of its own."""
    save_hf_model("gpt2", folder)
    (folder / "mine.py").write_text("raise SystemExit('it ran')", encoding="utf-8")
    auto = {"AutoConfig": "mine.C", "AutoModelForCausalLM": "mine.M"}
    content = {**json.loads((folder / "config.json").read_text(encoding="utf-8")), "model_type": "x", "auto_map": auto}
    (folder / "config.json").write_text(json.dumps(content), encoding="utf-8")
    return str(folder)


@pytest.mark.parametrize(
    ("make_folder", "message"),
    [
        (lambda folder: str(folder / "absent"), "neither a folder nor a name on the Hugging Face hub"),
        (lambda folder: str(folder / ("x" * 300)), "cannot be read: .*File name too long"),
        (lambda folder: str(folder), "does not hold a model of transformers: config.json is missing"),
        (lambda _: "nobody/nothing", "tokenizer of nobody/nothing cannot be loaded: .*(find|connect|offline)"),
        (bert, "not a causal language model: its predictions depend on later tokens"),
        (t5, "cannot be loaded: Unrecognized configuration class"),
        (without_a_weight, "1 weights of GPT2LMHeadModel are missing, such as transformer.h.1.mlp.c_fc.weight"),
        (without_ends, "neither a bos_token nor an eos_token"),
        (truncated, "x cannot be loaded: "),
        (with_a_smaller_model, "its tokenizer has 330 tokens, the model 100"),
        (no_tokenizer, "the tokenizer of .*x cannot be loaded: its vocabulary is empty"),
        (own_code, "cannot be loaded: .*(trust_remote_code|custom code)"),
    ],
)  # fmt: skip
@pytest.mark.slow
def test_refused(make_folder: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a UserError of one line."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    (tmp_path / "x").mkdir()
    with pytest.raises(UserError, match=message) as error:
        load_hf_model(make_folder(tmp_path / "x"), CPU)
    assert "\n" not in str(error.value)


def test_without_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match=r"this needs transformers .*uv pip install transformers"):
        load_hf_model(str(tmp_path), CPU)
