"""Reading of a folder, as a user calls it."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nanochat.common import UserError
from nanochat.dataset import Config as DatasetConfig
from nanochat.dataset import open_split, prepare
from nanochat.documents import reader_process
from nanochat.documents.document import load_documents
from scripts import read_documents
from scripts.read_documents import Config, main

WORDS = "river flows long north south water stone bridge city boat fish bird tree hill field wind rain snow".split()


def text(seed: int, num_words: int = 60) -> str:
    rng = random.Random(seed)
    sentences = [" ".join(rng.choices(WORDS, k=10)).capitalize() + "." for _ in range(num_words // 10)]
    return " ".join(sentences)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of twelve notes, with boilerplate, a duplicate, and what cannot be read."""
    root = tmp_path / "notes"
    (root / "more").mkdir(parents=True)
    for number in range(12):
        front = f"---\ntitle: Note {number}\n---\n"
        body = f"# About {number}\n\n{text(number)}\n\n- {text(100 + number, 10)}\n\nEdit this page\n"
        (root / "more" / f"{number}.md").write_text(front + body, encoding="utf-8")
    (root / "again.md").write_text(f"# About 3\n\n{text(3)}\n\n- {text(103, 10)}\n", encoding="utf-8")
    (root / "old.txt").write_bytes(("Съешь же ещё этих мягких французских булок, да выпей чаю. " * 3).encode("cp1251"))
    (root / "empty.md").write_bytes(b"")
    (root / "cat.jpg").write_bytes(b"\xff\xd8")
    (root / "bad.json").write_text("{", encoding="utf-8")
    return root


def files_of(base: Path) -> dict[str, str]:
    """SHA-256 of every result."""
    paths = [*(base / "documents").glob("*.json*"), *(base / "base_data").glob("*")]
    paths = [path for path in paths if path.is_file() and not path.name.startswith(".")]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


@pytest.mark.slow
def test_a_folder(folder: Path, base_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary = main(Config(source=str(folder)))
    out = capsys.readouterr().out
    for part in (
        "almost the same text as another (--similarity): again.md",
        "cp1251, not UTF-8 (old.txt)",
        "without text: empty.md",
        "cat.jpg",
        "bad.json",
        "12  lines",
    ):
        assert part in out
    documents = list(load_documents())
    assert [document.name for document in documents] == sorted(
        ["old.txt", *(f"more/{number}.md" for number in range(12))]
    )
    assert documents[0].title == "Note 0"
    assert not any("Edit this page" in document.text or "---" in document.text for document in documents)
    by_split = {split: [d.text for d in documents if d.split == split] for split in ("train", "val")}
    assert sorted(open_split("train").iter_texts()) == sorted(by_split["train"])
    assert sorted(open_split("val").iter_texts()) == sorted(by_split["val"])
    assert summary["val"]["documents"] == len(by_split["val"]) > 0
    report = json.loads((base_dir / "report" / "read_documents.json").read_text(encoding="utf-8"))
    assert report["metrics"]["train documents"] == len(by_split["train"])


@pytest.mark.slow
def test_a_second_run_does_nothing(
    folder: Path, base_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = Config(source=str(folder))
    summary = main(config)
    before = files_of(base_dir)
    monkeypatch.setattr(reader_process, "_CHILD", "no program (")  # that reads would fail
    assert main(config) == summary
    assert files_of(base_dir) == before
    assert "has not changed since it was read" in capsys.readouterr().out
    monkeypatch.undo()
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(base_dir))
    (folder / "new.md").write_text(text(50), encoding="utf-8")
    assert main(config)["fingerprint"] != summary["fingerprint"]
    assert "new.md" in {document.name for document in load_documents()}
    assert len(list((base_dir / "base_data").glob("*.parquet"))) == 2, "the shards that were replaced are gone"
    (base_dir / "documents" / "documents.jsonl").write_text("damaged", encoding="utf-8")
    main(config)
    assert "new.md" in {document.name for document in load_documents()}


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["md", "txt"])
def test_one_file_is_split_by_blocks(tmp_path: Path, base_dir: Path, suffix: str) -> None:
    sections = [f"# Section {number}\n\n{text(number, 150)}\n\n{text(50 + number, 150)}" for number in range(14)]
    path = tmp_path / f"book.{suffix}"
    path.write_text("\n\n".join(sections), encoding="utf-8")
    summary = main(Config(source=str(path)))
    documents = list(load_documents())
    assert [document.name for document in documents] == [f"book.{suffix}#{n}" for n in range(1, len(documents) + 1)]
    share = summary["val"]["bytes"] / (summary["train"]["bytes"] + summary["val"]["bytes"])
    assert 0.05 < share <= 0.15
    joined = " ".join(" ".join(document.text.split()) for document in documents)
    assert joined.replace("# ", "") == " ".join("\n\n".join(sections).split()).replace("# ", "")
    before = files_of(base_dir)
    for name in ("summary.json", "documents.jsonl"):
        (base_dir / "documents" / name).unlink()
    main(Config(source=str(path)))
    assert files_of(base_dir) == before


