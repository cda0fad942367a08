"""Small data sets for tests: texts, source files, and the documents of both splits."""

from __future__ import annotations

import random
from pathlib import Path

from nanochat.data.shards import iter_documents
from nanochat.dataset import Config, prepare

WORDS = "the sun rises over a quiet village while old friends talk about boats birds and bread".split()


def numbered_texts(count: int, seed: int = 0, words: int = 60) -> list[str]:
    """Return distinct texts of random words: "0: the boats ...", "1: ..."."""
    rng = random.Random(seed)
    return [f"{number}: " + " ".join(rng.choices(WORDS, k=words)) for number in range(count)]


def read_splits(folder: Path) -> tuple[list[str], list[str]]:
    """Return the training and the validation documents of a folder."""
    return list(iter_documents("train", folder)), list(iter_documents("val", folder))


def import_files(source: Path, folder: Path, **settings: object) -> tuple[list[str], list[str]]:
    """Import files as a data set and return its training and validation documents."""
    prepare(Config(source=str(source), **settings), folder)
    return read_splits(folder)


def write_files(folder: Path, **contents: str | bytes) -> Path:
    """Write files into a folder and return the folder; `a__txt="x"` writes "x" to `a.txt`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        data = content.encode() if isinstance(content, str) else content
        (folder / name.replace("__", ".")).write_bytes(data)
    return folder
