"""Steps of a run: commands, each in a process of its own. A step that is done is skipped, one that was stopped goes on.

It is the mechanism of dev/run_steps.sh, with the same files. A step is done if `done/NAME` holds its key, a hash of
its command and of everything before it. A step that has begun has the file `done/NAME.begun`, with its key and an id,
which the command gets as `$NANOCHAT_RUN_ID`: training scripts record it in their checkpoints, and resume a run that has
it.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from nanochat.common import StoppedBySignal, UserError, print0, write_text_atomic
from nanochat.sandbox.linux_guard import libc
from nanochat.system.files import read_regular_file

REPOSITORY = Path(__file__).resolve().parents[2]
MAX_MARK_BYTES = 1000
# Passed on to the step, which saves and ends. Ctrl-C reaches it from the terminal by itself.
FORWARDED = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name))
_PR_SET_PDEATHSIG = 1


class StepFailed(Exception):
    """Raised for a step that ended with an error, which it has printed itself; `exit_code` is its own."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@dataclass(frozen=True)
class Step:
    """A command `python -m MODULE FLAGS...`, and a file that exists when it is done."""

    name: str
    module: str
    flags: tuple[str, ...]
    result: Path

    @property
    def command(self) -> str:
        """The command line that runs this step by itself."""
        return shlex.join(["python", "-m", self.module, *self.flags])


class StepRunner:
    """Runs the steps of a run in order. `folder`: the run's base folder.

    `run`: runs a module with flags and a run id, and raises `StepFailed`; by default in a process of its own.
    """

    def __init__(self, folder: Path, run: Callable[[str, Sequence[str], str], None] | None = None) -> None:
        self.folder = folder
        self.key = ""
        self.seconds: dict[str, float] = {}  # of the steps that were not skipped
        self._run = run or run_module

    def depend_on(self, *inputs: str) -> None:
        """Make the keys of all further steps depend on these texts, and on nothing that came before.

        A step whose result is the same again, though it was run again, does not make those after it run again.
        """
        self.key = _hash(*inputs)

    def run_always(self, step: Step) -> None:
        """Run a step that finds out itself what is done already. Raises `StepFailed` if it fails."""
        print0(f"\n== {step.name}\n{step.command}")
        start = time.monotonic()
        self._run(step.module, step.flags, "")
        self.seconds[step.name] = time.monotonic() - start

    def run(self, step: Step) -> bool:
        """Run a step unless it is done; return True if it ran. Raises `StepFailed` if it fails."""
        mark = self.folder / "done" / step.name
        begun = mark.with_name(f"{mark.name}.begun")
        self.key = _hash(self.key, step.command)
        print0(f"\n== {step.name}")
        if step.result.exists() and _read_lines(mark) == [self.key]:
            print0("done already, with the same settings on the same data")
            return False
        lines = _read_lines(begun)
        if len(lines) != 2 or lines[0] != self.key:
            lines = [self.key, uuid.uuid4().hex]
            write_text_atomic(begun, "\n".join(lines) + "\n")
        print0(step.command)
        mark.unlink(missing_ok=True)
        start = time.monotonic()
        self._run(step.module, step.flags, lines[1])
        self.seconds[step.name] = time.monotonic() - start
        write_text_atomic(mark, f"{self.key}\n")
        begun.unlink(missing_ok=True)
        return True


def _hash(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode("utf-8", "surrogatepass")).hexdigest()


def _read_lines(path: Path) -> list[str]:
    """Return the lines of a file with a key; none if there is no such file, or it is no text."""
    try:
        return read_regular_file(path, MAX_MARK_BYTES).decode("utf-8").splitlines()
    except (OSError, UserError, UnicodeDecodeError):
        return []


def run_module(module: str, flags: Sequence[str], run_id: str) -> None:
    """Run a module as a process, from the repository's folder. Raises `StepFailed`, or `StoppedBySignal`."""
    arguments = [sys.executable, "-m", module, *flags]
    with (
        subprocess.Popen(
            arguments,
            cwd=REPOSITORY,
            env={**os.environ, "NANOCHAT_RUN_ID": run_id},
            preexec_fn=_end_with_parent if sys.platform == "linux" else None,
        ) as process,
        forwarded_signals(process) as received,
    ):
        while True:
            try:
                code = process.wait()
                break
            except KeyboardInterrupt:  # it gets the same Ctrl-C, and saves
                received.append(signal.SIGINT)
    if received and code:
        raise StoppedBySignal(received[0], "Stopped. The same command goes on from here.")
    if code:
        reason = f"was ended by signal {-code}" if code < 0 else f"failed with exit code {code}"
        raise StepFailed(f"{module} {reason}", code if code > 0 else 128 - code)


def _end_with_parent() -> None:
    """Let this process be told to save and end if the process that started it is killed (Linux)."""
    libc("prctl", _PR_SET_PDEATHSIG, signal.SIGTERM)


@contextmanager
def forwarded_signals(process: subprocess.Popen[bytes]) -> Iterator[list[int]]:
    """Context manager in which signals that ask for a stop are passed on to a process; yields those received."""
    received: list[int] = []

    def handle(number: int, _frame: FrameType | None) -> None:
        received.append(number)
        process.send_signal(number)

    previous = {
        number: signal.signal(number, handle) for number in FORWARDED if signal.getsignal(number) != signal.SIG_IGN
    }
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
