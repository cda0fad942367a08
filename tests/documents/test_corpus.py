"""From a folder to documents: finding, and the passes over what was read."""

from __future__ import annotations

import io
import os
import random
from pathlib import Path

import pytest

from nanochat.common import UserError
from nanochat.documents import converters
from nanochat.documents.corpus import (
    Spool,
    clean_documents,
    find_source,
    name_of,
    new_spool,
    split_documents,
    write_split,
)
from nanochat.documents.document import Block, Document, load_documents
from nanochat.documents.formats import BROKEN, EXTRA, GENERATED, HIDDEN, LOG, NEAR_DUPLICATE, OTHER_KIND, OUTSIDE
from nanochat.documents.provenance import Provenance


def tree(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"text of {name}", encoding="utf-8")
    return root


@pytest.fixture(autouse=True)
def _base(base_dir: Path) -> None:
    """A base folder for each test."""


def test_what_a_folder_holds(tmp_path: Path) -> None:
    root = tree(tmp_path / "s", "b.md", "a/c.txt", ".git/x.md", ".x.md", "node_modules/y.md", "cat.jpg", "x.log")
    (root / "loop").symlink_to(root)
    (root / "out").symlink_to(tmp_path)
    (root / "nowhere").symlink_to("missing")
    os.mkfifo(root / "pipe.md")
    source = find_source(root)
    assert [file.name for file in source.files] == ["a/c.txt", "b.md"]
    assert {reason for reason, _ in source.left_out} >= {HIDDEN, GENERATED, OTHER_KIND, LOG, OUTSIDE, BROKEN}
    assert source.name == "s"


def test_a_single_file_may_be_a_log(tmp_path: Path) -> None:
    root = tree(tmp_path / "s", "x.log")
    assert [file.name for file in find_source(root / "x.log").files] == ["x.log"]
    with pytest.raises(UserError, match=r"holds nothing that can be read: 1 logs .*\(x\.log\)"):
        find_source(root)


def test_folders_without_files(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    with pytest.raises(UserError, match=r"--source .*s: holds no files \(md, txt"):
        find_source(tmp_path / "s")
    with pytest.raises(UserError, match="no such file or folder"):
        find_source(tmp_path / "t")


def test_the_base_folder_is_no_source(tmp_path: Path, base_dir: Path) -> None:
    tree(base_dir / "documents", "a.md")
    tree(tmp_path, "b.md")
    with pytest.raises(UserError, match="is in the base folder"):
        find_source(base_dir / "documents")
    assert [file.name for file in find_source(tmp_path).files] == ["b.md"]


def test_formats_without_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(converters, "find_spec", lambda _: None)
    root = tree(tmp_path / "s", "a.docx", "b.md")
    assert find_source(root).left_out == [(EXTRA, "a.docx")]
    (root / "b.md").unlink()
    with pytest.raises(
        UserError, match=r"1 need the extra `documents`: uv pip install -e '\.\[documents\]' \(a\.docx\)"
    ):
        find_source(root)


def test_the_fingerprint_follows_files_and_settings(tmp_path: Path) -> None:
    root = tree(tmp_path / "s", "a.md", "b.md")
    first = find_source(root).fingerprint("text")
    assert find_source(root).fingerprint("text") == first
    assert find_source(root).fingerprint("story") != first
    (root / "a.md").write_text("other", encoding="utf-8")
    second = find_source(root).fingerprint("text")
    assert second != first
    (root / "b.md").rename(root / "c.md")
    assert find_source(root).fingerprint("text") not in (first, second)


def test_names_that_are_not_utf8() -> None:
    assert name_of(Path(os.fsdecode(b"/s/caf\xe9/b.md")), Path("/s")) == "caf\\xe9/b.md"
    assert name_of(Path("/s/дом.md"), Path("/s")) == "дом.md"


def documents(count: int, repeats: int = 0) -> list[Document]:
    rng = random.Random(1)
    words = [f"word{number}" for number in range(400)]
    texts = [" ".join(rng.choices(words, k=40)) for _ in range(count)]
    texts += [f"{texts[number]} end" for number in range(repeats)]
    return [Document(f"{n:03}.md", "", (Block("paragraph", text, ()),)) for n, text in enumerate(texts)]


def test_the_passes(tmp_path: Path) -> None:
    given = documents(40, repeats=3)
    spool = Spool(io.BytesIO())
    places = [spool.write(document) for document in given]
    assert list(spool.read(reversed(places))) == given[::-1]
    provenance = Provenance("s", "")
    kept = clean_documents(spool, [[place] for place in places], 0.8, provenance)
    assert len(kept) == 40
    assert provenance.left_out == {NEAR_DUPLICATE: ["000.md", "001.md", "002.md"]}
    parts, validation = split_documents(spool, kept, "s")
    write_split(spool, parts, validation, provenance, tmp_path / "documents.jsonl")
    written = list(load_documents(tmp_path / "documents.jsonl"))
    assert [document.name for document in written] == [f"{number:03}.md" for number in range(3, 43)]
    assert {document.split for document in written} == {"train", "val"}
    assert provenance.documents_of_split["val"] == sum(document.split == "val" for document in written)


def test_a_text_in_many_copies_is_kept_once() -> None:
    """Its lines repeat over the files, and are no boilerplate for that."""
    blocks = tuple(Block("paragraph", f"{text} {number}", ()) for number, text in enumerate(["One line."] * 50))
    copies = [Document(f"{number}.md", "", (*blocks, Block("paragraph", f"copy {number}", ()))) for number in range(9)]
    spool = Spool(io.BytesIO())
    provenance = Provenance("s", "")
    [place] = clean_documents(spool, [[spool.write(copy)] for copy in copies], 0.8, provenance)
    assert next(spool.read([place])) == copies[0]
    assert provenance.left_out == {NEAR_DUPLICATE: [f"{number}.md" for number in range(1, 9)]}


def test_too_little_and_repeated_text() -> None:
    spool = Spool(io.BytesIO())
    with pytest.raises(UserError, match="has 10 bytes of text"):
        split_documents(spool, [spool.write(Document("a", "", (Block("paragraph", "0123456789", ()),)))], "s")
    with pytest.raises(UserError, match="one short text over and over"):
        split_documents(spool, [spool.write(Document("a", "", (Block("paragraph", "x" * 2000, ()),)))], "s")


def test_a_spool_leaves_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "documents"
    (folder / ".spool_killed.tmp").mkdir(parents=True)
    with new_spool(folder) as spool:
        spool.write(documents(1)[0])
        assert [path.name for path in folder.iterdir()] != [".spool_killed.tmp"]
    assert not list(folder.iterdir())
