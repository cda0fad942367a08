"""The library on a fake GPU: no mix of devices, few waits of the host, few kernels for a token.

The bounds are the present numbers. A change that needs fewer lowers them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch._subclasses.fake_tensor import DynamicOutputShapeException
from torch.testing._internal.distributed.fake_pg import FakeStore

from nanochat.dataloader import MicroBatch
from nanochat.engine import Engine
from nanochat.gpt import GPT, GPTConfig
from nanochat.layers.sampling_params import SamplingParams
from nanochat.loss_eval import bits_per_byte
from nanochat.optim import Optimizer, build_optimizer
from nanochat.rl.loop import policy_gradient_step
from nanochat.runtime import Runtime
from nanochat.train import Rates, step
from tests.support.fake_cuda import CUDA, RUNTIME, DeviceLog, fake_cuda, fake_ids, fake_model
from tests.support.rl import GROUPS, NO_SFT_ROWS
from tests.support.sources import Source, sources
from tests.support.talks import TOKENIZER

RATES = Rates(lr_multiplier=1.0, momentum=0.95)
WORLD_SIZE = 8


def batch() -> MicroBatch:
    return MicroBatch(fake_ids(2, 8), fake_ids(2, 8), progress=0.0, cursor={})


# --- training ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("num_micro_steps", "softcap"), [(1, 15), (4, 15), (4, 0)])
def test_a_step_waits_once(num_micro_steps: int, softcap: int) -> None:
    """For the loss, the gradient's norm and the request to stop, in one transfer before the update."""
    with fake_cuda() as log:
        model = fake_model(softcap=softcap)
        optimizer = build_optimizer(model, RUNTIME)
        log.clear()
        loss, norm, _ = step(model, optimizer, [batch() for _ in range(num_micro_steps)], RATES, lambda: 0)
    assert (loss, norm) == (1, 1)  # read from the device
    assert log.waits.total() <= 1, log.waits


def test_a_step_on_the_meta_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """The backward pass too, whose operations the fake GPU does not run; the meta device refuses any read."""
    monkeypatch.setattr(Tensor, "tolist", lambda tensor: [1.0] * tensor.numel())
    meta = torch.device("meta")
    with meta:
        model = GPT(
            GPTConfig(sequence_len=16, vocab_size=64, n_layer=2, n_head=2, n_kv_head=1, n_embd=32), torch.bfloat16
        )
    optimizer = build_optimizer(model, Runtime(0, 0, 1, meta, torch.bfloat16, 0))
    ids = torch.zeros(2, 16, dtype=torch.int64, device=meta)
    grads = {}
    zero_grad = optimizer.zero_grad

    def keep_grads() -> None:
        grads.update({name: param.grad for name, param in model.named_parameters()})
        zero_grad()

    monkeypatch.setattr(optimizer, "zero_grad", keep_grads)
    step(model, optimizer, [MicroBatch(ids, ids, 0.0, {})] * 2, RATES, lambda: 0)
    for name, param in model.named_parameters():
        grad = grads[name]
        assert grad is not None, name
        assert (grad.device, grad.dtype, grad.shape) == (meta, torch.float32, param.shape), name


def test_a_step_of_rl() -> None:
    """It waits for the counts (there and back) and the results; four tensors of a micro-batch are copied."""
    with fake_cuda() as log:
        model = fake_model()
        optimizer = build_optimizer(model, RUNTIME)
        log.clear()
        policy_gradient_step(model, optimizer, GROUPS, NO_SFT_ROWS, RATES, lambda: 0, ["A", "B"], batch_size=4)
        num_batches = len(log.cudnn_allowed) // model.config.n_layer
    assert num_batches == 3
    assert log.waits.total() <= 3 + 4 * num_batches, log.waits


# --- eight processes --------------------------------------------------------------------------------------------------


@contextmanager
def fake_processes(rank: int) -> Iterator[Runtime]:
    """Context manager in which this process is one of eight, whose collectives do nothing."""
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=WORLD_SIZE)
    try:
        yield replace(RUNTIME, rank=rank, world_size=WORLD_SIZE)
    finally:
        dist.destroy_process_group()


