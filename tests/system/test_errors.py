"""Errors become one line, and signals exit codes."""

from __future__ import annotations

import errno
import signal
from pathlib import Path

import pytest
import torch

from nanochat.system.errors import StoppedBySignal, UserError, as_user_error, find_fault_of_file, find_lost_process


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


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(errno.ENOSPC, "-", "/a/b.txt"), "/a/b.txt: No space left on device: free some space, or choose a fo"),
        (OSError(errno.EROFS, "-", "/a/b.txt"), "/a/b.txt: Read-only file system"),
        (PermissionError(errno.EACCES, "-", b"/a/b"), "/a/b: Permission denied"),
        (IsADirectoryError(errno.EISDIR, "-", Path("/a")), "/a: Is a directory"),
        (NotADirectoryError(errno.ENOTDIR, "-", "/a"), "/a: Not a directory"),
        (FileExistsError(errno.EEXIST, "-", "/a"), "/a: File exists"),
        (OSError(errno.ENAMETOOLONG, "-", "x"), "x: File name too long: choose a shorter name"),
        (OSError(errno.EFBIG, "-"), "File too large: raise the limit"),
        (OSError(errno.EMFILE, "-", "x"), "x: Too many open files: raise the limit of open files"),
        (OSError(errno.EIO, "-", "x"), "x: Input/output error"),
        (FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']"), "no temporary folder"),
    ],
)
def test_faults_of_files_are_the_users(error: OSError, line: str) -> None:
    found = find_fault_of_file(error)
    assert found is not None
    assert found.startswith(line)


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(errno.ENOENT, "-", "x"),
        OSError(errno.EBADF, "-"),
        OSError(errno.EINVAL, "-", "x"),
        OSError("of a library, without a number"),
        ConnectionResetError(errno.ECONNRESET, "-"),
        RuntimeError("No space left on device"),
        ValueError("x"),
    ],
)
def test_errors_that_may_be_bugs_keep_their_traceback(error: Exception) -> None:
    assert find_fault_of_file(error) is None


def test_a_write_of_safetensors_that_fails(tmp_path: Path) -> None:
    """The library has an exception of its own for it."""
    from safetensors.torch import save_file

    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(Exception, match="Not a directory") as caught:
        save_file({"a": torch.zeros(2)}, tmp_path / "file" / "below")
    found = find_fault_of_file(caught.value)
    assert found is not None
    assert found.startswith("Not a directory")


@pytest.mark.parametrize("length", [0, 1, 1500, 1990, 1999, 2000, 2001, 10**6])
def test_a_message_is_bounded(length: int) -> None:
    """A value that an error repeats can be of any length; the beginning and the reason are kept."""
    text = f"name={'x' * length}: must be short"
    message = str(UserError(text))
    assert len(message) < 2100
    assert message.startswith("name=")
    assert message.endswith(": must be short")
    assert (message == text) == (len(text) <= 2000)
