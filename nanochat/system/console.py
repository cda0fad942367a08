"""Printing on one process of many, without breaking progress bars."""

from __future__ import annotations

import os
from typing import Any

from tqdm import tqdm


def print0(*args: object, **kwargs: Any) -> None:
    """Print on rank 0 only, flushed at once and without breaking a progress bar."""
    if os.environ.get("RANK", "0") == "0":
        with tqdm.external_write_mode():
            print(*args, **{"flush": True, **kwargs})
