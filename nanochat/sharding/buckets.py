"""Buckets: parameters that are updated together, and this process's shard of their gradients, weights and state.

Letters in shape comments: a bucket holds P units, padded to a multiple of N processes; a shard holds P / N of them.
A unit is a whole matrix (R, C) for Muon and a single number () for AdamW.

A matrix is reduced to the process that owns it, a table by a reduce-scatter. Both send each gradient over each link
once, so a reduction for each matrix costs no more bytes than one for the whole bucket, and needs no copy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor, nn

if TYPE_CHECKING:
    from nanochat.runtime import Runtime

MIN_SHARDED_NUMEL = 1024  # smaller tensors are all-reduced and updated by every process


@dataclass(frozen=True)
class UpdateRule:
    """Update function of one kind of parameter, with its learning rate."""

    update: Callable[..., None]  # (weights, grads, *state, lr=..., and the scalars named below), in place
    lr: float
    state_names: tuple[str, ...]  # tensors kept for each parameter, of the parameter's shape
    scalar_names: tuple[str, ...]  # arguments besides `lr` that change from step to step
    by_matrix: bool = False  # updates whole matrices, not each number independently


class Bucket:
    """Parameters that are updated together, and this process's shard of their optimizer state.

    A step calls `start_reduction` for each of the `portions`, then `finish_reduction`, `start_update` and
    `finish_update`.
    """

    def __init__(self, rule: UpdateRule, named_params: Sequence[tuple[str, nn.Parameter]], runtime: Runtime) -> None:
        self.rule = rule
        self.names = [name for name, _ in named_params]
        self.params = [param for _, param in named_params]
        first = self.params[0]
        self.unit = first.shape if rule.by_matrix else torch.Size()
        self.num_units = [param.numel() // self.unit.numel() for param in self.params]
        self.is_sharded = runtime.world_size > 1 and first.numel() >= MIN_SHARDED_NUMEL
        self.is_replicated = runtime.world_size > 1 and not self.is_sharded
        num_shards = runtime.world_size if self.is_sharded else 1
        self.padding = -sum(self.num_units) % num_shards  # in units
        self.shard_len = (sum(self.num_units) + self.padding) // num_shards
        start = self.shard_len * runtime.rank
        self.shard = slice(start, start + self.shard_len) if self.is_sharded else slice(None)
        self.dtype = torch.promote_types(first.dtype, torch.float32)
        self.state = {
            name: torch.zeros(self.shard_len, *self.unit, dtype=self.dtype, device=first.device)
            for name in rule.state_names
        }
        # Indices of the parameters whose gradients are reduced by one collective.
        self.has_owners = self.is_sharded and rule.by_matrix
        every = range(len(self.params))
        self.portions = [[index] for index in every] if self.has_owners else [list(every)]
        # Tensors that are filled during a step only. `buffer` (P, *unit): all units, first as packed gradients (not of
        # matrices with owners), then as packed weights. `grads` (P / N, *unit): the summed gradients of this shard;
        # without sharding, `buffer` itself.
        self.buffer = self.grads = first.new_empty(0)
        self.works: list[dist.Work | None] = []  # None: this process takes no part

    def pack(self, tensors: Sequence[Tensor]) -> Tensor:
        """Stack tensors of the parameters' shapes into one tensor (P, *unit).

        The result is a view if there is only one tensor and no padding.
        """
        return self._stack([tensor.reshape(-1, *self.unit) for tensor in tensors], sum(self.num_units) + self.padding)

    def pack_shard(self, tensors: Sequence[Tensor]) -> Tensor:
        """Stack this process's units of tensors of the parameters' shapes: `pack(tensors)[self.shard]`."""
        if not self.has_owners:
            return self.pack(tensors)[self.shard]
        return self._stack([tensor[None] for tensor in tensors[self.shard]], self.shard_len)  # a matrix is a unit

    def _stack(self, rows: list[Tensor], length: int) -> Tensor:
        """Concatenate tensors (units, *unit) and fill up with zeros to `length` units."""
        missing = length - sum(map(len, rows))
        if missing:
            rows.append(self.params[0].new_zeros(missing, *self.unit))
        return rows[0] if len(rows) == 1 else torch.cat(rows)

    def unpack(self, stack: Tensor) -> list[Tensor]:
        """Return views of a (P, *unit) tensor in the parameters' shapes: the inverse of `pack`."""
        parts = torch.split(stack[: sum(self.num_units)], self.num_units)
        return [part.view(param.shape) for part, param in zip(parts, self.params, strict=True)]

    def gradients(self, portion: Sequence[int]) -> list[Tensor]:
        """Return the gradients of the parameters with these indices. All must exist."""
        grads = []
        for index in portion:
            grad = self.params[index].grad
            assert grad is not None, f"{self.names[index]} has no gradient: every parameter must take part in the loss"
            grads.append(grad)
        return grads

    def start_reduction(self, portion: Sequence[int]) -> None:
        """Start to sum the gradients of a portion over the processes."""
        grads = self.gradients(portion)
        if self.has_owners:  # in place: the owner receives the sum
            [index], [grad] = portion, grads
            self.works.append(dist.reduce(grad, dst=index // self.shard_len, async_op=True))
            return
        self.buffer = self.grads = self.pack(grads)
        if self.is_replicated:
            self.works.append(dist.all_reduce(self.buffer, async_op=True))
        elif self.is_sharded:
            self.grads = torch.empty_like(self.buffer[self.shard])
            self.works.append(dist.reduce_scatter_tensor(self.grads, self.buffer, async_op=True))

    def finish_reduction(self) -> None:
        """Wait until `grads`, (P / N, *unit), holds the sums of this process's shard."""
        self.wait()
        if self.has_owners:
            self.grads = self.pack_shard(self.gradients(range(len(self.params))))

    def start_update(self, lr_multiplier: float, scalars: Mapping[str, float], grad_scale: Tensor) -> None:
        """Update this process's shard of the weights and start to gather the shards of all processes."""
        values = {"lr": self.rule.lr * lr_multiplier} | {name: scalars[name] for name in self.rule.scalar_names}
        # Tensors, because each new Python number would be compiled anew; filled on the device, so that no copy to it
        # has to be waited for.
        arguments = {
            name: torch.full((), value, dtype=self.dtype, device=self.grads.device) for name, value in values.items()
        }
        weights = [param.detach() for param in self.params]
        if self.has_owners:  # the other processes' shards arrive by the all-gather
            self.buffer = weights[0].new_empty(sum(self.num_units) + self.padding, *self.unit)  # (P, *unit)
            self.buffer[self.shard] = self.pack_shard(weights)
        else:
            self.buffer = self.pack(weights)  # (P, *unit)
        shard = self.buffer[self.shard]  # (P / N, *unit)
        grads = self.grads.to(self.dtype).mul_(grad_scale)
        self.rule.update(shard, grads, *self.state.values(), **arguments)
        if self.is_sharded:
            self.works.append(dist.all_gather_into_tensor(self.buffer, shard, async_op=True))

    def finish_update(self) -> None:
        """Copy the new weights into the model's parameters, unless they were updated in place."""
        self.wait()
        for param, new in zip(self.params, self.unpack(self.buffer), strict=True):
            if new.data_ptr() != param.data_ptr():
                param.copy_(new)
        self.drop_buffers()

    def drop_buffers(self) -> None:
        """Free the tensors of a step, also of one that is not applied."""
        self.buffer = self.grads = self.buffer.new_empty(0)

    def wait(self) -> None:
        """Wait for the pending communication, if any."""
        for work in self.works:
            if work is not None:
                work.wait()
        self.works.clear()

    def gather_state(self, name: str) -> list[Tensor]:
        """Return one kind of state tensor for each parameter, in full. Collective."""
        stack = self.state[name]
        if self.is_sharded:
            stack = stack.new_empty(sum(self.num_units) + self.padding, *self.unit)
            dist.all_gather_into_tensor(stack, self.state[name])
        return self.unpack(stack)
