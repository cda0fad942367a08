"""The outcome of a program: output, exit code, time, memory, and the errors of the machine."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from nanochat.common import UserError
from nanochat.execution import isolation_layers, run_program
from tests.support.sandbox import wait_until_empty

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="programs run on Linux and macOS, not on Windows")


def test_results() -> None:
    result = run_program("import sys\nprint('a')\nprint('b', file=sys.stderr)\nsys.exit(3)", 30.0)
    assert (result.ok, result.timed_out, result.exit_code) == (False, False, 3)
    assert (result.stdout, result.stderr, result.error) == ("a\n", "b\n", "exit code 3: b")
    good = run_program("print('ü')", 30.0)
    assert (good.ok, good.exit_code, good.stdout, good.stderr, good.error) == (True, 0, "ü\n", "", "")
    assert run_program("import os; os.kill(os.getpid(), 9)", 30.0).exit_code == 137
    late = run_program("print('begun', flush=True)\nwhile True: pass", 2.0)
    assert (late.ok, late.timed_out, late.exit_code) == (False, True, None)
    assert (late.stdout, late.error) == ("begun\n", "not done after 2 seconds")
    assert len(run_program("print('x' * 200_000)", 30.0).stdout) == 64 << 10
    assert "bytes of output" in run_program("while True: print('x' * 9999)", 30.0).error
    assert "null" in run_program("\0", 30.0).error


def test_error_is_one_line_without_control_characters() -> None:
    """Whatever the program prints: an error is shown in tables and logs."""
    noise = "\x1b[2J\x1b]52;c;eA==\x07a\rb\x00\x9b\u2028\u202e\x85c"
    result = run_program(f"import sys\nsys.exit({noise!r})", 30.0)
    assert result.exit_code == 1
    assert result.error.isprintable(), result.error
    assert result.error.endswith("c"), result.error
    assert result.stderr == noise + "\n"


def test_memory_limit() -> None:
    program = "x = bytearray(300 << 20)"
    assert "MemoryError" in run_program(program, 30.0, 200 << 20).error
    assert run_program(program, 30.0, 500 << 20).ok


def test_programs_at_the_same_time_are_separate() -> None:
    """Neither of two programs sees the other's files or processes."""
    program = "import os, time\nopen('x', 'x').close()\ntime.sleep(0.5)\nprint(os.getpid(), sorted(os.listdir('.')))"
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda _: run_program(program, 30.0), range(2)))
    assert all(result.stdout.endswith("['program.py', 'x']\n") for result in results), results


def test_a_program_cannot_read_its_callers_input() -> None:
    code = "from nanochat.execution import run_program\nprint(run_program('print([input()])', 30.0).error)"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, input="a secret", capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("exit code 1: EOFError: EOF when reading a line\n", "")


def test_a_python_that_does_not_start_is_an_error_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "_base_executable", "/bin/false")
    with pytest.raises(UserError, match="cannot be run on this machine"):
        run_program("print(1)", 30.0)


@pytest.mark.parametrize(
    "source",
    [
        "import os; os.rename('../../' + os.path.basename(os.path.dirname(os.getcwd())), '$outside/moved')",
        "import os; os.rename('../work', '../other')",
        "import os, shutil; shutil.rmtree('..', ignore_errors=True)",
        "import os; os.unlink('program.py'); os.rmdir('../work'); os.symlink('$outside', '../work')",
        "import os; os.symlink('$outside', '../link'); os.mkdir('d'); os.symlink('$outside', 'd/link')",
        "open('../file', 'w').close()",
    ],
)
def test_a_program_that_destroys_its_folder(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The removal of a folder that no layer protects fails quietly or succeeds, and never reaches beyond it."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("x", encoding="utf-8")
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    program = source.replace("$outside", str(outside))
    layers = ["namespaces", "mounts", "landlock"]
    if not isolation_layers()["seccomp"]:
        pytest.skip("without seccomp, root is refused")
    result = run_program(program, 30.0, without=layers)
    assert result.exit_code == 0, result
    assert (outside / "kept").read_text(encoding="utf-8") == "x"
    wait_until_empty(temporary)
