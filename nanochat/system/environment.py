"""What a run stands on: the machine, the versions, the commit. Written beside every result."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import psutil


def describe_environment() -> dict[str, str | int | float]:
    """The environment of this process, as names and values ready for JSON; what cannot be found out is left out.

    torch is asked only if the stage has loaded it: one without torch has used no GPU and need not wait for the import.
    """
    facts: dict[str, str | int | float | None] = {
        "system": platform.platform(),
        "processor": processor_name(),
        "cores": num_usable_cores(),
        "memory (GB)": total_memory_gb(),
        "GPU": _gpu(),
        "Python": platform.python_version(),
        "torch": package_version("torch"),
        "threads": _threads(),
        "commit": git_commit(Path(__file__).resolve().parents[2]),
    }
    return {name: value for name, value in facts.items() if value is not None}


def package_version(package: str) -> str | None:
    """The installed version of a package, found without importing it."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def processor_name() -> str | None:
    """The processor's name as its maker spells it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    if not names and sys.platform == "darwin":
        names = [_output("sysctl", "-n", "machdep.cpu.brand_string") or ""]
    return next(filter(None, [*names, platform.processor(), platform.machine()]), None)


def num_usable_cores() -> int:
    """Cores this process may run on, which in a container or a batch job are fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def total_memory_gb() -> float:
    """Main memory in GB (10^9 bytes), or the container's limit if that is lower."""
    total = int(psutil.virtual_memory().total)
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text(encoding="utf-8").strip()
    except OSError:
        limit = "max"
    return round((total if limit == "max" else min(total, int(limit))) / 1e9, 1)


def peak_memory_bytes() -> int:
    """Bytes that this process had in memory at most.

    Linux keeps what getrusage says across fork and exec: it would be the parent's peak, if that is higher.
    """
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
    except OSError:
        status = ""
    if found := re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE):
        return int(found[1]) * 1024
    import resource  # which Windows has not

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def git_commit(checkout: Path) -> str | None:
    """The git commit of a checkout, marked when tracked files differ from it; None for an installed package.

    A package inside a virtual environment inside somebody's repository must not report that repository's commit.
    """
    top = _output("git", "-C", str(checkout), "rev-parse", "--show-toplevel")
    if not top or Path(top).resolve() != checkout.resolve():
        return None
    name = _output("git", "-C", str(checkout), "rev-parse", "--short=12", "HEAD")
    changes = _output("git", "-C", str(checkout), "status", "--porcelain", "--untracked-files=no")
    return f"{name} with uncommitted changes" if name and changes else name


def _threads() -> int | None:
    if torch := sys.modules.get("torch"):
        return int(torch.get_num_threads())
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return int(asked) if asked.isdecimal() else None


def _gpu() -> str | None:
    torch = sys.modules.get("torch")
    if torch is None:
        return None
    if torch.cuda.is_available():
        first = torch.cuda.get_device_properties(0)
        return f"{torch.cuda.device_count()} x {first.name}, {first.total_memory / 1e9:.0f} GB"
    return "Apple MPS" if torch.backends.mps.is_available() else None


def _output(*command: str) -> str | None:
    """Standard output of a small command without its last line break; None if it is missing, slow or fails."""
    variables = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}  # a look must not take git's index lock
    try:
        done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=10, env=variables)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
