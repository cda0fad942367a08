"""Models of transformers in our evaluation: like ours where they are ours, and like a plain reading of any other."""

from __future__ import annotations

import json
import math
import random
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import tokenizers
import torch
import transformers
from safetensors.torch import load_file, save_file

from nanochat.checkpoint_manager import model_meta, run_dir, save_checkpoint
from nanochat.common import UserError
from nanochat.core_eval import evaluate_task
from nanochat.data.shards import open_split, write_dataset
from nanochat.dataloader import document_eval_rows
from nanochat.eval.core_bundle import read_bundle
from nanochat.eval.core_prompts import encode_example
from nanochat.eval.eval_model import EvalModel
from nanochat.eval.hf_causal import HFCausalModel, HFTokenizer, generate_hf_samples, load_hf_model
from nanochat.eval.hf_scorer import HFScorer, hf_bits_per_byte, text_rows
from nanochat.export.hf_tokenizer import to_hf_tokenizer
from nanochat.gpt import GPT, GPTConfig
from nanochat.runtime import Runtime
from nanochat.tokenization import hugging_face_bpe
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
    save_checkpoint(run_dir("base", "d2"), 7, model.state_dict(), {}, model_meta(model, CPU, TOKENIZER))
    return export_hf.main(export_hf.Config(out=run_here / "d2-hf"))


# --- ours, by way of transformers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_fewshot", [0, 2])
def test_our_export_is_scored_like_our_checkpoint(both: Path, num_fewshot: int, tmp_path: Path) -> None:
    """All three types, prompts that are too long among them: the same losses to rounding, the same decisions."""
    bundle = read_bundle(write_bundle(tmp_path / "bundle", num_fewshot, "\nAnswer: "))
    ours, theirs = EvalModel.from_checkpoint(CPU, 500), EvalModel.from_hf(str(both), CPU, 500)
    assert (theirs.name, theirs.context_len) == ("d2-hf", 48)
    num_cut = 0
    for task in bundle.tasks:
        one, other = (
            evaluate_task(task, model.scorer, model.tokenizer, model.context_len, CPU) for model in (ours, theirs)
        )
        assert (one.correct, one.num_cut, one.examples_hash) == (other.correct, other.num_cut, other.examples_hash)
        num_cut += one.num_cut
        prompts = [
            encode_example(task.prompts(row, 42), theirs.tokenizer, theirs.context_len, row)
            for row in range(len(task.examples))
        ]
        assert [prompt.options for prompt in prompts] == [
            encode_example(task.prompts(row, 42), TOKENIZER, 48, row).options for row in range(len(task.examples))
        ]
        scores = {prompt.index: found for prompt, found in ours.scorer(prompts)}
        for prompt, found in theirs.scorer(prompts):
            for a, b in zip(scores.pop(prompt.index), found, strict=True):
                assert b.loss == pytest.approx(a.loss, abs=2e-5)
                assert b.is_greedy == a.is_greedy
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
    assert not any("checkpoint" in sections[name] for name in ("hf_loss", "hf_eval"))
    assert "NanoChatForCausalLM of transformers, computing in float32" in sections["hf_loss"]["notes"][0]
    assert "a context of 48 tokens" in capsys.readouterr().out


# --- other architectures, other tokenizers ----------------------------------------------------------------------------


def byte_level() -> Any:
    """A tokenizer like GPT-2's: bytes, a space belongs to the word after it, one token begins and ends a text."""
    inner = tokenizers.Tokenizer(tokenizers.models.BPE())
    inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = tokenizers.decoders.ByteLevel()
    letters = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=330, special_tokens=["<|endoftext|>"], initial_alphabet=letters, show_progress=False
    )
    inner.train_from_iterator(TEXTS, trainer)
    ends = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=inner, **ends)


