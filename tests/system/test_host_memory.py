"""Copies in host memory are equal, and independent of the tensor."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nanochat.system.host_memory import copy_to_host, wait_for_copies

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
@pytest.mark.parametrize("shape", [(), (0,), (5,), (300, 70)])
def test_copies(device: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    tensor = torch.arange(torch.Size(shape).numel()).view(shape).to(device, dtype)
    expected = tensor.cpu().clone()
    copy = copy_to_host(tensor)
    tensor.add_(1)  # queued after the copy
    wait_for_copies(tensor.device)
    assert (copy.device.type, copy.dtype) == ("cpu", dtype)
    assert torch.equal(copy, expected)
    assert copy.is_pinned() == (device == "cuda") or tensor.numel() == 0


def test_a_view_and_a_parameter() -> None:
    """Gradients are not followed, and of a view only the visible elements are copied."""
    table = torch.nn.Parameter(torch.randn(4, 6))
    copy = copy_to_host(table.T[1:3])
    assert not copy.requires_grad
    assert torch.equal(copy, table.detach().T[1:3])
    assert copy.untyped_storage().nbytes() == copy.numel() * 4


class _FakeGPUTensor:
    """A tensor as `copy_to_host` sees it, on a GPU that is not there."""

    device = torch.device("cuda:0")

    def __init__(self, values: Tensor) -> None:
        self.values = values
        self.shape, self.dtype = values.shape, values.dtype

    def detach(self) -> _FakeGPUTensor:
        return self

    def to(self, device: str) -> Tensor:
        return self.values.to(device, copy=True)


def test_without_pinned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A system that refuses pinned memory gets other memory, and a copy that is complete."""

    def refuse(*_: object, pin_memory: bool, **__: object) -> Tensor:
        assert pin_memory
        raise RuntimeError("CUDA error: out of memory")

    values = torch.randn(3)
    monkeypatch.setattr(torch, "empty", refuse)
    copy = copy_to_host(_FakeGPUTensor(values))  # type: ignore[arg-type]
    assert torch.equal(copy, values)
    assert copy.data_ptr() != values.data_ptr()


def test_the_wait_is_for_the_devices_own_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    waited = []

    class Stream:
        def __init__(self, device: torch.device) -> None:
            self.device = device

        def synchronize(self) -> None:
            waited.append(self.device)

    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    wait_for_copies(torch.device("cpu"))
    assert waited == []
    wait_for_copies(torch.device("cuda:1"))
    assert waited == [torch.device("cuda:1")]
