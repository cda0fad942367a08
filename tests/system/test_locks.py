"""Locks between processes: one holder at a time, named to the others, gone with its process, with and without flock."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from nanochat.common import UserError
from nanochat.system import locks
from nanochat.system.locks import FileLock, Holder, acquire, file_lock

ROOT = Path(__file__).resolve().parent.parent.parent
pytestmark = pytest.mark.skipif(locks.fcntl is None, reason="this system has no flock")

# Takes the lock of argv[1] and keeps it; with a second argument flock answers with this error.
KEEPER = """
import errno, fcntl, os, sys, time
from pathlib import Path
if sys.argv[2:] and sys.argv[2] != "fork":
    def flock(*_):
        raise OSError(getattr(errno, sys.argv[2]), "no locks here")
    fcntl.flock = flock
from nanochat.system.locks import acquire
lock = acquire(Path(sys.argv[1]), "the folder is in use by")
child = os.fork() if "fork" in sys.argv else 1
if child:
    print(os.getpid(), flush=True)
time.sleep(60)
"""


@pytest.fixture(params=["flock", "ENOSYS", "EOPNOTSUPP", "ENOLCK"])
def answer(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The file system's answer to flock: it works, or an error. Returns the arguments of `KEEPER` for it."""
    if request.param == "flock":
        return []

    def flock(*_: object) -> None:
        raise OSError(getattr(errno, request.param), "no locks here")

    monkeypatch.setattr(locks.fcntl, "flock", flock)
    return [request.param]


@contextmanager
def keeper(path: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the lock."""
    command = [sys.executable, "-c", KEEPER, str(path), *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        try:
            assert process.stdout
            assert process.stdout.readline().strip() == str(process.pid)
            yield process
        finally:
            process.kill()


def test_one_at_a_time(tmp_path: Path, answer: list[str]) -> None:
    """In one process, too; afterwards no file is left."""
    path = tmp_path / "new" / ".lock"
    for _ in range(2):
        with file_lock(path, "it is in use by"):
            with pytest.raises(UserError, match=rf"^it is in use by process {os.getpid()} of '.+', since 20\d\d-"):
                acquire(path, "it is in use by")
            assert path.exists()
        assert not list(path.parent.iterdir())
    with pytest.raises(KeyError), file_lock(path, "it is in use by"):
        raise KeyError
    assert not list(path.parent.iterdir())
    lock = FileLock(path)
    assert lock.try_acquire() is None
    assert lock.is_by_name == bool(answer)
    lock.release()


def test_another_process(tmp_path: Path, answer: list[str]) -> None:
    """It is named while it lives, and after kill -9 the lock is free at once."""
    path = tmp_path / ".lock"
    with keeper(path, *answer) as process:
        with pytest.raises(UserError) as failure:
            acquire(path, "the folder is in use by", "choose another one")
        message = str(failure.value)
        assert f"process {process.pid} of " in message
        assert "choose another one" in message
        assert "\n" not in message
        assert (f"if that process has ended, remove {path}" in message) == bool(answer)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert path.exists()
        with file_lock(path, "the folder is in use by"):
            pass
    assert not list(tmp_path.iterdir())


def test_a_child_of_a_killed_process_does_not_keep_the_lock(tmp_path: Path) -> None:
    """As the processes that render batches, which live a moment longer."""
    path = tmp_path / ".lock"
    with keeper(path, "fork") as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        deadline = time.monotonic() + 60
        while True:
            try:
                with file_lock(path, "the folder is in use by"):
                    return
            except UserError:  # a child that has not come to run yet holds what it was given
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)


def test_waiting(tmp_path: Path, answer: list[str]) -> None:
    """One notice that names the holder, then the lock, as soon as the holder has ended."""
    notices: list[str] = []
    path = tmp_path / ".lock"
    with keeper(path, *answer) as process:

        def notice(text: str) -> None:
            notices.append(text)
            process.kill()

        with file_lock(path, "the folder is written to by", notice=notice):
            pass
    [text] = notices
    assert text.startswith(f"the folder is written to by process {process.pid} of ")
    assert text.endswith("; waiting for it")


@pytest.mark.parametrize("answer", ["ENOSYS"], indirect=True)
@pytest.mark.parametrize(
    "change",
    [
        lambda holder: asdict(replace(holder, host="elsewhere")),
        lambda holder: asdict(replace(holder, space="pid:[1]")),
        lambda _: "",
        lambda _: [],
        lambda _: {"pid": "x" * 5000},
    ],
)
@pytest.mark.usefixtures("answer")
def test_an_unknown_holder_is_never_waited_for(
    tmp_path: Path, change: Callable[[Holder], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without flock, a file of another machine, another container, or of nobody may stay for ever."""
    monkeypatch.setattr(locks, "READ_SECONDS", 0.05)
    path = tmp_path / ".lock"
    holder = replace(Holder.this_process(), pid=4_000_000)
    if holder.space == "":
        pytest.skip("this system has no process name spaces")
    path.write_text(json.dumps(change(holder)), encoding="utf-8")
    with pytest.raises(UserError, match=rf"if that process has ended, remove {path}"):
        acquire(path, "it is in use by", notice=lambda _: None)
    assert path.exists()


@pytest.mark.parametrize("answer", ["ENOSYS"], indirect=True)
@pytest.mark.usefixtures("answer")
def test_a_number_that_was_given_again(tmp_path: Path) -> None:
    """The file names a living process of this machine, which was started later than the holder."""
    path = tmp_path / ".lock"
    holder = replace(Holder.this_process(), pid=os.getppid())
    if not holder.start:
        pytest.skip("this system does not tell when a process was started")
    path.write_text(json.dumps(asdict(replace(holder, start="1"))), encoding="utf-8")
    with file_lock(path, "it is in use by"):
        assert json.loads(path.read_text(encoding="utf-8"))["pid"] == os.getpid()


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    """Links and pipes are not written through either."""
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    os.link(tmp_path / "file", tmp_path / "hard")
    os.mkfifo(tmp_path / "pipe")
    for name in ("file/.lock", "dangling", "link", "hard", "pipe"):
        with pytest.raises(UserError, match="cannot be written"):
            acquire(tmp_path / name, "it is in use by")
    assert (tmp_path / "file").read_text(encoding="utf-8") == "mine"


@pytest.mark.usefixtures("answer")
def test_many_processes_take_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each adds 1 to a number in a file many times; a lock that two hold at once would lose some."""
    monkeypatch.setattr(locks, "POLL_SECONDS", 0.01)
    counter = tmp_path / "counter"
    counter.write_text("0", encoding="utf-8")
    children = []
    for _ in range(3):
        child = os.fork()
        if child == 0:
            for _ in range(20):
                with file_lock(tmp_path / ".lock", "in use by", notice=lambda _: None):
                    number = int(counter.read_text(encoding="utf-8"))
                    time.sleep(0.001)
                    counter.write_text(str(number + 1), encoding="utf-8")
            os._exit(0)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
    assert counter.read_text(encoding="utf-8") == "60"


@pytest.mark.parametrize(("number", "words"), [(errno.ENOSPC, "free some space"), (errno.EACCES, "make its folder")])
def test_the_remedy_follows_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, words: str
) -> None:
    def fail(_: Path) -> tuple[bool, int]:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(locks, "_open", fail)
    with pytest.raises(UserError, match=rf"\.lock cannot be written \({os.strerror(number)}\): {words}"):
        acquire(tmp_path / ".lock", "in use by")
