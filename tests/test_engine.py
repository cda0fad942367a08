"""The engine compared with the slow `GPT.generate`, and each sample of a batch with the same sample alone."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nanochat import engine as engine_module
from nanochat.common import UserError
from nanochat.engine import Engine, with_compute_weights
from nanochat.gpt import GPT, GPTConfig
from nanochat.inference import kv_cache
from nanochat.inference.model_step import StepTokens
from nanochat.inference.native_step import NativeStep
from nanochat.layers.sampling_params import SamplingParams
from tests.support.generation_paths import GENERATION_PATHS, NATIVE, use_path
from tests.support.talks import TOKENIZER

ROOT = Path(__file__).resolve().parent.parent
BOS, ASSISTANT_END = TOKENIZER.get_bos_token_id(), TOKENIZER.encode_special("<|assistant_end|>")
CONFIGS = {
    "plain": GPTConfig(sequence_len=32, vocab_size=265, n_layer=2, n_head=2, n_kv_head=2, n_embd=64),
    "grouped": GPTConfig(sequence_len=23, vocab_size=265, n_layer=3, n_head=6, n_kv_head=2, n_embd=60),
    "one key-value head": GPTConfig(
        sequence_len=17, vocab_size=265, n_layer=1, n_head=3, n_kv_head=1, n_embd=42, softcap=0
    ),
}


def random_model(config: GPTConfig, end_bias: float = 0.0) -> GPT:
    """A model whose matrices are all random. `end_bias` scales the head's rows of the end tokens (0 = never best)."""
    model = GPT(config)
    model.init_weights(0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, param in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight", "head.weight")):
                param.copy_(torch.randn(param.shape, generator=generator) * (2 / param.size(1) ** 0.5))
        model.head.weight[[BOS, ASSISTANT_END]] *= end_bias
    return model


@pytest.fixture(autouse=True, params=GENERATION_PATHS)
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways of generating."""
    use_path(request.param, monkeypatch)
    return str(request.param)


@pytest.fixture(params=CONFIGS)
def model(request: pytest.FixtureRequest) -> GPT:
    return random_model(CONFIGS[request.param])


PROMPT = [BOS, 7, 99, 7, 200]

# Compared with GPT.generate


@pytest.mark.parametrize("num_samples", [1, 5])
@pytest.mark.parametrize("length", [1, 5, 16])
def test_greedy_output_equals_gpt_generate_to_the_end_of_the_context(model: GPT, num_samples: int, length: int) -> None:
    prompt = (PROMPT * 4)[:length]
    expected = list(model.generate(prompt, 1000, temperature=0))
    assert len(prompt) + len(expected) == model.config.sequence_len
    assert len(set(expected)) >= min(4, len(expected))  # the model does not repeat one token
    columns = list(Engine(model, TOKENIZER).generate(prompt, num_samples, temperature=0))
    assert columns == [([token] * num_samples, [1] * num_samples) for token in expected]


def test_a_sample_at_a_temperature_equals_gpt_generate(model: GPT) -> None:
    expected = list(model.generate(PROMPT, 1000, temperature=0.7, top_k=20, seed=5))
    tokens = [column[0] for column, _ in Engine(model, TOKENIZER).generate(PROMPT, 1, None, 0.7, 20, 5)]
    ends = [i for i, token in enumerate(expected) if token in (BOS, ASSISTANT_END)]
    assert tokens == expected[: ends[0] + 1 if ends else None]


@torch.inference_mode()
@pytest.mark.parametrize("cuts", [[], [1], [5, 6], [3, 9, 10, 15]])
def test_several_passes_with_the_cache_give_the_logits_of_one_pass(model: GPT, cuts: list[int]) -> None:
    idx = torch.randint(265, (3, 17), generator=torch.Generator().manual_seed(3))
    cache = kv_cache.KVCache(model.config, 3, torch.float32, torch.device("cpu"))
    logits = [model(idx[:, start:end], kv_cache=cache) for start, end in zip([0, *cuts], [*cuts, 17], strict=True)]
    torch.testing.assert_close(torch.cat(logits, 1), model(idx), rtol=0, atol=1e-5)
    assert cache.pos == 17


# Sampling


def test_samples_differ_from_their_first_token_on() -> None:
    engine = Engine(random_model(CONFIGS["plain"]), TOKENIZER)
    (first, _), *_ = engine.generate(PROMPT, num_samples=20, temperature=1.0)
    assert len(set(first)) > 5
    sequences, _ = engine.generate_batch(PROMPT, num_samples=20)
    assert len({tuple(sequence) for sequence in sequences}) == 20


def test_the_seed_determines_the_samples() -> None:
    engine = Engine(random_model(CONFIGS["plain"], end_bias=1), TOKENIZER)
    torch.manual_seed(0)
    first = list(engine.generate(PROMPT, 4, seed=1))
    torch.manual_seed(1)
    assert list(engine.generate(PROMPT, 4, seed=1)) == first
    assert list(engine.generate(PROMPT, 4, seed=2)) != first


def test_without_a_seed_the_samples_are_random() -> None:
    engine = Engine(random_model(CONFIGS["plain"]), TOKENIZER)
    params = SamplingParams(seed=None)
    first, second = (list(engine.stream(PROMPT, params)) for _ in range(2))
    assert first != second
    assert engine.generate_many([PROMPT], params) != engine.generate_many([PROMPT], params)


def test_with_a_seed_for_each_prompt_completions_do_not_depend_on_other_prompts() -> None:
    engine = Engine(random_model(CONFIGS["plain"], end_bias=1), TOKENIZER)
    prompts = [PROMPT, PROMPT[:2], PROMPT]
    params = SamplingParams(num_samples=3, seed=None)
    together = engine.generate_many(prompts, params, seeds=[5, 6, 7])
    alone = [
        engine.generate_many([prompt], params, seeds=[seed])[0] for prompt, seed in zip(prompts, [5, 6, 7], strict=True)
    ]
    assert together == alone
    assert together[0] != together[2]


def chi_square(drawn: Tensor, probs: Tensor) -> float:
    """Chi-square per degree of freedom of drawn ids; ids with an expected count below 5 are pooled."""
    expected = probs * len(drawn)
    counts = torch.bincount(drawn, minlength=len(probs)).double()
    common = expected >= 5
    expected = torch.cat((expected[common], expected[~common].sum().view(1)))
    counts = torch.cat((counts[common], counts[~common].sum().view(1)))
    return float(((counts - expected) ** 2 / expected.clamp(min=1e-9)).sum() / (len(counts) - 1))


@pytest.mark.parametrize(("temperature", "top_k"), [(1.0, None), (0.5, None), (2.0, 10), (1.0, 1000)])
def test_samples_follow_the_models_distribution(temperature: float, top_k: int | None) -> None:
    """The first and the second token of thousands of samples, compared with the softmax of a pass without a cache."""
    model = random_model(CONFIGS["plain"], end_bias=1)
    columns = list(Engine(model, TOKENIZER).generate(PROMPT, 4000, 2, temperature, top_k))
    first, second = (torch.tensor(column) for column, _ in columns)

    def probs(ids: list[int]) -> Tensor:
        logits = model(torch.tensor([ids]))[0, -1].detach().double()
        kept = logits.sort(descending=True).values[: top_k or len(logits)][-1]
        odds = torch.where(logits >= kept, (logits / temperature).exp(), 0.0)
        return odds / odds.sum()

    assert 0.5 < chi_square(first, probs(PROMPT)) < 1.6
    assert chi_square(first, torch.full((265,), 1 / 265).double()) > 5  # the statistic tells distributions apart
    mode = int(first.bincount().argmax())
    followers = second[first == mode]
    assert len(followers) > 50
    assert chi_square(followers, probs([*PROMPT, mode])) < 2


# Ends


def before_end(tokens: list[int]) -> list[int]:
    """The tokens before the first end token."""
    ends = [i for i, token in enumerate(tokens) if token in (BOS, ASSISTANT_END)]
    return tokens[: ends[0]] if ends else tokens


@pytest.mark.parametrize("end_bias", [1.6, 2.4])
@pytest.mark.parametrize("name", CONFIGS)
def test_samples_that_end_at_different_steps_do_not_affect_the_others(
    name: str, end_bias: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Different first tokens, then greedy decoding: each sample continues as it does alone, without a cache."""
    model = random_model(CONFIGS[name], end_bias)
    firsts = [11, 40, 3, BOS, 77, 120, 5, ASSISTANT_END, 64, 201, 90, 33, 150, 8, 19, 254]
    batches: list[int] = []

    def forced_then_greedy(logits: Tensor, *_: object) -> Tensor:
        batches.append(len(logits))
        return torch.tensor(firsts) if len(batches) == 1 else logits.argmax(-1)

    monkeypatch.setattr(engine_module, "sample_next", forced_then_greedy)
    sequences, masks = Engine(model, TOKENIZER).generate_batch(PROMPT, num_samples=len(firsts))
    for first, sequence, mask in zip(firsts, sequences, masks, strict=True):
        alone = before_end([first, *model.generate([*PROMPT, first], 1000, temperature=0)])
        assert sequence == PROMPT + alone
        assert mask == [0] * len(PROMPT) + [1] * len(alone)
    lengths = [len(sequence) - len(PROMPT) for sequence in sequences]
    assert len(set(lengths)) > 3  # they end at different steps
    for step, rows in enumerate(batches):  # each leaves the batch when it has ended
        assert rows == sum(length >= step for length in lengths)


def test_a_finished_sample_repeats_its_end_token_with_mask_0(monkeypatch: pytest.MonkeyPatch) -> None:
    script = iter([[1, BOS, 2], [3, 4], [ASSISTANT_END, 5], [6], [BOS]])
    monkeypatch.setattr(engine_module, "sample_next", lambda *_: torch.tensor(next(script)))
    engine = Engine(random_model(CONFIGS["plain"]), TOKENIZER)
    assert list(engine.generate(PROMPT, num_samples=3)) == [
        ([1, BOS, 2], [1, 1, 1]),
        ([3, BOS, 4], [1, 0, 1]),
        ([ASSISTANT_END, BOS, 5], [1, 0, 1]),
        ([ASSISTANT_END, BOS, 6], [0, 0, 1]),
        ([ASSISTANT_END, BOS, BOS], [0, 0, 1]),
    ]


class RecordingGPT(GPT):
    """Records the shape of the ids of each forward pass."""

    shapes: list[tuple[int, ...]]

    def hidden_states(self, idx: Tensor, kv_cache: Any = None) -> Tensor:
        self.shapes.append(tuple(idx.shape))
        return super().hidden_states(idx, kv_cache)


@pytest.mark.parametrize(("max_tokens", "steps"), [(1, 1), (4, 4), (27, 27), (28, 27), (None, 27)])
def test_there_is_no_unnecessary_forward_pass(
    max_tokens: int | None, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One pass over the prompt, for one row, then one for each further token but none after the last."""
    model = RecordingGPT(CONFIGS["plain"])
    model.load_state_dict(random_model(CONFIGS["plain"]).state_dict())
    model.init_rope()
    model.shapes = []
    forward = NativeStep.forward

    def recording(native: NativeStep, step: StepTokens) -> Tensor:
        num_rows = len(step.block_tables)
        model.shapes.append((num_rows, len(step.tokens) // num_rows))
        return forward(native, step)

    monkeypatch.setattr(NativeStep, "forward", recording)
    assert len(list(Engine(model, TOKENIZER).generate(PROMPT, 3, max_tokens, temperature=0))) == steps
    assert model.shapes == [(1, 5)] + [(3, 1)] * (steps - 1)


def test_a_prompt_that_fills_the_context_is_not_continued() -> None:
    engine = Engine(random_model(CONFIGS["plain"]), TOKENIZER)
    assert list(engine.generate([BOS] * 32)) == []
    assert engine.generate_batch([BOS] * 32, 2) == ([[BOS] * 32] * 2, [[0] * 32] * 2)
    assert len(list(engine.generate([BOS] * 31, temperature=0))) == 1


def test_complete_returns_text(monkeypatch: pytest.MonkeyPatch) -> None:
    prompts: list[list[int]] = []

    def columns(_: Engine, tokens: list[int], num_samples: int, *_settings: object) -> Iterator[engine_module.Column]:
        prompts.append(tokens)
        return (
            (list(column), [1] * num_samples) for column in zip(b" caf\xc3\xa9", b" cat\xc3" + bytes([33]), strict=True)
        )

    monkeypatch.setattr(Engine, "generate", columns)
    engine = Engine(random_model(CONFIGS["plain"]), TOKENIZER)
    assert engine.complete("A <|bos|>", num_samples=2) == [" café", " cat\ufffd!"]
    assert prompts == [[BOS, *b"A <|bos|>"]]  # the text of a user never has special tokens


def test_complete_with_an_empty_prompt_generates_a_document() -> None:
    engine = Engine(random_model(CONFIGS["plain"]), TOKENIZER)
    (text,) = engine.complete("", max_tokens=9, temperature=0)
    assert text == TOKENIZER.decode(list(engine.model.generate([BOS], 9, temperature=0)))


# Refused arguments


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokens": []}, "prompt is empty"),
        ({"tokens": [BOS] * 33}, "33 tokens, but the context of this model is 32"),
        ({"num_samples": 0}, "num_samples is 0"),
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"max_tokens": -1}, "max_tokens is -1"),
        ({"temperature": -0.1}, "temperature is -0.1"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_k": 0}, "top_k is 0"),
        ({"top_k": -5}, "top_k is -5"),
    ],
)
def test_impossible_arguments_are_refused_before_the_first_step(options: dict[str, Any], message: str) -> None:
    engine = Engine(random_model(CONFIGS["plain"]), TOKENIZER)
    settings = {"tokens": PROMPT, **options}
    with pytest.raises(UserError, match=message):
        engine.generate(**settings)  # raised by the call, not by the iteration
    with pytest.raises(UserError, match=message):
        engine.generate_batch(**settings)


def test_impossible_arguments_of_generate_many_are_refused() -> None:
    engine = Engine(random_model(CONFIGS["plain"]), TOKENIZER)
    with pytest.raises(UserError, match="batch_size is 0"):
        engine.generate_many([[BOS]], SamplingParams(), batch_size=0)
    with pytest.raises(UserError, match="33 tokens, but the context of this model is 32"):
        engine.generate_many([[BOS], [BOS] * 33], SamplingParams())
    with pytest.raises(UserError, match="prompt is empty"):
        engine.generate_many([[BOS], []], SamplingParams())
    assert engine.generate_many([], SamplingParams()) == []
    assert engine.generate_many([], SamplingParams(), seeds=[]) == []


# Precision

BFLOAT16 = """
import json, torch
from nanochat.engine import Engine, with_compute_weights
from nanochat.gpt import GPT, GPTConfig
from nanochat.tokenizer import SPECIAL_TOKENS, SPLIT_PATTERN, Tokenizer
specials = {name: 256 + i for i, name in enumerate(SPECIAL_TOKENS)}
tokenizer = Tokenizer(SPLIT_PATTERN, {bytes([i]): i for i in range(256)}, specials)
model = GPT(GPTConfig(sequence_len=24, vocab_size=265, n_layer=2, n_head=4, n_kv_head=2, n_embd=64), torch.bfloat16)
model.init_weights()
for param in model.parameters():
    if not param.any():
        torch.nn.init.normal_(param, std=0.2, generator=torch.Generator().manual_seed(1))
converted = with_compute_weights(model, torch.bfloat16)
exact = GPT(model.config)
exact.load_state_dict(model.state_dict())
exact.init_rope()
in_float32 = with_compute_weights(model, torch.float32)
idx = torch.randint(265, (2, 24), generator=torch.Generator().manual_seed(1))
tokens = [column[0] for column, _ in Engine(model, tokenizer).generate([256, 1, 2], temperature=0)]
print(json.dumps({
    "dtypes": sorted({str(weight.dtype) for weight in [*converted.state_dict().values(), *converted.buffers()]}),
    "untouched": all(weight.dtype == torch.float32 for weight in model.state_dict().values()),
    "equal": torch.equal(converted(idx), model(idx)),
    "num_tokens": len(tokens),
    "equal in float32": torch.equal(in_float32(idx), exact(idx)),
    "shared": in_float32.head.weight.data_ptr() == model.head.weight.data_ptr(),
}))
"""


@pytest.mark.slow
def test_conversion_to_bfloat16_changes_no_output() -> None:
    """In a process of its own: oneDNN must be kept from using AMX, which may be broken, before the first product."""
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16", "PYTHONPATH": str(ROOT)}
    process = subprocess.run(
        [sys.executable, "-c", BFLOAT16], env=environment, capture_output=True, text=True, timeout=200, check=True
    )
    report = json.loads(process.stdout)
    assert 1 <= report.pop("num_tokens") <= 21
    assert report == {"dtypes": ["torch.bfloat16"], "untouched": True, "equal": True} | dict.fromkeys(
        ("equal in float32", "shared"), True
    )


# What is particular to the scheduler


@pytest.fixture
def native(path: str) -> None:
    """Skip the test for the other way."""
    if path != NATIVE:
        pytest.skip("needs the native step")


@pytest.mark.usefixtures("native")
def test_completions_that_are_interleaved_share_a_cache() -> None:
    """Two iterators and a batch in turn, on one engine: each gives what it gives alone."""
    model = random_model(CONFIGS["grouped"], end_bias=1)
    prompts = [PROMPT, [*PROMPT, 3], PROMPT[:2]]
    alone = [list(Engine(model, TOKENIZER).generate(prompt, 3, None, 0.8, 50, seed=5)) for prompt in prompts]
    engine = Engine(model, TOKENIZER)
    iterators = [engine.generate(prompt, 3, None, 0.8, 50, seed=5) for prompt in prompts]
    columns: list[list[engine_module.Column]] = [[] for _ in prompts]
    is_running = True
    while is_running:
        is_running = False
        for iterator, seen in zip(iterators, columns, strict=True):
            for column in itertools.islice(iterator, 1):
                seen.append(column)
                is_running = True
        engine.generate_many(prompts, SamplingParams(max_tokens=2))
    assert columns == alone
    assert engine._step_and_cache is not None
    _, cache = engine._step_and_cache
    assert cache.num_available == cache.num_blocks


@pytest.mark.usefixtures("native")
def test_an_iterator_that_is_given_up_releases_its_blocks() -> None:
    engine = Engine(random_model(CONFIGS["plain"]), TOKENIZER)
    columns = engine.generate(PROMPT, 4)
    next(columns)
    assert engine._step_and_cache is not None
    _, cache = engine._step_and_cache
    assert cache.num_available < cache.num_blocks
    columns.close()
    assert cache.num_available == cache.num_blocks


@pytest.mark.usefixtures("native")
def test_a_small_cache_changes_no_completion(monkeypatch: pytest.MonkeyPatch) -> None:
    """With room for one context, the youngest completions give way, and continue later as if they had not."""
    model = random_model(GPTConfig(sequence_len=64, vocab_size=265, n_layer=2, n_head=2, n_kv_head=2, n_embd=64))
    params = SamplingParams(0.9, num_samples=4)
    expected = Engine(model, TOKENIZER).generate_many([PROMPT, PROMPT[:1]], params)
    monkeypatch.setattr(engine_module, "blocks_that_fit", lambda *_: 4)
    small = Engine(model, TOKENIZER)
    assert small.generate_many([PROMPT, PROMPT[:1]], params) == expected
    columns = list(small.stream(PROMPT, SamplingParams(0.0, num_samples=3)))
    assert columns == list(Engine(model, TOKENIZER).stream(PROMPT, SamplingParams(0.0, num_samples=3)))


@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_logits_that_are_not_finite_are_an_error_of_one_line(temperature: float) -> None:
    model = random_model(CONFIGS["plain"])
    with torch.no_grad():
        model.head.weight[:100] = torch.nan
    engine = Engine(model, TOKENIZER)
    with pytest.raises(UserError, match="logits are not finite"):
        engine.generate_many([PROMPT], SamplingParams(temperature))
    with pytest.raises(UserError, match="logits are not finite"):
        list(engine.generate(PROMPT, temperature=temperature))


def test_float32_weights_are_not_copied() -> None:
    model = random_model(CONFIGS["plain"])
    assert with_compute_weights(model, torch.float32) is model
    assert Engine(model, TOKENIZER).model is model
