"""Batches with tool calls and prompts of many lengths, compared with a slow generator without batch and cache."""

from __future__ import annotations

import functools
import itertools
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from nanochat import engine as engine_module
from nanochat.engine import Completion, Engine
from nanochat.gpt import GPT, GPTConfig
from nanochat.inference.decode_batch import prefill_groups
from nanochat.layers.sampling_params import SamplingParams
from nanochat.sandbox.calculator import calculate
from nanochat.tokenizer import SPECIAL_TOKENS
from tests.support.generation_paths import GENERATION_PATHS, use_path
from tests.support.talks import TOKENIZER

BOS, _, _, _, END, CALL, CALL_END, OUT, OUT_END = (TOKENIZER.encode_special(name) for name in SPECIAL_TOKENS)
CONFIGS = {
    "plain": GPTConfig(sequence_len=48, vocab_size=265, n_layer=2, n_head=2, n_kv_head=2, n_embd=64),
    "grouped": GPTConfig(sequence_len=44, vocab_size=265, n_layer=2, n_head=8, n_kv_head=2, n_embd=64),
    "one key-value head": GPTConfig(sequence_len=40, vocab_size=265, n_layer=1, n_head=3, n_kv_head=1, n_embd=66),
}


SEEDS = {"plain": 0, "grouped": 4, "one key-value head": 5}  # of models with enough tool calls and ends


@functools.cache
def calling_model(name: str) -> GPT:
    """A random model that tends to start a tool call after some bytes, and to fill it with digits and end it."""
    model = GPT(CONFIGS[name])
    model.init_weights(SEEDS[name])
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for key, param in model.named_parameters():
            if key.endswith(("o_proj.weight", "down_proj.weight", "head.weight")):
                param.copy_(torch.randn(param.shape, generator=generator) * param.size(1) ** -0.5)
        after = model.embed.weight * (10 / model.config.n_embd)
        model.head.weight[CALL] += after[[*range(0, 200, 20), OUT_END]].sum(0)
        model.head.weight[list(b"0123456789")] += after[CALL]
        model.head.weight[CALL_END] += after[list(b"0123456789")].sum(0)
        model.head.weight[END] += after[10:200:80].sum(0)
    return model


@pytest.fixture(params=CONFIGS)
def model(request: pytest.FixtureRequest) -> GPT:
    return calling_model(request.param)


@pytest.fixture(autouse=True, params=GENERATION_PATHS)
def _path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scheduler on the native step must give the same completions."""
    use_path(request.param, monkeypatch)


@torch.inference_mode()
def slow_completion(model: GPT, prompt: list[int], max_tokens: int = 1000, first: int | None = None) -> Completion:
    """The greedy completion, from a pass over the whole sequence for each token. `first` replaces its first token."""
    max_tokens = min(max_tokens, model.config.sequence_len - len(prompt))
    ids: list[int] = []
    mask: list[int] = []
    expression: list[int] | None = None
    while len(ids) < max_tokens:
        token = int(model(torch.tensor([prompt + ids]))[0, -1].argmax()) if ids or first is None else first
        ids.append(token)
        mask.append(1)
        if token in (END, BOS):
            return Completion(ids, mask, True)
        if token == CALL:
            expression = []
        elif token == CALL_END:
            result = None if expression is None else calculate(TOKENIZER.decode(expression))
            expression = None
            if result is not None:
                output = [OUT, *result.encode(), OUT_END]
                ids += output
                mask += [0] * len(output)
        elif expression is not None:
            expression.append(token)
    return Completion(ids[:max_tokens], mask[:max_tokens], False)


def call_steps(completion: Completion) -> list[int]:
    """The indices at which tool results begin."""
    pairs = zip(completion.tokens, completion.mask, strict=True)
    return [index for index, pair in enumerate(pairs) if pair == (OUT, 0)]


def random_prompts(count: int, longest: int, seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(longest, (count,), generator=generator).tolist()
    return [[BOS, *torch.randint(256, (length,), generator=generator).tolist()] for length in lengths]


# Greedy decoding


def test_samples_with_calls_at_different_steps_equal_the_slow_generator(
    model: GPT, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Different first tokens, then greedy decoding: each sample continues as it does alone."""
    firsts = [*range(40), CALL, CALL_END, END, OUT]
    steps: list[int] = []

    def forced_then_greedy(logits: Tensor, *_: object) -> Tensor:
        steps.append(len(logits))
        return torch.tensor(firsts) if len(steps) == 1 else logits.argmax(-1)

    monkeypatch.setattr(engine_module, "sample_next", forced_then_greedy)
    prompt = [BOS, 7]
    columns = list(Engine(model, TOKENIZER).generate(prompt, len(firsts)))
    expected = [slow_completion(model, prompt, first=first) for first in firsts]
    for sample, completion in enumerate(expected):
        tokens = [column[sample] for column, _ in columns]
        mask = [column_masks[sample] for _, column_masks in columns]
        num_missing = len(columns) - len(completion.tokens)
        assert tokens == completion.tokens + completion.tokens[-1:] * num_missing
        assert mask == completion.mask + [0] * num_missing
    calls = [steps for steps in map(call_steps, expected) if steps]
    assert len(calls) >= 15
    assert len({steps[0] for steps in calls}) > 5  # at different steps
    assert max(map(len, calls)) > 1  # some samples call more than once
    assert len({len(completion.tokens) for completion in expected}) > 5  # the samples end at different steps
    sizes = [len(completion.tokens) for completion in expected]
    assert steps == [
        sum(size > step for size in sizes) for step in range(len(columns))
    ]  # finished rows leave the batch


