"""The files of a source folder: links, pipes, devices, names and permissions. Nothing is left out in silence."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from nanochat.common import UserError
from nanochat.data import source_files
from nanochat.data.source_files import find_text_files
from tests.support.datasets import import_files, write_files


def _found(source: Path, **options: bool) -> list[str]:
    return [path.relative_to(source).as_posix() for path in find_text_files(source, **options)]


def test_links_out_of_the_folder_are_named_and_not_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    secret = write_files(tmp_path / "outside" / "folder", secret__txt="root:x:0:0", b__txt="b")
    source = write_files(tmp_path / "source", a__txt="one", b__txt="two")
    (source / "passwd.txt").symlink_to(secret / "secret.txt")
    (source / "folder").symlink_to(secret)
    train, val = import_files(source, tmp_path / "data")
    assert sorted(train + val) == ["one", "two"]
    assert "2 symbolic links lead out of the folder: not followed without --follow_links (folder, passwd.txt)" in (
        capsys.readouterr().out
    )
    train, val = import_files(source, tmp_path / "followed", follow_links=True)
    assert sorted(train + val) == ["b", "one", "root:x:0:0", "two"]  # the secret once, though two links lead to it
    assert "2 symbolic links are followed" in capsys.readouterr().out


def test_an_empty_folder(tmp_path: Path) -> None:
    source = write_files(tmp_path / "source")
    (source / "folder").mkdir()
    with pytest.raises(UserError, match=r"source: holds no files \(\.txt, \.md, \.jsonl, \.parquet can be read\)$"):
        find_text_files(source)


def test_a_folder_of_links_only_names_the_way_out(tmp_path: Path) -> None:
    """As in the cache of a hub, whose files are links to another folder."""
    blobs = write_files(tmp_path / "blobs", x="one", y="two")
    source = write_files(tmp_path / "snapshot")
    (source / "a.txt").symlink_to(blobs / "x")
    (source / "b.txt").symlink_to(blobs / "y")
    with pytest.raises(UserError, match=r"none of its 0 files can be read .*; 2 symbolic links .*--follow_links"):
        find_text_files(source)
    assert _found_names(find_text_files(source, follow_links=True)) == ["a.txt", "b.txt"]


def _found_names(paths: list[Path]) -> list[str]:
    return [path.name for path in paths]


def test_links_within_the_folder_are_followed_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_files(tmp_path / "source" / ".store", blob="one", other="never seen").parent
    write_files(source / "real", a__txt="two", sub__txt="three")
    (source / "b.txt").symlink_to(".store/blob")  # hidden, so only the link leads to it
    (source / "c.txt").symlink_to("real/a.txt")
    (source / "linked").symlink_to("real")
    (source / "real" / "up").symlink_to("..")
    (source / "real" / "self").symlink_to(".")
    (source / "loop").symlink_to("loop")
    (source / "gone.txt").symlink_to("nowhere")
    assert _found(source) == ["b.txt", "real/a.txt", "real/sub.txt"]
    out = capsys.readouterr().out
    assert "5 symbolic links are followed; each file is read once" in out
    assert "2 symbolic links lead nowhere (gone.txt, loop)" in out


def test_folders_that_link_to_each_other(tmp_path: Path) -> None:
    a, b = write_files(tmp_path / "a", a__txt="one"), write_files(tmp_path / "b", b__txt="two")
    (a / "b").symlink_to(b)
    (b / "a").symlink_to(a)
    assert _found(tmp_path) == ["a/a.txt", "b/b.txt"]
    assert _found(a, follow_links=True) == ["a.txt", "b/b.txt"]
    assert _found_names(find_text_files(_link(tmp_path / "link", a))) == ["a.txt"]  # the source itself may be a link


def _link(path: Path, target: Path) -> Path:
    path.symlink_to(target)
    return path


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes on this system")
def test_pipes_sockets_and_devices_are_never_opened(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_files(tmp_path / "source", a__txt="one", b__txt="two")
    os.mkfifo(source / "pipe.txt")
    os.mkfifo(source / "pipe.parquet")
    monkeypatch.chdir(source)  # the path of a socket has at most 104 characters
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket.txt")
        (source / "zero.txt").symlink_to("/dev/zero")
        train, val = import_files(source, tmp_path / "data")
        assert sorted(train + val) == ["one", "two"]
        assert "3 pipes, sockets or devices are skipped (pipe.parquet, pipe.txt, socket.txt)" in capsys.readouterr().out
        find_text_files(source, follow_links=True)
        assert "4 pipes, sockets or devices are skipped" in capsys.readouterr().out
    for path in (source / "pipe.txt", Path("/dev/zero")):
        with pytest.raises(UserError, match="neither a file nor a folder; a pipe must be saved to a file first"):
            find_text_files(path)


def test_folders_with_the_names_of_files(tmp_path: Path) -> None:
    write_files(tmp_path / "book.txt" / "a.parquet", a__md="one")
    assert _found(tmp_path) == ["book.txt/a.parquet/a.md"]


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    source = write_files(tmp_path / os.fsdecode(b"caf\xe9"), a__txt="one")
    try:
        Path(source, os.fsdecode(b"\xff.txt")).write_bytes(b"two")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    train, val = import_files(source, tmp_path / "data")
    assert sorted(train + val) == ["one", "two"]


def test_what_may_not_be_read_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Simulated, because root may read everything."""
    source = write_files(tmp_path / "source", a__txt="one", b__txt="two", c__txt="three")
    write_files(source / "closed", d__txt="four")
    scandir = os.scandir

    def refuse(path: Path) -> object:
        if path.name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(source_files.os, "scandir", refuse)
    monkeypatch.setattr(source_files.os, "access", lambda path, _: path.name != "b.txt")
    assert _found(source) == ["a.txt", "c.txt"]
    assert "2 files or folders may not be read and are skipped (b.txt, closed)" in capsys.readouterr().out


def test_deep_folders(tmp_path: Path) -> None:
    folder = tmp_path
    for _ in range(300):
        folder /= "d"
    write_files(folder, a__txt="one")
    assert len(find_text_files(tmp_path)) == 1
