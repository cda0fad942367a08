"""What a base model writes after a prompt, against the naive generator."""

from __future__ import annotations

import itertools

import pytest
import torch

from nanochat.eval.samples import PROMPTS, write_samples
from nanochat.gpt import GPT
from tests.support.models import random_model
from tests.support.talks import BOS, TOKENIZER

ENDS = (BOS, TOKENIZER.encode_special("<|assistant_end|>"))


def model_of(sequence_len: int = 64, end_bias: float = 0.0) -> GPT:
    """A model of noise; with a bias it likes to end."""
    model = random_model(sequence_len)
    with torch.no_grad():
        model.head.weight[BOS] *= end_bias
    return model


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_equals_the_naive_generator(temperature: float) -> None:
    model = model_of()
    samples = write_samples(model, TOKENIZER, ["one", "two"], 10, temperature, seed=5)
    for index, (prompt, sample) in enumerate(zip(["one", "two"], samples, strict=True)):
        ids = list(model.generate([BOS, *prompt.encode()], 10, temperature, seed=5 + index))
        own = list(itertools.takewhile(lambda token: token not in ENDS, ids))
        assert sample == {"prompt": prompt, "text": TOKENIZER.decode(own), "whole": len(own) < 10}


def test_a_sample_does_not_depend_on_those_before() -> None:
    model = model_of()
    many = write_samples(model, TOKENIZER, ["one", "two", "two"], 8, 1.0, seed=1)
    assert write_samples(model, TOKENIZER, ["two"], 8, 1.0, seed=2) == many[1:2]
    assert many[1]["text"] != many[2]["text"]


def test_whole_is_what_the_model_ended_itself() -> None:
    """Not what was cut by its length or by the context."""
    samples = write_samples(model_of(end_bias=20.0), TOKENIZER, ["a", "b", "c", "d"], 40, 1.0)
    assert any(sample["whole"] for sample in samples)
    assert all(len(sample["text"]) < 40 for sample in samples if sample["whole"])
    assert "<|bos|>" not in "".join(sample["text"] for sample in samples)
    for length, most in ((64, 5), (8, 40)):
        assert not any(s["whole"] for s in write_samples(model_of(length), TOKENIZER, ["a"], most))


@pytest.mark.parametrize("sequence_len", [1, 2, 7])
def test_a_context_too_short_for_the_prompt(sequence_len: int) -> None:
    """The prompt's beginning is used: a run with a short context must not fail at its first samples."""
    for prompt, sample in zip(PROMPTS, write_samples(model_of(sequence_len), TOKENIZER, PROMPTS, 9), strict=True):
        assert prompt.startswith(sample["prompt"])
        assert len(sample["prompt"]) == max(1, sequence_len // 2) - 1
        assert not sample["whole"]
