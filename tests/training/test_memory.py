"""Computed memory: equal to what a CPU run allocates, exact where nothing is compiled; checkpointed activations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nanochat.gpt import GPT, GPTConfig
from nanochat.optim import build_optimizer
from nanochat.runtime import Runtime
from nanochat.training.memory import (
    ByteCounter,
    counted_bytes,
    evaluation_memory,
    largest_fitting,
    meta_model,
    training_memory,
)

ROWS = 3
SHAPES = [
    GPTConfig(sequence_len=64, vocab_size=512, n_layer=3, n_head=4, n_kv_head=4, n_embd=64),
    GPTConfig(sequence_len=64, vocab_size=512, n_layer=3, n_head=4, n_kv_head=1, n_embd=64, softcap=0),
    GPTConfig(sequence_len=32, vocab_size=4096, n_layer=2, n_head=2, n_kv_head=2, n_embd=64),
]
DTYPES = [torch.float32, torch.bfloat16]
shapes = pytest.mark.parametrize("shape", SHAPES, ids=["plain", "grouped, no soft cap", "vocabulary"])
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "bfloat16"])
checkpointing = pytest.mark.parametrize("is_checkpointed", [False, True], ids=["kept", "checkpointed"])


def allocated(work: Callable[[], object]) -> tuple[int, int]:
    """The peak of the bytes that torch's CPU allocator holds for `work`, and those left at its end."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as recorded:
        _result = work()  # what it returns is still in use at the end
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]  # type: ignore[union-attr]
    live = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak, live


def cpu_model(shape: GPTConfig, dtype: torch.dtype, is_checkpointed: bool = False) -> tuple[GPT, Callable[[], object]]:
    """A model with gradients, and a function that runs a forward and backward pass."""
    model = GPT(shape, dtype)
    model.init_weights()
    model.checkpoint_activations = is_checkpointed
    ids = torch.randint(shape.vocab_size, (ROWS, shape.sequence_len), generator=torch.Generator().manual_seed(0))

    def take_micro_step() -> None:
        model(ids.clone(), ids, loss_reduction="sum").backward()

    take_micro_step()
    return model, take_micro_step


@shapes
@dtypes
@checkpointing
def test_activations_are_those_of_a_cpu_run(shape: GPTConfig, dtype: torch.dtype, is_checkpointed: bool) -> None:
    """Within 0.1%: torch counts a few bytes of scalars that the mode does not see."""
    _, take_micro_step = cpu_model(shape, dtype, is_checkpointed)
    computed = training_memory(shape, dtype, ROWS, checkpoint_activations=is_checkpointed).activations
    assert computed == pytest.approx(allocated(take_micro_step)[0], rel=1e-3)


@shapes
@dtypes
def test_weights_state_and_step_are_those_of_a_cpu_run(shape: GPTConfig, dtype: torch.dtype) -> None:
    computed = training_memory(shape, dtype, ROWS)
    _, weights = allocated(lambda: GPT(shape, dtype))
    model, _ = cpu_model(shape, dtype)
    runtime = Runtime(0, 0, 1, torch.device("cpu"), dtype, 0)
    _, state = allocated(lambda: build_optimizer(model, runtime))
    optimizer = build_optimizer(model, runtime)
    step_buffers, _ = allocated(optimizer.step)
    assert computed.weights == pytest.approx(weights, rel=1e-3)
    assert computed.gradients == sum(param.nbytes for param in model.parameters())
    assert computed.optimizer_state == pytest.approx(state, rel=1e-3)
    assert computed.step_buffers == pytest.approx(step_buffers, rel=1e-3)
    parts = computed.weights + computed.gradients + computed.optimizer_state
    assert computed.peak == parts + max(computed.activations, computed.step_buffers)


@shapes
@dtypes
def test_evaluation_is_that_of_a_cpu_run(shape: GPTConfig, dtype: torch.dtype) -> None:
    model, _ = cpu_model(shape, dtype)
    ids = torch.zeros(ROWS, shape.sequence_len, dtype=torch.int64)
    with torch.no_grad():
        peak, _ = allocated(lambda: model(ids, ids, loss_reduction="none"))
    weights = training_memory(shape, dtype, 1).weights
    assert evaluation_memory(shape, dtype, ROWS) - weights == pytest.approx(peak, rel=1e-2)


@dtypes
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # in torch's own compiler
@pytest.mark.slow
def test_compiled_blocks_keep_what_torch_keeps(dtype: torch.dtype) -> None:
    """The partitioner of torch's compiler, without its code generator: within 6% of the assumption."""
    shape = GPTConfig(**{**vars(SHAPES[0]), "sequence_len": 512})  # few weights beside the activations
    model, _ = cpu_model(shape, dtype)
    hidden = torch.randn(ROWS, shape.sequence_len, shape.n_embd).to(dtype).requires_grad_()  # (B, T, C)
    cos, sin = model.rope_cos.to(dtype), model.rope_sin.to(dtype)
    compiled = torch.compile(model.blocks[0], backend="aot_eager_decomp_partition", dynamic=False)
    compiled(hidden, cos, sin, None).sum().backward()
    _, kept = allocated(lambda: compiled(hidden, cos, sin, None))  # the output is the next block's input
    twice = GPTConfig(**{**vars(shape), "n_layer": 2 * shape.n_layer})
    difference = training_memory(twice, dtype, ROWS, compiled=True).activations
    difference -= training_memory(shape, dtype, ROWS, compiled=True).activations
    assert difference / shape.n_layer == pytest.approx(kept, rel=0.06)


