"""export_hf: what it replaces and what it refuses to, failures that leave nothing behind, and the upload."""

from __future__ import annotations

import io
import os
import shutil
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import huggingface_hub
import pytest

from nanochat.common import UserError
from scripts import export_hf
from tests.support.exports import CONFIGS, loud_model, save

pytestmark = pytest.mark.usefixtures("one_thread")


TEMPLATES = ["additional_chat_templates", "chat_template.jinja"]
FILES = ["README.md", *TEMPLATES, "config.json", "generation_config.json", "model.safetensors", "tokenizer.json"]


def test_what_must_not_be_replaced(tmp_path: Path, base_dir: Path) -> None:
    """A new or empty folder is written; a full one is not, and --overwrite replaces an exported model only."""
    save(loud_model(CONFIGS["grouped"]), "sft")
    out = tmp_path / "out"
    out.mkdir()
    export_hf.main(export_hf.Config(source="sft", out=out))
    (out / "mine.txt").touch()
    with pytest.raises(UserError, match="is not empty"):
        export_hf.main(export_hf.Config(source="sft", out=out))
    export_hf.main(export_hf.Config(source="sft", out=out, overwrite=True))
    assert (out / "mine.txt").exists()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").touch()
    with pytest.raises(UserError, match="is not empty"):
        export_hf.main(export_hf.Config(source="sft", out=tmp_path / "other", overwrite=True))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([base_dir.name, "out", "other"])


@pytest.mark.usefixtures("base_dir")
def test_other_files_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """--overwrite replaces an export's files and removes weights in several files. A kill at any time can be mended."""
    save(loud_model(CONFIGS["grouped"]), "sft")
    export = partial(export_hf.main, export_hf.Config(source="sft", out=tmp_path / "out", overwrite=True))
    out = export()
    content = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
    mine = (".git/config", "notes.txt", "additional_chat_templates/mine.jinja", "model-00001-of-2.safetensors")
    shards = ("model-00001-of-00002.safetensors", "model.safetensors.index.json")
    for name in (*mine, *shards):
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_text("mine", encoding="utf-8")
    real_replace, real_rmtree = os.replace, shutil.rmtree
    for num_moves in range(len(content) + 1):
        for name in set(content) - {"config.json"}:
            (out / name).write_text("old", encoding="utf-8")
        moves: list[Any] = []

        def replace(source: Any, target: Any, moves: list[Any] = moves, limit: int = num_moves) -> None:
            if not Path(source).name.startswith("."):  # not a write of one file
                if len(moves) == limit:
                    monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: None)  # nothing is tidied up after a kill
                    raise KeyboardInterrupt
                moves.append(target)
            real_replace(source, target)

        monkeypatch.setattr(os, "replace", replace)
        with pytest.raises(KeyboardInterrupt):
            export()
        monkeypatch.setattr(os, "replace", real_replace)
        monkeypatch.setattr(shutil, "rmtree", real_rmtree)
        assert all((out / name).exists() for name in mine)
    export()
    assert {path.name: path.read_bytes() for path in out.iterdir() if path.name in content} == content
    assert {(out / name).read_text(encoding="utf-8") for name in mine} == {"mine"}
    assert {path.name for path in out.iterdir()} == {
        *content,
        "additional_chat_templates",
        *(Path(name).parts[0] for name in mine),
    }
    (out / "README.md").unlink()
    (out / "README.md").mkdir()
    with pytest.raises(UserError, match=r"README.md: a folder, link or file is in its place"):
        export()


def test_permissions(tmp_path: Path, base_dir: Path) -> None:
    """All files of a checkpoint and of an export have those that the umask leaves."""
    mask = os.umask(0o027)
    try:
        save(loud_model(CONFIGS["grouped"]), "sft")
        out = export_hf.main(export_hf.Config(source="sft", out=tmp_path / "out"))
    finally:
        os.umask(mask)
    files = [path for folder in (out, base_dir / "chatsft_checkpoints") for path in folder.rglob("*") if path.is_file()]
    assert {path.name for path in files} >= {"model.safetensors", "optimizer.safetensors", "config.json", "meta.json"}
    assert {path.stat().st_mode & 0o777 for path in files} == {0o640}


