"""Full, limited, read-only, blocked and slow folders under every stage, which then runs to its undisturbed results.

A full disk and a read-only one are mounts, which need root; without it they are replaced by a limit on the size of
files and by a file that stands in the place of the folder.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dev.fault_kinds.kills import LIMIT
from dev.fault_kinds.launcher import Job, Launcher
from dev.fault_kinds.outcome import Outcome, last_lines
from dev.fault_kinds.stages import STAGES, Stage, World, leftovers, remove, results

HARMS = ("full disk", "file-size limit", "read-only folder", "file in the place of a folder", "slow disk")
RESULT_FOLDERS = {"dataset": "base_data", "tok_train": "tokenizer", "export_hf": "exported"}


def can_mount(folder: Path) -> bool:
    """Return True if this user may mount."""
    if os.geteuid() != 0 or not shutil.which("mount"):
        return False
    folder.mkdir(parents=True)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "none", str(folder)], capture_output=True).returncode == 0
    if mounted:
        subprocess.run(["umount", str(folder)], check=True)
    return mounted


@contextmanager
def mounted(folder: Path, *options: str) -> Iterator[None]:
    """Context with something mounted on `folder`."""
    subprocess.run(["mount", *options, str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def run(count: int, seed: int, folder: Path) -> Iterator[Outcome]:
    """Yield the outcome of `count` cases: each harm for each stage, then with other sizes."""
    rng = random.Random(seed)
    may_mount = can_mount(folder / "probe")
    cases = [(harm, stage) for harm in HARMS for stage in STAGES]
    chosen: list[tuple[str, Stage]] = []
    while len(chosen) < count:
        chosen += rng.sample(cases, len(cases))
    with Launcher(folder / "output") as launcher, ThreadPoolExecutor(2) as pool:
        world = World(folder / "world", launcher)
        world.prepare(processes=(1,))
        jobs = [
            pool.submit(disturb, world, number, harm, stage, rng.random(), may_mount)
            for number, (harm, stage) in enumerate(chosen[:count])
        ]
        for job in jobs:
            yield job.result()


def disturb(world: World, number: int, harm: str, stage: Stage, part: float, may_mount: bool) -> Outcome:
    """Run a stage under a harm, then without it. `part`: of the bytes that it writes, those that there is room for."""
    base = world.copy(stage, f"disk-{number}")
    case = f"{stage.name} with room for {part:.3f} of its files (in {base})"
    job = run_harmed(world, harm, stage, base, part, may_mount)
    text = job.text
    if job.code == -9:
        return Outcome(harm, case, "hang", last_lines(text))
    if "Traceback (most recent call last)" in text:
        return Outcome(harm, case, "traceback", last_lines(text))
    if job.code not in (0, 2) or (job.code == 2 and "error: " not in text):
        return Outcome(harm, case, "lost", f"exit code {job.code}: {last_lines(text)}")
    if harm == "slow disk" and job.code != 0:
        return Outcome(harm, case, "lost", f"exit code {job.code}: {last_lines(text)}")
    if left := leftovers(base):
        return Outcome(harm, case, "leftover", ", ".join(left[:5]))
    if job.code == 2:
        [again] = world.start(stage, base, resume=True)
        again.wait(LIMIT)
        if again.code != 0:
            return Outcome(harm, case, "lost", f"exit code {again.code} afterwards: {last_lines(again.text)}")
    found, expected = results(stage, base), world.expected[stage.name, 1]
    wrong = sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name))
    if wrong:
        return Outcome(harm, case, "silent", f"differs from the undisturbed run: {', '.join(wrong)}")
    remove(base)
    return Outcome(harm, case, "ok")


def run_harmed(world: World, harm: str, stage: Stage, base: Path, part: float, may_mount: bool) -> Job:
    """Run a stage to its end under a harm, and undo the harm."""

    def run_stage(**options: Any) -> Job:
        [job] = world.start(stage, base, **options)
        job.wait(LIMIT)
        return job

    written = world.written[stage.name]
    if harm == "slow disk":
        return run_stage(harm={"fsync_delay": 0.3 * part})
    if harm == "full disk" and may_mount:
        before = base.with_name(f"{base.name}-before")
        base.rename(before)
        base.mkdir()
        try:
            size = sum(4096 + path.stat().st_size for path in before.rglob("*"))
            with mounted(base, "-t", "tmpfs", "-o", f"size={int(size + part * written)}", "none"):
                shutil.copytree(before, base, dirs_exist_ok=True)
                job = run_stage()
                shutil.rmtree(before)
                shutil.copytree(base, before)
        finally:
            base.rmdir()
            before.rename(base)
        return job
    if harm == "read-only folder" and may_mount:
        with mounted(base, "--bind", str(base)):
            subprocess.run(["mount", "-o", "remount,bind,ro", str(base)], check=True)
            return run_stage()
    if harm in ("full disk", "file-size limit"):
        largest = max(world.largest[stage.name], 1)
        return run_stage(harm={"file_size": int(part * largest)})
    blocked = base / (stage.checkpoints or RESULT_FOLDERS.get(stage.name, "report"))
    hidden = blocked.with_name(f"{blocked.name}-hidden")
    if blocked.exists():
        blocked.rename(hidden)
    blocked.parent.mkdir(parents=True, exist_ok=True)
    blocked.write_text("a file\n", encoding="utf-8")
    try:
        return run_stage()
    finally:
        blocked.unlink()
        if hidden.exists():
            hidden.rename(blocked)