@dtypes
def test_checkpointed_activations_change_no_bit(dtype: torch.dtype) -> None:
    """The same loss and gradients, with less memory, on the CPU and as computed for a compiled model."""
    shape = SHAPES[0]
    kept, take_kept = cpu_model(shape, dtype)
    checkpointed, take_checkpointed = cpu_model(shape, dtype, is_checkpointed=True)
    for (name, param), twin in zip(kept.named_parameters(), checkpointed.parameters(), strict=True):
        assert param.grad is not None
        assert twin.grad is not None
        assert torch.equal(param.grad, twin.grad), name
    ids = torch.arange(shape.sequence_len)[None]
    assert torch.equal(kept(ids, ids), checkpointed(ids, ids))
    assert allocated(take_checkpointed)[0] < 0.8 * allocated(take_kept)[0]
    compiled = [
        training_memory(shape, dtype, ROWS, compiled=True, checkpoint_activations=is_checkpointed).activations
        for is_checkpointed in (False, True)
    ]
    assert compiled[1] < 0.8 * compiled[0]


def test_state_is_sharded_over_the_processes() -> None:
    shape = GPTConfig(**{**vars(SHAPES[0]), "n_layer": 8})  # 8 matrices of each shape, one for each process
    alone = training_memory(shape, torch.float32, ROWS)
    shared = training_memory(shape, torch.float32, ROWS, world_size=8)
    assert shared.optimizer_state == alone.optimizer_state / 8
    assert shared.weights == alone.weights


def test_memory_grows_with_rows_and_not_with_unread_context() -> None:
    """A large model takes no memory here: d32 with 8 rows, whose peak is that of no machine's tests."""
    shape = GPTConfig.from_depth(32, vocab_size=65536, sequence_len=2048)
    few, many = (training_memory(shape, torch.bfloat16, rows, 512, compiled=True) for rows in (2, 8))
    assert 20e9 < few.peak <= many.peak < 80e9
    assert few.activations < many.activations < 4 * few.activations
    assert next(meta_model(shape, torch.bfloat16).parameters()).is_meta


def test_counter_counts_views_once_and_what_is_freed_no_more() -> None:
    with ByteCounter() as counter:
        kept = torch.zeros(100)  # 400 bytes
        kept.view(10, 10).add_(1)
        temporary = kept + 1
        del temporary
        kept * 2
    assert (counter.live, counter.peak) == (400, 800)


def test_fused_attention_stores_no_scores() -> None:
    """Bytes proportional to the length; torch's attention is back afterwards."""
    original = torch.nn.functional.scaled_dot_product_attention
    peaks = []
    for length in (512, 1024):
        q = torch.empty(1, 2, length, 16, device="meta", requires_grad=True)  # (B, H, T, D)
        with counted_bytes() as counter:
            torch.nn.functional.scaled_dot_product_attention(q, q, q, is_causal=True).sum().backward()
        peaks.append(counter.peak)
    assert peaks[1] == pytest.approx(2 * peaks[0], rel=1e-3)
    assert torch.nn.functional.scaled_dot_product_attention is original


@pytest.mark.parametrize("limit", range(0, 90, 9))
def test_largest_fitting(limit: int) -> None:
    """That of a search through all sizes."""
    sizes = [64, 32, 16, 8, 4, 2, 1]
    assert largest_fitting(sizes, lambda size: size + 5, limit) == max([s for s in sizes if s + 5 <= limit], default=0)


class LargestTensor(TorchDispatchMode):
    """Mode that records the largest number of elements of a tensor that an operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        self.numel = max([self.numel, *sizes])
        return result


@pytest.mark.slow
def test_no_tensor_has_more_elements_than_32_bits_count() -> None:
    """Kernels that index with 32 bits would be wrong there: 32 x 2,048 x 65,536 logits at once would be 2^32."""
    shape = GPTConfig(sequence_len=2048, vocab_size=65536, n_layer=1, n_head=1, n_kv_head=1, n_embd=128)
    with torch.device("meta"):
        model = GPT(shape, torch.bfloat16)
        ids = torch.zeros(32, 2048, dtype=torch.int64)
        with LargestTensor() as training:
            model(ids, ids, loss_reduction="sum").backward()
        with LargestTensor() as evaluation, torch.no_grad():
            model(ids, ids, loss_reduction="none")
    for largest in (training, evaluation):
        assert ids.numel() * 128 <= largest.numel < 2**31
