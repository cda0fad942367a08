"""The engine with its calculator, and with prompts of many lengths, against a generator that is plain and slow."""

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
from nanochat.common import UserError
from nanochat.engine import Completion, Engine
from nanochat.execution import calculate
from nanochat.gpt import GPT, GPTConfig
from nanochat.inference import decode_batch, kv_cache
from nanochat.layers.sampling_params import SamplingParams
from nanochat.tokenizer import SPECIAL_TOKENS
from tests.support.talks import TOKENIZER

BOS, _, _, _, END, CALL, CALL_END, OUT, OUT_END = (TOKENIZER.encode_special(name) for name in SPECIAL_TOKENS)
CONFIGS = {
    "plain": GPTConfig(sequence_len=48, vocab_size=265, n_layer=2, n_head=2, n_kv_head=2, n_embd=64),
    "grouped": GPTConfig(sequence_len=44, vocab_size=265, n_layer=2, n_head=8, n_kv_head=2, n_embd=64),
    "one key-value head": GPTConfig(sequence_len=40, vocab_size=265, n_layer=1, n_head=3, n_kv_head=1, n_embd=66),
}


SEEDS = {"plain": 0, "grouped": 4, "one key-value head": 5}  # of models that call and end often enough


@functools.cache
def calling_model(name: str) -> GPT:
    """Random weights, with a tendency: many a byte calls for a call, a call for a digit, a digit for the call's end."""
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


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small models must still meet what large ones do: a cache that grows, prompts that are read in several passes."""
    monkeypatch.setattr(kv_cache, "CACHE_CHUNK", 4)
    monkeypatch.setattr(decode_batch, "MAX_PREFILL_TOKENS", 60)


@torch.inference_mode()
def plain_answer(model: GPT, prompt: list[int], max_tokens: int = 1000, first: int | None = None) -> Completion:
    """The likeliest answer, by the whole sequence through the model for each token; `first` instead of its first."""
    room = min(max_tokens, model.config.sequence_len - len(prompt))
    ids: list[int] = []
    mask: list[int] = []
    expression: list[int] | None = None
    while len(ids) < room:
        token = int(model(torch.tensor([prompt + ids]))[0, -1].argmax()) if ids or first is None else first
        ids, mask = [*ids, token], [*mask, 1]
        if token in (END, BOS):
            return Completion(ids, mask, True)
        if token == CALL:
            expression = []
        elif token == CALL_END:
            result = None if expression is None else calculate(TOKENIZER.decode(expression))
            expression = None
            if result is not None:
                output = [OUT, *result.encode(), OUT_END]
                ids, mask = ids + output, mask + [0] * len(output)
        elif expression is not None:
            expression.append(token)
    return Completion(ids[:room], mask[:room], False)


def call_steps(answer: Completion) -> list[int]:
    """Where results begin."""
    return [
        i for i, (token, mask) in enumerate(zip(answer.tokens, answer.mask, strict=True)) if (token, mask) == (OUT, 0)
    ]


def random_prompts(count: int, longest: int, seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(longest, (count,), generator=generator).tolist()
    return [[BOS, *torch.randint(256, (length,), generator=generator).tolist()] for length in lengths]


# The engine and its slow twin


def test_many_samples_that_call_at_different_steps_are_those_of_the_plain_generator(
    model: GPT, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Random first tokens, then greedy: each sample must go on as it does alone, in passes without a cache."""
    firsts = [*range(40), CALL, CALL_END, END, OUT]
    steps: list[int] = []

    def forced_then_greedy(logits: Tensor, *_: object) -> Tensor:
        steps.append(len(logits))
        return torch.tensor(firsts) if len(steps) == 1 else logits.argmax(-1)

    monkeypatch.setattr(engine_module, "sample_next", forced_then_greedy)
    prompt = [BOS, 7]
    columns = list(Engine(model, TOKENIZER).generate(prompt, len(firsts)))
    expected = [plain_answer(model, prompt, first=first) for first in firsts]
    for sample, answer in enumerate(expected):
        tokens = [column[sample] for column, _ in columns]
        mask = [column_masks[sample] for _, column_masks in columns]
        size = len(answer.tokens)
        assert tokens == answer.tokens + answer.tokens[-1:] * (len(columns) - size)
        assert mask == answer.mask + [0] * (len(columns) - size)
    calls = [steps for steps in map(call_steps, expected) if steps]
    assert len(calls) >= 15
    assert len({steps[0] for steps in calls}) > 5  # each at a step of its own
    assert max(map(len, calls)) > 1  # some more than once
    assert len({len(answer.tokens) for answer in expected}) > 5  # and they end at different steps
    sizes = [len(answer.tokens) for answer in expected]
    assert steps == [sum(size > step for size in sizes) for step in range(len(columns))]  # the finished leave


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_answers_to_prompts_of_many_lengths_are_those_of_each_alone(model: GPT, batch_size: int) -> None:
    prompts = [*random_prompts(30, 40), [BOS] * model.config.sequence_len, [9]]
    answers = Engine(model, TOKENIZER).generate_many(prompts, SamplingParams(0, num_samples=2), batch_size=batch_size)
    expected = [plain_answer(model, prompt) for prompt in prompts]
    assert answers == [[answer, answer] for answer in expected]
    assert expected[-2] == Completion([], [], False)  # no room for an answer
    assert sum(bool(call_steps(answer)) for answer in expected) > 5
    assert len({len(answer.tokens) for answer in expected if answer.has_ended}) > 3


