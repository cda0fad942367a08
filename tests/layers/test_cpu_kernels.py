"""Kernels of a training step in Rust, compared with torch's operations; the Rust tests compare with float64."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, library

from nanochat.gpt import causal_attention as model_attention
from nanochat.layers import cpu_kernels, softcap_loss
from nanochat.layers.cpu_attention import cpu_causal_attention
from nanochat.system.cpu import ISA_VARIABLE, cpu_flags, time_bf16_products
from tests.support.sources import ROOT

pytestmark = pytest.mark.skipif(
    not cpu_kernels.HAS_KERNELS,
    reason="no Rust extension, or a processor without vector instructions: torch computes it",
)


@pytest.mark.parametrize("cap", [15.0, 40.0, 0.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_softcap_terms(dtype: torch.dtype, cap: float) -> None:
    """Of all columns but some: sums and gradients are torch's, whatever the number of threads."""
    raw = (8 * torch.randn(37, 150, generator=torch.Generator().manual_seed(0))).to(dtype)[:, :141]
    expected = softcap_loss.softcap_terms(raw, cap, True)
    sums, grads, largest = cpu_kernels.softcap_terms(raw, cap, True)
    assert grads.dtype == dtype
    assert (largest is None) == (cap > 0)
    torch.testing.assert_close(sums, expected[0], rtol=2e-6, atol=0)
    if dtype == torch.float32:
        torch.testing.assert_close(grads / sums[:, None], expected[1] / expected[0][:, None], rtol=1e-4, atol=1e-9)
    else:  # both round once: at most one step of bfloat16 apart
        torch.testing.assert_close(grads, expected[1], rtol=2**-7, atol=1e-4)
    whole = raw.contiguous()
    replaced = cpu_kernels.softcap_terms(whole, cap, True)[1]
    assert torch.equal(replaced, grads)
    assert (replaced is whole) == (cap > 0)
    only_sums, nothing, _ = cpu_kernels.softcap_terms(raw, cap, False)
    assert torch.equal(only_sums, sums)
    assert nothing.numel() == 0
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 2)
        assert torch.equal(cpu_kernels.softcap_terms(raw, cap, True)[1], grads)
    finally:
        torch.set_num_threads(threads)


def test_what_is_not_a_number_stays_so() -> None:
    """A loss that is not finite is noticed by the training loop."""
    for bits in (0x7FC00000, 0x7FFFFFFF):  # NaN of processors, and of GPUs
        raw = torch.zeros(2, 40)
        raw.view(torch.int32)[1, 17] = bits
        sums, grads, _ = cpu_kernels.softcap_terms(raw, 15.0, True)
        assert sums.isnan().tolist() == [False, True]
        assert grads[1, 17].isnan()


def heads(seed: int, size: tuple[int, int, int, int]) -> Tensor:
    """Random (B, H, T, D), as the layers make it: (B, T, H, D) in memory."""
    batch, num_heads, num_positions, head_dim = size
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, num_positions, num_heads, head_dim, generator=generator).transpose(1, 2).requires_grad_()


@pytest.mark.parametrize("size", [(2, 3, 70, 32), (1, 2, 1, 16), (2, 1, 48, 80)])
def test_causal_attention(size: tuple[int, int, int, int]) -> None:
    """Result and gradients are those of torch in float64; the gradient of the result may stand in any order."""
    q, k, v = (heads(seed, size) for seed in range(3))
    d_out = heads(3, size).detach().contiguous()
    out = cpu_kernels.causal_attention(q, k, v)
    grads = torch.autograd.grad(out, (q, k, v), d_out)
    wide = [x.detach().double().requires_grad_() for x in (q, k, v)]
    expected = F.scaled_dot_product_attention(*wide, is_causal=True)
    torch.testing.assert_close(out, expected.float(), rtol=1e-5, atol=1e-6)
    for grad, wanted in zip(grads, torch.autograd.grad(expected, wide, d_out.double()), strict=True):
        torch.testing.assert_close(grad, wanted.float(), rtol=1e-4, atol=1e-5)


def amx_gradients(size: tuple[int, int, int, int]) -> tuple[list[Tensor], list[Tensor]]:
    """Gradients of attention in bfloat16, and those in float64 of the same numbers."""
    q, k, v, d_out = (heads(seed, size).detach().bfloat16() for seed in range(4))
    out, log_sums = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, True)
    wide = [x.double().requires_grad_() for x in (q, k, v)]
    expected = torch.autograd.grad(F.scaled_dot_product_attention(*wide, is_causal=True), wide, d_out.double())
    return list(cpu_kernels.bf16_attention_grads(q, k, v, out, log_sums, d_out)), list(expected)


