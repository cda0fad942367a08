"""Optimizer of a model on one process or many: Muon for weight matrices, AdamW for the rest, with sharded state.

Parameters that one call of an update rule can process together form a bucket. With N processes each bucket is sharded
(ZeRO-1, arXiv 1910.02054): gradients are reduced to the processes that use them, each process updates its shard of the
weights with its shard of the state, and the new weights are all-gathered. A single process runs the same code and skips
the communication. The reductions overlap with the backward pass.

The package `nanochat.sharding` holds the buckets and the queue of their reductions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from nanochat.adamw import adamw_step
from nanochat.common import UserError
from nanochat.muon import muon_step
from nanochat.sharding.buckets import MIN_SHARDED_NUMEL, Bucket, UpdateRule
from nanochat.sharding.reductions import ReductionQueue
from nanochat.system.host_memory import copy_to_host, wait_for_copies

if TYPE_CHECKING:
    from nanochat.runtime import Runtime

MAX_SETTING = 1e30  # of learning rates and other settings: far from the largest float32, 3e38, in which they are used


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
            if not 0 <= getattr(self, name) <= MAX_SETTING:
                raise UserError(f"{name} is {getattr(self, name)}: it must be from 0 to {MAX_SETTING:.0e}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise UserError(f"betas are {self.betas}: both must be at least 0 and below 1")
        if self.eps <= 0:
            raise UserError(f"eps is {self.eps}: it must be above 0")


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
        self.num_steps = 0  # steps applied
        self._grad_scale: Tensor | None = None  # between `reduce_gradients` and `update`
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
        norm = self.reduce_gradients()
        self.update(lr_multiplier, momentum)
        return norm

    @torch.no_grad()
    def reduce_gradients(self) -> Tensor:
        """Take the first half of `step`, which changes neither weights nor state; return the gradient's norm.

        The second half is `update`, or `zero_grad` if the step is not to be applied.
        """
        self.reductions.start_remaining()
        norm, self._grad_scale = self._norm_and_scale()
        return norm

    @torch.no_grad()
    def update(self, lr_multiplier: float, momentum: float) -> None:
        """Take the second half of `step`: update weights and state from the gradients that were reduced."""
        assert self._grad_scale is not None, "update follows reduce_gradients"
        self.num_steps += 1
        scalars = {"momentum": momentum, "weight_decay": self.settings.weight_decay, "step": float(self.num_steps)}
        for bucket in self.buckets:
            bucket.start_update(lr_multiplier, scalars, self._grad_scale)
        for bucket in self.buckets:
            bucket.finish_update()
        self._grad_scale = None

    @torch.no_grad()
    def weights_norm(self) -> Tensor:
        """Return the norm of all weights in float32, a 0-dim tensor, equal on all processes.

        It is not finite if a weight is not, or if the weights are so large that their squares overflow.
        """
        norms = [torch.linalg.vector_norm(param.float()) for bucket in self.buckets for param in bucket.params]
        norm: Tensor = torch.linalg.vector_norm(torch.stack(norms))
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
        """Set all gradients to None, and drop those that `reduce_gradients` has left."""
        self._grad_scale = None
        for bucket in self.buckets:
            bucket.drop_buffers()
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