def sharded_optimizer(runtime: Runtime) -> tuple[GPT, Optimizer]:
    """A model with stacks that do not divide by eight, with tables that are sharded, and with one that is too small."""
    model = fake_model(vocab_size=265, num_layers=3, n_embd=64)
    return model, build_optimizer(model, runtime)


@pytest.mark.parametrize("rank", [0, 3, 7])
def test_eight_processes_take_a_step(rank: int) -> None:
    with fake_processes(rank) as runtime, fake_cuda() as log:
        model, optimizer = sharded_optimizer(runtime)
        assert len({param.device for param in model.parameters()}) == 1
        for bucket in optimizer.buckets:
            num_units = sum(bucket.num_units) + bucket.padding
            for state in bucket.state.values():
                assert state.device == CUDA
                assert len(state) == num_units // WORLD_SIZE, bucket.names  # each process has an eighth
        log.clear()
        step(model, optimizer, [batch(), batch()], RATES, lambda: 0)
        # However many micro-batches there are: each gradient is reduced once, a matrix alone and a table with its
        # bucket, and each bucket's weights are gathered once. The three other sums: tokens, loss with stop, norm.
        num_reductions = sum(len(bucket.portions) for bucket in optimizer.buckets)
        names = ("reduce_", "_reduce_scatter_base_", "_allgather_base_", "allreduce_")
        counts = [log.kernels[name] for name in names]
        assert counts[0] + counts[1] == num_reductions, log.kernels
        assert counts[2:] == [len(optimizer.buckets), 3], log.kernels
    assert log.waits.total() <= 1, log.waits


def test_shards_are_a_partition() -> None:
    """Every unit of every bucket belongs to exactly one of the eight processes."""
    owners: dict[tuple[str, ...], Counter[int]] = {}
    for rank in range(WORLD_SIZE):
        with fake_processes(rank) as runtime, fake_cuda():
            _, optimizer = sharded_optimizer(runtime)
            for bucket in optimizer.buckets:
                assert bucket.is_sharded
                owned = range(sum(bucket.num_units) + bucket.padding)[bucket.shard]
                owners.setdefault(tuple(bucket.names), Counter()).update(owned)
    for names, counts in owners.items():
        assert set(counts.values()) == {1}, names
        assert set(counts) == set(range(len(counts))), names


@pytest.mark.parametrize("rank", [0, 3])
def test_eight_processes_gather_their_state(rank: int) -> None:
    with fake_processes(rank) as runtime, fake_cuda() as log:
        model, optimizer = sharded_optimizer(runtime)
        log.clear()
        state = optimizer.state_dict()
        shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
        devices = {tensor.device.type for tensor in state.values()}
    assert bool(shapes) == (rank == 0)
    if rank == 0:
        assert devices == {"cpu"}
        assert shapes["embed.weight.exp_avg"] == tuple(model.embed.weight.shape)
        assert shapes["blocks.0.mlp.up_proj.weight.momentum"] == (256, 64)


# --- generation and evaluation ----------------------------------------------------------------------------------------


def count_per_token(run: Callable[[int], object], log: DeviceLog) -> tuple[float, float]:
    """Kernels and waits of one more token, from generations of 3 and 13 tokens."""
    counts = []
    for num_tokens in (3, 13):
        log.clear()
        run(num_tokens)
        counts.append((log.kernels.total(), log.waits.total()))
    return (counts[1][0] - counts[0][0]) / 10, (counts[1][1] - counts[0][1]) / 10


@pytest.mark.slow
@pytest.mark.parametrize(
    ("prompts", "kernels_of_a_token", "waits"),
    [
        ([[1, 2, 3]] * 2, 22, 3),  # the ids are read; the next input and the random numbers are copied to the device
        ([[1, 2, 3], [4]], 28, 3),  # with the mask and the positions of rows of different lengths
    ],
)
def test_kernels_and_waits_of_a_token(prompts: list[list[int]], kernels_of_a_token: int, waits: int) -> None:
    """31 kernels a layer: 6 products, attention, 2 cache writes, 4 norms, 14 of the rotary embedding, 4 others."""
    num_layers = 4
    with fake_cuda() as log:
        engine = Engine(fake_model(num_layers=num_layers), TOKENIZER)

        def run(num_tokens: int) -> None:
            engine.generate_many(prompts, SamplingParams(max_tokens=num_tokens))

        kernels, num_waits = count_per_token(run, log)
        assert kernels <= 31 * num_layers + kernels_of_a_token, log.kernels
        assert num_waits <= waits, log.waits


