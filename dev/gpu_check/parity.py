"""Training on the device against the CPU: loss, gradients and one optimizer step.

The reference is the uncompiled model on the CPU in float32.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from dev.gpu_check.check import Check, relative_error
from dev.gpu_check.models import random_model
from nanochat.gpt import GPT, GPTConfig
from nanochat.optim import build_optimizer
from nanochat.runtime import exact_float32
from nanochat.train import Forward
from nanochat.training.setup import compile_model

# Largest relative errors, by dtype: of the loss, of any weight's gradient, and of any weight's change in a step.
LIMITS = {torch.float32: (1e-5, 2e-4, 2e-3), torch.bfloat16: (3e-3, 0.06, 0.1)}
CPU = torch.device("cpu")


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
            case = f"{str(dtype).removeprefix('torch.')}{', grouped queries' if is_grouped else ''}"
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
    """Return the shape of the models to compare."""
    if is_dry_run:
        return GPTConfig(64, 256, n_layer=2, n_head=2, n_kv_head=1 if is_grouped else 2, n_embd=64)
    return GPTConfig(512, 4096, n_layer=4, n_head=4, n_kv_head=2 if is_grouped else 4, n_embd=512)


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
