"""Errors become one line, and signals exit codes."""

from __future__ import annotations

import signal

import pytest
import torch

from nanochat.system.errors import StoppedBySignal, UserError, as_user_error, find_lost_process


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError("no such file"), "x.zip cannot be read: no such file"),
        (RuntimeError("\n  first line  \nsecond line"), "x.zip cannot be read: first line"),
        (KeyError(), "x.zip cannot be read: KeyError"),
        (UserError("empty"), "x.zip cannot be read: empty"),
    ],
)
def test_as_user_error(error: Exception, message: str) -> None:
    with pytest.raises(UserError) as caught, as_user_error("x.zip cannot be read"):
        raise error
    assert str(caught.value) == message
    assert caught.value.__cause__ is error


def test_as_user_error_without_an_error() -> None:
    with as_user_error("x"):
        result = 1
    assert result == 1


def test_interrupts_are_not_user_errors() -> None:
    with pytest.raises(KeyboardInterrupt), as_user_error("x"):
        raise KeyboardInterrupt


def test_exit_code_of_a_stopped_run() -> None:
    stopped = StoppedBySignal(signal.SIGTERM, "Stopped at step 3.")
    assert (stopped.exit_code, str(stopped)) == (143, "Stopped at step 3.")


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (RuntimeError("[/src/gloo/transport/tcp/pair.cc:5] Connection closed by peer [10.0.0.2]:4"),
         "Connection closed by peer [10.0.0.2]:4"),
        (RuntimeError("[/src/gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 9000ms for recv operation"),
         "Timed out waiting 9000ms for recv operation"),
        (RuntimeError("Application timeout caused pair closure"), "Application timeout caused pair closure"),
        (torch.distributed.DistBackendError("NCCL error in: a.cpp\nncclRemoteError: A call"), "NCCL error in: a.cpp"),
        (torch.distributed.DistBackendError("NCCL error in: a.cpp:7\nncclUnhandledCudaError: out of memory"), None),
        (torch.distributed.DistNetworkError("The client socket has timed out"), "The client socket has timed out"),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), None),
        (RuntimeError(""), None),
        (OSError("Connection reset by peer"), None),
    ],
)  # fmt: skip
def test_find_lost_process(monkeypatch: pytest.MonkeyPatch, error: Exception, cause: str | None) -> None:
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "4")
    expected = f"process 3: another process of this run has ended or cannot be reached: {cause}"
    assert find_lost_process(error) == (expected if cause else None)
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert find_lost_process(error) is None
