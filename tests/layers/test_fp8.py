"""fp8: rounding against a table of all fp8 numbers, products and gradients against float64, layouts, and learning."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from nanochat.common import UserError
from nanochat.gpt import GPT, GPTConfig
from nanochat.layers import fp8
from nanochat.layers.fp8 import E4M3, E5M2, check_fp8_device, check_fp8_sizes, fp8_linear, quantize, scaled_product
from nanochat.optim import build_optimizer
from nanochat.runtime import Runtime
from tests.support.fake_cuda import fake_cuda

EPS = {E4M3: 2**-4, E5M2: 2**-3}  # largest relative rounding error
STEP = {E4M3: 2**-9, E5M2: 2**-16}  # spacing of the numbers next to 0
MAX = {E4M3: 448.0, E5M2: 57344.0}


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def decoded(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the float64 numbers that `x` stands for after quantization."""
    x8, scale = quantize(x, dtype)
    return x8.double() * scale.double()


def rounding(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the largest rounding error of each number of a tensor in float64."""
    x = x.double().abs()
    return 1.001 * torch.maximum(EPS[dtype] * x, STEP[dtype] / 2 * x.max() / MAX[dtype])


# --- quantization -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [E4M3, E5M2])
@pytest.mark.parametrize("source", [torch.float32, torch.bfloat16])
def test_every_number_becomes_the_nearest_of_the_format(dtype: torch.dtype, source: torch.dtype) -> None:
    x = random(40, 25, dtype=source) * torch.logspace(-6, 3, 25).to(source)
    x8, scale = quantize(x, dtype)
    table = torch.arange(256, dtype=torch.uint8).view(dtype).double()
    table = table[table.isfinite()]
    assert table.max() == MAX[dtype]
    scaled = x.double() / scale.double()
    nearest = (scaled[..., None] - table).abs().amin(-1)
    torch.testing.assert_close((scaled - x8.double()).abs(), nearest, rtol=1e-6, atol=1e-6 * STEP[dtype])
    assert scale.shape == ()
    assert scale.dtype == torch.float32
    assert x8.double().abs().max() == MAX[dtype]  # the whole range is used


@pytest.mark.parametrize("dtype", [E4M3, E5M2])
@pytest.mark.parametrize("size", [1e-20, 1e-6, 1e6, 1e30])
def test_the_scale_follows_the_size(dtype: torch.dtype, size: float) -> None:
    x = random(16, 16)
    torch.testing.assert_close(decoded(x * size, dtype), decoded(x, dtype) * size, rtol=1e-5, atol=0.0)


@pytest.mark.parametrize("dtype", [E4M3, E5M2])
def test_zeros_stay_zeros(dtype: torch.dtype) -> None:
    assert (decoded(torch.zeros(16, 16), dtype) == 0).all()


@pytest.mark.parametrize("bad", [float("inf"), -float("inf"), float("nan")])
def test_inf_and_nan_are_not_hidden(bad: float) -> None:
    """One such number in the input, the weight or the gradient makes the results that depend on it NaN."""
    for place in ("x", "weight", "dy"):
        tensors = {"x": random(16, 32), "weight": random(16, 32, seed=1), "dy": random(16, 16, seed=2)}
        tensors[place][3, 5] = bad
        x, weight = tensors["x"].requires_grad_(), tensors["weight"].requires_grad_()
        y = fp8_linear(x, weight)
        y.backward(tensors["dy"])
        assert x.grad is not None
        assert weight.grad is not None
        assert y.isnan().all() == (place != "dy")
        assert x.grad.isnan().all() == (place != "x")
        assert weight.grad.isnan().all() == (place != "weight")


# --- products ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_and_gradients(dtype: torch.dtype) -> None:
    """The three products equal those of the decoded matrices, and differ from the exact ones within the rounding."""
    x = random(2, 24, 64, dtype=dtype).requires_grad_()
    weight = random(32, 64, seed=1).requires_grad_()
    dy = random(2, 24, 32, seed=2, dtype=dtype) * 1e-5
    y = fp8_linear(x, weight)
    y.backward(dy)
    assert (y.shape, y.dtype) == ((2, 24, 32), dtype)
    assert x.grad is not None
    assert weight.grad is not None
    assert (x.grad.shape, x.grad.dtype, weight.grad.dtype) == (x.shape, dtype, torch.float32)

    x2, w2, g2 = x.detach().flatten(0, 1), weight.detach(), dy.flatten(0, 1)
    products = {  # result: (a, b, format of a, format of b); the result is a @ b
        "y": (y.detach().flatten(0, 1), x2, w2.t(), E4M3, E4M3),
        "dx": (x.grad.flatten(0, 1), g2, w2, E5M2, E4M3),
        "dw": (weight.grad, g2.t(), x2, E5M2, E4M3),
    }
    for name, (result, a, b, a_dtype, b_dtype) in products.items():
        final = 2**-8 if result.dtype == torch.bfloat16 else 2**-20
        expected = decoded(a, a_dtype) @ decoded(b, b_dtype)
        size = decoded(a, a_dtype).abs() @ decoded(b, b_dtype).abs()
        assert ((result.double() - expected).abs() <= final * expected.abs() + 2**-20 * size).all(), name
        ea, eb = rounding(a, a_dtype), rounding(b, b_dtype)
        exact, a, b = a.double() @ b.double(), a.double().abs(), b.double().abs()
        bound = ea @ b + a @ eb + ea @ eb
        error = (result.double() - exact).abs()
        assert (error <= bound + 1.1 * final * (exact.abs() + bound)).all(), name
        assert 0 < (error / bound).mean() < 0.2, name  # rounding errors are random and cancel


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_that_are_not_contiguous(dtype: torch.dtype) -> None:
    """Gradients arrive transposed from attention, and expanded from a sum."""
    weight = random(32, 64, seed=1)
    for arrange in (lambda y: y.transpose(1, 2), lambda y: y[..., :1].expand(y.shape), lambda y: y.sum((0, 1))):
        grads = []
        for is_copied in (False, True):
            x, w = random(3, 16, 64, dtype=dtype).requires_grad_(), weight.clone().requires_grad_()
            y = fp8_linear(x, w)
            y = y + 0 if is_copied else y
            (arrange(y) * 2).sum().backward()
            grads.append((x.grad, w.grad))
        assert all(torch.equal(*pair) for pair in zip(*grads, strict=True))


def test_the_torch_operator_on_a_cpu() -> None:
    """`torch._scaled_mm`, where this build of torch has it for a CPU, gives what the emulation gives."""
    for a_dtype, out_dtype in ((E4M3, torch.bfloat16), (E5M2, torch.bfloat16), (E5M2, torch.float32)):
        a, a_scale = quantize(random(32, 64), a_dtype)
        b, b_scale = quantize(random(48, 64, seed=1), E4M3)
        try:
            result = torch._scaled_mm(a, b.t(), a_scale, b_scale, out_dtype=out_dtype)
        except (RuntimeError, NotImplementedError) as error:
            pytest.skip(f"no fp8 product on this CPU: {error}")
        expected = scaled_product(a, b.t(), a_scale, b_scale, out_dtype)
        assert result.dtype == expected.dtype
        rtol = 2**-7 if out_dtype == torch.bfloat16 else 1e-5
        torch.testing.assert_close(result, expected, rtol=rtol, atol=1e-4)


class Context:
    """Stands in for autograd's context: the backward pass of autograd itself needs a GPU even for fake tensors."""

    saved_tensors: tuple[Tensor, ...]
    weight_dtype: torch.dtype

    def save_for_backward(self, *tensors: Tensor) -> None:
        self.saved_tensors = tensors


@pytest.mark.skipif(torch.__version__.startswith("2.9."), reason="fake tensors of torch 2.9 cannot be transposed")
@pytest.mark.parametrize("num_tokens", [16, 48])
def test_layouts_that_a_gpu_accepts(num_tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fake CUDA tensors take the real operator, which checks layouts, sizes, dtypes and scales."""
    calls: list[dict[str, Any]] = []
    scaled_mm = torch._scaled_mm

    def record(a: Tensor, b: Tensor, *scales: Tensor, **options: Any) -> Tensor:
        assert [scale.device.type for scale in scales] == ["cuda", "cuda"]
        calls.append({"dtypes": (a.dtype, b.dtype), "shapes": (tuple(a.shape), tuple(b.shape)), **options})
        return scaled_mm(a, b, *scales, **options)

    monkeypatch.setattr(fp8.torch, "_scaled_mm", record)
    context = Context()
    with fake_cuda():
        x = torch.empty(num_tokens, 64, device="cuda", dtype=torch.bfloat16)
        y = fp8._FP8Linear.forward(context, x, torch.empty(32, 64, device="cuda"))
        dx, dw = fp8._FP8Linear.backward(context, torch.empty(32, num_tokens, device="cuda", dtype=y.dtype).t())
        with pytest.raises(RuntimeError, match="major"):  # the check works: a second row-major matrix
            scaled_mm(*(torch.empty(16, 16, device="cuda", dtype=E4M3),) * 2, *(torch.ones((), device="cuda"),) * 2)
    m, bf16, fp32 = num_tokens, torch.bfloat16, torch.float32
    assert [(tuple(t.shape), t.dtype, t.device.type) for t in (y, dx, dw)] == [
        ((m, 32), bf16, "cuda"),
        ((m, 64), bf16, "cuda"),
        ((32, 64), fp32, "cuda"),
    ]
    assert calls == [
        {"dtypes": (E4M3, E4M3), "shapes": ((m, 64), (64, 32)), "out_dtype": bf16, "use_fast_accum": True},
        {"dtypes": (E5M2, E4M3), "shapes": ((m, 32), (32, 64)), "out_dtype": bf16, "use_fast_accum": False},
        {"dtypes": (E5M2, E4M3), "shapes": ((32, m), (m, 64)), "out_dtype": fp32, "use_fast_accum": False},
    ]


# --- models -----------------------------------------------------------------------------------------------------------


def small_model(n_layer: int = 1, compute_dtype: torch.dtype = torch.float32) -> GPT:
    model = GPT(GPTConfig(32, 96, n_layer, n_head=2, n_kv_head=1, n_embd=32), compute_dtype)
    model.init_weights()
    with torch.no_grad():
        for block in model.blocks:  # zero at first: then no gradient would reach the other matrices
            for linear in (block.attn.o_proj, block.mlp.down_proj):
                linear.weight.copy_(random(*linear.weight.shape) * 0.2)
        model.head.weight.copy_(random(*model.head.weight.shape) * 0.2)
    return model


def gradients(model: GPT, forward: Any) -> dict[str, Tensor]:
    idx = torch.arange(64).view(2, 32) % 96
    model.zero_grad()
    forward(idx, (idx + 1) % 96).backward()
    return {name: param.grad.clone() for name, param in model.named_parameters() if param.grad is not None}


def test_a_models_gradients_are_close(monkeypatch: pytest.MonkeyPatch) -> None:
    """All matrices of the blocks are multiplied in fp8, embedding and head are not; gradients keep their direction."""
    shapes: list[tuple[int, ...]] = []

    def record(x: Tensor, weight: Tensor) -> Tensor:
        shapes.append(tuple(weight.shape))
        return fp8_linear(x, weight)

    monkeypatch.setattr("nanochat.gpt.fp8_linear", record)
    model = small_model()
    exact = gradients(model, model)
    assert shapes == []
    names = set(model.state_dict())
    model.use_fp8()
    assert set(model.state_dict()) == names
    close = gradients(model, model)
    assert shapes == [(32, 32), (16, 32), (16, 32), (32, 32), (128, 32), (32, 128)]
    for name, grad in exact.items():
        cosine = torch.nn.functional.cosine_similarity(grad.flatten(), close[name].flatten(), dim=0)
        assert 0.98 < cosine < 0.99999, name


def test_evaluation_does_not_change() -> None:
    """Without recorded gradients, logits and losses are those of the plain model, to the last bit."""
    idx = torch.arange(64).view(2, 32) % 96
    plain, model = small_model(), small_model()
    model.use_fp8()
    with torch.no_grad():
        assert torch.equal(model(idx), plain(idx))
    with torch.inference_mode():
        assert torch.equal(model(idx, idx), plain(idx, idx))
    assert not torch.equal(model(idx), plain(idx))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*autograd.*should not be instantiated:DeprecationWarning")  # torch does it itself
@pytest.mark.filterwarnings("ignore:Guards may run slower on Python 3.13.0:RuntimeWarning")
def test_compiling_breaks_no_graph() -> None:
    model = small_model(compute_dtype=torch.bfloat16)
    model.use_fp8()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True, dynamic=False)
    eager = gradients(model, model)
    traced = gradients(model, compiled)
    for name, grad in eager.items():
        torch.testing.assert_close(traced[name], grad, rtol=2**-6, atol=1e-3 * grad.abs().max().item())
    with torch.no_grad():
        idx = torch.arange(64).view(2, 32) % 96
        assert torch.equal(compiled(idx, idx), small_model(compute_dtype=torch.bfloat16)(idx, idx))
    torch._dynamo.reset()


def learning_curve(use_fp8: bool, num_steps: int = 60) -> list[float]:
    """Losses of a model that learns to count in steps of 1 to 4."""
    model = small_model(n_layer=2)
    if use_fp8:
        model.use_fp8()
    optimizer = build_optimizer(model, Runtime.without_setup("cpu", compute_dtype=torch.float32))
    generator = torch.Generator().manual_seed(1)
    losses = []
    for _ in range(num_steps):
        first = torch.randint(96, (16, 1), generator=generator)
        stride = torch.randint(1, 5, (16, 1), generator=generator)
        idx = (first + stride * torch.arange(33)) % 96
        loss = model(idx[:, :-1], idx[:, 1:])
        loss.backward()
        optimizer.step(1.0, 0.9)
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.mark.slow
def test_a_model_learns_as_without_fp8() -> None:
    curves = torch.tensor([learning_curve(False), learning_curve(True)])
    plain, close = curves[:, -10:].mean(1).tolist()
    assert plain < 0.5 * curves[0, 0]
    assert close == pytest.approx(plain, rel=0.05)


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", ["cpu", "mps", "meta"])
def test_refused_without_a_gpu(device: str) -> None:
    with pytest.raises(UserError, match=rf"the device is {device}, but .* 8\.9 .*: leave out --fp8"):
        check_fp8_device(torch.device(device), torch.bfloat16)


@pytest.mark.parametrize(("capability", "is_refused"), [((8, 0), True), ((8, 9), False), ((9, 0), False)])
def test_the_gpu_must_have_fp8(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], is_refused: bool) -> None:
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA X")
    device = torch.device("cuda", 0)
    if is_refused:
        with pytest.raises(UserError, match=r"NVIDIA X has compute capability 8\.0, but .* 8\.9 .*: leave out --fp8"):
            check_fp8_device(device, torch.bfloat16)
        return
    check_fp8_device(device, torch.bfloat16)
    with pytest.raises(UserError, match=r"computes in torch\.float32: leave out --fp8"):
        check_fp8_device(device, torch.float32)


def test_sizes() -> None:
    check_fp8_sizes({"max_seq_len": 2048, "head_dim": 64})
    with pytest.raises(UserError, match="head_dim is 24: fp8 needs multiples of 16"):
        check_fp8_sizes({"max_seq_len": 2048, "head_dim": 24})
    with pytest.raises(UserError, match="head_dim is 8"):
        GPT(GPTConfig(32, 96, 1, n_head=2, n_kv_head=1, n_embd=16)).use_fp8()
