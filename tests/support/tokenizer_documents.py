"""Stand-in documents of both splits for the scripts of the tokenizer, and their sections of the report."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from scripts import tok_eval, tok_train

TRAIN = [f"the cat number {i} sat on mat {i * i % 17}, it's true\n" for i in range(300)]
VALIDATION = ["the cat sat on the mat", "it's 17"]


class InMemoryDocuments:
    """Documents in Arrow arrays of at most 70."""

    def __init__(self, texts: list[str]) -> None:
        self.texts = texts

    def iter_arrays(self) -> Iterator[pa.Array]:
        return (pa.array(self.texts[i : i + 70]) for i in range(0, len(self.texts), 70))


def replace_documents(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let both scripts read TRAIN and VALIDATION; return a list to which each split is appended when it is opened."""
    opened: list[str] = []

    def texts(split: str) -> list[str]:
        opened.append(split)
        return TRAIN if split == "train" else VALIDATION

    monkeypatch.setattr(tok_train, "open_split", lambda split: InMemoryDocuments(texts(split)))
    monkeypatch.setattr(tok_eval, "iter_documents", lambda split: iter(texts(split)))
    return opened


def read_section(base_dir: Path, stage: str) -> dict[str, object]:
    """Return a section of the report."""
    return dict(json.loads((base_dir / "report" / f"{stage}.json").read_text(encoding="utf-8")))
