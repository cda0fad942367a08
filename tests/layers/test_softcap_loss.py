"""The chunked loss against the formula in float64: values, gradients, chunks, padding, extreme logits, memory."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from nanochat.layers import softcap_loss
from nanochat.layers.softcap_loss import chunk_len, softcap, softcap_cross_entropy

SOFTCAP = 15.0
NUM_TOKENS, WIDTH, VOCAB, PADDED = 37, 8, 50, 64


def reference(hidden: Tensor, weight: Tensor, targets: Tensor, reduction: str, cap: float = SOFTCAP) -> Tensor:
    """Return the losses in float64, from all logits at once."""
    logits = hidden.double() @ weight.double()[:VOCAB].t()
    if cap:
        logits = cap * torch.tanh(logits / cap)
    return F.cross_entropy(logits, targets, ignore_index=-1, reduction=reduction)


def random_case(scale: float = 1.0, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Return hidden states, weights and targets, some of which are ignored."""
    generator = torch.Generator().manual_seed(0)
    hidden = (torch.randn(NUM_TOKENS, WIDTH, generator=generator) * scale).to(dtype).requires_grad_()
    weight = torch.randn(PADDED, WIDTH, generator=generator).requires_grad_()
    targets = torch.randint(VOCAB, (NUM_TOKENS,), generator=generator)
    targets[::5] = -1
    return hidden, weight, targets