@pytest.mark.parametrize("batch_size", [1, 7, 64])
@pytest.mark.slow
def test_prompts_of_many_lengths_equal_the_slow_generator(model: GPT, batch_size: int) -> None:
    prompts = [*random_prompts(30, 40), [BOS] * model.config.sequence_len, [9]]
    completions = Engine(model, TOKENIZER).generate_many(
        prompts, SamplingParams(0, num_samples=2), batch_size=batch_size
    )
    expected = [slow_completion(model, prompt) for prompt in prompts]
    assert completions == [[completion, completion] for completion in expected]
    assert expected[-2] == Completion([], [], False)  # the prompt fills the context
    assert sum(bool(call_steps(completion)) for completion in expected) > 5
    assert len({len(completion.tokens) for completion in expected if completion.has_ended}) > 3


@pytest.mark.parametrize("max_tokens", [1, 2, 11])
def test_max_tokens_limits_each_completion(model: GPT, max_tokens: int) -> None:
    prompts = random_prompts(20, model.config.sequence_len)
    completions = Engine(model, TOKENIZER).generate_many(prompts, SamplingParams(0, max_tokens=max_tokens))
    assert completions == [[slow_completion(model, prompt, max_tokens)] for prompt in prompts]


@given(st.lists(st.integers(1, 80), min_size=1, max_size=30))
def test_prefill_groups_are_as_large_as_allowed(lengths: list[int]) -> None:
    prompts = [[BOS] * length for length in lengths]
    groups = [prompts[group] for group in prefill_groups(prompts, 100)]
    assert [prompt for group in groups for prompt in group] == prompts
    for group, following in itertools.zip_longest(groups, groups[1:]):
        assert len(group) == 1 or len(group) * max(map(len, group)) <= 100
        if following:  # one more prompt would have been too many
            assert (len(group) + 1) * max(map(len, [*group, following[0]])) > 100


# Sampling


@pytest.mark.slow
def test_a_completion_does_not_depend_on_its_batch(model: GPT) -> None:
    prompts = random_prompts(12, 30)
    engine = Engine(model, TOKENIZER)
    params = SamplingParams(temperature=0.8, top_k=50, num_samples=4, seed=3)
    whole = engine.generate_many(prompts, params)
    assert len({tuple(completion.tokens) for group in whole for completion in group}) > 40
    for batch_size in (1, 5, 17):
        assert engine.generate_many(prompts, params, batch_size=batch_size) == whole
    assert engine.generate_many(prompts[:5], params) == whole[:5]
    assert engine.generate_many(prompts, replace(params, seed=4)) != whole
    torch.manual_seed(1)
    assert engine.generate_many(prompts, params) == whole


def test_completions_follow_the_models_distribution() -> None:
    """The first and second token of thousands of completions, compared with the softmax of a pass without a cache."""
    model = calling_model("plain")
    prompts = [[BOS, 7, 99], [BOS, 3]]
    many = Engine(model, TOKENIZER).generate_many(
        prompts, SamplingParams(num_samples=5000, max_tokens=2), batch_size=3000
    )
    for prompt, completions in zip(prompts, many, strict=True):
        firsts = torch.tensor([completion.tokens[0] for completion in completions])
        mode = int(firsts.bincount().argmax())
        seconds = [completion.tokens[1] for completion in completions if completion.tokens[0] == mode]
        for context, drawn in ((prompt, firsts), ([*prompt, mode], torch.tensor(seconds))):
            probs = model(torch.tensor([context]))[0, -1].detach().softmax(-1)
            frequencies = torch.bincount(drawn, minlength=265) / len(drawn)
            expected = (
                (2 / torch.pi * probs * (1 - probs) / len(drawn)).sqrt().sum()
            )  # of the sum of absolute differences
            assert len(drawn) > 100
            assert (frequencies - probs).abs().sum() < 1.3 * expected
            assert (frequencies - 1 / 265).abs().sum() > 1.3 * expected  # the measure tells distributions apart