@pytest.fixture(scope="module")
def amx() -> None:
    """Skip the test where AMX does not work. Some virtual machines advertise it and kill who uses it."""
    if "amx_bf16" not in cpu_flags():
        pytest.skip("the processor has no AMX")
    command = [sys.executable, "-c", f"from {__name__} import *; amx_gradients((1, 1, 1, 32))"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    # A crash of ours is no reason to skip: torch's products with AMX must end their process too.
    if result.returncode < 0 and time_bf16_products({**os.environ, ISA_VARIABLE: ""}) is None:
        pytest.skip("AMX is advertised, but ends every process that uses it, as on some virtual machines")
    assert result.returncode == 0, f"code {result.returncode}: {result.stderr}"


@pytest.mark.usefixtures("amx")
@pytest.mark.parametrize("size", [(2, 3, 64, 64), (1, 2, 70, 32), (2, 1, 131, 96)])
def test_gradients_of_attention_with_amx(size: tuple[int, int, int, int]) -> None:
    """Off by the rounding of the probabilities to bfloat16."""
    for grad, wanted in zip(*amx_gradients(size), strict=True):
        assert grad.dtype == torch.bfloat16
        assert (grad - wanted).norm() < 0.005 * wanted.norm()


@pytest.mark.usefixtures("amx")
@pytest.mark.parametrize("backend", [None, "aot_eager"])
def test_attention_of_a_training_step_with_amx(monkeypatch: pytest.MonkeyPatch, backend: str | None) -> None:
    """The gradients come from these kernels, each in its place, also where the compiler traces the operation."""
    monkeypatch.setattr(cpu_kernels, "_amx", {"works": True})
    calls = []
    compute = cpu_kernels._native.amx_attention_grads
    monkeypatch.setattr(
        cpu_kernels._native, "amx_attention_grads", lambda *arguments: calls.append(1) or compute(*arguments)
    )
    size = (2, 3, 70, 32)
    q, k, v = (heads(seed, size).detach().bfloat16().requires_grad_() for seed in range(3))
    d_out = heads(3, size).detach().bfloat16()
    attend = cpu_causal_attention if backend is None else torch.compile(cpu_causal_attention, backend=backend)
    grads = torch.autograd.grad(attend(q, k, v), (q, k, v), d_out)
    assert calls == [1]
    wide = [x.detach().double().requires_grad_() for x in (q, k, v)]
    expected = torch.autograd.grad(F.scaled_dot_product_attention(*wide, is_causal=True), wide, d_out.double())
    for grad, wanted in zip(grads, expected, strict=True):
        assert (grad - wanted).norm() < 0.005 * wanted.norm()


def test_the_choice_of_amx(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only where its products work, and no limit excludes it; measured once."""
    probes: dict[str, Any] = {
        "works": {"speedup": 0.9, "isa": ""},
        "dies": {"speedup": 0.8, "isa": "AVX512_CORE_BF16"},
        "no products": {"speedup": None, "isa": ""},
    }
    monkeypatch.setattr(cpu_kernels, "cpu_flags", lambda: {"amx_bf16"})
    monkeypatch.setattr(cpu_kernels._native, "has_amx", lambda: True)
    monkeypatch.delenv(ISA_VARIABLE, raising=False)
    found = {}
    for name, probe in probes.items():
        monkeypatch.setattr(cpu_kernels, "_amx", {})
        monkeypatch.setattr(cpu_kernels, "measure_bf16", lambda probe=probe: probe)
        found[name] = cpu_kernels.uses_amx()
        monkeypatch.setattr(cpu_kernels, "measure_bf16", lambda: pytest.fail("measured again"))
        assert cpu_kernels.uses_amx() == found[name]
    assert found == {"works": True, "dies": False, "no products": False}
    monkeypatch.setattr(cpu_kernels, "_amx", {})
    monkeypatch.setattr(cpu_kernels, "measure_bf16", lambda: probes["works"])
    with monkeypatch.context() as patch:
        patch.setattr(cpu_kernels._native, "has_amx", lambda: False)  # the system refuses it to this process
        assert not cpu_kernels.uses_amx()
    monkeypatch.setattr(cpu_kernels, "_amx", {})
    monkeypatch.setenv(ISA_VARIABLE, "AVX2")
    assert not cpu_kernels.uses_amx()


def test_attention_as_an_operation_of_torch() -> None:
    """Shapes, strides and gradients are as announced to the compiler."""
    q, k, v = (heads(seed, (1, 2, 20, 16)) for seed in range(3))
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    library.opcheck(torch.ops.nanochat.causal_attention.default, (q, k, v), test_utils=checks)
    tensors = [x.detach() for x in (q, k, v, *cpu_kernels._attention(q, k, v), heads(3, (1, 2, 20, 16)))]
    backward = torch.ops.nanochat.causal_attention_backward.default
    library.opcheck(backward, tuple(tensors), test_utils=("test_schema", "test_faketensor"))


def test_which_tensors_it_takes() -> None:
    q = torch.zeros(1, 2, 4, 16)
    assert cpu_kernels.can_attend(q, q)
    assert not cpu_kernels.can_attend(q, q[:, :1])  # grouped queries
    assert not cpu_kernels.can_attend(q.bfloat16(), q.bfloat16())
    assert not cpu_kernels.can_attend(q[..., :8], q[..., :8])
    assert not cpu_kernels.are_available(torch.device("meta"))


def test_an_uncompiled_model_has_the_bits_of_torch() -> None:
    """In float32: the golden numbers do not depend on the extension."""
    q, k, v = (heads(seed, (1, 2, 40, 16)) for seed in range(3))
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    assert torch.equal(model_attention(q, k, v, None, False), expected)
