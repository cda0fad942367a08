"""The conditions of the step in Triton, and its comparison with the model before it is used."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch

from nanochat.engine import Engine
from nanochat.gpt import GPT, GPTConfig
from nanochat.inference import native_step
from nanochat.inference.model_step import ModelStep
from nanochat.inference.torch_step import TorchStep
from nanochat.layers.sampling_params import SamplingParams
from nanochat.steps import choice
from nanochat.steps import make_step as make_step_module
from nanochat.steps.choice import compared_step, difference_from, missing_for_triton
from nanochat.steps.make_step import BLOCK_LEN, is_invariant, make_step
from tests.support.models import random_model
from tests.support.talks import TOKENIZER
from tests.support.torch_kernels import use_torch_kernels

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
CONFIG = GPTConfig(sequence_len=64, vocab_size=64, n_layer=1, n_head=2, n_kv_head=2, n_embd=64)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A machine on which nothing is missing."""
    machine = SimpleNamespace(capability=(9, 0), programs={"gcc"}, modules={"triton"})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: machine.capability)
    monkeypatch.setattr(choice, "find_spec", lambda name: name in machine.modules or None)
    monkeypatch.setattr(choice.shutil, "which", lambda name: name if name in machine.programs else None)
    monkeypatch.delenv("CC", raising=False)
    return machine