@pytest.mark.parametrize("reduction", ["sum", "none"])
@pytest.mark.parametrize("chunk", [1, 16, 1000])
@pytest.mark.parametrize("cap", [15, 0, 1, 64])
@pytest.mark.parametrize("scale", [0.1, 5.0, 100.0], ids=["small", "large", "capped"])
def test_losses_and_gradients(
    monkeypatch: pytest.MonkeyPatch, reduction: str, chunk: int, scale: float, cap: float
) -> None:
    """They are the formula's for any size of chunk, and for logits far beyond the cap, or without one."""
    monkeypatch.setattr(softcap_loss, "chunk_len", lambda *_: chunk)
    hidden, weight, targets = random_case(scale)
    factors = torch.linspace(-1, 2, NUM_TOKENS)
    losses = softcap_cross_entropy(hidden, weight, targets, VOCAB, cap, reduction)
    expected = reference(hidden, weight, targets, reduction, cap)
    torch.testing.assert_close(losses.double(), expected, rtol=1e-5, atol=1e-5)
    for loss in (losses, expected):
        (loss * 0.25 if reduction == "sum" else loss * factors).sum().backward()
    got_hidden, got_weight = hidden.grad, weight.grad
    assert got_hidden is not None
    assert got_weight is not None
    hidden2, weight2, _ = random_case(scale)
    loss = reference(hidden2, weight2, targets, reduction, cap)
    (loss * 0.25 if reduction == "sum" else loss * factors).sum().backward()
    # Both backward passes above added up in one place.
    torch.testing.assert_close(got_hidden / 2, hidden2.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(got_weight / 2, weight2.grad, rtol=1e-4, atol=2e-5)
    assert not got_weight[VOCAB:].any()


@pytest.mark.parametrize("largest", [1e2, 1e4, 1e30])
@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_logits_without_a_cap(reduction: str, largest: float) -> None:
    """However large they are, losses and gradients are those of `F.cross_entropy` in float64."""
    hidden, weight, targets = random_case()
    with torch.no_grad():
        hidden *= largest / (hidden @ weight.t()).abs().max()
    scale = 1 / largest
    losses = softcap_cross_entropy(hidden, weight, targets, VOCAB, 0, reduction)
    (losses * scale).sum().backward()
    exact_hidden, exact_weight = (tensor.detach().double().requires_grad_() for tensor in (hidden, weight))
    expected = reference(exact_hidden, exact_weight, targets, reduction, cap=0)
    (expected * scale).sum().backward()
    assert expected.max() > largest / 2
    torch.testing.assert_close(losses.double(), expected, rtol=1e-6, atol=1e-6 * largest)
    assert hidden.grad is not None
    assert weight.grad is not None
    torch.testing.assert_close(hidden.grad.double(), exact_hidden.grad, rtol=1e-4, atol=1e-5 * scale)
    torch.testing.assert_close(weight.grad.double(), exact_weight.grad, rtol=1e-4, atol=1e-5)


def test_an_infinite_logit_without_a_cap() -> None:
    """The loss is not finite, so that the training loop refuses the step."""
    hidden, weight, targets = random_case()
    with torch.no_grad():
        hidden[1] = torch.inf
    assert not softcap_cross_entropy(hidden, weight, targets, VOCAB, 0, "sum").isfinite()


@pytest.mark.parametrize("cap", [15, 0])
def test_without_gradients(cap: float) -> None:
    """Under no_grad the losses are the same."""
    hidden, weight, targets = random_case()
    expected = softcap_cross_entropy(hidden, weight, targets, VOCAB, cap, "none")
    with torch.no_grad():
        assert torch.equal(softcap_cross_entropy(hidden, weight, targets, VOCAB, cap, "none"), expected)
        torch.testing.assert_close(softcap_cross_entropy(hidden, weight, targets, VOCAB, cap, "sum"), expected.sum())


@pytest.mark.parametrize("cap", [15, 0])
def test_bfloat16(cap: float) -> None:
    """Products in bfloat16 are off by their rounding: 2^-8 relative to the largest gradient of each tensor."""
    hidden, weight, targets = random_case(dtype=torch.bfloat16)
    softcap_cross_entropy(hidden, weight, targets, VOCAB, cap, "sum").backward()
    hidden2 = hidden.detach().float().requires_grad_()
    weight2 = weight.detach().bfloat16().float().requires_grad_()
    reference(hidden2, weight2, targets, "sum", cap).backward()
    for got, expected in ((hidden.grad, hidden2.grad), (weight.grad, weight2.grad)):
        assert got is not None
        assert expected is not None
        assert (got.float() - expected).abs().max() <= 2**-7 * expected.abs().max()
    assert weight.grad is not None
    assert weight.grad.dtype == torch.float32


def test_the_cap() -> None:
    """The cap holds for any raw logit; infinite ones give it exactly."""
    raw = torch.tensor([float("-inf"), -1e30, -3.0, 0.0, 3.0, 1e30, float("inf")])
    expected = [-15.0, -15.0, 15 * torch.tanh(torch.tensor(-0.2)).item(), 0.0]
    assert softcap(raw, SOFTCAP)[:4].tolist() == pytest.approx(expected)
    sums, grads, _ = softcap_loss.softcap_terms(raw[None], SOFTCAP, True)
    z = SOFTCAP * torch.tanh(raw.double() / SOFTCAP)
    assert sums.item() == pytest.approx(z.exp().sum().item(), rel=1e-5)
    torch.testing.assert_close(grads[0].double(), z.exp() * (1 - (z / SOFTCAP) ** 2), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("num_tokens", "vocab_size", "device", "expected"),
    [
        (8192, 8192, "cpu", 1024),
        (8192, 65536, "cpu", 1024),
        (32768, 65536, "cuda", 16384),
        (100, 65536, "cpu", 100),
        (1100, 65536, "cpu", 550),  # equal chunks
        (0, 100, "cpu", 1),
    ],
)
def test_chunk_len(num_tokens: int, vocab_size: int, device: str, expected: int) -> None:
    assert chunk_len(num_tokens, vocab_size, torch.device(device)) == expected


class LargestTensor(TorchDispatchMode):
    """Records the number of elements of the largest tensor that an operation returns."""

    numel = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, Tensor):
                self.numel = max(self.numel, tensor.numel())
        return result


@pytest.mark.parametrize("cap", [15, 0])
@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_no_tensor_holds_all_logits(monkeypatch: pytest.MonkeyPatch, reduction: str, cap: float) -> None:
    """Neither pass makes a tensor larger than the logits of a chunk, or than the weight."""
    monkeypatch.setattr(softcap_loss, "chunk_len", lambda *_: 10)
    hidden, weight, targets = random_case()
    with LargestTensor() as largest:
        softcap_cross_entropy(hidden, weight, targets, VOCAB, cap, reduction).sum().backward()
    assert largest.numel == max(10 * PADDED, weight.numel())
