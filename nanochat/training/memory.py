"""Memory of a training run, computed without allocating it: a model on the meta device takes a step, and the bytes of
its tensors are counted.

    training_memory(GPTConfig.from_depth(20, vocab_size=65536, sequence_len=2048), torch.bfloat16, rows=16).peak

Meta tensors have shapes but no data, so a model of any size takes a second or two. What a real device adds is not
counted: the context of the driver, workspaces of libraries, unused parts of the allocator's blocks.

Letters in shape comments: B rows, T tokens of a row, H heads, D size of a head.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nanochat.gpt import GPT, GPTConfig
from nanochat.optim import build_optimizer
from nanochat.runtime import Runtime
from nanochat.train import warm_up

META = torch.device("meta")
PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "_scaled_mm")  # names of torch's matrix products


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes that one device needs for a run."""

    weights: int
    gradients: int
    optimizer_state: int  # of this process's shard
    activations: int  # the most that a forward and backward pass needs besides the three above
    step_buffers: int  # the most that the optimizer's step needs besides them

    @property
    def constant(self) -> int:
        """Bytes in use throughout the run, whatever the number of rows."""
        return self.weights + self.gradients + self.optimizer_state

    @property
    def peak(self) -> int:
        """The most bytes in use at one time: activations are freed before the optimizer's step."""
        return self.constant + max(self.activations, self.step_buffers)

    def __str__(self) -> str:
        parts = {name.replace("_", " "): value for name, value in vars(self).items()}
        return ", ".join(f"{name} {format_bytes(value)}" for name, value in parts.items())


def format_bytes(num_bytes: float) -> str:
    """Return a number of bytes in GB, or in MB if it is below 1 GB.

    >>> format_bytes(12_345_000_000), format_bytes(850_000_000)
    ('12.3 GB', '850 MB')
    """
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.0f} MB"


def training_memory(
    config: GPTConfig,
    compute_dtype: torch.dtype,
    rows: int,
    sequence_len: int | None = None,
    *,
    world_size: int = 1,
    compiled: bool = False,
    checkpoint_activations: bool = False,
) -> TrainingMemory:
    """Return the memory of training a model of this shape on micro-batches of `rows` rows, for one of `world_size`
    processes. `sequence_len` None: rows as long as the model's context.

    Uncompiled, every tensor of the step is counted. Compiled, the blocks are assumed to keep the inputs and outputs of
    their matrix products and of attention for the backward pass, which is what torch's partitioner chooses, and to need
    no memory for what is elementwise. The buffers of the optimizer's step are those of one process; with several, each
    process updates a shard, with smaller ones.
    """
    model = meta_model(config, compute_dtype, checkpoint_activations)
    weights = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    shape = (rows, sequence_len or config.sequence_len)
    runtime = Runtime(0, 0, world_size, META, compute_dtype, seed=0)
    sharded = build_optimizer(model, runtime)
    _fill_gradients(model)  # as in all micro-batches of a step but the first
    activations = _compiled_activations(model, shape) if compiled else _activations(model, shape)
    _fill_gradients(model)
    return TrainingMemory(
        weights=weights,
        gradients=sum(param.nbytes for param in model.parameters()),
        optimizer_state=sum(state.nbytes for bucket in sharded.buckets for state in bucket.state.values()),
        activations=activations,
        step_buffers=_step_buffers(model, replace(runtime, world_size=1)),
    )


def evaluation_memory(config: GPTConfig, compute_dtype: torch.dtype, rows: int, sequence_len: int | None = None) -> int:
    """Return the bytes of weights and activations while an uncompiled model computes the losses of `rows` rows."""
    model = meta_model(config, compute_dtype)
    ids = torch.zeros(rows, sequence_len or config.sequence_len, dtype=torch.int64, device=META)
    with torch.no_grad(), counted_bytes() as counter:
        model(ids, ids, loss_reduction="none")
    return sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers())) + counter.peak


def meta_model(config: GPTConfig, compute_dtype: torch.dtype, checkpoint_activations: bool = False) -> GPT:
    """Return a model without data, on the meta device."""
    with META:
        model = GPT(config, compute_dtype)
    model.checkpoint_activations = checkpoint_activations
    return model


def _fill_gradients(model: GPT) -> None:
    for param in model.parameters():
        param.grad = torch.empty_like(param)


def largest_fitting(sizes: Iterable[int], bytes_of: Callable[[int], float], limit: float) -> int:
    """Return the largest of `sizes` whose bytes are within the limit; 0 if there is none.

    `bytes_of` must grow with the size. It is called for few of the sizes.

    >>> largest_fitting([1, 2, 4, 8, 16], lambda size: 10 * size, limit=45)
    4
    """
    candidates = sorted(sizes)
    low, high = 0, len(candidates)  # candidates before `low` fit, those from `high` on do not
    while low < high:
        middle = (low + high) // 2
        if bytes_of(candidates[middle]) <= limit:
            low = middle + 1
        else:
            high = middle
    return candidates[low - 1] if low else 0