@pytest.mark.parametrize("length", [250, 300])
def test_a_name_that_is_too_long(length: int, tmp_path: Path, base_dir: Path) -> None:
    """Too long for the file system, by itself or as the name of the temporary folder."""
    save(loud_model(CONFIGS["grouped"]))
    with pytest.raises(UserError, match=r"cannot write .*too long"):
        export_hf.main(export_hf.Config(out=tmp_path / ("x" * length)))
    assert [path.name for path in tmp_path.iterdir()] == [base_dir.name]


def test_a_folder_that_cannot_be_read(tmp_path: Path, base_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its content is unknown, so it is not replaced."""
    save(loud_model(CONFIGS["grouped"]))
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").touch()
    real_iterdir = Path.iterdir

    def iterdir(self: Path) -> Iterator[Path]:  # file permissions do not stop root
        if self == out:
            raise PermissionError(13, "Permission denied", str(self))
        return real_iterdir(self)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    with pytest.raises(UserError, match=r"cannot write .*Permission denied"):
        export_hf.main(export_hf.Config(out=out, overwrite=True))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([base_dir.name, "out"])
    assert (out / "mine.txt").exists()


def test_a_failure_leaves_nothing(tmp_path: Path, base_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def raise_disk_full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    save(loud_model(CONFIGS["grouped"]))
    monkeypatch.setattr(export_hf, "write_tensors", raise_disk_full)
    with pytest.raises(UserError, match="No space left"):
        export_hf.main(export_hf.Config(out=tmp_path / "out"))
    assert [path.name for path in tmp_path.iterdir()] == [base_dir.name]


@pytest.mark.usefixtures("base_dir")
def test_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no rl checkpoint"):
        export_hf.main(export_hf.Config(source="rl", out=tmp_path / "out"))
    with pytest.raises(UserError, match="--out is missing"):
        export_hf.Config()


# --- the upload -------------------------------------------------------------------------------------------------------


class Hub:
    """Replaces the hub's client, and records the calls."""

    calls: ClassVar[list[tuple[Any, ...]]] = []
    error: ClassVar[Exception | None] = None

    def create_repo(self, name: str, private: bool, exist_ok: bool) -> None:
        if self.error:
            raise self.error
        self.calls.append((name, private, exist_ok))

    def upload_folder(self, repo_id: str, folder_path: Path, commit_message: str) -> None:
        self.calls.append((repo_id, sorted(path.name for path in folder_path.iterdir()), bool(commit_message)))


@pytest.mark.usefixtures("base_dir")
def test_push(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is uploaded without a y at the terminal, or --yes."""
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    monkeypatch.setattr(Hub, "calls", [])
    save(loud_model(CONFIGS["grouped"]))

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    def push(name: str, stdin: io.StringIO, **options: Any) -> list[tuple[Any, ...]]:
        monkeypatch.setattr(sys, "stdin", stdin)
        export_hf.main(export_hf.Config(out=tmp_path / name, push="me/d9", **options))
        return Hub.calls

    with pytest.raises(UserError, match="add --yes"):
        push("a", io.StringIO("y\n"))
    assert not (tmp_path / "a").exists()
    assert push("b", Terminal("\n")) == push("b2", Terminal("")) == []  # the second is Ctrl-D
    assert (tmp_path / "b2").is_dir()
    uploaded = [("me/d9", True, True), ("me/d9", [*FILES, "tokenizer_config.json"], True)]
    assert push("c", Terminal("y\n")) == uploaded
    assert push("d", io.StringIO(), yes=True) == uploaded * 2
    monkeypatch.setattr(Hub, "error", RuntimeError("401 Unauthorized\nsee https://..."))
    with pytest.raises(UserError, match=r"failed \(401 Unauthorized\); .* is complete"):
        push("e", io.StringIO(), yes=True)
    with pytest.raises(UserError, match="OWNER/NAME"):
        export_hf.Config(out=tmp_path, push="d9")
