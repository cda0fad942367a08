"""What every file may need: where files live, how to speak, how to write safely.

Knows nothing of the rest of nanochat and nothing of torch, so that the data tools start at once.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm


class UserError(ValueError):
    """Something the user can mend: shown as one line, without a traceback, and exit code 2."""


class StoppedBySignal(Exception):
    """A signal asked the run to stop, and it has. The message says how to go on; the exit code is 128 + the signal."""

    def __init__(self, signal_number: int, message: str) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


@contextmanager
def as_user_error(what: str) -> Iterator[None]:
    """Whatever goes wrong is the user's to mend and said in one line: damaged files, networks may raise anything."""
    try:
        yield
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise UserError(f"{what}: {lines[0] if lines else type(error).__name__}") from error


def base_dir() -> Path:
    """The folder that holds everything a run makes: `$NANOCHAT_BASE_DIR`, else `~/.cache/nanochat`. Creates nothing."""
    return Path(os.environ.get("NANOCHAT_BASE_DIR") or Path.home() / ".cache" / "nanochat")


def print0(*args: object, **kwargs: Any) -> None:
    """`print` on the first process only, flushed and above progress bars: a log shows each line once and at once."""
    if os.environ.get("RANK", "0") == "0":
        with tqdm.external_write_mode():
            print(*args, **{"flush": True, **kwargs})


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
