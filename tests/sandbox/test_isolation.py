"""Process isolation: hostile programs neither escape nor hang nor harm their caller, and nothing survives them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nanochat.common import UserError
from nanochat.execution import ISOLATION_LAYERS, run_program
from tests.support.hostile_programs import PREAMBLE, PROGRAMS, STARTING
from tests.support.sandbox import MARK, ROOT, Targets, assert_outcome, open_targets, survivors, wait_until_empty

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="programs run on Linux and macOS, not on Windows")


@pytest.fixture(scope="module")
def targets(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Targets]:
    with open_targets(tmp_path_factory.mktemp("targets")) as targets:
        yield targets


def test_layers(targets: Targets, capsys: pytest.CaptureFixture[str]) -> None:
    """Each layer can be left out. Prints the layers of this machine, because the other tests depend on them."""
    with capsys.disabled():
        print(f"\nisolation layers of this machine: {targets.active_layers}")
    assert set(targets.active_layers) == set(ISOLATION_LAYERS)
    for layer in ISOLATION_LAYERS:
        left_out = {layer} | ({"mounts"} if layer == "namespaces" else set())
        if layer in ("namespaces", "seccomp") and os.geteuid() == 0 and not targets.active_layers["namespaces"]:
            continue
        expected = {name for name in ISOLATION_LAYERS if targets.active_layers[name]} - left_out
        assert set(run_program("", 30.0, without=[layer]).layers) == expected


@pytest.mark.parametrize("name", PROGRAMS)
def test_hostile_program(name: str, targets: Targets) -> None:
    targets.check(name, "all layers", PROGRAMS)


NAMES = list(PROGRAMS)
# "read keys" is absent: without Landlock the names of the folders above Python are visible.
FILES = [name for name in NAMES[NAMES.index("read a secret") : NAMES.index("connect")] if name != "read keys"]


@pytest.mark.parametrize("name", FILES)
def test_mounts_alone_guard_files(name: str, targets: Targets) -> None:
    targets.check(name, "no landlock", {name: PROGRAMS[name] for name in FILES})


@pytest.mark.parametrize("configuration", ["no seccomp", "only namespaces"])
@pytest.mark.parametrize("name", STARTING)
def test_child_processes_end_with_the_program(name: str, configuration: str, targets: Targets) -> None:
    targets.check(name, configuration, STARTING)


def test_targets_are_unharmed(targets: Targets) -> None:
    """After all of the above."""
    targets.assert_all_unharmed()


def test_survivors_would_be_seen(targets: Targets) -> None:
    with subprocess.Popen(["/bin/sleep", "1000"], executable="/bin/sleep") as unmarked:
        marked = subprocess.Popen([MARK, "1000"], executable="/bin/sleep")
        deadline = time.monotonic() + 30
        while not survivors() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert len(survivors()) == 1
        for process in (unmarked, marked):
            process.kill()
            process.wait()
    targets.assert_unharmed()


def test_enough_hostile_programs() -> None:
    assert len(PROGRAMS) + len(STARTING) > 100


def test_a_killed_caller_leaves_no_process(tmp_path: Path) -> None:
    """The supervisor dies with its caller, and the program with the supervisor."""
    source = f"import os; os.execv('/bin/sleep', ['{MARK}', '1000'])"
    code = f"from nanochat.execution import run_program\nrun_program({source!r}, 1000.0)"
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=environment) as caller:
        for is_killed in (False, True):
            if is_killed:
                caller.kill()
            deadline = time.monotonic() + 60
            while bool(survivors()) == is_killed and time.monotonic() < deadline:
                time.sleep(0.02)
            assert bool(survivors()) != is_killed


def test_an_interrupted_caller_cleans_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    source = f"import os; os.execv('/bin/sleep', ['{MARK}', '1000'])"

    def interrupt() -> None:
        while not survivors():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        run_program(source, 100.0)
    assert survivors() == []
    wait_until_empty(tmp_path)


def test_without_any_layer() -> None:
    """As on macOS: resource limits alone. No process can be started; root, who could start some, is refused."""
    if os.geteuid() == 0:
        with pytest.raises(UserError, match="another user"):
            run_program("print(1)", 30.0, without=ISOLATION_LAYERS)
        return
    for name in (
        "fork",
        "no end",
        "one large object",
        "a large file",
        "flood",
        "secrets",
        "input",
        "an error",
        "open files",
    ):
        expected, text = PROGRAMS[name]
        result = run_program(PREAMBLE + text, 1.0 if expected == "time" else 30.0, without=ISOLATION_LAYERS)
        assert_outcome(expected, result)
        assert result.layers == ()


# Without layers a program can reach its supervisor. It also takes itself off the list of what dies with it.
ATTACKS = {
    "stop": "os.kill(os.getppid(), signal.SIGSTOP)",
    "trace": "libc.ptrace(16, os.getppid(), None, None)",
    "kill": "os.kill(os.getppid(), signal.SIGKILL)",
}
ATTACK = """
import ctypes, os, signal, time
libc = ctypes.CDLL(None)
libc.prctl(1, 0)
$attack
os.execv('/bin/sleep', ['$mark', '1000'])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="calls of Linux")
@pytest.mark.parametrize("attack", ATTACKS)
def test_a_program_that_attacks_its_supervisor(attack: str, tmp_path: Path) -> None:
    """The caller goes on soon after the timeout, and nothing survives."""
    source = ATTACK.replace("$attack", ATTACKS[attack]).replace("$mark", MARK)
    code = f"""
import os, sys, nanochat.execution as execution
if os.geteuid() == 0:
    execution._START = execution._START.replace("; main()", "; import os; os.geteuid = lambda: 1; main()")
result = execution.run_program({source!r}, 1.0, without=execution.ISOLATION_LAYERS)
print(result.ok, result.error)
"""
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=25)
    expected = "its supervisor was killed" if attack == "kill" else "not done after 1 seconds"
    assert done.stdout == f"False {expected}\n", done
    assert survivors() == []
    wait_until_empty(tmp_path)
