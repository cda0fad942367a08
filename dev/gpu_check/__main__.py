"""Run the parts of the check one after the other, each in a process of its own, and print a table. See gpu_check.sh.

    bash dev/gpu_check.sh --out=DIR
    python -m dev.gpu_check --dry_run --only=versions,parity

The parent process imports torch once and forks for each part; it never touches the GPU.
"""

from __future__ import annotations

import functools
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import torch

from dev.gpu_check import evaluation, generation, kernels, parity, runs, serving, speed, versions
from dev.gpu_check.check import Check, Skipped, describe, read_lines, write_line
from nanochat.common import UserError, command, expand_path, print0
from nanochat.configurator import Settings, cli, setting

MIN_SECONDS = 15  # a part does not start with less time left
DRY_RUN_FACTOR = 4  # longer limits on a CPU, which may be busy
STATUS = "status"  # name of the result that ends each part


@dataclass(frozen=True)
class Part:
    """A part of the check: its function and its time limit in seconds. `must_pass`: its failure is one of the GPU."""

    name: str
    run: Callable[[Check], None]
    limit: float
    must_pass: bool = False


# The most valuable first. Together the limits exceed the time of a run: they are for parts that hang.
PARTS = (
    Part("versions", versions.check_versions, 60),
    Part("parity", parity.check_training, 150, must_pass=True),
    Part("generation", generation.check_generation, 60, must_pass=True),
    Part("kernels", kernels.check_kernels, 150, must_pass=True),
    Part("d20", speed.check_d20, 130),
    Part("fp8", parity.check_fp8, 60),
    Part("d20-fp8", speed.check_d20_fp8, 90),
    Part("attention", speed.check_attention, 60),
    Part("decode", generation.check_decode_speed, 60),
    Part("serving", serving.check_serving, 140),
    Part("serving-speed", serving.check_serving_speed, 100),
    Part("serving-peer", serving.check_peer, 90),
    Part("d20-eager", speed.check_d20_eager, 60),
    Part("evaluation", evaluation.check_evaluation, 60, must_pass=True),
    Part("d12", speed.check_d12, 80),
    Part("small-run", runs.check_small_run, 120, must_pass=True),
    Part("checkpoint", runs.check_checkpoint, 90, must_pass=True),
    Part("nccl", runs.check_collectives, 45, must_pass=True),
)


@dataclass(frozen=True)
class Config(Settings):
    out: Path | None = setting(None, "folder of the results; default: $OUT, else a temporary one")
    only: str = setting("", "parts to run, with commas in between; all if empty; ? lists them")
    dry_run: bool = setting(False, "run all parts on the CPU, in tiny sizes")
    budget: float = setting(550.0, "seconds for the whole run", above=0)

    def parts(self) -> list[Part]:
        """Return the parts to run. Raises `UserError` for a name that no part has."""
        names = [name for name in self.only.split(",") if name]
        known = [part.name for part in PARTS]
        if unknown := [name for name in names if name not in known]:
            raise UserError(f"no part {unknown[0]!r}: choose from {', '.join(known)}")
        return [part for part in PARTS if part.name in names or not names]


def main(config: Config) -> None:
    """Run the parts and print the table; SystemExit(1) if one that must pass does not."""
    start = time.monotonic()
    parts = config.parts()
    if config.dry_run:
        os.environ[kernels.INTERPRET] = "1"
        compile_without_compiler()
    assert not torch.cuda.is_initialized(), "a process that has used the GPU must not fork"
    folder = config.out or os.environ.get("OUT")
    out = expand_path(folder or tempfile.mkdtemp(prefix="gpu_check-"), "OUT").absolute()
    out.mkdir(parents=True, exist_ok=True)
    for name in ("results.jsonl", "log.txt", "table.txt"):
        (out / name).unlink(missing_ok=True)
    for part in parts:
        remaining = config.budget - (time.monotonic() - start)
        if remaining < MIN_SECONDS:
            write_status(out, part, "skipped", 0.0, "no time was left")
            continue
        limit = part.limit * (DRY_RUN_FACTOR if config.dry_run else 1)
        run_part(part, Check(part.name, out, config.dry_run), min(limit, remaining))
    table = render_table(parts, out)
    (out / "table.txt").write_text(table, encoding="utf-8")
    print0(f"{table}\n{time.monotonic() - start:.0f} s in all; results, log and table are in {out}")
    statuses = {row["part"]: row["status"] for row in read_lines(out) if row["name"] == STATUS}
    if any(part.must_pass and statuses[part.name] != "ok" for part in parts):
        raise SystemExit(1)


