"""Record of what was read: where each document comes from, what was left out and why; as files and as a table.

    documents/manifest.json    every file and document: name, format, encoding, hash, headings, reason
    documents/summary.json     the counts and the table, and the fingerprint by which a second run finds nothing to do

The manifest has an entry on each line, so that it can be read and searched as a text.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nanochat.common import UserError, write_json_atomic, written_atomically
from nanochat.documents.document import Document
from nanochat.documents.duplicates import Repeat
from nanochat.documents.formats import DUPLICATE, NEAR_DUPLICATE
from nanochat.documents.reader_process import FileResult
from nanochat.system.files import flush_to_disk
from nanochat.system.json_files import check_type, read_json

FORMAT = 1
_NAMES_SHOWN = 3


@dataclass
class Provenance:
    """The record of one run, filled while it reads."""

    source: str
    fingerprint: str
    files: list[dict[str, Any]] = field(default_factory=list)
    documents: list[dict[str, Any]] = field(default_factory=list)
    repeats: list[dict[str, Any]] = field(default_factory=list)
    left_out: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))  # reason -> names
    notes: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))  # of files that were read
    removed: Counter[str] = field(default_factory=Counter)  # "lines", "passages"
    bytes_of_split: Counter[str] = field(default_factory=Counter)
    documents_of_split: Counter[str] = field(default_factory=Counter)

    def leave_out(self, reason: str, name: str) -> None:
        """Count a file, folder or document that is left out."""
        self.left_out[reason].append(name)

    def add_file(self, name: str, size: int, result: FileResult, num_documents: int) -> None:
        """Count a file that was opened."""
        facts = result.facts
        row = {"name": name, "bytes": size, "format": facts.format, "encoding": facts.encoding}
        row |= {"documents": num_documents, "reason": result.reason, "detail": result.detail}
        self.files.append({key: value for key, value in row.items() if value})
        if result.reason:
            self.leave_out(result.reason, name)
            return
        if facts.is_damaged:
            self.notes["have bytes that are no text, which became U+FFFD"].append(name)
        elif facts.encoding not in ("", "utf-8"):
            self.notes[f"are {facts.encoding}, not UTF-8"].append(name)
        if facts.num_bad_lines:
            self.notes["have lines that are no JSON, which were left out"].append(name)

    def add_repeat(self, name: str, repeat: Repeat, kept: str) -> None:
        """Count a document that is left out because another one has its text."""
        self.leave_out(DUPLICATE if repeat.is_equal else NEAR_DUPLICATE, name)
        self.repeats.append({"name": name, "kept": kept, "similarity": round(repeat.similarity, 3)})

    def add_document(self, document: Document, num_bytes: int) -> None:
        """Record a document that is kept."""
        headings = next((block.headings for block in document.blocks if block.kind != "heading"), ())
        row = {"name": document.name, "title": document.title, "split": document.split, "sha256": document.sha256}
        self.documents.append({**row, "headings": headings, "bytes": num_bytes})
        self.bytes_of_split[document.split] += num_bytes
        self.documents_of_split[document.split] += 1

    def save(self, folder: Path, documents_sha256: str) -> dict[str, Any]:
        """Write the manifest, then the summary, which says that all is complete. Returns the summary."""
        self.files.sort(key=lambda row: row["name"])
        with written_atomically(folder / "manifest.json") as path, open(path, "w", encoding="utf-8") as file:
            file.writelines(self._manifest_lines())
            file.flush()
            flush_to_disk(file.fileno())
        summary = {
            "format": FORMAT,
            "source": self.source,
            "fingerprint": self.fingerprint,
            "documents_sha256": documents_sha256,
            "train": {"documents": self.documents_of_split["train"], "bytes": self.bytes_of_split["train"]},
            "val": {"documents": self.documents_of_split["val"], "bytes": self.bytes_of_split["val"]},
            "left_out": {reason: len(names) for reason, names in sorted(self.left_out.items())},
            "removed": dict(sorted(self.removed.items())),
            "table": self.table(),
        }
        write_json_atomic(folder / "summary.json", summary)
        return summary

    def _manifest_lines(self) -> Iterator[str]:
        head = {"format": FORMAT, "source": self.source, "fingerprint": self.fingerprint}
        yield "{\n" + "".join(f"{json.dumps(key)}: {json.dumps(value)},\n" for key, value in head.items())
        names = {reason: sorted(names) for reason, names in sorted(self.left_out.items())}
        yield f'"left_out": {json.dumps(names, ensure_ascii=False)},\n'
        sections = {"files": self.files, "repeats": self.repeats, "documents": self.documents}
        for number, (key, rows) in enumerate(sections.items()):
            yield f'"{key}": ['
            for index, row in enumerate(rows):
                yield ("," if index else "") + "\n" + json.dumps(row, ensure_ascii=False)
            yield "\n]" + (",\n" if number < len(sections) - 1 else "\n}\n")

    def table(self) -> list[str]:
        """Return the lines of the table of what was read, left out, cleaned and kept."""
        lines = [f"{'read':<44}{'files':>10}{'documents':>12}{'bytes':>16}"]
        for name, (files, documents, num_bytes) in self._formats().items():
            lines.append(f"  {name:<42}{files:>10,}{documents:>12,}{num_bytes:>16,}")
        lines += [f"  {len(names):,} files {note} ({_some(names)})" for note, names in sorted(self.notes.items())]
        if self.left_out:
            lines.append("left out")
            by_count = sorted(self.left_out.items(), key=lambda item: (-len(item[1]), item[0]))
            lines += [f"  {len(names):>8,}  {reason}: {_some(names)}" for reason, names in by_count]
        if self.removed["lines"]:
            lines.append(f"  {self.removed['lines']:>8,}  lines that repeat over the files")
        if self.removed["passages"]:
            lines.append(f"  {self.removed['passages']:>8,}  long passages that stand in an earlier document")
        for split, name in (("train", "for training"), ("val", "for validation")):
            documents, size = self.documents_of_split[split], self.bytes_of_split[split]
            share = size / max(1, sum(self.bytes_of_split.values()))
            lines.append(f"{'kept ' + name:<44}{'':>10}{documents:>12,}{size:>16,}  {share:.1%}")
        return lines

    def left_out_in_words(self) -> str:
        """Return what was left out in one line, for an error message."""
        return "; ".join(f"{len(names):,} {reason} ({_some(names)})" for reason, names in sorted(self.left_out.items()))

    def _formats(self) -> dict[str, tuple[int, int, int]]:
        result: dict[str, tuple[int, int, int]] = {}
        for row in self.files:
            if "reason" not in row:
                files, documents, size = result.get(row["format"], (0, 0, 0))
                result[row["format"]] = (files + 1, documents + row["documents"], size + row["bytes"])
        return dict(sorted(result.items()))


def read_summary(folder: Path) -> dict[str, Any] | None:
    """Return the summary of the last complete run, or None if there is none that can be read."""
    path = folder / "summary.json"
    if not path.exists():
        return None
    try:
        summary = read_json(path)
        check_type(summary, dict[str, Any], "")
        check_type([summary.get("fingerprint"), summary.get("documents_sha256")], list[str], "summary")
        check_type(summary.get("table"), list[str], "table")
        check_type(summary.get("left_out"), dict[str, int], "left_out")
        for split in ("train", "val"):
            check_type(summary.get(split), dict[str, int], split)
    except UserError:
        return None
    return summary if summary.get("format") == FORMAT else None


def _some(names: Iterable[str]) -> str:
    shown = sorted(names)
    return ", ".join(shown[:_NAMES_SHOWN]) + (", ..." if len(shown) > _NAMES_SHOWN else "")
