"""Signals at random moments of every stage, which must then go on to the results of an undisturbed run.

SIGKILL is a lost machine, SIGTERM a cluster's stop, SIGINT Ctrl-C (also twice), SIGHUP a closed terminal, SIGUSR1 the
warning of Slurm. With two processes, one of them or both get the signal.
"""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from dev.fault_kinds.launcher import Job, Launcher
from dev.fault_kinds.outcome import Outcome, last_lines
from dev.fault_kinds.stages import STAGE_OF, Stage, World, leftovers, remove, results

SIGNALS = ("SIGKILL", "SIGKILL", "SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1")
LIMIT = 240  # seconds: what takes longer hangs


@dataclass(frozen=True)
class Kill:
    """A stage, its processes, those that get the signal, and when: `moments` in parts of an undisturbed run's time."""

    stage: Stage
    processes: int
    victims: tuple[int, ...]
    signal_name: str
    moments: tuple[float, ...]

    def __str__(self) -> str:
        ranks = f", {len(self.victims)} of {self.processes} processes" if self.processes > 1 else ""
        return f"{self.stage.name}: {self.signal_name} at {', '.join(f'{m:.3f}' for m in self.moments)}{ranks}"


def choose(rng: random.Random, names: tuple[str, ...] = tuple(STAGE_OF)) -> Kill:
    """Return a random case of one of the stages."""
    stage = STAGE_OF[rng.choice(names)]
    processes = 2 if stage.trains and rng.random() < 0.25 else 1
    victims = (0,) if processes == 1 else rng.choice(((0,), (1,), (0, 1)))
    name = rng.choice(SIGNALS)
    moments = sorted(rng.uniform(0, 1) for _ in range(rng.choice((1, 1, 2, 3))))  # killed again after it was resumed
    return Kill(stage, processes, victims, name, tuple(moments))


def run(count: int, seed: int, folder: Path, names: tuple[str, ...] = tuple(STAGE_OF)) -> Iterator[Outcome]:
    """Yield the outcomes of at least `count` signals that met a running process."""
    rng = random.Random(seed)
    with Launcher(folder / "output") as launcher, ThreadPoolExecutor(2) as pool:
        world = World(folder / "world", launcher)
        processes = (1, 2) if any(STAGE_OF[name].trains for name in names) else (1,)
        world.prepare(names, processes)
        number = done = 0
        while done < count:
            cases = [(number + index, choose(rng, names)) for index in range(2)]
            number += 2
            for outcomes in pool.map(lambda case: disturb(world, *case), cases):
                done += len(outcomes)
                yield from outcomes


def disturb(world: World, number: int, kill: Kill) -> list[Outcome]:
    """Run a stage that gets signals until it is done. Return an outcome for each signal that met a running process."""
    base = world.copy(kill.stage, f"kill-{number}")
    expected = world.expected[kill.stage.name, kill.processes]
    seconds = world.seconds[kill.stage.name, kill.processes]
    kind = f"{kill.signal_name}, {'one process' if kill.processes == 1 else 'two processes'}"
    problem: tuple[str, str] | None = None
    hits = 0
    for moment in kill.moments:
        jobs = world.start(kill.stage, base, kill.processes, resume=True)
        time.sleep(moment * seconds)
        hit = [jobs[rank].kill(getattr(signal, kill.signal_name)) for rank in kill.victims]
        problem = problem or wait(jobs, kill if any(hit) else None)
        hits += any(hit)
        if problem:
            break
    if not problem:
        jobs = world.start(kill.stage, base, kill.processes, resume=True)
        problem = wait(jobs, None)
    if not problem:
        found = results(kill.stage, base)
        wrong = sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name))
        if wrong:
            problem = "silent", f"differs from the undisturbed run: {', '.join(wrong)}"
        elif left := leftovers(base):
            problem = "leftover", ", ".join(left[:5])
    if not problem:
        remove(base)
        return [Outcome(kind, str(kill), "ok")] * hits
    return [Outcome(kind, f"{kill} (in {base})", *problem)]


def wait(jobs: list[Job], kill: Kill | None) -> tuple[str, str] | None:
    """Wait for the processes of a run, which were sent a signal (`kill`). Return verdict and detail of a defect."""
    deadline = time.monotonic() + LIMIT
    in_time = [job.wait(max(0.1, deadline - time.monotonic())) for job in jobs]  # wait for all of them
    if not all(in_time):
        return "hang", last_lines(*(job.text for job in jobs))
    for job in jobs:
        if "Traceback (most recent call last)" in job.text:
            return "traceback", last_lines(job.text)
        if kill is None and job.code != 0:
            return "lost", f"exit code {job.code}: {last_lines(job.text)}"
        if kill is not None and job.code not in codes_after(kill):
            return "lost", f"exit code {job.code} after {kill.signal_name}: {last_lines(job.text)}"
    return None


def codes_after(kill: Kill) -> set[int]:
    """Return the exit codes that are right after a signal: 0 if the work was done, else those that name the signal.

    Of two processes, one that has lost the other ends with 1, one that has not met it with 2, and one that the other
    has stopped as after SIGTERM.
    """
    number = int(getattr(signal, kill.signal_name))
    return {0, -number, 128 + number} | ({1, 2, 128 + signal.SIGTERM} if kill.processes > 1 else set())
