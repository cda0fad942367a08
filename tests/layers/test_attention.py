"""Attention kernels by use: every pass whose shapes vary leaves cuDNN out, and training does not.

The passes run on a fake GPU, which logs for each attention whether torch may choose cuDNN's kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from nanochat.engine import Engine
from nanochat.eval import task_eval
from nanochat.eval.core_prompts import encode_example
from nanochat.eval.core_scorer import ModelScorer
from nanochat.gpt import GPT
from nanochat.layers import attention
from nanochat.layers.attention import describe_kernels, kernel_name, kernels_in_use, varied_shapes
from nanochat.layers.sampling_params import SamplingParams
from nanochat.loss_eval import bits_per_byte, evaluate_bpb, sum_nats
from nanochat.rl.loop import accumulate_gradients
from nanochat.train import warm_up
from tests.support.fake_cuda import CUDA, RUNTIME, fake_cuda, fake_ids, fake_model
from tests.support.rl import GROUPS, NO_SFT_ROWS, bandit
from tests.support.talks import TOKENIZER

CPU = torch.device("cpu")
PARAMS = SamplingParams(max_tokens=3, num_samples=2)


def test_cudnn_is_left_out_on_cuda_only() -> None:
    assert torch.backends.cuda.cudnn_sdp_enabled()
    with varied_shapes(CPU):
        assert torch.backends.cuda.cudnn_sdp_enabled()
    with varied_shapes(CUDA):
        assert not torch.backends.cuda.cudnn_sdp_enabled()
        assert torch.backends.cuda.flash_sdp_enabled()
        assert torch.backends.cuda.mem_efficient_sdp_enabled()
        assert torch.backends.cuda.math_sdp_enabled()
        with varied_shapes(CUDA):
            pass
        assert not torch.backends.cuda.cudnn_sdp_enabled()
    with pytest.raises(ValueError, match="x"), varied_shapes(CUDA):
        raise ValueError("x")
    assert torch.backends.cuda.cudnn_sdp_enabled()


def generate_many(model: GPT) -> None:
    Engine(model, TOKENIZER).generate_many([[1, 2, 3], [4]], PARAMS)


def stream(model: GPT) -> None:
    for _ in Engine(model, TOKENIZER).stream([1, 2, 3], PARAMS):
        assert torch.backends.cuda.cudnn_sdp_enabled(), "the caller's own passes are not affected"


def generate(model: GPT) -> None:
    for _ in model.generate([1, 2], 3):
        assert torch.backends.cuda.cudnn_sdp_enabled(), "the caller's own passes are not affected"


def score_options(model: GPT) -> None:
    examples = [
        encode_example([("Is it red? ", "yes"), ("Is it red? ", "no")], TOKENIZER, 64, index) for index in (0, 1)
    ]
    assert len(list(ModelScorer(model)(examples))) == 2


def score_letters(model: GPT) -> None:
    conversation: Any = {"messages": [], "letters": ["A", "B"]}
    problems = [task_eval._Problem(0, conversation, [1, 2, 3], False)]
    task = bandit()
    task.reward = lambda *_: 1.0  # type: ignore[method-assign]
    list(task_eval._score_letters(problems, task, Engine(model, TOKENIZER), batch_size=1))


def measure_bits(model: GPT) -> None:
    bits_per_byte(model, torch.zeros(3, 9, dtype=torch.int64), torch.ones(265, dtype=torch.int64), 2, RUNTIME)
    evaluate_bpb(model, [(fake_ids(2, 8), fake_ids(2, 8))], 1, torch.ones(265, dtype=torch.int64))
    sum_nats(model, torch.zeros(3, 8, dtype=torch.int64), torch.zeros(3, 8, dtype=torch.int64), 2, RUNTIME)


def reinforce(model: GPT) -> None:
    accumulate_gradients(model, GROUPS, NO_SFT_ROWS, 20.0, 2, RUNTIME)


def train(model: GPT) -> None:
    warm_up(model, model, batch_size=2, sequence_len=16)


@pytest.mark.parametrize(
    ("run", "may_use_cudnn"),
    [
        (generate_many, False),
        (stream, False),
        (generate, False),
        (score_options, False),
        (score_letters, False),
        (measure_bits, False),
        (reinforce, False),
        (train, True),
    ],
)
def test_each_use_has_its_kernels(run: Callable[[GPT], None], may_use_cudnn: bool) -> None:
    with fake_cuda() as log:
        model = fake_model()
        run(model)
    assert len(log.cudnn_allowed) >= 2
    assert set(log.cudnn_allowed) == {may_use_cudnn}


@pytest.mark.parametrize("backend", [SDPBackend.MATH, SDPBackend.FLASH_ATTENTION])
def test_the_kernel_is_named(backend: SDPBackend) -> None:
    """Each backend that a CPU has, forced and then named."""
    q = torch.zeros(1, 2, 8, 16)
    with sdpa_kernel(backend):
        assert kernel_name(q, q) == attention.NAMES[backend]


def test_the_kernel_that_is_named_is_the_one_that_runs() -> None:
    class Operations(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
            names.append(func.__name__)
            return func(*args, **(kwargs or {}))

    names: list[str] = []
    q = torch.randn(1, 2, 8, 16)
    mask = torch.ones(8, 8, dtype=torch.bool)
    with Operations():
        torch.nn.functional.scaled_dot_product_attention(q, q, q, attn_mask=mask)
    has_run = any("flash_attention" in name for name in names)
    assert has_run == (kernel_name(q, q, mask) == "flash")


def test_uses_are_described(monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(kernels_in_use(CPU, torch.float32)) == ["training", "generation", "padded generation"]
    assert (
        kernel_name(torch.zeros(1, 1, 1, 8, device="meta"), torch.zeros(1, 1, 1, 8, device="meta"))
        == "the device's own"
    )
    seen = []

    def choose(q: torch.Tensor, *_: Sequence[Any], attn_mask: torch.Tensor | None = None, **__: Any) -> int:
        seen.append((q.size(2), attn_mask is not None, q.requires_grad))
        return int(SDPBackend.CUDNN_ATTENTION if q.requires_grad else SDPBackend.EFFICIENT_ATTENTION)

    monkeypatch.setattr(torch, "_fused_sdp_choice", choose)
    text = "training cuDNN, generation memory-efficient, padded generation memory-efficient"
    assert describe_kernels(CPU, torch.bfloat16) == text
    assert seen == [(64, False, True), (1, False, False), (1, True, False)]