# --- counting ---------------------------------------------------------------------------------------------------------


class ByteCounter(TorchDispatchMode):
    """Counts the bytes of the tensors that are created while this mode is active, on any device.

    `live` are the bytes in use now, `peak` the most so far. Tensors that share their memory count once.

    With `weights`, the inputs and outputs of matrix products and attention are kept in memory until the counter is
    dropped: `product_bytes` are the bytes of all of them except these weights, `largest_product` of the largest.
    """

    def __init__(self, weights: Iterable[Tensor] | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = 0
        self.peak = 0
        self.product_bytes = 0
        self.largest_product = 0
        self.sizes: dict[int, int] = {}  # of the memory in use, by the address of its storage
        self.keeps_products = weights is not None
        self.products = {_address(tensor): tensor for tensor in weights or ()}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        inputs = {_address(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        for tensor in outputs:
            if _address(tensor) not in inputs:
                self._add(tensor)
        if func.__name__.partition(".")[0] in PRODUCTS:
            self.add_product(*(leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)), *outputs)
        return result

    def add_product(self, *tensors: Tensor) -> None:
        """Keep inputs and outputs of a matrix product or of attention."""
        for tensor in tensors if self.keeps_products else ():
            if _address(tensor) in self.products:
                continue
            self.products[_address(tensor)] = tensor
            num_bytes = tensor.untyped_storage().nbytes()
            self.product_bytes += num_bytes
            self.largest_product = max(self.largest_product, num_bytes)

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        address = _address(tensor)
        if address in self.sizes:
            return
        self.sizes[address] = storage.nbytes()
        self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._remove, address)

    def _remove(self, address: int) -> None:
        self.live -= self.sizes.pop(address)


def _address(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


@contextmanager
def counted_bytes(weights: Iterable[Tensor] | None = None) -> Iterator[ByteCounter]:
    """Context manager that counts bytes, with attention as a fused kernel needs it.

    `weights` are those of `ByteCounter`. Torch's own attention is replaced meanwhile, because on the meta device it is
    the unfused one.
    """
    counter = ByteCounter(weights)

    def attention(q: Tensor, k: Tensor, v: Tensor, **_: Any) -> Tensor:
        out: Tensor = _FusedAttention.apply(q, k, v)
        counter.add_product(q, k, v, out)
        # Values are a copy of their part of the product of queries, keys and values, of which only the rest is kept.
        counter.product_bytes -= v.nbytes
        return out

    with counter, patch.object(F, "scaled_dot_product_attention", attention):
        yield counter


class _FusedAttention(torch.autograd.Function):
    """Attention as far as its memory is concerned: a fused kernel stores no scores, only their log-sum-exp."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = torch.empty_like(q)  # (B, H, T, D), stored in the order of q, as torch's kernels do
        log_sums = q.new_empty(q.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(q, k, v, out, log_sums)
        return out

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> Any:
        return tuple(torch.empty_like(tensor) for tensor in ctx.saved_tensors[:3])


def _activations(model: GPT, shape: tuple[int, int]) -> int:
    """Return the peak of an uncompiled forward and backward pass on ids of this shape, (B, T)."""
    with counted_bytes() as counter:
        warm_up(model, model, *shape)
    return counter.peak


def _compiled_activations(model: GPT, shape: tuple[int, int]) -> int:
    """Return the peak of a compiled forward and backward pass, under the assumptions of `training_memory`."""
    ids = torch.zeros(shape, dtype=torch.int64, device=META)
    with counted_bytes(weights=(*model.parameters(), *model.buffers())) as counter:
        hidden = model.hidden_states(ids)  # (B, T, C)
    in_blocks = counter.product_bytes
    if model.checkpoint_activations:
        num_blocks = len(model.blocks)
        in_blocks = num_blocks * hidden.nbytes + in_blocks // num_blocks
    leaf = hidden.detach().requires_grad_()

    def loss_of_leaf(_: Tensor, targets: Tensor, loss_reduction: str) -> Tensor:
        loss: Tensor = model(leaf, targets, loss_reduction=loss_reduction)
        return loss

    with counted_bytes() as loss_counter, patch.object(model, "hidden_states", lambda hidden, *_: hidden):
        warm_up(loss_of_leaf, model, *shape)
    return 2 * hidden.nbytes + in_blocks + max(loss_counter.peak, hidden.nbytes + counter.largest_product)


def _step_buffers(model: GPT, runtime: Runtime) -> int:
    """Return the peak of an optimizer step of one process, besides weights, gradients and state."""
    optimizer = build_optimizer(model, runtime)
    with counted_bytes() as counter:
        optimizer.step()
    return counter.peak
