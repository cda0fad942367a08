"""Inputs of a run: a hash of its documents and its text, and its size."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from nanochat.common import write_json_atomic
from nanochat.data.shards import write_dataset
from nanochat.documents.document import default_documents_path
from nanochat.pipeline import inputs
from nanochat.pipeline.sizing import num_params, size_run


def test_training_bytes(base_dir: Path) -> None:
    write_dataset(["höher", "", "abc"], ["held out"], base_dir / "base_data", source="test")
    assert inputs.training_bytes() == 6 + 3


def test_the_hash_changes_with_text_and_documents(base_dir: Path) -> None:
    hashes = []
    for text, documents in (("a", None), ("b", None), ("b", "x"), ("b", "y"), ("b", "y")):
        write_dataset([text], ["held out"], base_dir / "base_data", source="test")
        if documents:
            default_documents_path().parent.mkdir(exist_ok=True)
            default_documents_path().write_text(documents, encoding="utf-8")
        hashes.append(inputs.documents_hash(base_dir))
    assert len(set(hashes)) == 4
    assert hashes[3] == hashes[4]


def test_a_notice_where_the_minutes_are_too_few() -> None:
    assert inputs.overrun_notice(160_000, 5) is None
    assert inputs.overrun_notice(32_000_000, 5) is None
    line = inputs.overrun_notice(10**9, 15) or ""
    assert "about 76 minutes" in line  # 4.5 s a megabyte
    assert "about 82 instead of 15" in line


def test_size_of_a_run(base_dir: Path) -> None:
    write_json_atomic(base_dir / "speed.json", {"device": "cpu", "flops_per_second": 2e11})
    size = inputs.size_of_run(500_000, 15)
    assert size == size_run(500_000, 15, 2e11, "cpu")
    line = inputs.describe_size(size, 500_000)
    assert f"{num_params(size.depth, size.vocab_size):,} parameters" in line
    assert f"({size.passes:.1f} passes over the text)" in line
    assert "(0.40% of the text)" in inputs.describe_size(replace(size, passes=0.004), 500_000)
