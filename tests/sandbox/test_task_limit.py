"""The limit on tasks counts those of the program, those that live, for root and others alike."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

import pytest

from nanochat.common import UserError
from nanochat.execution import run_program
from nanochat.sandbox.task_limit import MAX_TASKS, count_tasks
from tests.support.sandbox import CONFIGURATIONS, REASON_FOR_LACK, isolation_layers

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="seccomp is a part of Linux")

# Starts threads until none can be started, twice, and prints their numbers.
WAVES = """
import threading
for _ in range(2):
    end = threading.Event()
    threads = []
    try:
        while len(threads) < 1000:
            threads.append(threading.Thread(target=end.wait))
            threads[-1].start()
    except RuntimeError:
        threads.pop()
    print(len(threads))
    end.set()
    for thread in threads: thread.join()
"""


@pytest.mark.parametrize("configuration", ["all layers", "no namespaces"])
def test_threads_that_have_ended_do_not_count(configuration: str) -> None:
    without, needed = CONFIGURATIONS[configuration]
    layers = isolation_layers()
    if lacking := {layer for layer in needed if not layers[layer]}:
        pytest.skip("; ".join(sorted(REASON_FOR_LACK[layer] for layer in lacking)))
    result = run_program(WAVES, 60.0, 16 << 30, without=without)
    counts = [int(line) for line in result.stdout.split()]
    assert len(counts) == 2, result
    assert all(MAX_TASKS - 4 <= count < MAX_TASKS for count in counts), counts


@pytest.mark.parametrize(("stack", "expected"), [("", 20), ("threading.stack_size(1 << 20)", MAX_TASKS - 4)])
@pytest.mark.parametrize("configuration", ["all layers", "no namespaces", "no seccomp"])
def test_threads_fit_into_the_usual_memory(configuration: str, stack: str, expected: int) -> None:
    """README names these numbers: the address space must not be spent on more than the stacks."""
    without, needed = CONFIGURATIONS[configuration]
    layers = isolation_layers()
    if lacking := {layer for layer in needed if not layers[layer]}:
        pytest.skip("; ".join(sorted(REASON_FOR_LACK[layer] for layer in lacking)))
    result = run_program(f"import threading\n{stack}\n{WAVES}", 60.0, without=without)
    counts = [int(line) for line in result.stdout.split()]
    assert len(counts) == 2, result
    assert min(counts) >= expected, counts


@pytest.mark.parametrize("without", [("namespaces", "seccomp"), ("namespaces", "landlock", "seccomp")])
def test_without_namespaces_and_seccomp_there_are_no_threads(without: tuple[str, ...]) -> None:
    """And root is refused, whatever Linux's version."""
    if os.geteuid() == 0:
        with pytest.raises(UserError, match="another user"):
            run_program(WAVES, 60.0, without=without)
    else:
        assert run_program(WAVES, 60.0, without=without).stdout.split() == ["0", "0"]


def test_processes_that_cannot_start_threads_without_end() -> None:
    """Without seccomp's list of calls, processes and threads are counted together."""
    if not isolation_layers()["namespaces"]:
        pytest.skip(REASON_FOR_LACK["namespaces"])
    source = """
import os, threading, time
for _ in range(4):
    if os.fork() == 0:
        try:
            while True: threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
        except RuntimeError: os.write(1, b'%d ' % threading.active_count())
        time.sleep(2)
        os._exit(0)
time.sleep(1)
"""
    result = run_program(source, 60.0, 16 << 30, without=["seccomp"])
    counts = [int(line) for line in result.stdout.split()]
    assert len(counts) == 4, result
    assert sum(counts) <= MAX_TASKS, counts


def test_count() -> None:
    """Of threads, children and grandchildren of this process."""
    proc = os.open("/proc", os.O_RDONLY)
    begun = count_tasks(os.getpid(), proc)
    end = threading.Event()
    threads = [threading.Thread(target=end.wait) for _ in range(3)]
    for thread in threads:
        thread.start()
    code = (
        "import subprocess; p = subprocess.Popen(['/bin/sleep', '1000'])\n"
        "print(1, flush=True); input(); p.kill(); p.wait()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout
        child.stdout.readline()
        assert count_tasks(os.getpid(), proc) == begun + 3 + 2
        assert count_tasks(child.pid, proc) == 2
        child.communicate("\n")
    end.set()
    for thread in threads:
        thread.join()
    assert count_tasks(child.pid, proc) == 0
    deadline = time.monotonic() + 30
    while count_tasks(os.getpid(), proc) != begun and time.monotonic() < deadline:
        time.sleep(0.01)  # a thread is still in /proc for a moment after it was joined
    assert count_tasks(os.getpid(), proc) == begun
    os.close(proc)
    not_proc = os.open("/usr", os.O_RDONLY)
    with pytest.raises(OSError, match="No such file"):
        count_tasks(os.getpid(), not_proc)
    os.close(not_proc)
