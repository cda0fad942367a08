"""A fingerprint of everything that decides how floating-point sums are rounded: processor, torch and Python."""

from __future__ import annotations

import hashlib
import platform
from pathlib import Path

import torch


def fingerprint() -> str:
    """Processor, vector width that torch uses, torch and Python, as one line."""
    fields: dict[str, str] = {}
    cpuinfo = Path("/proc/cpuinfo")
    for line in cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []:
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    processor = " ".join(fields.get(name, "?") for name in ("vendor_id", "cpu family", "model", "stepping"))
    flags = hashlib.sha256(" ".join(sorted(fields.get("flags", "").split())).encode()).hexdigest()[:8]
    python = ".".join(platform.python_version_tuple()[:2])
    return (
        f"{platform.machine()} {processor} flags {flags}, {torch.backends.cpu.get_cpu_capability()}, "
        f"torch {torch.__version__}, Python {python}"
    )
