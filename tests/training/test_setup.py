"""Setup of a run: restored models and optimizers equal the saved ones; when the model is compiled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dev.plain_gpt import PlainGPT
from nanochat.checkpoint_manager import build_model, open_checkpoint
from nanochat.common import UserError
from nanochat.gpt import GPT, Block, Linear
from nanochat.layers import cpu_kernels
from nanochat.optim import OptimSettings, build_optimizer
from nanochat.runtime import Runtime
from nanochat.train import LoopState
from nanochat.training.checkpoint_saver import CheckpointSaver
from nanochat.training.setup import MIN_COMPILED_STEPS, CompiledModel, build_or_restore, compile_model, use_fp8
from tests.support.models import random_model
from tests.support.training import CPU, META, SHAPE


@pytest.fixture
def model() -> GPT:
    return build_model(SHAPE, CPU)


def test_fp8_is_refused_on_a_cpu(model: GPT) -> None:
    with pytest.raises(UserError, match="the device is cpu, but fp8 needs"):
        use_fp8(model, CPU, SHAPE.sequence_len)
    assert not any(module.is_fp8 for module in model.modules() if isinstance(module, Linear))


def test_fp8_is_for_the_blocks(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("nanochat.training.setup.check_fp8_device", lambda *_: None)
    model = build_model(replace(SHAPE, n_embd=32), CPU)
    with pytest.raises(UserError, match="max_seq_len is 24: fp8 needs multiples of 16"):
        use_fp8(model, CPU, 24)
    use_fp8(model, CPU, 32)
    names = {name for name, module in model.named_modules() if isinstance(module, Linear) and not module.is_fp8}
    assert names == {"head"}
    assert "evaluations and samples in bfloat16" in capsys.readouterr().out


# --- new and restored -------------------------------------------------------------------------------------------------


def test_save_and_restore(tmp_path: Path, model: GPT) -> None:
    """Weights, the optimizer's moments and the whole loop state are restored, except for the signal to stop."""
    optimizer = build_optimizer(model, CPU)
    for param in model.parameters():
        param.grad = torch.ones_like(param)
    optimizer.step(1.0, 0.9)
    state = LoopState(
        step=5,
        progress=0.25,
        seconds=3.5,
        cursor={"epoch": 1, "document": 2, "skip": 3, "tokens": 4},
        history=[{"step": 4, "loss": 1.5}],
        recent=[1.25, 0.1],
        stopped=15,
    )
    assert CheckpointSaver(tmp_path, model, optimizer, META, keep_last=-1)(state) == {}
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.meta["world_size"] == 1
    restored_model, restored_optimizer, restored_state = build_or_restore(checkpoint, SHAPE, OptimSettings(), CPU)
    assert restored_state == replace(state, stopped=0)
    for restored, expected in (
        (restored_optimizer.state_dict(), optimizer.state_dict()),
        (restored_model.state_dict(), model.state_dict()),
    ):
        assert restored.keys() == expected.keys()
        assert all(torch.equal(restored[name], expected[name]) for name in expected)


def test_new_run() -> None:
    """The initial weights follow from the seed; optimizer and loop have taken no step."""
    model, optimizer, state = build_or_restore(None, SHAPE, OptimSettings(), CPU)
    expected = build_model(SHAPE, CPU).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())
    assert (optimizer.num_steps, state) == (0, LoopState())


# --- compiling --------------------------------------------------------------------------------------------------------


def _replace_compiler(monkeypatch: pytest.MonkeyPatch, compiler: Callable[..., Any]) -> list[dict[str, Any]]:
    """Replace torch.compile by `compiler`, which maps a model to a compiled one; return the options of its calls."""
    calls: list[dict[str, Any]] = []

    def compile(model: Any, **options: Any) -> Any:
        calls.append(options)
        return compiler(model)

    monkeypatch.setattr(torch, "compile", compile)
    monkeypatch.setattr("shutil.which", lambda _: "/usr/bin/c++")
    return calls


def _runtime_on(device_type: str) -> Runtime:
    return Runtime(0, 0, 1, torch.device(device_type), torch.float32, 42)


@pytest.mark.parametrize(
    ("mode", "num_steps", "device_type", "is_compiled"),
    [
        ("off", 1000, "cpu", False),
        ("on", 1, "cpu", True),
        ("auto", 1000, "cpu", True),
        ("auto", MIN_COMPILED_STEPS - 1, "cpu", False),
        ("auto", MIN_COMPILED_STEPS, "cpu", True),
        ("auto", 1000, "mps", False),
        ("auto", 1000, "cuda", True),
    ],
)
def test_when_to_compile(
    monkeypatch: pytest.MonkeyPatch, model: GPT, mode: str, num_steps: int, device_type: str, is_compiled: bool
) -> None:
    calls = _replace_compiler(monkeypatch, lambda plain: lambda *args, **kwargs: plain(*args, **kwargs))
    forward = compile_model(model, mode, num_steps, 2, _runtime_on(device_type))
    assert (forward is not model) == is_compiled
    # The norm, each block, and the terms of the loss unless the Rust extension computes them.
    num_regions = 2 + SHAPE.n_layer - cpu_kernels.are_available(model.device)
    assert calls == ([{"dynamic": False}] * num_regions if is_compiled else [])
    assert all(param.grad is None for param in model.parameters()), "the trial pass left gradients"


