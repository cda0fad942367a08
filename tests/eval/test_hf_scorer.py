"""Scores and bits per byte of models of transformers: against nanochat's own, and against one sequence at a time."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import tokenizers
import torch
import transformers

from nanochat.checkpoint_manager import model_meta, run_dir, save_checkpoint
from nanochat.core_eval import evaluate_task
from nanochat.data.shards import open_split, write_dataset
from nanochat.dataloader import document_eval_rows
from nanochat.eval.core_bundle import read_bundle
from nanochat.eval.core_prompts import encode_example
from nanochat.eval.eval_model import EvalModel
from nanochat.eval.hf_causal import HFCausalModel, HFTokenizer, load_hf_model
from nanochat.eval.hf_scorer import HFScorer, hf_bits_per_byte, text_rows
from nanochat.export.hf_tokenizer import to_hf_tokenizer
from nanochat.gpt import GPT, GPTConfig
from nanochat.runtime import Runtime
from nanochat.tokenizer import RustBPETokenizer
from scripts import base_eval, base_loss, export_hf
from tests.support.bundles import write_hand_bundle
from tests.support.hf_models import ARCHITECTURES, TEXTS, log_probs_alone, save_hf_model
from tests.support.precision import recorded_precision

TOKENIZER = RustBPETokenizer.train_from_iterator(TEXTS * 3, 400)
CPU = Runtime(0, 0, 1, torch.device("cpu"), torch.float32, 42)


def nanochat_model(trained: bool) -> GPT:
    """A model in which every output depends on every token before it; trained for a few steps on the texts if asked."""
    model = GPT(
        GPTConfig(sequence_len=48, vocab_size=TOKENIZER.get_vocab_size(), n_layer=2, n_head=4, n_kv_head=2, n_embd=32)
    )
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
def export(request: pytest.FixtureRequest, run_here: Path) -> Path:
    """The export of a checkpoint d2 in the base folder."""
    TOKENIZER.save(run_here / "tokenizer")
    model = nanochat_model(request.param == "trained")
    save_checkpoint(run_dir("base", "d2"), 7, model.state_dict(), {}, model_meta(model, CPU, TOKENIZER))
    return export_hf.main(export_hf.Config(out=run_here / "d2-hf"))


# --- a checkpoint and its export --------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_fewshot", [0, 2])
def test_an_export_is_scored_like_its_checkpoint(export: Path, num_fewshot: int, tmp_path: Path) -> None:
    """On all types of task, with truncated prompts: losses equal up to rounding, and the same decisions."""
    bundle = read_bundle(write_hand_bundle(tmp_path / "bundle", num_fewshot, "\nAnswer: "))
    checkpoint = EvalModel.from_checkpoint(CPU, 500)
    hf_model = EvalModel.from_hf(str(export), CPU, 500)
    assert (hf_model.name, hf_model.context_len) == ("d2-hf", 48)
    num_cut = 0
    for task in bundle.tasks:
        result, hf_result = (
            evaluate_task(task, model.scorer, model.tokenizer, model.context_len, CPU)
            for model in (checkpoint, hf_model)
        )
        assert replace(hf_result, seconds=0) == replace(result, seconds=0)
        num_cut += result.num_cut
        prompts = [task.prompts(index, 42) for index in range(len(task.examples))]
        examples = [encode_example(texts, hf_model.tokenizer, 48, index) for index, texts in enumerate(prompts)]
        assert examples == [encode_example(texts, TOKENIZER, 48, index) for index, texts in enumerate(prompts)]
        scores = {example.index: option_scores for example, option_scores in checkpoint.scorer(examples)}
        for example, hf_scores in hf_model.scorer(examples):
            for a, b in zip(scores.pop(example.index), hf_scores, strict=True):
                assert b.loss == pytest.approx(a.loss, abs=2e-5)
                assert b.is_greedy == a.is_greedy
        assert not scores
    assert (num_cut > 0) == (num_fewshot > 0)


def test_the_scripts_agree(export: Path, run_here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """base_eval and base_loss give the same for an export as for its checkpoint, and keep their sections apart."""
    write_hand_bundle(run_here / "eval_bundle", 1)
    write_dataset(TEXTS * 9, TEXTS, source="folder")
    results = base_eval.main(base_eval.Config(device="cpu"))
    hf_results = base_eval.main(base_eval.Config(device="cpu", hf_path=str(export)))
    assert [result.correct for result in hf_results] == [result.correct for result in results]
    table = (run_here / "base_eval" / "d2-hf.csv").read_text(encoding="utf-8")
    assert table == (run_here / "base_eval" / "d2_000007.csv").read_text(encoding="utf-8")
    options = {"device": "cpu", "num_samples": 3, "max_sample_tokens": 9, "device_batch_size": 2, "temperature": 0.0}
    for eval_tokens in (90, 101, 10**6):  # ends in the first text, in the second, and with the split
        metrics = base_loss.main(base_loss.Config(eval_tokens=eval_tokens, **options))
        hf_metrics = base_loss.main(base_loss.Config(eval_tokens=eval_tokens, hf_path=str(export), **options))
        assert hf_metrics == pytest.approx(metrics, rel=1e-5)
    sections = {
        name: json.loads((run_here / "report" / f"{name}.json").read_text(encoding="utf-8"))
        for name in ("base_loss", "base_eval", "hf_loss", "hf_eval")
    }
    assert sections["hf_loss"]["samples"] == sections["base_loss"]["samples"]
    assert sections["hf_eval"]["answers"] == sections["base_eval"]["answers"]
    assert "model" not in sections["hf_eval"]
    assert not any("checkpoint" in sections[name] for name in ("hf_loss", "hf_eval"))
    assert "NanoChatForCausalLM of transformers, computing in float32" in sections["hf_loss"]["notes"][0]
    assert "a context of 48 tokens" in capsys.readouterr().out


# --- other architectures, other tokenizers ----------------------------------------------------------------------------


@pytest.fixture(scope="module", params=list(ARCHITECTURES))
def other(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """The name of an architecture, and a folder with such a model."""
    return request.param, save_hf_model(request.param, tmp_path_factory.mktemp("other") / request.param)


def many_texts(count: int) -> Iterator[list[tuple[str, str]]]:
    """Yield the texts of examples of all types: continuations begin with a space, or follow a newline."""
    rng = random.Random(4)
    words = " ".join(TEXTS[:2]).split()
    for _ in range(count):
        context = rng.choices(words, k=rng.randint(1, 9))
        num_options = rng.randint(1, 3)
        continuations = [" " + " ".join(rng.choices(words[:9], k=rng.randint(1, 3))) for _ in range(num_options)]
        if rng.random() < 0.5:
            texts = [(" ".join(context), continuation) for continuation in continuations]
        else:
            texts = [(" ".join([*context, rng.choice(words)]), continuations[0]) for _ in range(num_options)]
        if rng.random() < 0.6:
            yield texts
        else:
            yield [(f"{text}\n", continuation[1:]) for text, continuation in texts]


@pytest.mark.parametrize("batch_tokens", [1, 400])
def test_scores_are_those_of_one_sequence_at_a_time(other: tuple[str, Path], batch_tokens: int) -> None:
    """Of the whole text encoded at once, after the beginning token if there is one, with all logits."""
    architecture, folder = other
    inner = transformers.AutoModelForCausalLM.from_pretrained(folder)
    inner_tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = EvalModel.from_hf(str(folder), CPU, batch_tokens)
    texts = list(many_texts(12))
    start = [] if architecture in ("llama", "mamba") else [inner_tokenizer.bos_token_id]
    num_compared = 0
    examples = [encode_example(options, model.tokenizer, 64, index) for index, options in enumerate(texts)]
    for example, scores in model.scorer(examples):
        if example.is_truncated:
            continue
        for (context, continuation), score in zip(texts[example.index], scores, strict=True):
            ids = start + inner_tokenizer(context + continuation, add_special_tokens=False)["input_ids"]
            context_ids = start + inner_tokenizer(context, add_special_tokens=False)["input_ids"]
            count = len(ids) - len(context_ids)
            log_probs = log_probs_alone(inner, ids[:-1])[-count:]
            targets = torch.tensor(ids[-count:])
            assert score.loss == pytest.approx(-log_probs[range(count), targets].mean().item(), abs=1e-4)
            assert score.is_greedy == bool((log_probs.argmax(-1) == targets).all())
        num_compared += 1
    assert num_compared > 8


def test_shared_prefixes_are_computed_once(other: tuple[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """If the cache allows it (not one that is cut, nor a state): fewer positions, equal scores, no larger batch."""
    architecture, folder = other
    model, tokenizer = load_hf_model(str(folder), CPU)
    assert model.supports_prefix_sharing == (architecture in ("gpt2", "llama", "bloom", "gpt_neo"))
    continuations = (" a", " bc", " the sheep", " x")
    texts = [[("x" * (40 + 3 * n), continuation) for continuation in continuations] for n in range(6)]
    texts.append([("x", " long" * (10 + n)) for n in range(2)])  # in a batch with what ends where the context does
    examples = [encode_example(options, tokenizer, 64, index) for index, options in enumerate(texts)]
    num_positions: list[int] = []
    predict = HFCausalModel.predict
    monkeypatch.setattr(
        HFCausalModel,
        "predict",
        lambda self, ids, *rest, **more: num_positions.append(ids.numel()) or predict(self, ids, *rest, **more),
    )
    all_scores = []
    totals = []
    supports_sharing = model.supports_prefix_sharing
    for shares in (supports_sharing, False):
        model.supports_prefix_sharing = shares
        num_positions.clear()
        scorer = HFScorer(model, not tokenizer.has_bos, 900)
        by_index = {example.index: scores for example, scores in scorer(examples)}
        all_scores.append([score for index in range(7) for score in by_index[index]])
        totals.append(sum(num_positions))
        assert max(num_positions) <= 900
    assert (totals[0] < 0.6 * totals[1]) == supports_sharing
    for shared, alone in zip(*all_scores, strict=True):
        assert shared.loss == pytest.approx(alone.loss, abs=1e-4)
        assert shared.is_greedy == alone.is_greedy


def test_losses_are_computed_in_float32(tmp_path: Path) -> None:
    """Also in the tests of the model at loading: not in TF32, which training on CUDA uses."""
    with recorded_precision() as precisions:
        model, tokenizer = load_hf_model(str(save_hf_model("gpt2", tmp_path / "x")), CPU)
    assert precisions == {"highest"}
    example = encode_example([("The sheep", " said"), ("The sheep", " ran")], tokenizer, 64, 0)
    with recorded_precision() as precisions:
        list(HFScorer(model, False)([example]))
    assert precisions == {"highest"}


def test_the_head_of_a_scorer_is_float32(tmp_path: Path) -> None:
    """Losses do not depend on the dtype of the other weights (float64 in place of bf16)."""
    folder = str(save_hf_model("gpt2", tmp_path / "x"))
    losses = []
    for dtype in (torch.float32, torch.float64):
        model, tokenizer = load_hf_model(folder, replace(CPU, compute_dtype=dtype))
        examples = [encode_example(options, tokenizer, 64, index) for index, options in enumerate(many_texts(9))]
        scores = {example.index: option_scores for example, option_scores in HFScorer(model, False)(examples)}
        losses.append([score.loss for index in range(9) for score in scores[index]])
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


# --- bits per byte ----------------------------------------------------------------------------------------------------


def test_bits_per_byte_of_other_tokenizers(other: tuple[str, Path], base_dir: Path) -> None:
    """The loss of all text, row by row, divided by the bytes of the text, not of the tokens."""
    _, folder = other
    assert write_dataset(TEXTS * 2, TEXTS, source="folder")
    documents = open_split("val")
    model, tokenizer = load_hf_model(str(folder), CPU)
    inner = model.inner
    inner_tokenizer = tokenizer.inner
    plain = {"add_special_tokens": False, "split_special_tokens": True}
    rows = [inner_tokenizer(text, **plain)["input_ids"] for text in TEXTS]
    if inner_tokenizer.bos_token_id is None:  # adds a space, which TEXTS[2] begins with
        rows[2] = inner_tokenizer(TEXTS[2][1:], **plain)["input_ids"]
    end = inner_tokenizer.eos_token_id
    stream = [token for row in rows for token in (end, *row)]
    log_probs = torch.cat(
        [log_probs_alone(inner, stream[:-1][start : start + 50]) for start in range(0, len(stream) - 1, 50)]
    )
    nats = -sum(log_probs[i, token].item() for i, token in enumerate(stream[1:]) if token != end)
    num_bytes = sum(len(text.encode("utf-8")) for text in TEXTS)
    bpb = hf_bits_per_byte(model, tokenizer, documents, 50, 10**6, 2, CPU)
    assert bpb == pytest.approx(nats / math.log(2) / num_bytes, rel=1e-5)
    assert base_dir.is_dir()


def test_rows_are_those_of_nanochats_tokenizer(base_dir: Path) -> None:
    """With any limit of tokens an exported tokenizer gives the rows of its original, and the bytes of their tokens."""
    TOKENIZER.save(base_dir / "tokenizer")
    exported = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer.from_str(json.dumps(to_hf_tokenizer(TOKENIZER))), bos_token="<|bos|>"
    )
    write_dataset(TEXTS * 2, TEXTS, source="folder")
    token_bytes = torch.tensor(TOKENIZER.token_bytes())
    for max_tokens in (*range(1, 130, 3), 10**6):
        rows, count = document_eval_rows(open_split("val"), TOKENIZER, 16, max_tokens)
        hf_rows, num_bytes = text_rows(open_split("val"), HFTokenizer(exported), 16, max_tokens)
        assert torch.equal(hf_rows, rows)
        targets = rows[:, 1:]
        assert num_bytes == (token_bytes[targets.clamp(min=0)] * (targets >= 0)).sum()
        assert count <= max_tokens
