"""Samples of a base model, compared with `GPT.generate`."""

from __future__ import annotations

import itertools

import pytest
import torch

from nanochat.eval.samples import PROMPTS, generate_samples
from nanochat.gpt import GPT
from tests.support.models import random_model
from tests.support.talks import BOS, TOKENIZER

END_IDS = (BOS, TOKENIZER.encode_special("<|assistant_end|>"))


def make_model(sequence_len: int = 64, end_bias: float = 0.0) -> GPT:
    """A random model. `end_bias` scales the head's row of `<|bos|>`: with a large one documents end soon."""
    model = random_model(sequence_len)
    with torch.no_grad():
        model.head.weight[BOS] *= end_bias
    return model


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_samples_equal_gpt_generate(temperature: float) -> None:
    model = make_model()
    samples = generate_samples(model, TOKENIZER, ["one", "two"], 10, temperature, seed=5)
    for index, (prompt, sample) in enumerate(zip(["one", "two"], samples, strict=True)):
        ids = list(model.generate([BOS, *prompt.encode()], 10, temperature, seed=5 + index))
        expected = list(itertools.takewhile(lambda token: token not in END_IDS, ids))
        assert sample == {"prompt": prompt, "text": TOKENIZER.decode(expected), "whole": len(expected) < 10}


def test_a_sample_does_not_depend_on_the_prompts_before_it() -> None:
    model = make_model()
    samples = generate_samples(model, TOKENIZER, ["one", "two", "two"], 8, 1.0, seed=1)
    assert generate_samples(model, TOKENIZER, ["two"], 8, 1.0, seed=2) == samples[1:2]
    assert samples[1]["text"] != samples[2]["text"]


def test_a_sample_is_whole_if_the_model_ended_it() -> None:
    """Neither `max_tokens` nor the context did."""
    samples = generate_samples(make_model(end_bias=20.0), TOKENIZER, ["a", "b", "c", "d"], 40, 1.0)
    assert any(sample["whole"] for sample in samples)
    assert all(len(sample["text"]) < 40 for sample in samples if sample["whole"])
    assert "<|bos|>" not in "".join(sample["text"] for sample in samples)
    for sequence_len, max_tokens in ((64, 5), (8, 40)):
        [sample] = generate_samples(make_model(sequence_len), TOKENIZER, ["a"], max_tokens)
        assert not sample["whole"]


@pytest.mark.parametrize("sequence_len", [1, 2, 7])
def test_in_a_short_context_the_prompt_is_cut(sequence_len: int) -> None:
    samples = generate_samples(make_model(sequence_len), TOKENIZER, PROMPTS, 9)
    for prompt, sample in zip(PROMPTS, samples, strict=True):
        assert prompt.startswith(sample["prompt"])
        assert len(sample["prompt"]) == max(1, sequence_len // 2) - 1
        assert not sample["whole"]
