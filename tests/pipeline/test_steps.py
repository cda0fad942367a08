"""Steps: what is skipped, what is run again, the id of a run that was stopped, and the end of a process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from nanochat.common import StoppedBySignal
from nanochat.pipeline.steps import Step, StepFailed, StepRunner, run_module
from tests.support.sources import ROOT


class Runs:
    """Stands in for processes: records the runs, and writes the result of a module, the file that its flag names."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []  # module and run id
        self.failing: str | None = None

    def __call__(self, module: str, flags: Sequence[str], run_id: str) -> None:
        self.calls.append((module, run_id))
        if module == self.failing:
            raise StepFailed(f"{module} failed", 2)
        Path(flags[0]).write_text(module, encoding="utf-8")

    @property
    def modules(self) -> list[str]:
        modules = [module for module, _ in self.calls]
        self.calls.clear()
        return modules


def step(folder: Path, name: str, *flags: str) -> Step:
    return Step(name, f"module.{name}", (str(folder / name), *flags), folder / name)


def run_all(folder: Path, runs: Runs, steps: Sequence[Step], *inputs: str) -> None:
    runner = StepRunner(folder, runs)
    runner.depend_on(*inputs)
    for each in steps:
        runner.run(each)


def test_what_is_done_is_skipped(tmp_path: Path) -> None:
    runs = Runs()
    steps = [step(tmp_path, name) for name in "abc"]
    run_all(tmp_path, runs, steps, "documents")
    assert runs.modules == ["module.a", "module.b", "module.c"]
    run_all(tmp_path, runs, steps, "documents")
    assert runs.modules == []
    run_all(tmp_path, runs, [steps[0], step(tmp_path, "b", "--depth=3"), steps[2]], "documents")
    assert runs.modules == ["module.b", "module.c"]  # what follows depends on it
    run_all(tmp_path, runs, steps, "other documents")
    assert runs.modules == ["module.a", "module.b", "module.c"]
    (tmp_path / "b").unlink()
    run_all(tmp_path, runs, steps, "other documents")
    assert runs.modules == ["module.b"]


def test_a_step_that_was_stopped_keeps_its_id(tmp_path: Path) -> None:
    runs = Runs()
    steps = [step(tmp_path, name) for name in "ab"]
    ids = []
    for runs.failing in ("module.b", "module.b", None):
        if runs.failing:
            with pytest.raises(StepFailed):
                run_all(tmp_path, runs, steps)
        else:
            run_all(tmp_path, runs, steps)
        ids.append(runs.calls[-1][1])
        runs.calls.clear()
    assert len(set(ids)) == 1
    (tmp_path / "b").unlink()
    run_all(tmp_path, runs, steps)
    assert runs.calls[0][1] not in ids  # a new run


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"other\nid\n", b"x" * 5000])
def test_a_damaged_mark_is_no_mark(tmp_path: Path, content: bytes) -> None:
    runs = Runs()
    run_all(tmp_path, runs, [step(tmp_path, "a")])
    (tmp_path / "done" / "a").write_bytes(content)
    (tmp_path / "done" / "a.begun").write_bytes(content)
    run_all(tmp_path, runs, [step(tmp_path, "a")])
    assert runs.modules == ["module.a", "module.a"]
    assert not (tmp_path / "done" / "a.begun").exists()


def test_commands_can_be_typed(tmp_path: Path) -> None:
    assert step(tmp_path, "a", "--out=my folder").command.endswith("'--out=my folder'")


# --- processes --------------------------------------------------------------------------------------------------------


def test_a_process_that_fails(base_dir: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(StepFailed, match="failed with exit code 2") as caught:
        run_module("scripts.base_train", ["--depth=0"], "")
    assert caught.value.exit_code == 2
    assert capfd.readouterr().err.startswith("error: depth is 0")
    assert not list(base_dir.iterdir())


SLEEPER = """
import os, signal, sys, time
def end(*_):
    open(sys.argv[1], "w").write("saved")
    sys.exit(143)
signal.signal(signal.SIGTERM, end)
open(sys.argv[1], "w").write("ready")
time.sleep(60)
"""
PARENT = """
import sys
from pathlib import Path
from nanochat.common import StoppedBySignal
from nanochat.pipeline import steps
steps.REPOSITORY = Path(sys.argv[1])
try:
    steps.run_module("sleeper", [sys.argv[2]], "")
except StoppedBySignal as error:
    sys.exit(error.exit_code)
"""


def wait_for(file: Path, content: str) -> None:
    deadline = time.monotonic() + 60
    while not file.exists() or file.read_text(encoding="utf-8") != content:
        assert time.monotonic() < deadline, f"{file} is never {content!r}"
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)])
def test_a_signal_reaches_the_process_of_the_step(tmp_path: Path, number: int) -> None:
    """SIGTERM is passed on; if the run itself is killed, its step is told to save and end (on Linux)."""
    if number == signal.SIGKILL and sys.platform != "linux":
        pytest.skip("only Linux tells a process of the end of its parent")
    (tmp_path / "sleeper.py").write_text(SLEEPER, encoding="utf-8")
    file = tmp_path / "state"
    env = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}
    with subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path), str(file)], env=env) as parent:
        wait_for(file, "ready")
        parent.send_signal(number)
        wait_for(file, "saved")
        assert parent.wait(60) == (128 + number if number == signal.SIGTERM else -number)


def test_stopped_by_signal_is_no_failure() -> None:
    assert not issubclass(StoppedBySignal, StepFailed)