def test_no_compiler(monkeypatch: pytest.MonkeyPatch, model: GPT, capsys: pytest.CaptureFixture[str]) -> None:
    """`auto` trains uncompiled and says so; `on` ends with the reason and the way out."""
    monkeypatch.setattr("shutil.which", lambda _: None)
    assert compile_model(model, "auto", 1000, 2, CPU) is model
    output = capsys.readouterr().out
    assert "NOTICE" in output
    assert "no C++ compiler" in output
    with pytest.raises(UserError, match=r"--compile=on.*no C\+\+ compiler.*--compile=auto"):
        compile_model(model, "on", 1000, 2, CPU)


@pytest.mark.parametrize("error", [RuntimeError("Triton is missing\nand more"), RuntimeError()])
def test_compiling_fails(
    monkeypatch: pytest.MonkeyPatch, model: GPT, capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    """Under `auto` training continues uncompiled, with a notice of one line; `on` raises."""

    def fail(*_: Any, **__: Any) -> Any:
        raise error

    _replace_compiler(monkeypatch, lambda _: fail)
    assert compile_model(model, "auto", 1000, 2, CPU) is model
    output = capsys.readouterr().out
    assert "NOTICE: the model cannot be compiled, so it trains uncompiled" in output
    assert "RuntimeError: " in output
    assert "and more" not in output
    with pytest.raises(UserError, match=r"--compile=on, but the model cannot be compiled \(RuntimeError"):
        compile_model(model, "on", 1000, 2, CPU)


@pytest.mark.slow
@pytest.mark.parametrize(("reduction", "softcap"), [("sum", 15), ("none", 15), ("none", 0)])
def test_the_compiled_model_computes_what_the_plain_one_does(
    monkeypatch: pytest.MonkeyPatch, reduction: str, softcap: float
) -> None:
    """Loss and all gradients agree with the plain twin's. Steps compile once, and the model itself stays uncompiled."""
    called = _count_kernels(monkeypatch)
    model = random_model(32, 200, n_layer=2, n_head=2, n_kv_head=2, n_embd=32, softcap=softcap)
    compiled = CompiledModel(model)
    idx = torch.randint(200, (2, 32), generator=torch.Generator().manual_seed(1))
    targets = idx.roll(-1, 1)
    targets[0, 5] = -1
    weights = torch.linspace(0.5, 2, 64).view(2, 32)
    gradients = []
    for forward in (PlainGPT(model), compiled):
        losses = forward(idx, targets, loss_reduction=reduction)
        (losses * weights if reduction == "none" else losses).sum().backward()
        gradients.append({name: param.grad for name, param in model.named_parameters()})
        model.zero_grad(set_to_none=True)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-5)
    with torch._dynamo.config.patch(error_on_recompile=True):
        compiled(idx, targets, loss_reduction=reduction).sum().backward()
    with torch.no_grad():
        torch.testing.assert_close(compiled(idx, targets), PlainGPT(model)(idx, targets), rtol=1e-5, atol=1e-6)
    assert all(type(block) is Block for block in model.blocks)
    if cpu_kernels.HAS_KERNELS:
        assert called == {"causal_attention", "causal_attention_grads", *(["softcap_terms"] if softcap else [])}


def _count_kernels(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Return a set that gets the names of the kernels in Rust that are called."""
    called: set[str] = set()

    def noted(name: str, compute: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *arguments: called.add(name) or compute(*arguments)

    if cpu_kernels.HAS_KERNELS:
        for name in ("causal_attention", "causal_attention_grads", "softcap_terms"):
            monkeypatch.setattr(cpu_kernels._native, name, noted(name, getattr(cpu_kernels._native, name)))
    return called


def test_compiling_fails_on_another_process(
    monkeypatch: pytest.MonkeyPatch, model: GPT, capsys: pytest.CaptureFixture[str]
) -> None:
    """If one process cannot compile, all run uncompiled."""

    def any_process(_: Runtime, value: float) -> float:
        assert value == 0
        return 1

    monkeypatch.setattr(Runtime, "maximum", any_process)
    _replace_compiler(monkeypatch, lambda plain: plain)
    assert compile_model(model, "auto", 1000, 2, CPU) is model
    assert "on another process" in capsys.readouterr().out


@pytest.mark.parametrize("is_here", [True, False], ids=["this process", "another process"])
def test_compiled_model_exceeds_the_memory(monkeypatch: pytest.MonkeyPatch, model: GPT, is_here: bool) -> None:
    """It raises on all processes, so that all try fewer rows, and does not run uncompiled."""

    def compiled(*_args: object, **_kwargs: object) -> object:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Runtime, "maximum", lambda _self, value: value if is_here else 2)
    _replace_compiler(monkeypatch, lambda plain: compiled if is_here else plain)
    with pytest.raises(torch.OutOfMemoryError, match="2 rows"):
        compile_model(model, "on", 1000, 2, CPU)
