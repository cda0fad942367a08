"""Facts about the machine, the installed versions and the commit, stored with every result."""

from __future__ import annotations

import math
import os
import platform
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import psutil

from nanochat.system.errors import UserError

CGROUP = Path("/sys/fs/cgroup")  # of the container, on Linux
# The way out for a process that was not started by a launcher, in whose shell the variables of one were left.
NO_TORCHRUN = "for a run of one process, unset RANK LOCAL_RANK WORLD_SIZE; for a run of several, use torchrun"


def describe_environment() -> dict[str, str | int | float]:
    """Return the facts by name, ready for JSON; a fact that cannot be determined is absent.

    torch is queried only if this process has imported it already: a script without torch uses no GPU and should not
    wait for the import.
    """
    facts: dict[str, str | int | float | None] = {
        "system": platform.platform(),
        "processor": processor_name(),
        "cores": num_usable_cores(),
        "memory (GB)": total_memory_gb(),
        "GPU": _gpu(),
        "Python": platform.python_version(),
        "torch": package_version("torch"),
        "threads": _num_threads(),
        "commit": git_commit(Path(__file__).resolve().parents[2]),
    }
    return {name: value for name, value in facts.items() if value is not None}


def process_numbers() -> tuple[int, int, int]:
    """Return this process's rank, its rank on this machine, and the number of processes: 0, 0 and 1 without torchrun.

    torchrun and other launchers set RANK, LOCAL_RANK and WORLD_SIZE. Raises `UserError` if they are no numbers or do
    not fit together, or if others that belong to them are missing, as after a part of them was left in a shell.
    """
    numbers = {}
    for name, default in (("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_WORLD_SIZE", "1")):
        value = os.environ.get(name, default)
        if not re.fullmatch("[0-9]{1,9}", value, re.ASCII):
            raise UserError(f"{name} is {value!r} in the environment, but must be a number: {NO_TORCHRUN}")
        numbers[name] = int(value)
    rank, local_rank, world_size, _ = numbers.values()
    if not max(rank, local_rank) < world_size:
        found = " ".join(f"{name}={number}" for name, number in numbers.items())
        raise UserError(f"{found} in the environment: ranks must be below WORLD_SIZE; {NO_TORCHRUN}")
    if world_size > 1:
        missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
        if missing:
            raise UserError(f"WORLD_SIZE={world_size} in the environment without {', '.join(missing)}: {NO_TORCHRUN}")
        if not re.fullmatch("[0-9]{1,5}", os.environ["MASTER_PORT"], re.ASCII):
            port = os.environ["MASTER_PORT"]
            raise UserError(f"MASTER_PORT is {port!r} in the environment, but must be a number: {NO_TORCHRUN}")
    return rank, local_rank, world_size


def package_version(package: str) -> str | None:
    """Return the installed version of a package without importing it; None if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def processor_name() -> str | None:
    """Return the processor's model name."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    if not names and sys.platform == "darwin":
        names = [command_output("sysctl", "-n", "machdep.cpu.brand_string") or ""]
    return next(filter(None, [*names, platform.processor(), platform.machine()]), None)


def num_usable_cores() -> int:
    """Return the number of cores this process may use, which a container or a batch system may limit.

    A container's share of the processors (`docker run --cpus=2`) is rounded up to whole cores.
    """
    num_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = (CGROUP / "cpu.max").read_text(encoding="utf-8").split()  # microseconds, "max" = no limit
    except (OSError, ValueError):
        return num_cores
    return num_cores if quota == "max" else max(1, min(num_cores, math.ceil(int(quota) / int(period))))


def total_memory_gb() -> float:
    """Return the main memory in GB (10^9 bytes), or the container's limit if that is lower."""
    total = int(psutil.virtual_memory().total)
    try:
        limit = (CGROUP / "memory.max").read_text(encoding="utf-8").strip()
    except OSError:
        limit = "max"
    return round((total if limit == "max" else min(total, int(limit))) / 1e9, 1)


def free_memory_bytes() -> int:
    """Return the main memory that can be had without swapping, or what the container's limit leaves if that is less."""
    free = int(psutil.virtual_memory().available)
    try:
        limit, used, details = (
            (CGROUP / f"memory.{name}").read_text(encoding="utf-8").strip() for name in ("max", "current", "stat")
        )
    except OSError:
        return free
    if limit == "max":
        return free
    # Files that have been read count as used until their memory is needed: a checkpoint or data set, for example.
    cached = [int(line.split()[1]) for line in details.splitlines() if line.startswith("inactive_file ")]
    return max(0, min(free, int(limit) - int(used) + sum(cached)))


def peak_memory_bytes() -> int:
    """Return the largest resident size that this process has had.

    On Linux the value is read from /proc. That of getrusage survives fork and exec, so it could be the parent's peak.
    """
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
    except OSError:
        status = ""
    if match := re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE):
        return int(match[1]) * 1024
    import resource  # not available on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def git_commit(checkout: Path) -> str | None:
    """Return the git commit of a checkout, marked if tracked files differ from it; None for an installed package.

    `checkout` must be the top of its repository: a package in a virtual environment inside some other
    repository must not report that repository's commit.
    """
    top = command_output("git", "-C", str(checkout), "rev-parse", "--show-toplevel")
    if not top or Path(top).resolve() != checkout.resolve():
        return None
    commit = command_output("git", "-C", str(checkout), "rev-parse", "--short=12", "HEAD")
    changes = command_output("git", "-C", str(checkout), "status", "--porcelain", "--untracked-files=no")
    return f"{commit} with uncommitted changes" if commit and changes else commit


def command_output(*command: str) -> str | None:
    """Return a command's output, stripped; None if the command is missing, slow or fails."""
    variables = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}  # `git status` must not take the index lock
    try:
        completed = subprocess.run(
            command, capture_output=True, text=True, encoding="utf-8", errors="replace", timeout=10, env=variables
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return completed.stdout.strip() if completed.returncode == 0 else None


def _num_threads() -> int | None:
    if torch := sys.modules.get("torch"):
        return int(torch.get_num_threads())
    omp_threads = os.environ.get("OMP_NUM_THREADS", "")
    return int(omp_threads) if omp_threads.isdecimal() else None


def _gpu() -> str | None:
    torch = sys.modules.get("torch")
    if torch is None:
        return None
    if torch.cuda.is_available():
        card = torch.cuda.get_device_properties(0)
        return f"{torch.cuda.device_count()} x {card.name}, {card.total_memory / 1e9:.0f} GB"
    return "Apple MPS" if torch.backends.mps.is_available() else None
