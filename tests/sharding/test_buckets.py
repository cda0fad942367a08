"""The units that each process holds, and packing and unpacking as inverses of each other."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from nanochat.runtime import Runtime
from nanochat.sharding.buckets import Bucket, UpdateRule


def make_bucket(shapes: list[tuple[int, ...]], rank: int, world_size: int, by_matrix: bool) -> Bucket:
    params = [(f"p{i}", nn.Parameter(torch.randn(shape))) for i, shape in enumerate(shapes)]
    rule = UpdateRule(lambda *_, **__: None, 0.1, ("state",), (), by_matrix)
    return Bucket(rule, params, Runtime(rank, rank, world_size, torch.device("cpu"), torch.float32, 0))


# Matrices whose number does not divide, of which a process may own none; a table with padding; small tables.
CASES = [([(32, 40)] * 5, True), ([(32, 40)] * 2, True), ([(41, 25)], False), ([(7, 5), (3,)], False)]


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize(("shapes", "by_matrix"), CASES)
def test_shards_are_the_stack(shapes: list[tuple[int, ...]], by_matrix: bool, world_size: int) -> None:
    """The shards of all processes, one after the other, are the packed tensors and then zeros."""
    torch.manual_seed(0)
    tensors = [torch.randn(shape) for shape in shapes]
    buckets = [make_bucket(shapes, rank, world_size, by_matrix) for rank in range(world_size)]
    shards = [bucket.pack_shard(tensors) for bucket in buckets]
    assert all(shard.shape == bucket.state["state"].shape for shard, bucket in zip(shards, buckets, strict=True))
    stack = torch.cat(shards) if buckets[0].is_sharded else shards[0]
    assert torch.equal(stack, buckets[0].pack(tensors))
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    assert torch.equal(stack.flatten()[: len(flat)], flat)
    assert not stack.flatten()[len(flat) :].any()
    unpacked = buckets[0].unpack(stack)
    assert all(torch.equal(part, tensor) for part, tensor in zip(unpacked, tensors, strict=True))


@pytest.mark.parametrize("world_size", [2, 3])
def test_every_matrix_has_the_owner_that_updates_it(monkeypatch: pytest.MonkeyPatch, world_size: int) -> None:
    owners: list[int] = []
    monkeypatch.setattr(torch.distributed, "reduce", lambda _, dst, **__: owners.append(dst))
    tensors = [torch.full((32, 40), float(index)) for index in range(5)]
    for rank in range(world_size):
        bucket = make_bucket([(32, 40)] * 5, rank, world_size, by_matrix=True)
        owners.clear()
        for portion in bucket.portions:
            for index in portion:
                bucket.params[index].grad = tensors[index]
            bucket.start_reduction(portion)
        bucket.finish_reduction()
        owned: list[Tensor] = [tensor for tensor, owner in zip(tensors, owners, strict=True) if owner == rank]
        assert torch.equal(bucket.grads[: len(owned)], torch.stack(owned))
        assert not bucket.grads[len(owned) :].any()
