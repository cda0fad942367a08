"""Training on the device against the CPU: loss, gradients and one optimizer step.

The reference is the uncompiled model on the CPU in float32.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor

from dev.gpu_check.check import Check, Skipped, relative_error
from dev.gpu_check.models import random_model
from nanochat.common import UserError
from nanochat.gpt import GPT, GPTConfig
from nanochat.layers.fp8 import check_fp8_device, fp8_linear
from nanochat.optim import build_optimizer
from nanochat.runtime import exact_float32
from nanochat.train import Forward
from nanochat.training.setup import compile_model

# Largest relative errors, by dtype: of the loss, of any weight's gradient, and of any weight's change in a step.
LIMITS = {torch.float32: (1e-5, 2e-4, 2e-3), torch.bfloat16: (3e-3, 0.06, 0.1)}
CPU = torch.device("cpu")
# Of the three products of a layer in fp8: two are rounded to bf16, and the first is accumulated with fewer bits.
FP8_LIMITS = {"y": 0.01, "dx": 0.01, "dw": 0.002}


def check_training(check: Check) -> None:
    """Loss, gradients and an optimizer step on the device against the CPU: float32, bf16, grouped queries, compiled."""
    for is_grouped in (False, True):
        config = model_config(check.is_dry_run, is_grouped)
        size = (2, 32) if check.is_dry_run else (4, 512)
        idx = torch.randint(config.vocab_size, size, generator=torch.Generator().manual_seed(0))
        targets = idx.roll(-1, dims=1)
        targets[:, -3:] = -1  # not trained on
        reference = random_model(config, CPU, torch.float32)
        with exact_float32():
            reference_loss = gradients(reference, reference, idx, targets)
        for dtype in LIMITS:
            model = random_model(config, check.device, dtype)
            case = f"{str(dtype).removeprefix('torch.')}{', grouped queries, no soft cap' if is_grouped else ''}"
            with exact_float32():
                compare(check, f"{case}, eager", model, model, reference, reference_loss, idx, targets)
                compare_step(check, f"{case}, optimizer step", model, reference)
    # Compiled at the end: it takes the longest.
    config = model_config(check.is_dry_run, is_grouped=False)
    reference = random_model(config, CPU, torch.float32)
    idx = torch.randint(config.vocab_size, size, generator=torch.Generator().manual_seed(0))
    targets = idx.roll(-1, dims=1)
    with exact_float32():
        reference_loss = gradients(reference, reference, idx, targets)
    for dtype in reversed(LIMITS):
        model = random_model(config, check.device, dtype)
        torch.compiler.reset()
        with exact_float32():
            compiled = compile_model(model, "on", 1000, size[0], check.runtime(dtype), size[1])
            case = f"{str(dtype).removeprefix('torch.')}, compiled"
            compare(check, case, model, compiled, reference, reference_loss, idx, targets)


def model_config(is_dry_run: bool, is_grouped: bool) -> GPTConfig:
    """Return the shape of the models to compare. Those with grouped queries have no soft cap."""
    softcap = 0 if is_grouped else 15
    if is_dry_run:
        return GPTConfig(64, 256, n_layer=1, n_head=2, n_kv_head=1 if is_grouped else 2, n_embd=64, softcap=softcap)
    return GPTConfig(512, 4096, n_layer=4, n_head=4, n_kv_head=2 if is_grouped else 4, n_embd=512, softcap=softcap)


def gradients(model: GPT, forward: Forward, idx: Tensor, targets: Tensor) -> float:
    """Compute the gradients of the summed loss, as a step of training does, and return the mean loss."""
    model.zero_grad(set_to_none=True)
    loss = forward(idx.to(model.device), targets.to(model.device), loss_reduction="sum")
    num_trained = int((targets != -1).sum())
    (loss / num_trained).backward()
    return loss.item() / num_trained


def compare(
    check: Check,
    case: str,
    model: GPT,
    forward: Forward,
    reference: GPT,
    reference_loss: float,
    idx: Tensor,
    targets: Tensor,
) -> None:
    """Compare loss and gradients with those of the reference."""
    loss_limit, grad_limit, _ = LIMITS[model.compute_dtype]
    loss = gradients(model, forward, idx, targets)
    check.expect(f"loss, {case}", abs(loss - reference_loss) / reference_loss, loss_limit)
    errors = {}
    for (name, param), expected in zip(model.named_parameters(), reference.parameters(), strict=True):
        assert param.grad is not None, f"{name} has no gradient"
        assert expected.grad is not None, f"the reference's {name} has no gradient"
        errors[name] = relative_error(param.grad, expected.grad)
    worst = max(errors, key=lambda name: errors[name])
    check.expect(f"gradients, {case}", errors[worst], grad_limit, worst=worst)


def compare_step(check: Check, case: str, model: GPT, reference: GPT) -> None:
    """Compare the weights' changes in one optimizer step from the reference's gradients."""
    on_cpu = copy.deepcopy(reference)
    before = {name: param.detach().clone() for name, param in reference.named_parameters()}
    for param, copied, expected in zip(model.parameters(), on_cpu.parameters(), reference.parameters(), strict=True):
        assert expected.grad is not None, "the reference has no gradients"
        copied.grad = expected.grad.clone()
        param.grad = expected.grad.to(param.device, copy=True)
    runtime = check.runtime(model.compute_dtype)
    norm = build_optimizer(model, runtime).step(1.0, 0.95)
    cpu_runtime = type(runtime)(0, 0, 1, CPU, torch.float32, 42)
    expected_norm = build_optimizer(on_cpu, cpu_runtime).step(1.0, 0.95)
    check.expect(f"gradient norm, {case}", relative_error(norm, expected_norm), 1e-5)
    errors = {
        name: relative_error(param.detach().cpu() - before[name], expected.detach() - before[name])
        for (name, param), expected in zip(model.named_parameters(), on_cpu.parameters(), strict=True)
    }
    worst = max(errors, key=lambda name: errors[name])
    check.expect(case, errors[worst], LIMITS[model.compute_dtype][2], worst=worst)


def check_fp8(check: Check) -> None:
    """The three products of a layer in fp8 on the device, eager and compiled, against their emulation on the CPU."""
    if not check.is_dry_run:
        try:
            check_fp8_device(check.device, torch.bfloat16)
        except UserError as error:
            raise Skipped(str(error)) from None
    num_tokens, n_in, n_out = (32, 64, 48) if check.is_dry_run else (4096, 1280, 5120)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(num_tokens, n_in, generator=generator).bfloat16()
    weight = torch.randn(n_out, n_in, generator=generator) / n_in**0.5
    dy = torch.randn(num_tokens, n_out, generator=generator).bfloat16() * 1e-6  # the size of a gradient
    expected = fp8_products(fp8_linear, x, weight, dy)
    compiled = torch.compile(fp8_linear, backend="aot_eager" if check.is_dry_run else "inductor", fullgraph=True)
    for case, layer in (("eager", fp8_linear), ("compiled", compiled)):
        products = fp8_products(layer, *(tensor.to(check.device) for tensor in (x, weight, dy)))
        for name, limit in FP8_LIMITS.items():
            check.expect(f"{name}, {case}", relative_error(products[name], expected[name]), limit)


def fp8_products(layer: Callable[[Tensor, Tensor], Tensor], x: Tensor, weight: Tensor, dy: Tensor) -> dict[str, Tensor]:
    """Return the output of the layer and the gradients of its input and its weight, for the gradient `dy`."""
    x = x.clone().requires_grad_()
    weight = weight.clone().requires_grad_()
    y = layer(x, weight)
    dx, dw = torch.autograd.grad(y, (x, weight), dy)
    return {"y": y, "dx": dx, "dw": dw}
