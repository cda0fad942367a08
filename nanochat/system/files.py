"""The base folder, and files that appear completely or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path


def base_dir() -> Path:
    """The folder that holds everything a run makes: `$NANOCHAT_BASE_DIR`, else `~/.cache/nanochat`. Creates nothing."""
    return Path(os.environ.get("NANOCHAT_BASE_DIR") or Path.home() / ".cache" / "nanochat")


def write_text_atomic(path: Path, text: str) -> None:
    """Write a text file that appears whole or not at all, also after a power cut."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with open(aside, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)


def write_json_atomic(path: Path, value: object) -> None:
    """`write_text_atomic` of readable JSON."""
    write_text_atomic(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")
