"""Printing from one process of many, above progress bars."""

from __future__ import annotations

import os
from typing import Any

from tqdm import tqdm


def print0(*args: object, **kwargs: Any) -> None:
    """`print` on the first process only, flushed and above progress bars: a log shows each line once and at once."""
    if os.environ.get("RANK", "0") == "0":
        with tqdm.external_write_mode():
            print(*args, **{"flush": True, **kwargs})
