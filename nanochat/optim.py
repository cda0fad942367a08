"""Optimizer of a model on one process or many: Muon for weight matrices, AdamW for the rest, with sharded state.

Parameters that one call of an update rule can process together form a bucket. With N processes each bucket is sharded
(ZeRO-1, arXiv 1910.02054): gradients are reduce-scattered, each process updates its shard of the weights with its shard
of the state, and the new weights are all-gathered. A single process runs the same code and skips the communication.

Letters in shape comments: a bucket holds P units, padded to a multiple of N; a shard holds P / N of them.
A unit is a whole matrix (R, C) for Muon and a single number () for AdamW.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from nanochat.adamw import adamw_step
from nanochat.common import UserError
from nanochat.muon import muon_step

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

    A step calls `start_reduction`, `start_update` and `finish_update`, in this order.
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
        shard_len = (sum(self.num_units) + self.padding) // num_shards
        start = shard_len * runtime.rank
        self.shard = slice(start, start + shard_len) if self.is_sharded else slice(None)
        self.dtype = torch.promote_types(first.dtype, torch.float32)
        self.state = {
            name: torch.zeros(shard_len, *self.unit, dtype=self.dtype, device=first.device) for name in rule.state_names
        }
        # Tensors that are filled during a step only. `buffer` (P, *unit): all units, first as packed gradients, then as
        # packed weights. `grads` (P / N, *unit): the summed gradients of this shard; without sharding, `buffer` itself.
        self.buffer = self.grads = first.new_empty(0)
        self.work: dist.Work | None = None

    def pack(self, tensors: Sequence[Tensor]) -> Tensor:
        """Stack tensors of the parameters' shapes into one tensor (P, *unit).

        The result is a view if there is only one tensor and no padding.
        """
        rows = [tensor.reshape(-1, *self.unit) for tensor in tensors]
        if self.padding:
            rows.append(rows[0].new_zeros(self.padding, *self.unit))
        return rows[0] if len(rows) == 1 else torch.cat(rows)

    def unpack(self, stack: Tensor) -> list[Tensor]:
        """Return views of a (P, *unit) tensor in the parameters' shapes: the inverse of `pack`."""
        parts = torch.split(stack[: sum(self.num_units)], self.num_units)
        return [part.view(param.shape) for part, param in zip(parts, self.params, strict=True)]

    def start_reduction(self) -> None:
        """Start to sum the gradients over the processes into `grads`, (P / N, *unit)."""
        grads = []
        for name, param in zip(self.names, self.params, strict=True):
            assert param.grad is not None, f"{name} has no gradient: every parameter must take part in the loss"
            grads.append(param.grad)
        self.buffer = self.grads = self.pack(grads)
        if self.is_replicated:
            self.work = dist.all_reduce(self.buffer, async_op=True)
        elif self.is_sharded:
            self.grads = torch.empty_like(self.buffer[self.shard])
            self.work = dist.reduce_scatter_tensor(self.grads, self.buffer, async_op=True)

    def start_update(self, lr_multiplier: float, scalars: Mapping[str, float], grad_scale: Tensor) -> None:
        """Update this process's shard of the weights and start to gather the shards of all processes."""
        values = {"lr": self.rule.lr * lr_multiplier} | {name: scalars[name] for name in self.rule.scalar_names}
        # Tensors, because each new Python number would be compiled anew; filled on the device, so that no copy to it
        # has to be waited for.
        arguments = {
            name: torch.full((), value, dtype=self.dtype, device=self.grads.device) for name, value in values.items()
        }
        self.buffer = self.pack([param.detach() for param in self.params])  # (P, *unit)
        weights = self.buffer[self.shard]  # (P / N, *unit)
        grads = self.grads.to(self.dtype).mul_(grad_scale)
        self.rule.update(weights, grads, *self.state.values(), **arguments)
        if self.is_sharded:
            self.work = dist.all_gather_into_tensor(self.buffer, weights, async_op=True)

    def finish_update(self) -> None:
        """Copy the new weights into the model's parameters, unless they were updated in place."""
        self.wait()
        for param, new in zip(self.params, self.unpack(self.buffer), strict=True):
            if new.data_ptr() != param.data_ptr():
                param.copy_(new)
        self.buffer = self.grads = self.buffer.new_empty(0)

    def wait(self) -> None:
        """Wait for the pending communication, if any."""
        if self.work is not None:
            self.work.wait()
            self.work = None

    def gather_state(self, name: str) -> list[Tensor]:
        """Return one kind of state tensor for each parameter, in full. Collective."""
        stack = self.state[name]
        if self.is_sharded:
            stack = stack.new_empty(sum(self.num_units) + self.padding, *self.unit)
            dist.all_gather_into_tensor(stack, self.state[name])
        return self.unpack(stack)


class Optimizer:
    """Updates a model's parameters. Built by `build_optimizer`.

    With several processes `step` and `state_dict` are collective: all processes must call them.
    """

    def __init__(self, buckets: Sequence[Bucket], settings: OptimSettings, runtime: Runtime) -> None:
        self.buckets = list(buckets)
        self.settings = settings
        self.runtime = runtime
        self.num_steps = 0

    @torch.no_grad()
    def step(self, lr_multiplier: float = 1.0, momentum: float = 0.95) -> Tensor:
        """Update the weights from the gradients' mean over the processes, clipped to the norm `grad_clip`.

        `lr_multiplier` is the learning rate schedule's factor, `momentum` Muon's. Returns the norm of that mean before
        clipping, a 0-dim tensor, equal on all processes. Every parameter must have a gradient (asserted). The gradients
        are overwritten: call `zero_grad` before the next backward pass.
        """
        self.num_steps += 1
        for bucket in self.buckets:
            bucket.start_reduction()
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
            bucket.wait()
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
                        full_state[f"{name}.{state_name}"] = tensor.to("cpu", copy=True)
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
                stack = bucket.pack([full_state[f"{name}.{state_name}"] for name in bucket.names])  # (P, *unit)
                shard.copy_(stack[bucket.shard])


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
    return [
        Optimizer([Bucket(rule, named_params, runtime) for rule, named_params in buckets.values()], settings, runtime)
        for buckets in grouped
    ]
