"""Optimizer of a model on one process or many: Muon for weight matrices, AdamW for the rest, with sharded state.

Parameters that one call of an update rule can process together form a bucket. With N processes each bucket is sharded
(ZeRO-1, arXiv 1910.02054): gradients are reduced to the processes that use them, each process updates its shard of the
weights with its shard of the state, and the new weights are all-gathered. A single process runs the same code and skips
the communication.

The reductions overlap with the backward pass. A gradient is reduced as soon as it is complete: a matrix to the process
that owns it, a table by a reduce-scatter. Both send each gradient over each link once, so a reduction for each matrix
costs no more bytes than one for the whole bucket, and needs no copy. The order of the reductions is fixed, from the
head down to the embedding: if processes started them in different orders, they would wait for each other for ever.

Letters in shape comments: a bucket holds P units, padded to a multiple of N; a shard holds P / N of them.
A unit is a whole matrix (R, C) for Muon and a single number () for AdamW.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from nanochat.adamw import adamw_step
from nanochat.common import UserError
from nanochat.muon import muon_step
from nanochat.system.host_memory import copy_to_host, wait_for_copies

if TYPE_CHECKING:
    from nanochat.runtime import Runtime

MIN_SHARDED_NUMEL = 1024  # smaller tensors are all-reduced and updated by every process


@dataclass(frozen=True)
class ParamGroup:
    """Parameters with one update rule and learning rate.

    `kind`: "matrix" (the weight matrices of the blocks), "embedding", or "head" (the unembedding).
    """

    kind: str
    params: list[tuple[str, nn.Parameter]]


class OptimizableModel(Protocol):
    """Interface of a model for its optimizer. `config.n_embd` is the width that scales AdamW's learning rates."""

    @property
    def config(self) -> Any:
        """The model's shape, with `n_embd`."""

    def param_groups(self) -> list[ParamGroup]:
        """Return all parameters by the kind of their update rule."""
        ...

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield all parameters, as torch modules do."""
        ...


@dataclass(frozen=True)
class OptimSettings:
    """Hyperparameters of the optimizer.

    `embedding_lr` and `unembedding_lr` hold at width 768 and are multiplied by (n_embd / 768)^-0.5. `weight_decay`,
    `betas` and `eps` are AdamW's. `grad_clip` is the largest norm of the whole gradient; 0 disables clipping.
    """

    matrix_lr: float = 0.02
    embedding_lr: float = 0.2
    unembedding_lr: float = 0.004
    weight_decay: float = 0.0
    grad_clip: float = 1.0
    betas: tuple[float, float] = (0.8, 0.95)
    eps: float = 1e-10

    def __post_init__(self) -> None:
        for name in ("matrix_lr", "embedding_lr", "unembedding_lr", "weight_decay", "grad_clip"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise UserError(f"{name} is {getattr(self, name)}: it must be a finite number of at least 0")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise UserError(f"betas are {self.betas}: both must be at least 0 and below 1")
        if self.eps <= 0:
            raise UserError(f"eps is {self.eps}: it must be above 0")


@dataclass(frozen=True)
class UpdateRule:
    """Update function of one kind of parameter, with its learning rate."""

    update: Callable[..., None]  # (weights, grads, *state, lr=..., and the scalars named below), in place
    lr: float
    state_names: tuple[str, ...]  # tensors kept for each parameter, of the parameter's shape
    scalar_names: tuple[str, ...]  # arguments besides `lr` that change from step to step
    by_matrix: bool = False  # updates whole matrices, not each number independently


def _update_rules(
    settings: OptimSettings, width: int, muon_dtype: torch.dtype | None, compiled: bool
) -> dict[str, UpdateRule]:
    """Return the update rule of each kind of parameter."""
    muon_kernel = torch.compile(muon_step, dynamic=False) if compiled else muon_step
    adamw_kernel = torch.compile(adamw_step, dynamic=False) if compiled else adamw_step
    adamw_rule = partial(
        UpdateRule,
        partial(adamw_kernel, betas=settings.betas, eps=settings.eps),
        state_names=("exp_avg", "exp_avg_sq"),
        scalar_names=("weight_decay", "step"),
    )
    width_factor = (width / 768) ** -0.5
    return {
        "matrix": UpdateRule(
            partial(muon_kernel, dtype=muon_dtype),
            lr=settings.matrix_lr,
            state_names=("momentum",),  # `grad_avg` of muon_step; checkpoints have this name
            scalar_names=("momentum",),  # the decay of that average
            by_matrix=True,
        ),
        "embedding": adamw_rule(lr=settings.embedding_lr * width_factor),
        "head": adamw_rule(lr=settings.unembedding_lr * width_factor),
    }


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


class ReductionQueue:
    """The reductions of one step, started in a fixed order that is the same on all processes.

    `params` are the parameters of the model in the order in which its forward pass uses them. A backward pass completes
    their gradients roughly in the reverse order.
    """

    def __init__(self, buckets: Sequence[Bucket], params: Iterable[nn.Parameter]) -> None:
        position_of = {id(param): position for position, param in enumerate(params)}

        def first_use(item: tuple[Bucket, Sequence[int]]) -> int:
            bucket, portion = item
            return min(position_of[id(bucket.params[index])] for index in portion)

        portions = [(bucket, portion) for bucket in buckets for portion in bucket.portions]
        self.order = sorted(portions, key=first_use, reverse=True)
        self.num_started = 0
        self.complete: set[int] = set()  # ids of the parameters with a complete gradient
        self.is_last_backward = False

    def watch_gradients(self) -> None:
        """Have the backward pass report each gradient that it completes."""
        for bucket, portion in self.order:
            for index in portion:
                bucket.params[index].register_post_accumulate_grad_hook(self._on_gradient)

    @torch.no_grad()
    def _on_gradient(self, param: Tensor) -> None:
        """Start the reductions that can start now that the gradient of `param` is complete."""
        if not self.is_last_backward:
            return
        assert id(param) not in self.complete, "a gradient was added to after its reduction may have started"
        self.complete.add(id(param))
        while self.num_started < len(self.order):
            bucket, portion = self.order[self.num_started]
            if not all(id(bucket.params[index]) in self.complete for index in portion):
                return
            self._start_next()

    def start_remaining(self) -> None:
        """Start the reductions that have not started during the backward pass. Ends the step for this queue."""
        while self.num_started < len(self.order):
            self._start_next()
        self.num_started = 0
        self.complete.clear()
        self.is_last_backward = False

    def _start_next(self) -> None:
        bucket, portion = self.order[self.num_started]
        self.num_started += 1
        bucket.start_reduction(portion)


class Optimizer:
    """Updates a model's parameters. Built by `build_optimizer`.

    With several processes `step` and `state_dict` are collective: all processes must call them.
    """

    def __init__(
        self, buckets: Sequence[Bucket], params: Iterable[nn.Parameter], settings: OptimSettings, runtime: Runtime
    ) -> None:
        """`params`: the parameters of the model, in the order in which its forward pass uses them."""
        self.buckets = list(buckets)
        self.settings = settings
        self.runtime = runtime
        self.num_steps = 0
        self.reductions = ReductionQueue(self.buckets, params)
        if runtime.world_size > 1:
            self.reductions.watch_gradients()

    def overlap_next_backward(self) -> None:
        """Announce that the next backward pass is the last one before `step`.

        With several processes, the reduction of each gradient then starts as soon as the pass has completed it. Without
        this call, all reductions start in `step`; the result is the same.
        """
        if self.runtime.world_size > 1:
            self.reductions.is_last_backward = True

    @torch.no_grad()
    def step(self, lr_multiplier: float = 1.0, momentum: float = 0.95) -> Tensor:
        """Update the weights from the gradients' mean over the processes, clipped to the norm `grad_clip`.

        `lr_multiplier` is the learning rate schedule's factor, `momentum` Muon's. Returns the norm of that mean before
        clipping, a 0-dim tensor, equal on all processes. Every parameter must have a gradient (asserted). The gradients
        are overwritten: call `zero_grad` before the next backward pass.
        """
        self.num_steps += 1
        self.reductions.start_remaining()
        norm, grad_scale = self._norm_and_scale()
        scalars = {"momentum": momentum, "weight_decay": self.settings.weight_decay, "step": float(self.num_steps)}
        for bucket in self.buckets:
            bucket.start_update(lr_multiplier, scalars, grad_scale)
        for bucket in self.buckets:
            bucket.finish_update()
        return norm

    def _norm_and_scale(self) -> tuple[Tensor, Tensor]:
        """Return the norm of the mean gradient, and the factor that turns the summed gradient into the clipped mean."""
        squares = []
        for bucket in self.buckets:
            bucket.finish_reduction()
            num_copies = self.runtime.world_size if bucket.is_replicated else 1  # the all-reduce adds all copies
            squares.append(torch.linalg.vector_norm(bucket.grads, dtype=bucket.dtype).square() / num_copies)
        total = torch.stack(squares).sum()
        if self.runtime.world_size > 1:
            dist.all_reduce(total)
        norm = total.sqrt() / self.runtime.world_size
        max_norm = self.settings.grad_clip or float("inf")
        return norm, (max_norm / (norm + 1e-6)).clamp(max=1.0) / self.runtime.world_size

    def zero_grad(self) -> None:
        """Set all gradients to None."""
        for bucket in self.buckets:
            for param in bucket.params:
                param.grad = None

    @torch.no_grad()
    def state_dict(self) -> dict[str, Tensor]:
        """Return the unsharded state on the CPU, as "<parameter>.<state name>" and "step": the same for any world size.

        Rank 0 receives it. The other ranks take part in gathering it and receive an empty dict.
        """
        full_state = {"step": torch.tensor(self.num_steps)}
        for bucket in self.buckets:
            for state_name in bucket.state:
                for name, tensor in zip(bucket.names, bucket.gather_state(state_name), strict=True):
                    if self.runtime.rank == 0:
                        full_state[f"{name}.{state_name}"] = copy_to_host(tensor)
        wait_for_copies(self.runtime.device)
        return full_state if self.runtime.rank == 0 else {}

    @torch.no_grad()
    def load_state_dict(self, full_state: Mapping[str, Tensor]) -> None:
        """Load an unsharded state, written by any number of processes. Each process passes the whole state.

        Raises `UserError`, before anything is changed, if the state belongs to another model.
        """
        expected = {
            f"{name}.{state_name}": tuple(param.shape)
            for bucket in self.buckets
            for state_name in bucket.state
            for name, param in zip(bucket.names, bucket.params, strict=True)
        } | {"step": ()}
        loaded = {name: tuple(tensor.shape) for name, tensor in full_state.items()}
        for name in sorted(expected.keys() | loaded.keys()):
            if loaded.get(name) != expected.get(name):
                raise UserError(
                    f"this optimizer state belongs to another model: {name} is {loaded.get(name, 'absent')}, "
                    f"expected {expected.get(name, 'absent')}"
                )
        self.num_steps = int(full_state["step"])
        for bucket in self.buckets:
            for state_name, shard in bucket.state.items():
                shard.copy_(bucket.pack_shard([full_state[f"{name}.{state_name}"] for name in bucket.names]))


def build_optimizer(
    model: OptimizableModel, runtime: Runtime, settings: OptimSettings | None = None, *, compiled: bool = False
) -> Optimizer:
    """Build the optimizer of all parameters of a model. They must be on their device already.

    Muon's matrix products run in bfloat16 if that is the runtime's compute dtype, else in the weights' dtype.
    `compiled`: compile the update functions, once for each shape.
    """
    kinds = tuple(group.kind for group in model.param_groups())
    [optimizer] = build_optimizers(model, runtime, settings or OptimSettings(), [kinds], compiled=compiled)
    return optimizer


def build_optimizers(
    model: OptimizableModel,
    runtime: Runtime,
    settings: OptimSettings,
    partition: Sequence[Sequence[str]],
    *,
    compiled: bool = False,
) -> list[Optimizer]:
    """Build several optimizers, each for the kinds of parameters in one entry of `partition`.

    The other arguments are those of `build_optimizer`.
    """
    muon_dtype = torch.bfloat16 if runtime.compute_dtype == torch.bfloat16 else None
    rules = _update_rules(settings, model.config.n_embd, muon_dtype, compiled)
    optimizer_index = {kind: index for index, kinds in enumerate(partition) for kind in kinds}
    # For each optimizer: key of a bucket -> its rule and its named parameters.
    grouped: list[dict[tuple[object, ...], tuple[UpdateRule, list[tuple[str, nn.Parameter]]]]] = [{} for _ in partition]
    seen: set[int] = set()
    for group in model.param_groups():
        assert group.kind in rules, f"no update rule for parameters of the kind {group.kind!r}"
        rule = rules[group.kind]
        for name, param in group.params:
            assert id(param) not in seen, f"{name} is in two groups"
            seen.add(id(param))
            # Matrices of one shape are stacked. Small tables share a bucket. A large table has its own bucket, because
            # stacking would copy it.
            bucket_id = param.shape if rule.by_matrix else param.numel() < MIN_SHARDED_NUMEL or name
            key = (group.kind, bucket_id, param.dtype)
            grouped[optimizer_index[group.kind]].setdefault(key, (rule, []))[1].append((name, param))
    ungrouped = [name for name, param in model.named_parameters() if id(param) not in seen]
    assert not ungrouped, f"no group holds {', '.join(ungrouped)}"
    params = [param for _, param in model.named_parameters()]
    return [
        Optimizer(
            [Bucket(rule, named_params, runtime) for rule, named_params in buckets.values()], params, settings, runtime
        )
        for buckets in grouped
    ]