def sentence_piece(old: bool = True) -> Any:
    """A tokenizer like Llama 2's, which puts a space before every text; it names an end and no beginning.

    The `old` kind puts it also before a text that begins with one.
    """
    inner = tokenizers.Tokenizer(tokenizers.models.BPE(byte_fallback=True, unk_token="<0x3F>"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(prepend_scheme="never" if old else "first")
    first = [tokenizers.normalizers.Prepend(" ")] if old else []
    inner.normalizer = tokenizers.normalizers.Sequence([*first, tokenizers.normalizers.NFKC()])  # other bytes
    decoders = tokenizers.decoders
    inner.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    specials = ["</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=330, special_tokens=specials, limit_alphabet=40, show_progress=False
    )
    inner.train_from_iterator(TEXTS, trainer)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>")


SMALL = {"vocab_size": 330, "hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2}
LLAMA = {**SMALL, "num_key_value_heads": 2, "max_position_embeddings": 64, "intermediate_size": 64}
GPT2 = {"vocab_size": 330, "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4}
KINDS: dict[str, tuple[Any, str, dict[str, Any]]] = {
    "gpt2": (byte_level, "GPT2Config", GPT2),  # its head is its embedding
    "llama": (sentence_piece, "LlamaConfig", LLAMA),
    "gemma2": (byte_level, "Gemma2Config", {**LLAMA, "head_dim": 8, "sliding_window": 8}),  # a soft cap, windows
    "bloom": (byte_level, "BloomConfig", {"vocab_size": 330, "hidden_size": 32, "n_layer": 2, "n_head": 4}),  # ALiBi
    "gpt_neo": (  # a window in a cache that is not cut, and no more columns than the context has
        byte_level,
        "GPTNeoConfig",
        {
            "vocab_size": 330,
            "hidden_size": 32,
            "num_layers": 2,
            "num_heads": 4,
            "max_position_embeddings": 64,
            "window_size": 8,
            "attention_types": [[["global", "local"], 1]],
        },
    ),
    "mamba": (
        partial(sentence_piece, False),
        "MambaConfig",
        {"vocab_size": 330, "hidden_size": 32, "num_hidden_layers": 2},
    ),
}


def save_foreign(kind: str, folder: Path) -> Path:
    """A random model of this architecture, loud enough to prefer some tokens, and its tokenizer."""
    tokenizer, config, shape = KINDS[kind]
    torch.manual_seed(2)
    model = transformers.AutoModelForCausalLM.from_config(getattr(transformers, config)(**shape))
    with torch.no_grad():
        for param in model.parameters():
            if param.dim() == 2:
                param.mul_(4)
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=list(KINDS))
def other(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A folder with a model of another architecture, and its name."""
    return request.param, save_foreign(request.param, tmp_path_factory.mktemp("other") / request.param)


def many_texts(count: int) -> Iterator[list[tuple[str, str]]]:
    """Options of examples of all types: contexts that end without a space, continuations after a space or a newline."""
    rng = random.Random(4)
    words = " ".join(TEXTS[:2]).split()
    for _ in range(count):
        head, options = rng.choices(words, k=rng.randint(1, 9)), rng.randint(1, 3)
        ends = [" " + " ".join(rng.choices(words[:9], k=rng.randint(1, 3))) for _ in range(options)]
        if rng.random() < 0.5:
            texts = [(" ".join(head), end) for end in ends]
        else:
            texts = [(" ".join([*head, rng.choice(words)]), ends[0]) for _ in range(options)]
        yield texts if rng.random() < 0.6 else [(f"{head}\n", end[1:]) for head, end in texts]


def read_plainly(inner: Any, ids: list[int]) -> torch.Tensor:
    """Log-probabilities of what follows each id of one sequence, alone, (T, V)."""
    with torch.no_grad():
        return inner(input_ids=torch.tensor([ids])).logits[0].float().log_softmax(-1)


@pytest.mark.parametrize("batch_tokens", [1, 400])
def test_scores_are_those_of_a_plain_reading(other: tuple[str, Path], batch_tokens: int) -> None:
    """The whole text encoded at once, behind the beginning token if there is one; one at a time, all logits."""
    kind, folder = other
    inner = transformers.AutoModelForCausalLM.from_pretrained(folder)
    spoken = transformers.AutoTokenizer.from_pretrained(folder)
    model = EvalModel.from_hf(str(folder), CPU, batch_tokens)
    texts = list(many_texts(12))
    start = [] if kind in ("llama", "mamba") else [spoken.bos_token_id]
    seen, exact = 0, []
    for prompt, scores in model.scorer([encode_example(t, model.tokenizer, 64, n) for n, t in enumerate(texts)]):
        if prompt.is_truncated:
            continue
        for (head, end), score in zip(texts[prompt.index], scores, strict=True):
            whole = start + spoken(head + end, add_special_tokens=False)["input_ids"]
            count = len(whole) - len(start + spoken(head, add_special_tokens=False)["input_ids"])
            logs = read_plainly(inner, whole[:-1])[-count:]
            wanted = torch.tensor(whole[-count:])
            assert score.loss == pytest.approx(-logs[range(count), wanted].mean().item(), abs=1e-4)
            exact.append(score.is_greedy == bool((logs.argmax(-1) == wanted).all()))
        seen += 1
    assert seen > 8
    assert all(exact)


@pytest.mark.parametrize("old", [False, True])
def test_no_space_that_nobody_wrote(old: bool) -> None:
    """An end without one, or with nothing before it, is what it is in the whole text, wherever its tokens begin."""
    tokenizer = HFTokenizer(sentence_piece(old))
    assert tokenizer.adds_prefix_space
    pairs = [("The sheep\n", "said"), ("The sheep\nA:", " said"), ("", "The"), ("she", "ep"), ("sh", "eep")]
    for (head, end), name in zip(pairs, ("s", "▁s", "▁", "e", "▁she"), strict=True):
        [(ids, count)] = encode_example([(head, end)], tokenizer, 64, 0).options
        assert ids[1:] == tokenizer.inner(head + end, add_special_tokens=False)["input_ids"]
        assert tokenizer.inner.convert_ids_to_tokens(ids[-count]) == name


def test_what_options_share_is_read_once(other: tuple[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where that is exact, which a cut cache and a state are not: fewer positions, the same scores, no larger batch."""
    kind, folder = other
    model, tokenizer = load_hf_model(str(folder), CPU)
    assert model.supports_prefix_sharing == (kind in ("gpt2", "llama", "bloom", "gpt_neo"))
    texts = [[("x" * (40 + 3 * n), end) for end in (" a", " bc", " the sheep", " x")] for n in range(6)]
    texts.append([("x", " long" * (10 + n)) for n in range(2)])  # beside what ends where the context does
    prompts = [encode_example(options, tokenizer, 64, n) for n, options in enumerate(texts)]
    read: list[int] = []
    predict = HFCausalModel.predict
    monkeypatch.setattr(
        HFCausalModel,
        "predict",
        lambda self, ids, *rest, **more: read.append(ids.numel()) or predict(self, ids, *rest, **more),
    )
    found, totals = [], []
    can_share = model.supports_prefix_sharing
    for shares in (can_share, False):
        model.supports_prefix_sharing = shares
        read.clear()
        by_place = {p.index: scores for p, scores in HFScorer(model, not tokenizer.has_bos, 900)(prompts)}
        found.append([score for place in range(7) for score in by_place[place]])
        totals.append(sum(read))
        assert max(read) <= 900
    assert (totals[0] < 0.6 * totals[1]) == can_share
    for one, two in zip(*found, strict=True):
        assert one.loss == pytest.approx(two.loss, abs=1e-4)
        assert one.is_greedy == two.is_greedy


def test_the_head_is_float32(tmp_path: Path) -> None:
    """Also where the weights are not (float64 stands for bf16), and the embedding that it shares stays as it is."""
    folder = str(save_foreign("gpt2", tmp_path / "x"))
    scores, samples = [], []
    for dtype in (torch.float32, torch.float64):
        model, tokenizer = load_hf_model(folder, replace(CPU, compute_dtype=dtype))
        assert model.head is not None
        assert (model.head.weight.dtype, model.inner.get_input_embeddings().weight.dtype) == (torch.float32, dtype)
        prompts = [encode_example(options, tokenizer, 64, n) for n, options in enumerate(many_texts(9))]
        found = {p.index: losses for p, losses in HFScorer(model, False)(prompts)}
        scores.append([score.loss for place in range(9) for score in found[place]])
        samples.append(generate_hf_samples(model, tokenizer, ["The sheep"], 5))
    assert scores[0] == pytest.approx(scores[1], abs=1e-4)
    assert samples[0] == samples[1]


def test_samples_are_what_is_likeliest(other: tuple[str, Path]) -> None:
    """One token after the other, without a cache; no more than the context holds; no penalty that the folder asks."""
    kind, folder = other
    model, tokenizer = load_hf_model(str(folder), CPU)
    model.inner.generation_config.repetition_penalty = 9.0
    [sample] = generate_hf_samples(model, tokenizer, ["The sheep"], 12)
    ids = ([] if kind in ("llama", "mamba") else [tokenizer.get_bos_token_id()]) + tokenizer.encode("The sheep")
    start = len(ids)
    while len(ids) < start + 12 and ids[-1] != tokenizer.inner.eos_token_id:
        ids.append(int(read_plainly(model.inner, ids)[-1].argmax()))
    said = [token for token in ids[start:] if token != tokenizer.inner.eos_token_id]
    skip = 1 - (kind in ("llama", "mamba"))
    assert sample["prompt"] == "The sheep"
    assert sample["prompt"] + sample["text"] == tokenizer.decode(ids[skip:start] + said)
    one, two, three = (generate_hf_samples(model, tokenizer, ["The"] * 2, 9, 1.0, seed) for seed in (1, 1, 2))
    assert one == two != three
    assert one[0]["text"] != one[1]["text"]
    [long] = generate_hf_samples(model, tokenizer, ["sheep " * 60], 99)
    assert long["prompt"] in "sheep " * 60  # its beginning: GPT-2 has no positions for more than there is room
    assert model.context_len > 64 or len(long["prompt"]) < 200


def test_bits_per_byte_of_other_tokenizers(other: tuple[str, Path], base_dir: Path) -> None:
    """Nats of all text, read row by row, over its bytes, whatever the tokenizer makes of them."""
    _, folder = other
    assert write_dataset(TEXTS * 2, TEXTS, source="folder")
    documents = open_split("val")
    model, tokenizer = load_hf_model(str(folder), CPU)
    inner, spoken = model.inner, tokenizer.inner
    rows = [spoken(t, add_special_tokens=False, split_special_tokens=True)["input_ids"] for t in TEXTS]
    if spoken.bos_token_id is None:
        rows[2] = spoken(TEXTS[2][1:], add_special_tokens=False, split_special_tokens=True)["input_ids"]
    stream = [token for row in rows for token in (spoken.eos_token_id, *row)]
    logs = torch.cat([read_plainly(inner, stream[:-1][start : start + 50]) for start in range(0, len(stream) - 1, 50)])
    nats = -sum(logs[i, token].item() for i, token in enumerate(stream[1:]) if token != spoken.eos_token_id)
    size = sum(len(text.encode("utf-8")) for text in TEXTS)
    found = hf_bits_per_byte(model, tokenizer, documents, 50, 10**6, 2, CPU)
    assert found == pytest.approx(nats / math.log(2) / size, rel=1e-5)
    assert base_dir.is_dir()


def test_bytes_of_the_beginning_of_a_text() -> None:
    """A text that is cut after so many tokens: to the byte, where a token is bytes; else to the character."""
    for make in (byte_level, sentence_piece, partial(sentence_piece, False)):
        tokenizer = HFTokenizer(make())
        for text in TEXTS:
            ids = tokenizer.encode(text)
            sizes = [tokenizer.count_bytes(text, count) for count in range(len(ids) + 1)]
            assert sizes == sorted(sizes)
            assert (sizes[0], sizes[-1]) == (0, len(text.encode("utf-8")))
            if make is byte_level:
                assert sizes == [len(_bytes_of(tokenizer, ids[:count])) for count in range(len(ids) + 1)]


def _bytes_of(tokenizer: HFTokenizer, ids: list[int]) -> bytes:
    """What the ids of a byte-level tokenizer spell."""
    alphabet = hugging_face_bpe.byte_level_alphabet()
    letters = {letter: byte for byte, letter in enumerate(alphabet)}
    return bytes(letters[letter] for name in tokenizer.inner.convert_ids_to_tokens(ids) for letter in name)


def test_rows_end_where_ours_do(base_dir: Path) -> None:
    """At any number of tokens: the same rows as of our own tokenizer, and the bytes that its tokens have."""
    TOKENIZER.save(base_dir / "tokenizer")
    theirs = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer.from_str(json.dumps(to_hf_tokenizer(TOKENIZER))), bos_token="<|bos|>"
    )
    write_dataset(TEXTS * 2, TEXTS, source="folder")
    sizes = torch.tensor(TOKENIZER.token_bytes())
    for most in (*range(1, 130, 3), 10**6):
        rows, count = document_eval_rows(open_split("val"), TOKENIZER, 16, most)
        found, num_bytes = text_rows(open_split("val"), HFTokenizer(theirs), 16, most)
        assert torch.equal(found, rows)
        targets = rows[:, 1:]
        assert num_bytes == (sizes[targets.clamp(min=0)] * (targets >= 0)).sum()
        assert count <= most


# --- what it must not take --------------------------------------------------------------------------------------------


def bert(folder: Path) -> str:
    """It reads in both directions, and transformers loads it as a causal model all the same."""
    config = transformers.BertConfig(**SMALL, intermediate_size=64, is_decoder=False)
    transformers.BertLMHeadModel(config).save_pretrained(folder)
    byte_level().save_pretrained(folder)
    return str(folder)


def t5(folder: Path) -> str:
    """A model of another kind."""
    config = transformers.T5Config(vocab_size=330, d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    transformers.T5ForConditionalGeneration(config).save_pretrained(folder)
    byte_level().save_pretrained(folder)
    return str(folder)


def without_a_weight(folder: Path) -> str:
    """What transformers would make up by itself."""
    path = save_foreign("gpt2", folder) / "model.safetensors"
    weights = load_file(path)
    weights.pop("transformer.h.1.mlp.c_fc.weight")
    save_file(weights, path, metadata={"format": "pt"})
    return str(folder)


def without_ends(folder: Path) -> str:
    """A tokenizer that names neither a beginning nor an end."""
    save_foreign("gpt2", folder)
    tokenizer = byte_level()
    tokenizer.bos_token = tokenizer.eos_token = None
    tokenizer.save_pretrained(folder)
    return str(folder)


def torn(folder: Path) -> str:
    """Half a file of weights."""
    path = save_foreign("gpt2", folder) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    return str(folder)


def of_another(folder: Path) -> str:
    """A tokenizer with more tokens than the model."""
    save_foreign("gpt2", folder)
    config = transformers.GPT2Config(**{**GPT2, "vocab_size": 100})
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    return str(folder)


def no_tokenizer(folder: Path) -> str:
    """Without its files transformers makes an empty one."""
    save_foreign("gpt2", folder)
    for path in folder.glob("tokenizer*"):
        path.unlink()
    return str(folder)


def own_code(folder: Path) -> str:
    """A model that brings a program along."""
    save_foreign("gpt2", folder)
    (folder / "mine.py").write_text("raise SystemExit('it ran')", encoding="utf-8")
    auto = {"AutoConfig": "mine.C", "AutoModelForCausalLM": "mine.M"}
    content = {**json.loads((folder / "config.json").read_text(encoding="utf-8")), "model_type": "x", "auto_map": auto}
    (folder / "config.json").write_text(json.dumps(content), encoding="utf-8")
    return str(folder)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: str(folder / "absent"), "neither a folder nor a name on the Hugging Face hub"),
        (lambda folder: str(folder / ("x" * 300)), "cannot be read: .*File name too long"),
        (lambda folder: str(folder), "holds no model of transformers: config.json is missing"),
        (lambda _: "nobody/nothing", "tokenizer of nobody/nothing cannot be loaded: .*(find|connect|offline)"),
        (bert, "no causal language model: what it predicts depends on later tokens"),
        (t5, "cannot be loaded: Unrecognized configuration class"),
        (without_a_weight, "1 weights of GPT2LMHeadModel are missing, for one transformer.h.1.mlp.c_fc.weight"),
        (without_ends, "neither a bos_token nor an eos_token"),
        (torn, "x cannot be loaded: "),
        (of_another, "its tokenizer has 330 tokens, the model 100"),
        (no_tokenizer, "the tokenizer of .*x cannot be loaded: it has no tokens"),
        (own_code, "cannot be loaded: .*(trust_remote_code|custom code)"),
    ],
)  # fmt: skip
def test_refused(make: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one line."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    (tmp_path / "x").mkdir()
    with pytest.raises(UserError, match=message) as error:
        load_hf_model(make(tmp_path / "x"), CPU)
    assert "\n" not in str(error.value)


def test_without_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match=r"this needs transformers .*uv pip install transformers"):
        load_hf_model(str(tmp_path), CPU)
