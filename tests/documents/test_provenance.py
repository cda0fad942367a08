"""The manifest, the summary and the table."""

from __future__ import annotations

import json
from pathlib import Path

from nanochat.documents.document import Block, Document
from nanochat.documents.duplicates import Repeat
from nanochat.documents.file_reader import FileFacts
from nanochat.documents.formats import DAMAGED, NEAR_DUPLICATE, OTHER_KIND
from nanochat.documents.provenance import Provenance, read_summary
from nanochat.documents.reader_process import FileResult


def filled() -> Provenance:
    provenance = Provenance("notes", "f" * 64)
    provenance.leave_out(OTHER_KIND, "cat.jpg")
    provenance.add_file("b.md", 10, FileResult(FileFacts("markdown", "cp1251")), 1)
    provenance.add_file("a.jsonl", 20, FileResult(FileFacts("jsonl", "utf-8", num_bad_lines=2)), 2)
    provenance.add_file("c.pdf", 30, FileResult(FileFacts("pdf"), DAMAGED, "no page"), 0)
    provenance.add_repeat("a.jsonl#2", Repeat(0, 0.912345), "b.md")
    provenance.removed["lines"] += 3
    blocks = (Block("heading", "T", (), level=1), Block("paragraph", "x", ("T",)))
    provenance.add_document(Document("b.md", "T", blocks).with_split("train"), 90)
    provenance.add_document(Document("a.jsonl#1", "", ()).with_split("val"), 10)
    return provenance


def test_what_is_written_is_read(tmp_path: Path) -> None:
    summary = filled().save(tmp_path, "0" * 64)
    assert read_summary(tmp_path) == json.loads(json.dumps(summary))
    manifest = json.loads((tmp_path / "manifest.json").read_text(encoding="utf-8"))
    assert [row["name"] for row in manifest["files"]] == ["a.jsonl", "b.md", "c.pdf"]
    assert manifest["files"][2] == {
        "name": "c.pdf",
        "bytes": 30,
        "format": "pdf",
        "reason": DAMAGED,
        "detail": "no page",
    }
    assert manifest["documents"][0]["headings"] == ["T"]
    assert manifest["repeats"] == [{"name": "a.jsonl#2", "kept": "b.md", "similarity": 0.912}]
    assert manifest["left_out"][NEAR_DUPLICATE] == ["a.jsonl#2"]
    assert summary["train"] == {"documents": 1, "bytes": 90}
    assert summary["left_out"] == {OTHER_KIND: 1, DAMAGED: 1, NEAR_DUPLICATE: 1}


def test_the_table() -> None:
    table = "\n".join(filled().table())
    for part in ("markdown", "cp1251, not UTF-8 (b.md)", "left out (a.jsonl)", "cat.jpg", "c.pdf", "3  lines", "90.0%"):
        assert part in table
    names = Provenance("x", "")
    for number in range(9):
        names.leave_out(OTHER_KIND, f"{number}.jpg")
    assert "0.jpg, 1.jpg, 2.jpg, ..." in names.left_out_in_words()


def test_a_summary_that_cannot_be_used(tmp_path: Path) -> None:
    assert read_summary(tmp_path) is None
    for content in ("", "[]", "{}", '{"format": 1, "fingerprint": 3}'):
        (tmp_path / "summary.json").write_text(content, encoding="utf-8")
        assert read_summary(tmp_path) is None
    filled().save(tmp_path, "0" * 64)
    content = (tmp_path / "summary.json").read_text(encoding="utf-8")
    (tmp_path / "summary.json").write_text(content.replace('"format": 1', '"format": 2'), encoding="utf-8")
    assert read_summary(tmp_path) is None
