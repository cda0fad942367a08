"""kill -9 from outside, at random moments of every step of `scripts.train_on`, which must then go on to the files of an
undisturbed run.

A sequence is one run on a folder of documents that is killed once in each of its steps, and started again each time:
the run alone, whose step is then told to end; the step alone; or all processes at the same time, as with a lost
machine. Unlike the other kills these are of real processes, started as a user does.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from dev.fault_kinds.launcher import ENVIRONMENT, ROOT
from dev.fault_kinds.outcome import Outcome, last_lines
from dev.fault_kinds.stages import leftovers, remove, without_times
from nanochat.data.storyworld.writer import generate_stories
from nanochat.pipeline.plan import Choices, measuring_speed
from nanochat.pipeline.steps import StepRunner

FLAGS = ("--minutes=1", "--chat=off", "--device=cpu")
FLOPS_PER_SECOND = 1e7  # as if it were measured: the smallest model, and the same one in each run
VARIANTS = ("plain", "grounded", "base")
VICTIMS = ("run", "step", "all")
LIMIT = 900  # seconds: what takes longer hangs
POLL_SECONDS = 0.02
STEP = re.compile(r"^== (\w+)$", re.MULTILINE)
# Files that are not results: locks, what was measured of the machine, and times.
NO_RESULTS = re.compile(r"(^|/)\.[^/]*$|\.lock$|^cpu\.json$|^report/report\.md$|\.png$|^export/hf/README\.md$|\.begun$")
NO_FACTS = {
    "run_id",
    "resume",
    "stopped",
    "time",
    "curves",
    "sha256",
    "environment",
}  # of JSON files, beside seconds and speeds
TIME_IN_TEXT = "This call took"  # begins a note of the report


@dataclass(frozen=True)
class Kill:
    """A step, the time after its beginning, and which processes are killed. `at_once`: nothing is waited for."""

    step: str
    seconds: float
    victim: str
    at_once: bool

    def __str__(self) -> str:
        return f"{self.victim} killed {self.seconds:.2f} s into {self.step}{', run again at once' * self.at_once}"


class Run:
    """A running `scripts.train_on`, in a process group of its own, with its output in a file."""

    def __init__(self, folder: Path, documents: Path, flags: Sequence[str], output: Path) -> None:
        self.output = output
        with open(output, "wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "scripts.train_on", str(documents), *FLAGS, *flags],
                cwd=ROOT,
                env={**os.environ, **ENVIRONMENT, "NANOCHAT_BASE_DIR": str(folder)},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def text(self) -> str:
        """The output so far."""
        return self.output.read_text(encoding="utf-8", errors="replace")

    @property
    def steps(self) -> list[str]:
        """The steps that have begun, skipped ones included."""
        return STEP.findall(self.text)

    def is_running(self) -> bool:
        """Return True while the command runs."""
        return self.process.poll() is None

    def wait_for(self, step: str, limit: float = LIMIT) -> bool:
        """Wait until a step begins; return False if the command ends before that."""
        deadline = time.monotonic() + limit
        while step not in self.steps:
            if not self.is_running() or time.monotonic() > deadline:
                return False
            time.sleep(POLL_SECONDS)
        return True

    def kill(self, victim: str) -> tuple[bool, list[psutil.Process]]:
        """Kill one of VICTIMS. Return True if there was one, and the processes that are left to end by themselves."""
        children: list[psutil.Process] = []
        victims: list[psutil.Process] = []
        with suppress(psutil.NoSuchProcess):
            own = psutil.Process(self.process.pid)
            children = own.children(recursive=True)
            steps = own.children()
            victims = {"run": [own], "step": steps, "all": [own, *children]}[victim]
        num_killed = 0
        for process in victims:
            with suppress(psutil.NoSuchProcess):  # it has ended meanwhile
                process.kill()
                num_killed += 1
        return num_killed > 0, children

    def end(self, limit: float = LIMIT) -> int | None:
        """Wait for the end; return the exit code, None after the limit: then everything is killed."""
        try:
            return self.process.wait(limit)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            return None


def wait_for_end(processes: Sequence[psutil.Process], limit: float = LIMIT) -> bool:
    """Wait until processes, which need not be children of this one, have ended. Returns False after the limit."""
    deadline = time.monotonic() + limit
    left = list(processes)
    while left:
        left = [process for process in left if _is_alive(process)]
        if left and time.monotonic() > deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True


def _is_alive(process: psutil.Process) -> bool:
    """Return False for a zombie too: the first process of a container may never ask how its children ended."""
    with suppress(psutil.NoSuchProcess):
        return process.is_running() and bool(process.status() != psutil.STATUS_ZOMBIE)
    return False


def run(count: int, seed: int, folder: Path, variants: Sequence[str] = VARIANTS) -> Iterator[Outcome]:
    """Yield the outcomes of at least `count` kills that met a running command."""
    rng = random.Random(seed)
    documents = folder / "documents"
    write_documents(documents)
    undisturbed: dict[str, tuple[dict[str, str], dict[str, float]]] = {}
    done = number = 0
    while done < count:
        variant = variants[number % len(variants)]
        flags = flags_of(variant, folder)
        if variant not in undisturbed:
            undisturbed[variant] = run_undisturbed(folder / "run", documents, flags)
            (folder / "run").rename(folder / f"undisturbed-{variant}")  # all runs are in one folder, named in files
        expected, seconds = undisturbed[variant]
        kills = [choose(rng, step, seconds[step]) for step in seconds]
        outcomes = disturb(folder / "run", variant, documents, flags, kills, expected)
        if any(outcome.verdict != "ok" for outcome in outcomes):
            (folder / "run").rename(folder / f"failed-{number}")
        done += max(1, len(outcomes))
        number += 1
        yield from outcomes


def choose(rng: random.Random, step: str, seconds: float) -> Kill:
    """Return a random kill in a step that takes so many seconds."""
    return Kill(step, rng.uniform(0, seconds), rng.choice(VICTIMS), rng.random() < 0.5)


def flags_of(variant: str, folder: Path) -> tuple[str, ...]:
    """Return the options of a variant. "base" starts from the base model of the undisturbed run without it."""
    if variant == "base":
        return (f"--base_from={folder / 'undisturbed-plain'}", "--base=d2")
    return ("--grounded",) if variant == "grounded" else ()


def write_documents(folder: Path) -> None:
    """Write a folder of Markdown files with about 30 KB of text: the same one each time."""
    folder.mkdir(parents=True)
    texts = list(itertools.islice(generate_stories("train", seed=1), 60))
    for number in range(12):
        parts = [f"## Part {index + 1}\n\n{text}" for index, text in enumerate(texts[number::12])]
        text = f"# Chapter {number + 1}\n\n" + "\n\n".join(parts) + "\n"
        (folder / f"chapter-{number + 1}.md").write_text(text, encoding="utf-8")


def prepare(folder: Path, documents: Path) -> None:
    """Make a run's folder whose speed counts as measured, since the size of the run follows from it."""
    folder.mkdir(parents=True)
    speed = {"device": "cpu", "flops_per_second": FLOPS_PER_SECOND}

    def write(_module: str, _flags: Sequence[str], _run_id: str) -> None:
        (folder / "speed.json").write_text(json.dumps(speed), encoding="utf-8")

    runner = StepRunner(folder, write)
    runner.depend_on("speed")
    runner.run(measuring_speed(Choices(folder, str(documents), device="cpu")))


