"""Builds a model's optimizer and steps it, on one process or on many. The only file that shards and communicates.

Parameters that one call of one rule can update form a bucket. Over N processes each bucket is sharded (ZeRO-1,
arXiv 1910.02054): gradients are reduce-scattered, each process updates its share of the weights with its share of the
state, and the new weights are gathered. One process runs the same code and skips the communication.

Letters in shape comments: P units in a bucket, padded so that N divides it, of which P / N are this process's share.
A unit is a whole matrix for Muon, shape (R, C), and a single number for AdamW, shape ().
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

MIN_SHARDED = 1024  # elements: smaller tensors are all-reduced and updated by every process


@dataclass(frozen=True)
class ParamGroup:
    """Parameters that one update rule and learning rate serve. `kind`: "matrix", "embedding" or "head"."""

    kind: str
    params: list[tuple[str, nn.Parameter]]


class OptimizableModel(Protocol):
    """The part of a model that its optimizer is built from; `config.n_embd` is the width that scales AdamW's rates."""

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
    """What a run may choose. Embedding and head rates hold at width 768 and scale with (n_embd / 768)^-0.5.

    `weight_decay` is AdamW's. `grad_clip` is the largest norm of the whole gradient; 0 switches clipping off.
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
                raise UserError(f"{name} is {getattr(self, name)}: it must be a number, 0 or more")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise UserError(f"betas are {self.betas}: both must be at least 0 and below 1")
        if self.eps <= 0:
            raise UserError(f"eps is {self.eps}: it must be above 0")


@dataclass(frozen=True)
class UpdateRule:
    """How one kind of parameter is updated."""

    update: Callable[..., None]  # (weights, grads, *state, lr=, and the scalars named below), in place
    lr: float
    state: tuple[str, ...]  # names of the tensors kept for each parameter, each of its shape
    scalars: tuple[str, ...]  # what else changes from step to step
    by_matrix: bool = False  # works on whole matrices, not number by number


def _rules(settings: OptimSettings, width: int, products: torch.dtype | None, compiled: bool) -> dict[str, UpdateRule]:
    """The one table of which kind of parameter is updated how, and at which rate."""
    muon_kernel, adamw_kernel = muon_step, adamw_step
    if compiled:
        muon_kernel, adamw_kernel = torch.compile(muon_step, dynamic=False), torch.compile(adamw_step, dynamic=False)
    muon = partial(muon_kernel, dtype=products)
    adamw = partial(adamw_kernel, betas=settings.betas, eps=settings.eps)
    moments, scalars = ("exp_avg", "exp_avg_sq"), ("weight_decay", "step")
    by_width = (width / 768) ** -0.5
    return {
        "matrix": UpdateRule(muon, settings.matrix_lr, ("momentum",), ("momentum",), by_matrix=True),
        "embedding": UpdateRule(adamw, settings.embedding_lr * by_width, moments, scalars),
        "head": UpdateRule(adamw, settings.unembedding_lr * by_width, moments, scalars),
    }


class Bucket:
    """Parameters that are updated together, and this process's share of their state."""

    def __init__(self, rule: UpdateRule, members: Sequence[tuple[str, nn.Parameter]], runtime: Runtime) -> None:
        self.rule = rule
        self.names = [name for name, _ in members]
        self.params = [param for _, param in members]
        first = self.params[0]
        self.unit = first.shape if rule.by_matrix else torch.Size()
        self.sizes = [param.numel() // self.unit.numel() for param in self.params]  # in units
        self.sharded = runtime.world_size > 1 and first.numel() >= MIN_SHARDED
        self.replicated = runtime.world_size > 1 and not self.sharded
        shares = runtime.world_size if self.sharded else 1
        self.padding = -sum(self.sizes) % shares
        length = (sum(self.sizes) + self.padding) // shares
        self.share = slice(length * runtime.rank, length * (runtime.rank + 1)) if self.sharded else slice(None)
        self.dtype = torch.promote_types(first.dtype, torch.float32)
        self.state = {key: torch.zeros(length, *self.unit, dtype=self.dtype, device=first.device) for key in rule.state}
        self.full = self.grads = first.new_empty(0)  # only during a step
        self.work: dist.Work | None = None

    def pack(self, tensors: Sequence[Tensor]) -> Tensor:
        """Tensors of the parameters' shapes as one of (P, *unit): a view where a single tensor needs no padding."""
        rows = [tensor.reshape(-1, *self.unit) for tensor in tensors]
        if self.padding:
            rows.append(rows[0].new_zeros(self.padding, *self.unit))
        return rows[0] if len(rows) == 1 else torch.cat(rows)

    def unpack(self, stack: Tensor) -> list[Tensor]:
        """Views of a (P, *unit) tensor in the parameters' shapes."""
        pieces = torch.split(stack[: sum(self.sizes)], self.sizes)
        return [piece.view(param.shape) for piece, param in zip(pieces, self.params, strict=True)]

    def start_reduction(self) -> None:
        """Begin to sum the gradients over the processes: `grads` will hold this process's share."""
        grads = []
        for name, param in zip(self.names, self.params, strict=True):
            assert param.grad is not None, f"{name} has no gradient: every parameter must take part in the loss"
            grads.append(param.grad)
        self.full = self.grads = self.pack(grads)
        if self.replicated:
            self.work = dist.all_reduce(self.full, async_op=True)
        elif self.sharded:
            self.grads = torch.empty_like(self.full[self.share])
            self.work = dist.reduce_scatter_tensor(self.grads, self.full, async_op=True)

    def start_update(self, lr_multiplier: float, scalars: Mapping[str, float], grad_scale: Tensor) -> None:
        """Update this process's share of the weights and begin to send it to the others."""
        values = {"lr": self.rule.lr * lr_multiplier} | {key: scalars[key] for key in self.rule.scalars}
        # Filled on the device: neither a recompilation for each new number nor a wait for a copy.
        filled = {
            key: torch.full((), value, dtype=self.dtype, device=self.grads.device) for key, value in values.items()
        }
        self.full = self.pack([param.detach() for param in self.params])
        weights = self.full[self.share]
        self.rule.update(weights, self.grads.to(self.dtype).mul_(grad_scale), *self.state.values(), **filled)
        if self.sharded:
            self.work = dist.all_gather_into_tensor(self.full, weights, async_op=True)

    def finish_update(self) -> None:
        """Put the new weights where the model has them."""
        self.wait()
        for param, new in zip(self.params, self.unpack(self.full), strict=True):
            if new.data_ptr() != param.data_ptr():
                param.copy_(new)
        self.full = self.grads = self.full.new_empty(0)

    def wait(self) -> None:
        """Wait for the communication under way, if any."""
        if self.work is not None:
            self.work.wait()
            self.work = None

    def whole_state(self, key: str) -> list[Tensor]:
        """One state tensor a parameter, gathered from all processes."""
        stack = self.state[key]
        if self.sharded:
            stack = stack.new_empty(sum(self.sizes) + self.padding, *self.unit)
            dist.all_gather_into_tensor(stack, self.state[key])
        return self.unpack(stack)


class Optimizer:
    """The buckets of a model and the number of steps taken. Made by `build_optimizer`.

    With several processes `step`, `state_dict` and `load_state_dict` are collective: all processes call them alike.
    """

    def __init__(self, buckets: Sequence[Bucket], settings: OptimSettings, runtime: Runtime) -> None:
        self.buckets = list(buckets)
        self.settings = settings
        self.runtime = runtime
        self.steps = 0

    @torch.no_grad()
    def step(self, lr_multiplier: float = 1.0, momentum: float = 0.95) -> Tensor:
        """Update the weights from the gradients' mean over the processes, clipped to the norm `grad_clip`.

        Returns that mean's norm before clipping, a 0-dim tensor, the same on all processes. Every parameter must have
        a gradient: an assertion names one that has none. Gradients are used up: `zero_grad` before the next backward.
        """
        self.steps += 1
        for bucket in self.buckets:
            bucket.start_reduction()
        norm, grad_scale = self._norm_and_scale()
        scalars = {"momentum": momentum, "weight_decay": self.settings.weight_decay, "step": float(self.steps)}
        for bucket in self.buckets:
            bucket.start_update(lr_multiplier, scalars, grad_scale)
        for bucket in self.buckets:
            bucket.finish_update()
        return norm

    def _norm_and_scale(self) -> tuple[Tensor, Tensor]:
        """Norm of the mean gradient, and the factor that turns the summed gradient into the clipped mean."""
        squares = []
        for bucket in self.buckets:
            bucket.wait()
            owners = self.runtime.world_size if bucket.replicated else 1
            squares.append(torch.linalg.vector_norm(bucket.grads, dtype=bucket.dtype).square() / owners)
        total = torch.stack(squares).sum()
        if self.runtime.world_size > 1:
            dist.all_reduce(total)
        norm = total.sqrt() / self.runtime.world_size
        limit = self.settings.grad_clip or float("inf")
        return norm, (limit / (norm + 1e-6)).clamp(max=1.0) / self.runtime.world_size

    def zero_grad(self) -> None:
        """Drop all gradients."""
        for bucket in self.buckets:
            for param in bucket.params:
                param.grad = None

    @torch.no_grad()
    def state_dict(self) -> dict[str, Tensor]:
        """The whole state on the CPU, whatever the number of processes: "<parameter>.<moment>" and "step".

        The first process receives it; the others take part in gathering it and receive an empty dict.
        """
        full = {"step": torch.tensor(self.steps)}
        for bucket in self.buckets:
            for key in bucket.state:
                for name, tensor in zip(bucket.names, bucket.whole_state(key), strict=True):
                    if self.runtime.rank == 0:
                        full[f"{name}.{key}"] = tensor.to("cpu", copy=True)
        return full if self.runtime.rank == 0 else {}

    @torch.no_grad()
    def load_state_dict(self, full: Mapping[str, Tensor]) -> None:
        """Take over a whole state, written by any number of processes; each process passes all of it.

        Raises `UserError`, before anything is changed, for a state that belongs to another model.
        """
        expected = {
            f"{name}.{key}": param.shape
            for bucket in self.buckets
            for key in bucket.state
            for name, param in zip(bucket.names, bucket.params, strict=True)
        } | {"step": torch.Size()}
        found = {name: tensor.shape for name, tensor in full.items()}
        for name in sorted(expected.keys() | found.keys()):
            want, got = expected.get(name), found.get(name)
            if want != got:
                here, there = [tuple(shape) if shape is not None else "absent" for shape in (want, got)]
                raise UserError(f"this optimizer state belongs to another model: {name} is {there}, expected {here}")
        self.steps = int(full["step"])
        for bucket in self.buckets:
            for key, shard in bucket.state.items():
                shard.copy_(bucket.pack([full[f"{name}.{key}"] for name in bucket.names])[bucket.share])


def build_optimizer(
    model: OptimizableModel, runtime: Runtime, settings: OptimSettings | None = None, *, compiled: bool = False
) -> Optimizer:
    """Build the optimizer of all parameters of a model, which must be on their device already.

    Newton-Schulz runs in bfloat16 where that is the runtime's compute dtype, else in the weights' own precision.
    `compiled` compiles the update rules, once for each shape.
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
    """Build one optimizer for each entry of `partition`, the kinds of parameters that it updates; else as above."""
    dtype = torch.bfloat16 if runtime.compute_dtype == torch.bfloat16 else None
    rules = _rules(settings, model.config.n_embd, dtype, compiled)
    owner = {kind: index for index, kinds in enumerate(partition) for kind in kinds}
    grouped: list[dict[tuple[object, ...], tuple[UpdateRule, list[tuple[str, nn.Parameter]]]]] = [{} for _ in partition]
    seen: set[int] = set()
    for group in model.param_groups():
        assert group.kind in rules, f"no update rule for parameters of the kind {group.kind!r}"
        rule = rules[group.kind]
        for name, param in group.params:
            assert id(param) not in seen, f"{name} is in two groups"
            seen.add(id(param))
            # Matrices of one shape are stacked. Of the others only the small share a bucket: large ones are not copied.
            alike = param.shape if rule.by_matrix else param.numel() < MIN_SHARDED or name
            key = (group.kind, alike, param.dtype)
            grouped[owner[group.kind]].setdefault(key, (rule, []))[1].append((name, param))
    forgotten = [name for name, param in model.named_parameters() if id(param) not in seen]
    assert not forgotten, f"no group holds {', '.join(forgotten)}"
    return [
        Optimizer([Bucket(rule, members, runtime) for rule, members in buckets.values()], settings, runtime)
        for buckets in grouped
    ]
