"""The step in blocks compared with `GPT.forward` on whole sequences."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor

from nanochat.engine import with_compute_weights
from nanochat.gpt import GPT
from nanochat.inference import torch_step
from nanochat.inference.scheduler import Scheduler
from nanochat.inference.torch_step import TorchStep, token_groups
from nanochat.layers.sampling_params import SamplingParams
from tests.support.block_steps import logits_in_chunks, make_step
from tests.support.fake_cuda import fake_cuda, fake_model
from tests.support.fake_step import TOOL, make_request
from tests.support.models import random_model

SHAPES: dict[str, dict[str, Any]] = {
    "plain": {"n_layer": 2, "n_head": 2, "n_kv_head": 2, "n_embd": 32},
    "grouped": {"n_layer": 2, "n_head": 6, "n_kv_head": 2, "n_embd": 60},
    "one key-value head, not capped": {"n_layer": 1, "n_head": 3, "n_kv_head": 1, "n_embd": 24, "softcap": 0.0},
}
VOCAB = 201  # padded to 256


def sequences(*lengths: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(VOCAB, (length,), generator=generator).tolist() for length in lengths]


def whole(model: GPT, tokens: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        return model(torch.tensor([tokens]))[0]


@pytest.fixture(params=SHAPES)
def model(request: pytest.FixtureRequest) -> GPT:
    return random_model(40, VOCAB, **SHAPES[request.param])


@pytest.mark.parametrize("block_len", [1, 4, 16])
@pytest.mark.parametrize("seed", range(4))
def test_chunks_in_blocks_give_the_logits_of_one_pass(model: GPT, block_len: int, seed: int) -> None:
    texts = sequences(1, 40, 17, 8, 33)
    step = TorchStep(model, num_blocks=5 * -(-40 // block_len), block_len=block_len)
    for tokens, logits in zip(texts, logits_in_chunks(step, texts, seed), strict=True):
        assert logits.shape == (len(tokens), VOCAB)
        torch.testing.assert_close(logits, whole(model, tokens), rtol=0, atol=2e-5)


def test_padded_steps_give_the_same_logits(model: GPT, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shapes of accelerators, on a CPU: groups, tokens and blocks are padded."""
    plain = token_groups

    def padded(step: Any, block_len: int, *, is_padded: bool) -> Any:
        assert not is_padded
        groups = plain(step, block_len, is_padded=True)
        assert all(size & (size - 1) == 0 for group in groups for size in (*group.tokens.shape, group.num_blocks))
        return groups

    monkeypatch.setattr(torch_step, "token_groups", padded)
    texts = sequences(1, 40, 17, 8, 33)
    step = TorchStep(model, num_blocks=60, block_len=4)
    for tokens, logits in zip(texts, logits_in_chunks(step, texts, seed=1), strict=True):
        torch.testing.assert_close(logits, whole(model, tokens), rtol=0, atol=2e-5)


def test_bfloat16() -> None:
    model = with_compute_weights(random_model(40, VOCAB, **SHAPES["grouped"]), torch.bfloat16)
    texts = sequences(40, 17, 8)
    step = TorchStep(model, num_blocks=15)
    for tokens, logits in zip(texts, logits_in_chunks(step, texts, seed=0), strict=True):
        expected = whole(model, tokens)
        assert logits.dtype == expected.dtype == torch.float32
        assert (logits - expected).square().mean() < 2e-3 * expected.square().mean()


def test_only_the_wanted_logits_are_returned(model: GPT) -> None:
    [tokens] = sequences(9)
    step = TorchStep(model, num_blocks=4, block_len=4)
    made = make_step([(tokens[:8], 0, [2, 0]), (tokens[:1], 0, [1])], wanted=[3, 7, 8])
    expected = whole(model, tokens)[[3, 7, 0]]
    torch.testing.assert_close(step.forward(made), expected, rtol=0, atol=2e-5)
    nothing = replace(made, wanted=made.wanted[:0])
    assert step.forward(nothing).shape == (0, VOCAB)


def test_a_shared_block_and_a_copy_of_one(model: GPT) -> None:
    """Two sequences share their first block; the second, which they began together, is copied before they part."""
    [common, first, second] = sequences(6, 3, 3)
    step = TorchStep(model, num_blocks=4, block_len=4)
    step.forward(make_step([(common, 0, [3, 1])]))
    step.copy_block(1, 0)
    logits = step.forward(make_step([(first, 6, [3, 1, 2])]))
    torch.testing.assert_close(logits, whole(model, common + first)[6:], rtol=0, atol=2e-5)
    logits = step.forward(make_step([(second[:2], 6, [3, 0])]))
    torch.testing.assert_close(logits, whole(model, common + second[:2])[6:], rtol=0, atol=2e-5)


def test_numbers_in_unused_blocks_do_not_matter(model: GPT) -> None:
    [tokens] = sequences(7)
    step = TorchStep(model, num_blocks=4, block_len=4)
    step.forward(make_step([([9] * 16, 0, [0, 1, 2, 3])]))  # left over from another sequence
    logits = step.forward(make_step([(tokens, 0, [2, 1])]))
    torch.testing.assert_close(logits, whole(model, tokens), rtol=0, atol=2e-5)


def test_on_an_accelerator_the_host_waits_for_the_tokens_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of different settings and a prompt in chunks, on a fake GPU: a wait at each step with rows, for ids."""
    monkeypatch.setattr(FakeTensor, "pin_memory", lambda tensor: tensor)
    steps = []
    with fake_cuda() as log:
        step = TorchStep(fake_model(), num_blocks=20, block_len=4)
        scheduler = Scheduler(step, TOOL, max_prefill_tokens=5)
        for key, params in enumerate([SamplingParams(0.0), SamplingParams(0.8, top_k=20), SamplingParams(1.0)]):
            request, _ = make_request([key, 1, 2, *range(6 * key)], replace(params, max_tokens=9), key)
            scheduler.submit(request)
        log.clear()
        while scheduler.step():
            steps.append(dict(log.waits))
            log.clear()
    assert len(steps) > 9
    assert all(waits in ({}, {"tolist": 1}) for waits in steps), steps