def run_undisturbed(folder: Path, documents: Path, flags: Sequence[str]) -> tuple[dict[str, str], dict[str, float]]:
    """Return the results of a run that nothing disturbs, and the seconds of each of its steps."""
    prepare(folder, documents)
    command = Run(folder, documents, flags, folder.with_suffix(".txt"))
    began: dict[str, float] = {}
    deadline = time.monotonic() + LIMIT
    while command.is_running() and time.monotonic() < deadline:
        for step in command.steps:
            began.setdefault(step, time.monotonic())
        time.sleep(POLL_SECONDS)
    assert command.end(1) == 0, f"{folder.name} does not run undisturbed:\n{command.text}"
    began.pop("speed", None)  # it is skipped
    ends = [*list(began.values())[1:], time.monotonic()]
    return results(folder), {step: end - start for (step, start), end in zip(began.items(), ends, strict=True)}


def disturb(
    folder: Path,
    variant: str,
    documents: Path,
    flags: Sequence[str],
    kills: Sequence[Kill],
    expected: dict[str, str],
    limit: float = LIMIT,
) -> list[Outcome]:
    """Run with kills until the run is done. Return an outcome for each kill that met a process.

    `limit`: seconds until a step must have begun.
    """
    prepare(folder, documents)
    hits: list[Outcome] = []
    problem: tuple[str, str] | None = None
    left: list[psutil.Process] = []
    for number, kill in enumerate(kills):
        command = Run(folder, documents, flags, folder.with_name(f"{folder.name}-{number}.txt"))
        has_begun = command.wait_for(kill.step, limit)
        if not has_begun and command.is_running():
            problem = "hang", f"{kill.step} does not begin: {last_lines(command.text)}"
            command.kill("all")
            command.end()
            break
        if has_begun:
            time.sleep(kill.seconds)
        if command.is_running():
            has_met, left = command.kill(kill.victim)
            if has_met:
                hits.append(Outcome(f"SIGKILL, train_on: {kill.victim}", f"{variant}: {kill}", "ok"))
        problem = judge(command, kill)
        if not problem and not kill.at_once and not wait_for_end(left):
            problem = "hang", "a step whose run was killed does not end"
        if problem:
            break
    if not problem:
        command = Run(folder, documents, flags, folder.with_suffix(".txt"))
        problem = judge(command, None)
    if not problem:
        found = results(folder)
        wrong = sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name))
        if wrong:
            problem = "silent", f"differs from the undisturbed run: {', '.join(wrong)}"
        elif files := leftovers(folder):
            problem = "leftover", ", ".join(files[:5])
    if problem:
        return [*hits, Outcome("SIGKILL, train_on", f"{variant}: {'; '.join(map(str, kills))}", *problem)]
    remove(folder)
    return hits


def judge(command: Run, kill: Kill | None) -> tuple[str, str] | None:
    """Wait for the end of a command, which was harmed (`kill`). Return verdict and detail of a defect."""
    code = command.end()
    if code is None:
        return "hang", last_lines(command.text)
    if "Traceback (most recent call last)" in command.text:
        return "traceback", last_lines(command.text)
    right = {0} if kill is None else {0, -signal.SIGKILL, 128 + signal.SIGKILL}
    return None if code in right else ("lost", f"exit code {code}: {last_lines(command.text)}")


def results(folder: Path) -> dict[str, str]:
    """Return the hashes of all files that a run leaves; of JSON files without times."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and not NO_RESULTS.search(name):
            content = path.read_bytes()
            if path.suffix == ".json":
                content = json.dumps(without_facts(without_times(json.loads(content))), sort_keys=True).encode()
            found[name] = hashlib.sha256(content).hexdigest()
    return found


def without_facts(value: Any) -> Any:
    """Return a JSON value without what no two runs have in common."""
    if isinstance(value, dict):
        return {key: without_facts(item) for key, item in value.items() if key not in NO_FACTS}
    if isinstance(value, list):
        return [without_facts(item) for item in value if not str(item).startswith(TIME_IN_TEXT)]
    return value
