"""The choice of the step, and the number of blocks from bytes."""

from __future__ import annotations

import pytest
import torch

from nanochat.common import UserError
from nanochat.engine import Engine
from nanochat.gpt import GPTConfig
from nanochat.inference import native_step
from nanochat.inference.native_step import NativeStep
from nanochat.inference.torch_step import TorchStep
from nanochat.layers.sampling_params import SamplingParams
from nanochat.runtime import Runtime
from nanochat.steps import make_step as module
from nanochat.steps.make_step import BLOCK_LEN, block_bytes, blocks_that_fit, generation_dtype, is_native, make_step
from tests.support.block_steps import logits_in_chunks
from tests.support.models import random_model
from tests.support.talks import TOKENIZER

CPU = torch.device("cpu")
CONFIG = GPTConfig(sequence_len=100, vocab_size=64, n_layer=3, n_head=4, n_kv_head=2, n_embd=40)
BYTES_OF_A_POSITION = 2 * 3 * 2 * 10 * 4  # keys and values, layers, heads, head size, float32


def test_block_bytes_are_those_of_the_cache() -> None:
    step = TorchStep(random_model(100, n_layer=3, n_head=4, n_kv_head=2, n_embd=40), num_blocks=9)
    allocated = sum(layer.nbytes for layer in step._layers)
    assert block_bytes(CONFIG, torch.float32) == BYTES_OF_A_POSITION * BLOCK_LEN == allocated // 10
    assert block_bytes(CONFIG, torch.bfloat16) == block_bytes(CONFIG, torch.int8) == allocated // 20


def test_blocks_that_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    size = BYTES_OF_A_POSITION * 16
    assert blocks_that_fit(CONFIG, torch.float32, 16, 50.5 * size / 1e9, CPU) == 50
    assert blocks_that_fit(CONFIG, torch.bfloat16, 16, 50.5 * size / 1e9, CPU) == 101
    monkeypatch.setattr(module, "free_memory_bytes", lambda: 100 * size)
    assert blocks_that_fit(CONFIG, torch.float32, 16, None, CPU) == 40
    assert blocks_that_fit(CONFIG, torch.float32, 16, 1e6, CPU) == module.MAX_BLOCKS


def test_a_cache_without_room_for_one_context_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    size = BYTES_OF_A_POSITION * 16
    assert blocks_that_fit(CONFIG, torch.float32, 16, 7.01 * size / 1e9, CPU) == 7
    with pytest.raises(UserError, match=r"one context of 100 tokens takes 5.38e-05 GB, but cache_gb is 4.6e-05"):
        blocks_that_fit(CONFIG, torch.float32, 16, 4.6e-5, CPU)
    monkeypatch.setattr(module, "free_memory_bytes", lambda: 6 * size)
    with pytest.raises(UserError, match=r"but only 1.84e-05 GB are free for it"):
        blocks_that_fit(CONFIG, torch.float32, 16, None, CPU)


@pytest.mark.parametrize(
    "has_extension",
    [
        False,
        pytest.param(
            True, marks=pytest.mark.skipif(not native_step.is_available(), reason="the Rust extension is not built")
        ),
    ],
)
def test_either_step_computes_the_models_logits(has_extension: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native_step, "is_available", lambda: has_extension)
    model = random_model(40, 70, n_head=2, n_kv_head=1, n_embd=32)
    step = make_step(model, torch.float32, num_blocks=6)
    assert isinstance(step, NativeStep if has_extension else TorchStep)
    assert is_native(CPU, torch.float32) == has_extension
    texts = [list(range(40)), list(range(30, 50))]
    for tokens, logits in zip(texts, logits_in_chunks(step, texts, seed=1), strict=True):
        with torch.inference_mode():
            torch.testing.assert_close(logits, model(torch.tensor([tokens]))[0], rtol=0, atol=2e-5)


def test_the_dtype_of_generation(monkeypatch: pytest.MonkeyPatch) -> None:
    """The measurement of torch's products decides only where torch computes."""
    runtime = Runtime.without_setup(CPU, compute_dtype=torch.float32)
    monkeypatch.setattr(module, "choose_generation_dtype", lambda *_: torch.float16)
    monkeypatch.setattr(native_step, "is_available", lambda: True)
    assert generation_dtype(runtime, torch.bfloat16) == torch.bfloat16
    assert generation_dtype(runtime, torch.bfloat16, "int8") == torch.int8
    monkeypatch.setattr(native_step, "is_available", lambda: False)
    assert generation_dtype(runtime, torch.bfloat16) == torch.float16


def test_int8_without_the_extension_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native_step, "is_available", lambda: False)
    assert not is_native(CPU, torch.int8)
    model = random_model(40)
    with pytest.raises(UserError, match=r"weights in int8 need the step in Rust.*leave out --quantize"):
        make_step(model, torch.int8, num_blocks=6)
    with pytest.raises(UserError, match="weights in int8"):
        Engine(model, TOKENIZER, torch.int8)


@pytest.mark.skipif(not native_step.is_available(), reason="the Rust extension is not built")
def test_int8_generates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native_step, "fastest_cpu", lambda _dtype: None)  # AMX is tried in a child process
    model = random_model(40, TOKENIZER.get_vocab_size(), n_embd=32)
    params = SamplingParams(temperature=0.0, max_tokens=12)
    [[quantized]] = Engine(model, TOKENIZER, torch.int8).generate_many([[1, 2, 3]], params)
    assert len(quantized.tokens) == 12 or quantized.has_ended
