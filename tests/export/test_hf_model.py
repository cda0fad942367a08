"""Exported models in transformers: the same logits and the same greedy text; and the model card."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from nanochat.common import UserError
from nanochat.engine import Engine
from nanochat.export.hf_model import from_hf_config, from_hf_weights, to_hf_config, to_hf_weights
from nanochat.gpt import GPT
from nanochat.reporting.schema import log_section
from scripts import export_hf
from tests.support.exports import CONFIGS, NAMES, TOKENIZER, VOCAB_SIZE, Exported, loud_model, random_prompt, save

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("name", NAMES)
@torch.inference_mode()
def test_logits(name: str, exported: Exported) -> None:
    """At every position, to the end of the context, with weights that show a wrong rotation or epsilon."""
    model, folder = exported[name]
    hf_model = AutoModelForCausalLM.from_pretrained(folder)
    assert type(hf_model).__name__ == "NanoChatForCausalLM"
    assert hf_model.dtype == torch.float32
    assert sum(p.numel() for p in hf_model.parameters()) == sum(
        p.numel() for p in GPT(model.config).parameters()
    ) - 2 * model.config.n_embd * (model.config.padded_vocab_size - VOCAB_SIZE)
    ids = torch.cat([random_prompt(min(96, model.config.sequence_len), seed) for seed in range(3)])
    logits = model(ids)
    hf_logits = hf_model(ids).logits
    assert hf_logits.shape == logits.shape
    assert logits.std() > 1, "equal logits would test nothing"
    assert (hf_logits - logits).abs().max() < 1e-4
    long = random_prompt(model.config.sequence_len)
    assert (hf_model(long).logits - model(long)).abs().max() < 1e-4


@pytest.mark.parametrize("name", NAMES)
def test_greedy_text(name: str, exported: Exported) -> None:
    """64 tokens, with transformers' cache and without, and in a batch that is padded on the left."""
    model, folder = exported[name]
    hf_model = AutoModelForCausalLM.from_pretrained(folder)
    prompts = [random_prompt(length, length)[0].tolist() for length in (9, 17, 26)]
    engine = Engine(model, TOKENIZER)
    engine.end_ids = set()
    expected = [engine.generate_batch(p, max_tokens=64, temperature=0)[0][0] for p in prompts]
    assert all(len(o) == len(p) + 64 for o, p in zip(expected, prompts, strict=True))
    hf_model.generation_config.eos_token_id = None  # always 64 tokens
    options = {"max_new_tokens": 64, "do_sample": False}
    for cached in (True, False):
        ids = torch.tensor([prompts[1]])
        output = hf_model.generate(ids, attention_mask=torch.ones_like(ids), use_cache=cached, **options)
        assert output[0].tolist() == expected[1]
    width = max(map(len, prompts))
    bos = TOKENIZER.get_bos_token_id()
    batch = torch.tensor([[bos] * (width - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    output = hf_model.generate(batch, attention_mask=mask, **options)
    assert [row[width - len(p) :].tolist() for row, p in zip(output, prompts, strict=True)] == expected


def test_configuration(exported: Exported) -> None:
    """The fields that define the model are written, and transformers reads and knows them."""
    model, folder = exported["grouped"]
    written = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    bos, end = TOKENIZER.get_bos_token_id(), TOKENIZER.encode_special("<|assistant_end|>")
    for config in (written, AutoConfig.from_pretrained(folder).to_dict()):
        assert config["intermediate_size"] == 4 * model.config.n_embd == 4 * config["hidden_size"]
        assert config["rope_parameters"]["rope_theta"] == 10_000
        assert (config["bos_token_id"], config["eos_token_id"], config["pad_token_id"]) == (bos, [end, bos], bos)
        assert (config["vocab_size"], config["num_key_value_heads"]) == (VOCAB_SIZE, 2)
    generation = AutoModelForCausalLM.from_pretrained(folder).generation_config
    assert (generation.bos_token_id, generation.eos_token_id, generation.pad_token_id) == (bos, [end, bos], bos)
    assert (
        written.keys() - {"origin", "model_type", "architectures", "dtype"}
        <= vars(AutoConfig.for_model("nanochat")).keys()
    )


@pytest.mark.parametrize(("softcap", "written"), [(15, 15.0), (30, 30.0), (0, None)])
def test_soft_cap(softcap: float, written: float | None) -> None:
    """There and back. Without a cap null is written, and not 0, with which transformers makes all logits 0."""
    config = replace(CONFIGS["plain"], softcap=softcap)
    content = to_hf_config(config, TOKENIZER, {})
    assert content["final_logit_softcapping"] == written
    assert AutoConfig.for_model(**content).final_logit_softcapping == written
    assert from_hf_config(content) == config


@pytest.mark.parametrize("value", [0, 0.0, -1.0, 0.5, 1e9, "15", True, ...])
def test_soft_cap_that_is_refused(value: object) -> None:
    content = to_hf_config(CONFIGS["plain"], TOKENIZER, {}) | {"final_logit_softcapping": value}
    if value is ...:
        del content["final_logit_softcapping"]
    with pytest.raises(UserError, match=r"final_logit_softcapping is .*: must be null \(.*\) or from 1 to 64"):
        from_hf_config(content)


def test_weights_there_and_back(exported: Exported) -> None:
    """In float32, with zeros in the rows that pad the vocabulary; other names are refused."""
    model, folder = exported["grouped"]
    config = from_hf_config(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    assert config == model.config
    weights = model.state_dict()
    hf_weights = to_hf_weights(weights, config)
    back = from_hf_weights({name: weight.double() for name, weight in hf_weights.items()}, config)
    assert back.keys() == weights.keys()
    for name, weight in back.items():
        assert weight.dtype == torch.float32
        num_rows = VOCAB_SIZE if name in ("embed.weight", "head.weight") else len(weight)
        assert torch.equal(weight[:num_rows], weights[name][:num_rows])
        assert not weight[num_rows:].any()
    with pytest.raises(UserError, match=r"embed\.weight is only in transformers"):
        to_hf_weights({name: weight for name, weight in weights.items() if name != "embed.weight"}, config)


# --- the model card ---------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("base_dir")
def test_the_card(tmp_path: Path) -> None:
    """It has this stage's metrics, how to load the model, and the differences of the tokenizer."""
    interval = {"value": 0.25, "n": 44, "interval": [0.1, 0.4]}
    incomplete = {"without n": {"value": 0.5, "interval": [0.375, 0.625]}, "bare": {"value": 0.75}}
    metrics = {"ChatCORE": 0.123, "GSM8K": interval, **incomplete}
    log_section("chat_eval_sft", {"metrics": metrics, "notes": ["Step 7."], "checkpoint": "d9:7"})
    log_section("base_loss", {"metrics": {"validation bits per byte": 9.87}, "checkpoint": "d9:7"})
    save(loud_model(CONFIGS["grouped"]), "sft", loop={"history": [{"step": 5, "val_bpb": 1.875}, {"loss": 3.25}]})
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
        "Its logits\nare not capped.",
    ):
        assert text in card, text
    assert "9.87" not in card
    assert "split_special_tokens=True" in card
    assert "add_special_tokens=False" in card
    assert 'chat_template="training"' in card
    assert "apply_chat_template(messages, add_generation_prompt=True" in card


@pytest.mark.usefixtures("base_dir")
def test_the_card_has_no_metrics_of_another_model(tmp_path: Path) -> None:
    """The report holds the last evaluation of each kind: of this checkpoint, of another one, or of an unknown one."""
    save(loud_model(CONFIGS["grouped"]))
    for i, checkpoint in enumerate(("d9:7", "d12:7", "d9:8", "d12:8", None)):
        log_section("base_loss", {"metrics": {"validation bits per byte": 9.87}, "checkpoint": checkpoint})
        log_section("base_eval", {"metrics": {"CORE": 0.654}, "checkpoint": checkpoint})
        card = (export_hf.main(export_hf.Config(out=tmp_path / str(i))) / "README.md").read_text("utf-8")
        assert ("9.87" in card, "0.654" in card, "None were recorded" in card) == (i == 0, i == 0, i > 0), checkpoint
