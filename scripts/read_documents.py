"""Read a folder of your own documents: clean text in two splits, for training and for conversations.

    python -m scripts.read_documents --source=DIR                          # everything in it that can be read
    python -m scripts.read_documents --source=notes.md                     # one file
    python -m scripts.read_documents --source=DIR --similarity=1           # keep documents that are almost the same

Read are md, txt, rst, html, org, tex, csv, json, jsonl, parquet, ipynb, docx, pdf, epub, odt, rtf and source code, in
any encoding; docx, pdf and others need `uv pip install -e '.[documents]'`. Hidden files, folders of generated files
(build, node_modules, ...), lock files, logs, navigation, lines that repeat over the files, and documents that repeat
others are left out. A table says what was kept and left out, and why; documents/manifest.json says it for each file.

In $NANOCHAT_BASE_DIR: documents/documents.jsonl has the documents as blocks under headings, base_data the same texts
for tok_train and base_train. A tenth of the text is for validation, also of a single file. A second call for files that
have not changed does nothing.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from nanochat import report
from nanochat.common import UserError, base_dir, print0
from nanochat.configurator import Settings, cli, setting
from nanochat.data.manifest import Manifest, default_data_dir, missing_shards, read_manifest
from nanochat.data.shard_checks import file_sha256
from nanochat.data.text_source import LEGACY
from nanochat.dataset import recipe_of, replace_dataset, require_overwrite, shuffle_on_disk, write_new_shards
from nanochat.documents.corpus import (
    Source,
    clean_documents,
    find_source,
    new_spool,
    read_source,
    split_documents,
    write_split,
)
from nanochat.documents.document import default_documents_path, documents_dir, load_documents
from nanochat.documents.file_reader import ReadOptions
from nanochat.documents.provenance import Provenance, read_summary
from nanochat.system.locks import file_lock

_SHUFFLE_BYTES = 256_000_000  # of text, shuffled in memory at a time


@dataclass(frozen=True)
class Config(Settings):
    source: str = setting("", "folder, or one file, of your documents", names="path")
    text_column: str = setting("text", "column or field of csv, jsonl and parquet that holds the text")
    follow_links: bool = setting(False, "follow symbolic links that lead out of the folder; those within it always are")
    similarity: float = setting(
        0.8, "leave out a document with at least this share of word runs in common with another; 1 = equal texts only",
        above=0, at_most=1,
    )  # fmt: skip
    legacy_encoding: str | None = setting(
        None, "encoding of files that are not Unicode; none = guess it for each", choices=LEGACY
    )
    max_seconds: int = setting(30, "processor time for one file, or a million characters of it", at_least=1)
    max_megabytes: int = setting(64, "size of a file that cannot be read in pieces, as docx", at_least=1, at_most=1000)
    overwrite: bool = setting(False, "replace another data set in base_data")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.source:
            raise UserError("source is empty: name the folder of your documents, as --source=my_notes")


def main(config: Config) -> dict[str, Any]:
    """Read the documents, write them and the data set, print the table; return the summary."""
    start = time.perf_counter()
    folder = documents_dir()
    report.check_results_writable("read_documents", default_documents_path())
    with file_lock(folder / ".lock", f"{folder} is written to by", notice=print0):
        source = find_source(Path(config.source), config.follow_links)
        fingerprint = source.fingerprint(*dataclasses.astuple(config)[1:-1])
        summary = read_summary(folder)
        is_unchanged = summary is not None and summary["fingerprint"] == fingerprint and _has_documents(summary)
        if summary is None or not is_unchanged:
            _refuse_other_data(config, source)
            summary = _read(config, source, fingerprint, folder)
        replace_dataset(partial(_write_data, summary), default_data_dir(), config.overwrite)
    print0(*summary["table"], sep="\n")
    _report(config, summary, None if is_unchanged else time.perf_counter() - start)
    if is_unchanged:
        print0(f"{config.source} has not changed since it was read: {default_documents_path()}")
    else:
        print0(f"written: {default_documents_path()}, manifest.json beside it, and {default_data_dir()}")
    return summary


def _has_documents(summary: dict[str, Any]) -> bool:
    """Return True if documents.jsonl is the one that a summary was written for."""
    path = default_documents_path()
    return path.is_file() and file_sha256(path) == summary["documents_sha256"]


def _read(config: Config, source: Source, fingerprint: str, folder: Path) -> dict[str, Any]:
    """Read the files and write documents.jsonl, manifest.json and summary.json; return the summary."""
    options = ReadOptions(config.text_column, config.legacy_encoding, config.max_megabytes * 10**6, config.max_seconds)
    provenance = Provenance(source.name, fingerprint)
    path = default_documents_path()
    with new_spool(folder) as spool:
        places_of_files = read_source(source, spool, options, provenance)
        places = clean_documents(spool, places_of_files, config.similarity, provenance)
        if not places:
            raise UserError(f"--source {config.source} holds no text: {provenance.left_out_in_words()}")
        parts, validation = split_documents(spool, places, config.source)
        write_split(spool, parts, validation, provenance, path)
    return provenance.save(folder, file_sha256(path))


def _refuse_other_data(config: Config, source: Source) -> None:
    """Raise UserError before the work if base_data holds a data set that may not be replaced."""
    if config.overwrite:
        return
    old = read_manifest(default_data_dir())
    if old is not None and old.source != data_source(source.name):
        require_overwrite(False, default_data_dir(), old, data_source(source.name))


def data_source(name: str) -> str:
    """Return the name of the data set of a folder's documents, as its manifest has it."""
    return f"documents:{name if name.isprintable() else ascii(name)[1:-1]}"[:200]


def _write_data(summary: dict[str, Any], folder: Path, old: Manifest | None) -> Manifest:
    """Write the texts of the documents as shards, in random order, unless the folder has them already."""
    recipe = recipe_of(documents=summary["documents_sha256"])
    if old and old.recipe == recipe and not missing_shards(old, folder):
        return old
    num_buckets = 1 + summary["train"]["bytes"] // _SHUFFLE_BYTES
    train = shuffle_on_disk(_texts("train"), seed=0, num_buckets=num_buckets, scratch_dir=folder)
    return write_new_shards(train, _texts("val"), folder, data_source(summary["source"]), recipe, old)


def _texts(split: str) -> Iterator[str]:
    return (document.text for document in load_documents() if document.split == split)


def _report(config: Config, summary: dict[str, Any], seconds: float | None) -> None:
    """Write the section of the report. `seconds`: of the reading; None if an earlier call has read the documents.

    That call may have ended before it wrote its section: then this one writes it, without a time.
    """
    metrics = {f"{split} documents": summary[split]["documents"] for split in ("train", "val")}
    metrics |= {f"{split} text (bytes)": summary[split]["bytes"] for split in ("train", "val")}
    metrics |= {f"left out: {reason}": count for reason, count in summary["left_out"].items()}
    metrics |= {f"removed {kind}": count for kind, count in summary["removed"].items()}
    written = report.read_sections(base_dir() / "report")[0].get("read_documents", {})
    if seconds is None and written.get("metrics") == metrics:
        return
    report.log_section(
        "read_documents",
        {
            "title": "Documents",
            **({} if seconds is None else {"seconds": seconds}),
            "settings": config,
            "metrics": metrics,
            "headline": [],
            "notes": ["Names and reasons: documents/manifest.json."],
        },
    )


if __name__ == "__main__":
    cli(Config, main, __doc__)
