"""The base folder (`$NANOCHAT_BASE_DIR`), which holds data, checkpoints and reports, and atomic writes of files."""

from __future__ import annotations

import json
import os
from pathlib import Path


def base_dir() -> Path:
    """Return the folder that all files go to: `$NANOCHAT_BASE_DIR`, else `~/.cache/nanochat`. It may not exist yet."""
    return Path(os.environ.get("NANOCHAT_BASE_DIR") or Path.home() / ".cache" / "nanochat")


def write_text_atomic(path: Path, text: str) -> None:
    """Write a text file so that after a crash or power cut `path` holds either its old or its new content."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def write_json_atomic(path: Path, value: object) -> None:
    """Write indented JSON with `write_text_atomic`."""
    write_text_atomic(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")