def compile_without_compiler() -> None:
    """Let torch.compile trace and differentiate functions and then run them as they are, which takes no minutes."""
    import torch._dynamo  # here, so that the forks share it

    torch.compile = functools.partial(torch.compile, backend="aot_eager")


def write_status(out: Path, part: Part, status: str, seconds: float, reason: str) -> None:
    """Write the result that ends a part: ok, FAILED, timeout or skipped."""
    write_line(out, {"part": part.name, "name": STATUS, "status": status, "seconds": seconds, "reason": reason})
    print(f"{status:<8} {part.name:<13} {seconds:6.1f} s  {reason}", flush=True)


def run_part(part: Part, check: Check, limit: float) -> None:
    """Run a part in a fork, kill it with all its children after `limit` seconds, and write its status."""
    start = time.monotonic()
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        child_main(part, check)
    exit_code = wait_for(child, limit)
    seconds = time.monotonic() - start
    try:
        os.killpg(child, signal.SIGKILL)  # what the part has left running
    except ProcessLookupError:
        pass
    if exit_code is None:
        wait_for(child, 5)
        write_status(check.out, part, "timeout", seconds, f"stopped after {limit:.0f} s; see what it had measured")
    elif not any(row["part"] == part.name and row["name"] == STATUS for row in read_lines(check.out)):
        reason = f"signal {-exit_code}" if exit_code < 0 else f"exit code {exit_code}"
        write_status(check.out, part, "FAILED", seconds, f"the process ended by {reason}; see log.txt")


def wait_for(child: int, limit: float) -> int | None:
    """Wait for a process. Returns its exit code, negative for a signal, or None if it runs longer than `limit`."""
    deadline = time.monotonic() + limit
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            return None
        time.sleep(0.05)


def child_main(part: Part, check: Check) -> NoReturn:
    """Run a part in this process, with its output in log.txt, write its status, and end the process."""
    start = time.monotonic()
    terminal = os.dup(1)
    try:
        os.setsid()
        log = os.open(check.out / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        print(f"\n=== {part.name}", flush=True)
        try:
            part.run(check)
            status, reason = ("FAILED", "; ".join(check.failures)) if check.failures else ("ok", "")
        except Skipped as skipped:
            status, reason = "skipped", str(skipped)
        except BaseException as error:
            traceback.print_exc()
            status, reason = "FAILED", f"{type(error).__name__}: {error}".splitlines()[0][:300]
        sys.stdout.flush()
        os.dup2(terminal, 1)
        write_status(check.out, part, status, time.monotonic() - start, reason)
        sys.stdout.flush()
    finally:
        os._exit(0)


def render_table(parts: list[Part], out: Path) -> str:
    """Return all results as text: measurements by part, then the status of each part."""
    rows = read_lines(out)
    lines = []
    for part in parts:
        own = [row for row in rows if row["part"] == part.name and row["name"] != STATUS]
        if own:
            lines.append(f"\n{part.name}")
        for row in own:
            values = {key: value for key, value in row.items() if key not in ("part", "name")}
            lines.append(f"  {describe(row['name'], values)}")
    lines.append("\npart           status    seconds  reason")
    for row in rows:
        if row["name"] == STATUS:
            lines.append(f"{row['part']:<13}  {row['status']:<8}  {row['seconds']:7.1f}  {row['reason']}".rstrip())
    return "\n".join(lines)


if __name__ == "__main__":
    if any(argument in ("--only=?", "--only=list") for argument in sys.argv):
        with command():
            print("\n".join(f"{part.name:<13} {part.run.__doc__}" for part in PARTS))
    else:
        cli(Config, main, __doc__)
