"""Models of transformers in our evaluation: like ours where they are ours, and like a plain reading of any other."""

from __future__ import annotations

import json
import math
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import tokenizers
import torch
import transformers
from safetensors.torch import load_file, save_file

from nanochat import hf_causal, hf_scorer
from nanochat.candidates import checkpoint, foreign, named
from nanochat.checkpoint_manager import describe_model, run_dir, save_checkpoint
from nanochat.common import UserError
from nanochat.core_eval import Prompt, evaluate_task, tokenize
from nanochat.eval_bundle import read_bundle
from nanochat.gpt import GPT, GPTConfig
from nanochat.hf_causal import CausalModel, ForeignTokenizer, load_causal
from nanochat.hf_scorer import CausalScorer, bits_per_byte_of, text_rows
from nanochat.runtime import Runtime
from nanochat.shards import open_split, write_dataset
from nanochat.tokenizer import RustBPETokenizer
from scripts import base_eval, base_loss, export_hf
from tests.test_core_eval import write_bundle

TEXTS = [
    "The sheep said that the shepherd's dog isn't there; they'll see 1234567 of them.\n\n  def f(x):\n\treturn x\n",
    "Жили-были старик со старухой у самого синего моря. 从前有一个老人和他的妻子住在海边。😀👩‍🚀 naïve café\r\n",
    " A text that begins with a space, and names <|bos|> and <|endoftext|> and <s>.",
]
TOKENIZER = RustBPETokenizer.train_from_iterator(TEXTS * 3, 400)
VOCAB = TOKENIZER.get_vocab_size()
CPU = Runtime(0, 0, 1, torch.device("cpu"), torch.float32, 42)


def our_model(trained: bool) -> GPT:
    """A model in which everything depends on everything before it, perhaps after a few steps on the texts."""
    model = GPT(GPTConfig(sequence_len=48, vocab_size=VOCAB, n_layer=2, n_head=4, n_kv_head=2, n_embd=32))
    model.init_weights(0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for param in model.parameters():
            param.copy_(torch.randn(param.shape, generator=generator) * (2 / param.size(1) ** 0.5))
    ids = torch.tensor([TOKENIZER.encode(text, prepend="<|bos|>")[:40] for text in TEXTS[:2]])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(20 if trained else 0):
        optimizer.zero_grad()
        model(ids[:, :-1], ids[:, 1:]).backward()
        optimizer.step()
    return model


@pytest.fixture(params=["random", "trained"])
def both(request: pytest.FixtureRequest, run_here: Path) -> Path:
    """A base folder with a checkpoint d2 and its export; gives the latter."""
    TOKENIZER.save(run_here / "tokenizer")
    model = our_model(request.param == "trained")
    save_checkpoint(run_dir("base", "d2"), 7, model.state_dict(), {}, describe_model(model, CPU, TOKENIZER))
    return export_hf.main(export_hf.Config(out=run_here / "d2-hf"))


# --- ours, by way of transformers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_fewshot", [0, 2])
def test_our_export_is_scored_like_our_checkpoint(both: Path, num_fewshot: int, tmp_path: Path) -> None:
    """All three types, prompts that are too long among them: the same losses to rounding, the same decisions."""
    bundle = read_bundle(write_bundle(tmp_path / "bundle", num_fewshot, "\nAnswer: "))
    ours, theirs = checkpoint(CPU, 500), foreign(str(both), CPU, 500)
    assert (theirs.name, theirs.context) == ("d2-hf", 48)
    num_cut = 0
    for task in bundle.tasks:
        one, other = (
            evaluate_task(task, model.scorer, model.tokenizer, model.context, CPU) for model in (ours, theirs)
        )
        assert (one.correct, one.num_cut, one.examples) == (other.correct, other.num_cut, other.examples)
        num_cut += one.num_cut
        prompts = [
            tokenize(task.prompts(row, 42), theirs.tokenizer, theirs.context, row) for row in range(len(task.examples))
        ]
        assert [prompt.options for prompt in prompts] == [
            tokenize(task.prompts(row, 42), TOKENIZER, 48, row).options for row in range(len(task.examples))
        ]
        scores = {prompt.place: found for prompt, found in ours.scorer(prompts)}
        for prompt, found in theirs.scorer(prompts):
            for a, b in zip(scores.pop(prompt.place), found, strict=True):
                assert b.loss == pytest.approx(a.loss, abs=2e-5)
                assert b.exact == a.exact
        assert not scores
    assert (num_cut > 0) == (num_fewshot > 0)


def test_the_scripts_agree(both: Path, run_here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """base_eval and base_loss of the export, beside those of the checkpoint, whose sections stay."""
    write_bundle(run_here / "eval_bundle", 1)
    write_dataset(TEXTS * 9, TEXTS, source="folder")
    ours = base_eval.main(base_eval.Config(device="cpu"))
    theirs = base_eval.main(base_eval.Config(device="cpu", hf_path=str(both)))
    assert [result.correct for result in theirs] == [result.correct for result in ours]
    table = (run_here / "base_eval" / "d2-hf.csv").read_text(encoding="utf-8")
    assert table == (run_here / "base_eval" / "d2_000007.csv").read_text(encoding="utf-8")
    options = {"device": "cpu", "num_samples": 3, "max_sample_tokens": 9, "device_batch_size": 2, "temperature": 0.0}
    for eval_tokens in (90, 101, 10**6):  # cut in the first text, in the second, and not at all
        one = base_loss.main(base_loss.Config(eval_tokens=eval_tokens, **options))
        other = base_loss.main(base_loss.Config(eval_tokens=eval_tokens, hf_path=str(both), **options))
        assert other == pytest.approx(one, rel=1e-5)
    sections = {
        name: json.loads((run_here / "report" / f"{name}.json").read_text(encoding="utf-8"))
        for name in ("base_loss", "base_eval", "hf_loss", "hf_eval")
    }
    assert sections["hf_loss"]["samples"] == sections["base_loss"]["samples"]
    assert sections["hf_eval"]["answers"] == sections["base_eval"]["answers"]
    assert "model" not in sections["hf_eval"]
    assert "NanoChatForCausalLM of transformers, computing in float32" in sections["hf_loss"]["notes"][0]
    assert "a context of 48 tokens" in capsys.readouterr().out