@pytest.mark.parametrize("max_tokens", [1, 2, 11])
def test_max_tokens_holds_for_each_answer(model: GPT, max_tokens: int) -> None:
    prompts = random_prompts(20, model.config.sequence_len)
    answers = Engine(model, TOKENIZER).generate_many(prompts, SamplingParams(0, max_tokens=max_tokens))
    assert answers == [[plain_answer(model, prompt, max_tokens)] for prompt in prompts]


@given(st.lists(st.integers(1, 80), min_size=1, max_size=30))
def test_prompts_are_read_in_passes_of_a_bounded_size(lengths: list[int]) -> None:
    prompts = [[BOS] * length for length in lengths]
    groups = [prompts[group] for group in decode_batch.prefill_groups(prompts, 100)]
    assert [prompt for group in groups for prompt in group] == prompts
    for group, following in itertools.zip_longest(groups, groups[1:]):
        assert len(group) == 1 or len(group) * max(map(len, group)) <= 100
        if following:  # one more would have been too many
            assert (len(group) + 1) * max(map(len, [*group, following[0]])) > 100


# Random draws


def test_an_answer_does_not_depend_on_the_batch_it_is_written_in(model: GPT) -> None:
    prompts = random_prompts(12, 30)
    engine = Engine(model, TOKENIZER)
    params = SamplingParams(temperature=0.8, top_k=50, num_samples=4, seed=3)
    whole = engine.generate_many(prompts, params)
    assert len({tuple(answer.tokens) for group in whole for answer in group}) > 40
    for batch_size in (1, 5, 17):
        assert engine.generate_many(prompts, params, batch_size=batch_size) == whole
    assert engine.generate_many(prompts[:5], params) == whole[:5]
    assert engine.generate_many(prompts, replace(params, seed=4)) != whole
    torch.manual_seed(1)
    assert engine.generate_many(prompts, params) == whole


def test_answers_follow_the_models_distribution() -> None:
    """The first and the second token of thousands of answers against the softmax of a pass without a cache."""
    model = calling_model("plain")
    prompts = [[BOS, 7, 99], [BOS, 3]]
    many = Engine(model, TOKENIZER).generate_many(
        prompts, SamplingParams(num_samples=5000, max_tokens=2), batch_size=3000
    )
    for prompt, answers in zip(prompts, many, strict=True):
        firsts = torch.tensor([answer.tokens[0] for answer in answers])
        likeliest = int(firsts.bincount().argmax())
        seconds = [answer.tokens[1] for answer in answers if answer.tokens[0] == likeliest]
        for before, drawn in ((prompt, firsts), ([*prompt, likeliest], torch.tensor(seconds))):
            shares = model(torch.tensor([before]))[0, -1].detach().softmax(-1)
            seen = torch.bincount(drawn, minlength=265) / len(drawn)
            expected = (2 / torch.pi * shares * (1 - shares) / len(drawn)).sqrt().sum()  # of the sum of differences
            assert len(drawn) > 100
            assert (seen - shares).abs().sum() < 1.3 * expected
            assert (seen - 1 / 265).abs().sum() > 1.3 * expected  # the measure tells distributions apart


def test_settings_that_mean_nothing_are_refused() -> None:
    engine = Engine(calling_model("plain"), TOKENIZER)
    with pytest.raises(UserError, match="batch_size is 0"):
        engine.generate_many([[BOS]], SamplingParams(), batch_size=0)
    with pytest.raises(UserError, match="49 tokens, but the context of this model is 48"):
        engine.generate_many([[BOS], [BOS] * 49], SamplingParams())
    with pytest.raises(UserError, match="prompt is empty"):
        engine.generate_many([[BOS], []], SamplingParams())
    assert engine.generate_many([], SamplingParams()) == []
