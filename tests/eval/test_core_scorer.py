"""CORE's scorer: losses computed by hand, and any batches, against one option at a time without a cache."""

from __future__ import annotations

import math
import random

import pytest
import torch

from nanochat.eval import core_scorer
from nanochat.eval.core_prompts import EncodedExample, encode_example
from nanochat.eval.core_scorer import ModelScorer, OptionScore, is_correct
from nanochat.gpt import GPT
from tests.support.bundles import LOGITS, VOCAB_SIZE, deep_model, pair_model
from tests.support.precision import recorded_precision
from tests.support.talks import TOKENIZER

# Losses of `pair_model(LOGITS)`: log of the normalizer, less the logit of the target.
UNIFORM = math.log(VOCAB_SIZE)  # after a token without logits: the loss of every target
AFTER_SPACE = math.log(VOCAB_SIZE - 3 + math.exp(2) + math.exp(1) + math.exp(2.5))
AFTER_C = math.log(VOCAB_SIZE - 1 + math.exp(5))


def test_losses_by_hand() -> None:
    texts = [("Q", " a"), ("Q", " ccc"), ("x", " k")]
    [(_, scores)] = ModelScorer(pair_model(LOGITS))([encode_example(texts, TOKENIZER, 64, 0)])
    expected = [
        (UNIFORM + AFTER_SPACE - 2) / 2,
        (UNIFORM + AFTER_SPACE - 1 + 2 * (AFTER_C - 5)) / 4,
        (math.log(VOCAB_SIZE - 1 + math.exp(3)) - 3 + AFTER_SPACE) / 2,
    ]
    assert [score.loss for score in scores] == pytest.approx(expected, abs=1e-4)
    assert 4 * expected[1] > 2 * expected[0]
    assert expected[1] < expected[0]


def test_losses_are_computed_in_float32() -> None:
    """Not in TF32, which training on CUDA uses."""
    with recorded_precision() as precisions:
        list(ModelScorer(deep_model())(many_examples(96)))
    assert precisions == {"highest"}


def many_examples(context_len: int) -> list[EncodedExample]:
    """Examples of many lengths: multiple choice and schema, some too long, some that share `<|bos|>` only."""
    rng = random.Random(1)

    def text(max_len: int) -> str:
        return "".join(rng.choice("abc de") for _ in range(rng.randint(1, max_len)))

    examples = []
    for index in range(30):
        context = text(context_len)
        continuation = text(9)
        num_options = rng.randint(1, 4)
        choices = [(context, text(20)) for _ in range(num_options)]
        schema = [(context[: rng.randint(0, len(context))] + text(9), continuation) for _ in range(num_options)]
        examples.append(encode_example(rng.choice([choices, schema]), TOKENIZER, context_len, index))
    return examples


@pytest.mark.parametrize("batch_tokens", [1, 300, 2000, 100000])
def test_batches_do_not_matter(batch_tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses and most likely tokens are those of each whole sequence alone, without a cache."""
    model = deep_model()
    examples = many_examples(96)
    assert {example.is_truncated for example in examples} == {True, False}
    assert any(example.prefix_len > 1 for example in examples)
    monkeypatch.setattr(core_scorer, "HEAD_ROWS", 7)
    indices = []
    for example, scores in ModelScorer(model, batch_tokens)(examples):
        indices.append(example.index)
        for (ids, count), score in zip(example.options, scores, strict=True):
            with torch.no_grad():
                log_probs = model(torch.tensor([ids[:-1]]))[0, -count:].log_softmax(-1)
            targets = torch.tensor(ids[-count:])
            assert score.loss == pytest.approx(-log_probs[range(count), targets].mean().item(), abs=1e-5)
            assert score.is_greedy == bool((log_probs.argmax(-1) == targets).all())
    assert sorted(indices) == list(range(30))


def test_a_batch_is_no_larger_than_batch_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: list[tuple[int, int]] = []
    model = deep_model()
    hidden_states = GPT.hidden_states
    monkeypatch.setattr(
        GPT, "hidden_states", lambda self, idx, cache=None: shapes.append(idx.shape) or hidden_states(self, idx, cache)
    )
    list(ModelScorer(model, 2000)(many_examples(96)))
    assert max(rows * columns for rows, columns in shapes) <= 2000
    assert len(shapes) < 30


def test_of_equally_likely_tokens_the_first_is_the_most_likely() -> None:
    """So a model with equal logits everywhere writes no text greedily but zero bytes."""
    model = pair_model({" o": 2.0, " p": 2.0})
    for continuation, is_greedy in (("\0", True), ("\0\0", True), ("\1", False), (" o", False), ("\0 ", False)):
        [(_, [score])] = ModelScorer(model)([encode_example([("x", continuation)], TOKENIZER, 64, 0)])
        assert score.is_greedy == is_greedy
    [(_, [first, second])] = ModelScorer(model)([encode_example([("x ", "o"), ("x ", "p")], TOKENIZER, 64, 0)])
    assert (first.is_greedy, second.is_greedy) == (True, False)
    assert first.loss == second.loss


def test_ties_are_broken_by_order_not_by_rounding() -> None:
    scores = [OptionScore(1.0 + 1e-7, False), OptionScore(1.0, False), OptionScore(0.9, True)]
    assert is_correct("schema", scores[:2], 0)
    assert is_correct("multiple_choice", scores, 2)
    assert not is_correct("language_modeling", scores, 0)