@pytest.mark.slow
def test_errors_of_a_user(tmp_path: Path, base_dir: Path) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "a.md").write_bytes(b"")
    (tmp_path / "s" / "b.md").write_text("---\ntitle: x\n---\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"--source .*s holds no text: 2 without text \(a\.md, b\.md\)"):
        main(Config(source=str(tmp_path / "s")))
    (tmp_path / "s" / "c.md").write_text("short", encoding="utf-8")
    with pytest.raises(UserError, match="has 5 bytes of text: at least 1,000 are needed"):
        main(Config(source=str(tmp_path / "s")))
    with pytest.raises(UserError, match="source is empty"):
        Config()
    assert not files_of(base_dir)
    assert not list((base_dir / "documents").glob(".spool*"))


@pytest.mark.slow
def test_another_data_set_stays(folder: Path, base_dir: Path) -> None:
    prepare(DatasetConfig(source="storyworld", num_shards=1, docs_per_shard=4))
    with pytest.raises(UserError, match=r"base_data holds storyworld, not documents:notes: --overwrite replaces it"):
        main(Config(source=str(folder)))
    assert not (base_dir / "documents" / "documents.jsonl").exists()
    main(Config(source=str(folder), overwrite=True))
    assert len(open_split("train")) > 4


@pytest.mark.slow
def test_a_run_that_is_killed_before_its_report_writes_it_in_the_next_one(folder: Path, base_dir: Path) -> None:
    section = base_dir / "report" / "read_documents.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(read_documents, "_report", lambda *_: None)  # killed here
        main(Config(source=str(folder)))
    assert not section.exists()
    main(Config(source=str(folder)))
    written = section.read_bytes()
    assert json.loads(written)["metrics"]["train documents"] > 1
    assert "seconds" not in json.loads(written), "it did not read them"
    main(Config(source=str(folder)))
    assert section.read_bytes() == written
    main(Config(source=str(folder), similarity=0.7))  # reads again, with the same counts
    assert json.loads(section.read_text(encoding="utf-8"))["seconds"] > 0


@pytest.mark.slow
def test_a_killed_run_is_repaired(folder: Path, tmp_path: Path, base_dir: Path) -> None:
    """After kill -9 at any moment the next run gives the files of an undisturbed one."""
    main(Config(source=str(folder)))
    expected = files_of(base_dir)
    environment = {**os.environ, "NANOCHAT_BASE_DIR": str(tmp_path / "other")}
    command = [sys.executable, "-m", "scripts.read_documents", f"--source={folder}"]
    for seconds in (0.9, 1.4):
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
        process.wait()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert files_of(tmp_path / "other") == expected


def test_names_of_data_sets() -> None:
    assert read_documents.data_source("a\nb") == "documents:a\\nb"
    assert len(read_documents.data_source("x" * 999)) == 200