@pytest.mark.slow
def test_kernels_and_waits_of_a_streamed_token() -> None:
    num_layers = 4
    with fake_cuda() as log:
        engine = Engine(fake_model(num_layers=num_layers), TOKENIZER)
        kernels, num_waits = count_per_token(
            lambda num_tokens: list(engine.stream([1, 2, 3], SamplingParams(max_tokens=num_tokens))), log
        )
        assert kernels <= 31 * num_layers + 12, log.kernels
        assert num_waits <= 2, log.waits  # the id is read, and the next input is copied to the device


def test_bits_per_byte_waits_for_its_rows_and_its_result() -> None:
    with fake_cuda() as log:
        model = fake_model()
        rows = torch.zeros(6, 9, dtype=torch.int64)
        log.clear()
        bits_per_byte(model, rows, torch.ones(265, dtype=torch.int64), 2, RUNTIME)
        assert log.waits.total() <= 3 + 3, log.waits  # three batches; the table of bytes, the two sums


# --- the fake GPU itself ----------------------------------------------------------------------------------------------


def test_a_mix_of_devices_is_found() -> None:
    with fake_cuda(), pytest.raises(RuntimeError, match="device"):
        torch.zeros(2, device=CUDA) + torch.zeros(2)
    with fake_cuda(), mock.patch.object(GPT, "logits", lambda _, hidden: hidden @ torch.zeros(32, 265)):
        model = fake_model()
        with pytest.raises(RuntimeError, match="device"):
            model(fake_ids(1, 4))


def test_waits_are_counted() -> None:
    with fake_cuda() as log:
        values = torch.zeros(3, device=CUDA)
        assert not log.waits
        assert values[0].item() == 1
        assert values.tolist() == [1, 1, 1]
        values.cpu()
        torch.tensor([1.0], device=CUDA)
        values.copy_(torch.zeros(3))
        torch.cuda.synchronize()
        assert log.waits == {"item": 1, "tolist": 1, "copy": 3, "synchronize": 1}
        torch.zeros(3).to(CUDA, non_blocking=True)
        values.copy_(torch.zeros(3), non_blocking=True)
        torch.full((), 2.0, device=CUDA)
        values.sum()
        assert log.waits.total() == 6
        assert log.kernels["sum"] == 1


def test_shapes_that_depend_on_data_are_found() -> None:
    counts = [2, 1]
    with fake_cuda():
        values = torch.zeros(2, device=CUDA)
        repeats = torch.tensor(counts, device=CUDA)
        assert values.repeat_interleave(repeats, output_size=3).shape == (3,)
        for operation in (lambda: values.repeat_interleave(repeats), values.nonzero, lambda: values[values > 0]):
            with pytest.raises(DynamicOutputShapeException):
                operation()


def unsized_repeats(files: Iterable[Source]) -> Iterator[str]:
    """Calls of `repeat_interleave` with a tensor of repeats and without their sum, for which the host would wait."""
    for source in files:
        for name, call in source.calls if source.is_library else ():
            is_number = call.args[:1] and getattr(call.args[0], "value", None).__class__ is int
            is_sized = any(keyword.arg == "output_size" for keyword in call.keywords)
            if name.endswith("repeat_interleave") and not is_number and not is_sized:
                yield source.at(call, "repeat_interleave without output_size")


def test_repeats_have_their_size() -> None:
    assert not list(unsized_repeats(sources()))
    assert list(unsized_repeats([Source("nanochat/x.py", "x.repeat_interleave(repeats, 0)")]))
    good = "x.repeat_interleave(repeats, 0, output_size=3)\nx.repeat_interleave(2, 1)"
    assert not list(unsized_repeats([Source("nanochat/x.py", good)]))