def test_what_is_missing(gpu: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    assert missing_for_triton(CUDA, torch.bfloat16, CONFIG) == ""
    assert missing_for_triton(CUDA, torch.float32, CONFIG) == ""
    assert missing_for_triton(CPU, torch.bfloat16, CONFIG) == "no NVIDIA GPU"
    assert missing_for_triton(CUDA, torch.float16, CONFIG) == "there are no kernels for float16"
    large = GPTConfig(sequence_len=8, vocab_size=8, n_layer=1, n_head=1, n_kv_head=1, n_embd=512)
    assert missing_for_triton(CUDA, torch.float32, large) == "the head size 512 is above 256"
    gpu.capability = (7, 5)
    assert "compute capability 7.5" in missing_for_triton(CUDA, torch.float32, CONFIG)
    gpu.capability, gpu.programs = (8, 0), {"tcc"}
    assert "no C compiler" in missing_for_triton(CUDA, torch.float32, CONFIG)
    monkeypatch.setenv("CC", "tcc")
    assert missing_for_triton(CUDA, torch.float32, CONFIG) == ""
    gpu.modules = set()
    assert missing_for_triton(CUDA, torch.float32, CONFIG) == "Triton is not installed"


class Broken(TorchStep):
    """A step whose prompts, or whose decoding, are wrong."""

    is_wrong: Callable[[int], bool]

    def forward(self, step):  # type: ignore[no-untyped-def]
        logits = super().forward(step)
        return logits.roll(1, 0) + 1.0 if self.is_wrong(len(step.tokens)) else logits


def test_a_step_that_gives_no_numbers_is_not_used() -> None:
    class NotFinite(TorchStep):
        def forward(self, step):  # type: ignore[no-untyped-def]
            return super().forward(step) * torch.nan

    model = random_model(100, 300, n_head=2, n_kv_head=1, n_embd=32)
    assert "differ from the model's by nan" in str(compared_step(lambda: NotFinite(model, 9), model))


def test_company_is_compared_too() -> None:
    """A step that is right for each sequence alone, and mixes up two of them."""

    class Mixed(TorchStep):
        def forward(self, step):  # type: ignore[no-untyped-def]
            logits = super().forward(step)
            return logits if step.rows[-1] == 0 else logits.flip(0)

    model = random_model(400, 300, n_head=2, n_kv_head=1, n_embd=32)
    assert "differ" in str(compared_step(lambda: Mixed(model, 25), model))
    assert difference_from(TorchStep(model, 25), model) < 1e-5


def test_triton_that_cannot_be_imported(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(make_step_module, "missing_for_triton", lambda *_: "")
    monkeypatch.setitem(sys.modules, "nanochat.steps.triton_step", None)
    model = random_model(32, 300, n_head=2, n_kv_head=1, n_embd=32)
    monkeypatch.setattr(make_step_module, "is_native", lambda *_: False)
    make_step_module._say_once.cache_clear()
    assert type(make_step(model, torch.float32, 4)) is TorchStep
    assert "do not work here (ModuleNotFoundError" in capsys.readouterr().out


@pytest.mark.parametrize("sequence_len", [1, 30, 100])
def test_a_step_is_compared_with_the_model(sequence_len: int) -> None:
    model = random_model(sequence_len, 300, n_head=2, n_kv_head=1, n_embd=32)
    num_blocks = -(-sequence_len // BLOCK_LEN)
    step = compared_step(lambda: TorchStep(model, num_blocks), model)
    assert isinstance(step, TorchStep)
    assert difference_from(TorchStep(model, num_blocks), model) < 1e-5
    for is_wrong in (lambda n: n == 1, lambda n: n > 1):
        broken = Broken(model, num_blocks)
        broken.is_wrong = is_wrong
        reason = compared_step(lambda broken=broken: broken, model)  # type: ignore[misc]
        if sequence_len > 1:
            assert "its logits differ from the model's" in str(reason)


def test_a_step_that_cannot_be_made_is_named_in_one_line() -> None:
    model = random_model(20)

    def fails() -> ModelStep:
        raise RuntimeError("Failed to find C compiler\nand more")

    def out_of_memory() -> ModelStep:
        raise torch.cuda.OutOfMemoryError("no room")

    assert compared_step(fails, model) == "RuntimeError: Failed to find C compiler"
    with pytest.raises(torch.cuda.OutOfMemoryError):
        compared_step(out_of_memory, model)


def test_a_model_that_is_not_finite_is_no_fault_of_the_step() -> None:
    model = random_model(20)
    with torch.no_grad():
        model.embed.weight.fill_(float("nan"))
    assert isinstance(compared_step(lambda: TorchStep(model, 2), model), TorchStep)


@pytest.mark.parametrize("works", [True, False])
def test_make_step_takes_the_kernels_or_says_why_not(
    works: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As on a GPU, with kernels replaced by torch's; the engine generates with it as with the step in torch."""
    pytest.importorskip("triton")
    from nanochat.steps.triton_step import TritonStep

    monkeypatch.setattr(native_step, "is_available", lambda: False)
    monkeypatch.setattr(make_step_module, "missing_for_triton", lambda *_: "")
    make_step_module._say_once.cache_clear()
    use_torch_kernels(monkeypatch)
    if not works:
        monkeypatch.setattr(TritonStep, "_run", lambda *_: 1 / 0)
    model = random_model(60, TOKENIZER.get_vocab_size(), n_layer=2, n_head=2, n_kv_head=1, n_embd=32)
    assert is_invariant(CPU, torch.float32, CONFIG)
    params = SamplingParams(temperature=0.0, max_tokens=12)
    prompts = [[1, 2, 3], [4] * 20, [5]]
    generated = Engine(model, TOKENIZER).generate_many(prompts, params)
    expected = [list(model.generate(prompt, 12, temperature=0.0)) for prompt in prompts]
    assert [done[0].tokens for done in generated] == [
        ids[: len(done[0].tokens)] for ids, done in zip(expected, generated, strict=True)
    ]
    step = make_step(model, torch.float32, 4)
    assert type(step).__name__ == ("TritonStep" if works else "TorchStep")
    said = capsys.readouterr().out
    assert said.count("do not work here (ZeroDivisionError: division by zero)") == (not works)


def test_a_fake_gpu_says_that_there_is_none(gpu: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.capability == (9, 0)
    assert missing_for_triton(CUDA, torch.bfloat16, CONFIG) == "no NVIDIA GPU"


def test_the_comparison_reads_a_model_of_any_size() -> None:
    model = GPT(GPTConfig(sequence_len=3, vocab_size=2, n_layer=1, n_head=1, n_kv_head=1, n_embd=8))
    model.init_weights()
    assert difference_from(TorchStep(model, 1), model) == 0.0  # all logits are 0
