"""Stubs of a machine with NVIDIA GPUs: a `torch` that counts them, and nvidia-smi."""

from __future__ import annotations

from pathlib import Path

FAKE_SMI = """#!/bin/bash
for gpu in 1 2 3 4 5 6 7 8; do echo 535.104.05; done
"""

FAKE_TORCH = """
__version__ = "9.9.9"

class version:
    cuda = "13.0"

class cuda:
    def device_count():
        return {counted}

    def is_available():
        return {usable}

    def init():
        raise RuntimeError({error!r})
"""


def write_torch(folder: Path, counted: int, usable: bool, error: str) -> None:
    """Write a module `torch` that counts GPUs, and whose CUDA is usable or fails with this error."""
    (folder / "torch.py").write_text(FAKE_TORCH.format(counted=counted, usable=usable, error=error), encoding="utf-8")
