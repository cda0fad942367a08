"""Tensors that claim to be on a GPU and hold no data, with a log of their operations and of the host's waits.

Operations on them check devices, dtypes and shapes as on a GPU: a mix of devices raises, and so does a result whose
shape depends on data. No GPU is needed. Values that the host reads are replaced by 1.

torch's backward pass needs a real device, so `backward` adds ones to the gradients of the weights that it would reach.
Its own operations are covered on the meta device (tests/test_fake_cuda.py).
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nanochat.gpt import GPT, GPTConfig
from nanochat.runtime import Runtime

CUDA = torch.device("cuda", 0)
MIN_TORCH = (2, 11)
RUNTIME = Runtime(0, 0, 1, CUDA, torch.bfloat16, 42)

_aten: Any = torch.ops.aten
_READS = {_aten._local_scalar_dense.default, _aten.item.default}
_COPIES = {_aten._to_copy.default, _aten.copy_.default}
_FUSED = {_aten.scaled_dot_product_attention.default, _aten.rms_norm.default}  # one kernel on a GPU
# Besides views: what allocates or asks, and runs nothing on the device.
_WITHOUT_KERNEL = ("empty", "new_empty", "detach", "device", "_unsafe_view", "lift", "alias")


class DeviceLog(TorchDispatchMode):
    """Counts by name: `kernels` of the device, and `waits` of the host for it.

    A wait is a value that the host reads, a copy between host and device that is not `non_blocking`, or a call of
    `synchronize`. Views and allocations are no kernels. `cudnn_allowed`: for each attention, True if torch may choose
    cuDNN's kernel.
    """

    def __init__(self) -> None:
        super().__init__()
        self.kernels: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()
        self.cudnn_allowed: list[bool] = []

    def clear(self) -> None:
        self.kernels.clear()
        self.waits.clear()
        self.cudnn_allowed.clear()

    def __torch_dispatch__(
        self, func: Any, _types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _READS:
            self.waits["item"] += args[0].device.type == "cuda"
            return one(args[0].dtype)
        if func.namespace == "aten" and func not in _FUSED:
            with self:
                result = func.decompose(*args, **kwargs)  # inference mode keeps composite operations whole
            if result is not NotImplemented:
                return result
        result = func(*args, **kwargs)
        devices = {value.device.type for value in tree_leaves((args, result)) if isinstance(value, Tensor)}
        name = func.__name__.partition(".")[0]
        is_async = kwargs.get("non_blocking", False) or (name == "copy_" and args[2:3] == (True,))
        if func in _COPIES and devices >= {"cpu", "cuda"} and not is_async:
            self.waits["copy"] += 1
        if "cuda" in devices and not func.is_view and not name.startswith(_WITHOUT_KERNEL):
            self.kernels[name] += 1
        return result


def one(dtype: torch.dtype) -> bool | int | float:
    """The number 1 as a value of this dtype."""
    return True if dtype == torch.bool else 1.0 if dtype.is_floating_point else 1


def _ones(shape: Sequence[int], dtype: torch.dtype) -> Any:
    return [_ones(shape[1:], dtype) for _ in range(shape[0])] if shape else one(dtype)


def _backward(loss: Tensor) -> None:
    """Add ones to the gradients of all weights that `loss` depends on."""
    assert loss.dim() == 0, f"backward of a tensor of the shape {tuple(loss.shape)}"
    pending = [loss.grad_fn]
    seen = set()
    while pending:
        node: Any = pending.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        pending += [source for source, _ in node.next_functions]
        if hasattr(node, "variable"):
            weight = node.variable
            weight.grad = torch.ones_like(weight) if weight.grad is None else weight.grad + 1


@contextmanager
def fake_cuda() -> Iterator[DeviceLog]:
    """Context manager in which tensors on `CUDA` can be made without a GPU. Yields the log of their operations.

    Skips the test on versions of torch that ask the driver before they index such a tensor (seen with 2.9).
    """
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < MIN_TORCH:
        pytest.skip("this version of torch indexes no fake tensors without a GPU")
    log = DeviceLog()
    generator = torch.Generator
    attention = F.scaled_dot_product_attention

    def cpu_generator(_device: object = None) -> torch.Generator:
        return generator()

    def synchronize(*_: object) -> None:
        log.waits["synchronize"] += 1

    def tolist(tensor: Tensor) -> Any:
        log.waits["tolist"] += tensor.device.type == "cuda"  # one copy, whatever the number of values
        return _ones(tensor.shape, tensor.dtype)

    def logged_attention(*args: Any, **kwargs: Any) -> Tensor:
        log.cudnn_allowed.append(torch.backends.cuda.cudnn_sdp_enabled())
        return attention(*args, **kwargs)

    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")
        stack.enter_context(FakeTensorMode())
        stack.enter_context(mock.patch.object(torch, "Generator", cpu_generator))
        stack.enter_context(mock.patch.object(torch.cuda, "synchronize", synchronize))
        stream = SimpleNamespace(synchronize=synchronize)
        stack.enter_context(mock.patch.object(torch.cuda, "current_stream", mock.Mock(return_value=stream)))
        stack.enter_context(mock.patch.object(FakeTensor, "tolist", tolist))
        stack.enter_context(mock.patch.object(Tensor, "backward", _backward))
        stack.enter_context(mock.patch.object(F, "scaled_dot_product_attention", logged_attention))
        yield stack.enter_context(log)


def fake_model(vocab_size: int = 265, sequence_len: int = 64, num_layers: int = 2, **shape: Any) -> GPT:
    """A model on the fake GPU that computes in bf16. Only within `fake_cuda`."""
    sizes = {"n_layer": num_layers, "n_head": 2, "n_kv_head": 2, "n_embd": 32, **shape}
    with CUDA:
        model = GPT(GPTConfig(sequence_len=sequence_len, vocab_size=vocab_size, **sizes), torch.bfloat16)
    model.init_weights()
    return model


def fake_ids(*shape: int) -> Tensor:
    """Token ids on the fake GPU."""
    return torch.zeros(shape, dtype=torch.int64, device=CUDA)
