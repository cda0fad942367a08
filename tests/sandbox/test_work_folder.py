"""Folders of programs: removed whatever is in them, without a long wait, and also if their caller was killed."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from nanochat.execution import isolation_layers, run_program
from nanochat.sandbox import work_folder
from nanochat.sandbox.work_folder import create_folder, remove_folder, remove_tree
from tests.support.sandbox import wait_until_empty

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="programs run on Linux and macOS, not on Windows")
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The place of temporary files."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def fill(folder: Path) -> None:
    """Create many folders, deep ones, forbidden ones, links and names that a removal might use."""
    for number in range(30):
        (folder / "wide" / f"folder-{number}").mkdir(parents=True)
        (folder / f"folder-{number}").mkdir()
        (folder / f"folder-{number}" / "file").touch()
    os.symlink("/usr", folder / "link")
    os.symlink("/usr", folder / "wide" / "link")
    (folder / "forbidden" / "inner" / "more").mkdir(parents=True)
    (folder / "forbidden" / "inner").chmod(0)
    (folder / "forbidden").chmod(0)
    begun = os.getcwd()
    os.chdir(folder)
    for _ in range(30):  # a path of 6,000 characters
        os.mkdir("n" * 200)
        os.chdir("n" * 200)
    os.chdir(begun)


def test_removal(temporary: Path) -> None:
    """At once, and in steps that each begin where the last one ended."""
    folder, descriptor = create_folder()
    fill(folder)
    remove_folder(folder, descriptor)
    wait_until_empty(temporary)
    folder, descriptor = create_folder()
    fill(folder)
    num_steps = 0
    while not remove_tree(folder, time.monotonic() + 0.001):
        num_steps += 1
    assert num_steps > 1
    assert os.listdir(temporary) == []
    os.close(descriptor)


def test_removal_does_not_go_on_after_the_deadline(temporary: Path) -> None:
    folder, descriptor = create_folder()
    fill(folder)
    before = len(os.listdir(folder))
    assert not remove_tree(folder, 0.0)
    assert len(os.listdir(folder)) >= before - 1
    remove_folder(folder, descriptor)
    wait_until_empty(temporary)


def test_a_detached_process_removes_the_rest(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if the caller has no time for any of it."""
    if not isolation_layers()["seccomp"]:
        pytest.skip("without seccomp, root is refused")
    monkeypatch.setattr(work_folder, "_REMOVAL_SECONDS", 0.0)
    detached: list[Path] = []
    remove = work_folder._remove_detached

    def record(folder: Path, descriptor: int) -> None:
        detached.append(folder)
        remove(folder, descriptor)

    monkeypatch.setattr(work_folder, "_remove_detached", record)
    result = run_program("import os\nfor i in range(30): os.makedirs(f'a{i}/b')", 60.0, without=["namespaces"])
    assert result.ok, result
    assert len(detached) == 1
    wait_until_empty(temporary)


def test_folders_of_killed_callers_are_removed(temporary: Path) -> None:
    """And those of callers that live are kept, in this process and in others."""
    code = f"""
import tempfile; tempfile.tempdir = {str(temporary)!r}
from nanochat.sandbox.work_folder import create_folder
print(create_folder()[0], flush=True); input()
"""
    mine, descriptor = create_folder()
    other = temporary / "nanochat-program-that-is-a-file"
    other.touch()
    link = temporary / "nanochat-program-link"
    link.symlink_to(ROOT)
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as caller:
        assert caller.stdout
        theirs = Path(caller.stdout.readline().strip())
        fill(theirs)
        assert run_program("", 30.0, without=[]).ok
        assert mine.exists()
        assert theirs.exists()
        caller.kill()
    theirs.chmod(0)
    assert run_program("", 30.0).ok
    deadline = time.monotonic() + 60
    while theirs.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert sorted(temporary.iterdir()) == sorted([mine, other, link])
    remove_folder(mine, descriptor)
    assert sorted(temporary.iterdir()) == sorted([other, link])
