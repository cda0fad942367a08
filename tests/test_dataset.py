"""The command that makes the data set: from files, from the storyworld, and from the hub (here a local server)."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nanochat import dataset
from nanochat.common import UserError
from nanochat.data import download, shards
from nanochat.data.shards import write_shard
from nanochat.dataset import Config, iter_documents, load_manifest, prepare, shard_paths
from tests.conftest import ROOT
from tests.support.datasets import import_files, numbered_texts, read_splits, write_files
from tests.support.fileserver import FileServer, running


def _state(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Return the modification time and the contents of every file but the lock, by name."""
    files = [path for path in folder.iterdir() if path.is_file() and path.name != ".lock"]
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {".lock"}


# --- a user's own files -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"format": 9}', '{"format": 1, "train": ["a"], "files": {}}', "\x00"]
)
def test_a_broken_manifest(tmp_path: Path, content: str) -> None:
    write_files(tmp_path / "data", manifest__json=content)
    with pytest.raises(UserError, match=r"manifest\.json"):
        load_manifest(tmp_path / "data")
    source = write_files(tmp_path / "source", a__txt="one", b__txt="two")
    with pytest.raises(UserError, match=r"manifest\.json"):
        prepare(Config(source=str(source)), tmp_path / "data")
    assert len(import_files(source, tmp_path / "data", overwrite=True)[0]) == 1


@pytest.mark.parametrize(
    "bad", [{"num_shards": 0}, {"num_shards": 1823}, {"workers": 0}, {"max_chars": 5}, {"seed": -1}]
)
def test_impossible_settings(bad: dict[str, int]) -> None:
    with pytest.raises(UserError, match=f"^{next(iter(bad))} is {next(iter(bad.values()))}: "):
        Config(**bad)
    with pytest.raises(UserError, match="num_shards is -1: only the hub"):
        Config(source="storyworld", num_shards=-1)


def test_the_order_depends_on_the_seed_alone(tmp_path: Path) -> None:
    texts = numbered_texts(300, words=3)
    source = write_files(tmp_path / "source", a__jsonl="\n".join(json.dumps({"text": text}) for text in texts))
    in_order, val = import_files(source, tmp_path / "1", shuffle=False)
    shuffled, _ = import_files(source, tmp_path / "2")
    same_seed, _ = import_files(source, tmp_path / "3")
    other_seed, _ = import_files(source, tmp_path / "4", seed=1)
    assert in_order == [text for text in texts if text not in set(val)]
    assert shuffled == same_seed != other_seed
    assert sorted(shuffled) == sorted(other_seed) == sorted(in_order)
    distances = [abs(in_order.index(text) - position) for position, text in enumerate(shuffled)]
    assert sum(distances) > 20 * len(shuffled)


@pytest.mark.parametrize("num_buckets", [1, 2, 7])
def test_shuffling_on_disk(tmp_path: Path, num_buckets: int) -> None:
    texts = ["line\nbreak", "é \u2028", *numbered_texts(500, words=2)]
    result = list(dataset.shuffle_on_disk(texts, 3, num_buckets, tmp_path))
    assert sorted(result) == sorted(texts)
    assert result == list(dataset.shuffle_on_disk(texts, 3, num_buckets, tmp_path)) != texts
    halves = sum(text in set(texts[:250]) for text in result[:250])
    assert 75 < halves < 175  # 125 by chance, with a deviation of 8
    assert not list(tmp_path.iterdir())


def test_a_second_import_changes_nothing_and_a_different_one_needs_overwrite(tmp_path: Path) -> None:
    source, folder = write_files(tmp_path / "source", a__txt="one", b__txt="two", c__txt="three"), tmp_path / "data"
    before = import_files(source, folder)
    state = _state(folder)
    assert import_files(source, folder) == before
    assert _state(folder) == state
    (source / "d.txt").write_text("four", encoding="utf-8")
    for config in (
        Config(source=str(source)),
        Config(source=str(source / "a.txt")),
        Config(source="storyworld"),
        Config(source="hub"),
    ):
        with pytest.raises(UserError, match="--overwrite replaces it"):
            prepare(config, folder)
    assert _state(folder) == state
    train, val = import_files(source, folder, overwrite=True)
    assert sorted(train + val) == ["four", "one", "three", "two"]
    assert not set(_state(folder)) & set(state) - {"manifest.json"}  # the replaced shards are gone
    Path(shard_paths("train", folder)[0]).unlink()
    assert import_files(source, folder) == (train, val)  # a shard that is missing is written again


@pytest.mark.slow
def test_a_killed_import_keeps_the_old_data_set(base_dir: Path, tmp_path: Path) -> None:
    old, folder = write_files(tmp_path / "old", a__txt="one", b__txt="two"), base_dir / "base_data"
    before = import_files(old, folder)
    state = _state(folder)
    big = write_files(tmp_path / "big", **{f"t{n}__txt": "\n\n".join(numbered_texts(1000, seed=n)) for n in range(20)})
    command = [sys.executable, "-m", "nanochat.dataset", "--source", str(big), "--overwrite", "--docs_per_shard=2"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while len(list(folder.glob("shard_*_0000?.parquet"))) < 3:  # one is of the old data set
        assert process.poll() is None
        time.sleep(0.005)
    process.kill()
    assert process.wait() == -9
    assert _names(folder) > set(state)
    assert read_splits(folder) == before
    assert {name: _state(folder)[name] for name in state} == state
    train, val = import_files(big, folder, overwrite=True, docs_per_shard=8192)
    assert len(train) > 50 > len(val) > 0
    assert _names(folder) == {*load_manifest(folder).files, "manifest.json"}


@pytest.mark.parametrize("has_old", [False, True])
@pytest.mark.parametrize("stage", ["shuffle", "second shard", "manifest"])
def test_a_full_disk_leaves_the_old_data_set_and_no_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, has_old: bool
) -> None:
    folder = tmp_path / "data"
    before = None
    if has_old:
        before = import_files(write_files(tmp_path / "old", a__txt="one", b__txt="two"), folder)
    names = _names(folder) if has_old else set()
    full = OSError(28, "No space left on device")

    def fail(*_: object) -> None:
        raise full

    if stage == "shuffle":
        monkeypatch.setattr(
            dataset.json,
            "dumps",
            lambda value, **options: json.JSONEncoder(**options).encode(value) if options else fail(),
        )
    elif stage == "manifest":
        monkeypatch.setattr(shards.Manifest, "save", fail)
    else:
        write_table = pq.ParquetWriter.write_table

        def write_some(self: pq.ParquetWriter, table: pa.Table, **options: object) -> None:
            if len(list(folder.glob("shard_*_0000?.parquet"))) > has_old:
                fail()
            write_table(self, table, **options)

        monkeypatch.setattr(pq.ParquetWriter, "write_table", write_some)
    source = write_files(tmp_path / "source", **{f"t{n}__txt": text for n, text in enumerate(numbered_texts(50))})
    with pytest.raises(UserError, match="No space left on device"):
        prepare(Config(source=str(source), overwrite=True, docs_per_shard=10), folder)
    assert _names(folder) == names
    assert before is None or read_splits(folder) == before


def test_links_in_the_folder_of_a_data_set_do_no_harm_outside(tmp_path: Path, hub: FileServer) -> None:
    """A folder from someone else: links in the places of the lock, of leftovers and of partial downloads."""
    victim = write_files(tmp_path / "victim", precious__txt="precious")
    folder = write_files(tmp_path / "data")
    (folder / ".lock").symlink_to(victim / "precious.txt")
    (folder / ".shard_1.tmp").symlink_to(victim)
    (folder / ".shard_2.tmp").symlink_to(victim / "precious.txt")
    (folder / "shard_00000.parquet.part").symlink_to(victim / "precious.txt")
    (folder / "shard_00000.parquet.lock").symlink_to(victim / "precious.txt")
    (folder / "shard_00005.parquet.part").symlink_to(victim / "new.txt")
    prepare(Config(num_shards=1), folder)
    assert _shard_numbers(folder) == ({"0"}, {"5"})
    assert [(path.name, path.read_bytes()) for path in victim.iterdir()] == [("precious.txt", b"precious")]

    (folder / "shard_00000.parquet").rename(tmp_path / "moved")
    (folder / "shard_00000.parquet").symlink_to(tmp_path / "moved")
    with pytest.raises(
        UserError, match=r"shard_00000\.parquet is a symbolic link to .*moved, out of the data set's folder"
    ):
        prepare(Config(num_shards=1), folder)
    assert (tmp_path / "moved").exists()
    assert hub.log


@pytest.mark.slow
def test_two_imports_at_once_take_turns(base_dir: Path, tmp_path: Path) -> None:
    source = write_files(tmp_path / "source", **{f"t{n}__txt": text for n, text in enumerate(numbered_texts(50))})
    command = [sys.executable, "-m", "nanochat.dataset", "--source", str(source)]
    processes = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [process.wait(60) for process in processes] == [0, 0]
    train, val = read_splits(base_dir / "base_data")
    assert sorted(train + val) == sorted(numbered_texts(50))
    assert json.loads((base_dir / "report" / "dataset.json").read_text(encoding="utf-8"))["metrics"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes on this system")
def test_a_pipe_of_the_shell_is_refused(tmp_path: Path) -> None:
    """As in `--source <(zcat a.gz)`: a link below /dev/fd, whose target is no path."""
    read_end, write_end = os.pipe()
    try:
        with pytest.raises(UserError, match="neither a file nor a folder; a pipe must be saved to a file first"):
            prepare(Config(source=f"/dev/fd/{read_end}"), tmp_path / "data")
    finally:
        os.close(read_end)
        os.close(write_end)


def test_a_missing_source_is_one_line_and_exit_code_2(base_dir: Path) -> None:
    command = [sys.executable, "-m", "nanochat.dataset", "--source", "/no/such/folder"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "/no/such/folder" in done.stderr
    assert not (base_dir / "report").exists()


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    with pytest.raises(UserError, match="file"):
        prepare(Config(num_shards=1), tmp_path / "file" / "data")


# --- the storyworld ---------------------------------------------------------------------------------------------------


def test_the_storyworld(tmp_path: Path) -> None:
    config = Config(source="storyworld", num_shards=2, docs_per_shard=60)
    manifest = prepare(config, tmp_path)
    train, val = read_splits(tmp_path)
    assert [manifest.files[name].documents for name in (*manifest.train, manifest.validation)] == [60, 60, 60]
    assert not set(train) & set(val)
    state = _state(tmp_path)
    assert prepare(config, tmp_path) == manifest
    assert _state(tmp_path) == state
    # Other numbers of shards need no --overwrite: the stories are the same.
    larger = prepare(dataclasses.replace(config, num_shards=3), tmp_path)
    assert read_splits(tmp_path)[0][:120] == train
    assert len(larger.train) == 3
    assert not set(manifest.files) & _names(tmp_path)
    fewer = prepare(config, tmp_path)
    assert fewer == manifest
    state = _state(tmp_path)
    for change in ({"seed": 1}, {"docs_per_shard": 50}, {"seed": 1, "num_shards": 3}):
        with pytest.raises(UserError, match=r"holds storyworld, not storyworld with these settings.*--overwrite"):
            prepare(dataclasses.replace(config, **change), tmp_path)
    assert _state(tmp_path) == state
    assert prepare(dataclasses.replace(config, seed=1, overwrite=True), tmp_path).hash() != manifest.hash()
    assert not set(manifest.files) & _names(tmp_path)


def test_shards_without_a_manifest_stay(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They are another data set's, or of an interrupted import of one; those of the same one are replaced."""
    folder = tmp_path / "data"
    first, second = (write_files(tmp_path / name, a__txt=f"{name} one", b__txt=f"{name} two") for name in ("x", "y"))
    import_files(first, folder)
    state = _state(folder)
    (folder / "manifest.json").unlink()
    capsys.readouterr()
    import_files(second, folder)
    assert {name: _state(folder)[name] for name in state if name != "manifest.json"}.items() <= state.items()
    assert "also holds 2 shards of other data sets" in capsys.readouterr().out
    [name] = load_manifest(folder).train
    leftover = folder / name.replace("_00000", "_00001")
    leftover.write_bytes(b"of an import of the same data set that was killed")
    (folder / "manifest.json").unlink()
    import_files(second, folder)
    assert not leftover.exists()
    import_files(first, folder, overwrite=True)
    assert _names(folder) == set(state)


# --- the hub ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    """A local hub with six shards of ten documents, of which the last is for validation."""
    monkeypatch.setattr(dataset, "HUB_SHARDS", 6)
    monkeypatch.setattr(download, "FIRST_WAIT_SECONDS", 0.01)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("NANOCHAT_HUB_DIR", raising=False)
    contents = {}
    for number in range(6):
        path = tmp_path / "shard.parquet"
        write_shard([f"{number}.{row}" for row in range(10)], path)
        contents[f"shard_{number:05d}.parquet"] = path.read_bytes()
    with running(FileServer(contents)) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server


def _shard_numbers(folder: Path) -> tuple[set[str], set[str]]:
    train, val = read_splits(folder)
    return {text[0] for text in train}, {text[0] for text in val}


def test_only_missing_shards_are_downloaded(hub: FileServer, tmp_path: Path) -> None:
    folder = tmp_path / "data"

    def downloaded(**values: object) -> set[str]:
        hub.log.clear()
        prepare(Config(**values), folder)
        return {name[10:11] for name, _, _ in hub.log}

    assert downloaded(num_shards=2) == {"0", "1", "5"}
    assert _shard_numbers(folder) == ({"0", "1"}, {"5"})
    assert list(iter_documents("train", folder))[:11] == [*(f"0.{row}" for row in range(10)), "1.0"]
    assert downloaded(num_shards=2) == set()
    assert downloaded(num_shards=4) == {"2", "3"}
    assert downloaded(num_shards=1) == set()  # removes none
    assert _shard_numbers(folder) == ({"0", "1", "2", "3"}, {"5"})
    (folder / "shard_00001.parquet").write_bytes(b"cut")
    (folder / "shard_00005.parquet").unlink()
    assert downloaded(num_shards=4) == {"1", "5"}
    manifest = load_manifest(folder)
    assert {name: info.sha256 for name, info in manifest.files.items()} == {
        name: shards.file_sha256(folder / name) for name in manifest.files
    }
    assert downloaded(num_shards=1, overwrite=True) == set()
    assert _names(folder) == {"manifest.json", "shard_00000.parquet", "shard_00005.parquet"}


def test_a_failed_download_keeps_complete_shards(hub: FileServer, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    prepare(Config(num_shards=1), folder)
    content = hub.files.pop("shard_00003.parquet")
    with pytest.raises(UserError, match=r"shard_00003\.parquet .*404"):
        prepare(Config(num_shards=4, workers=1), folder)
    assert _shard_numbers(folder) == ({"0"}, {"5"})  # the previous data set
    hub.files["shard_00003.parquet"] = content
    hub.log.clear()
    prepare(Config(num_shards=4), folder)
    assert [name[10] for name, _, _ in hub.log] == ["3"]
    assert _shard_numbers(folder) == ({"0", "1", "2", "3"}, {"5"})


def test_something_else_than_a_shard(hub: FileServer, tmp_path: Path) -> None:
    shard = hub.files["shard_00000.parquet"]
    hub.files["shard_00000.parquet"] = b"<html>please log in</html>"
    with pytest.raises(UserError, match=r"sent a file as shard_00000\.parquet that is not a shard"):
        prepare(Config(num_shards=1), tmp_path / "data")
    hub.files["shard_00000.parquet"] = shard
    prepare(Config(num_shards=1), tmp_path / "data")
    assert _shard_numbers(tmp_path / "data") == ({"0"}, {"5"})


def test_a_mirror_on_disk(hub: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mirror = tmp_path / "mirror" / dataset.HUB_REPOSITORY
    write_files(
        mirror, **{name.replace(".", "__"): hub.files[name] for name in ("shard_00000.parquet", "shard_00005.parquet")}
    )
    monkeypatch.setenv("NANOCHAT_HUB_DIR", str(tmp_path / "mirror"))
    prepare(Config(num_shards=2), tmp_path / "data")
    assert [name for name, _, _ in hub.log] == ["shard_00001.parquet"]
    assert _shard_numbers(tmp_path / "data") == ({"0", "1"}, {"5"})


def test_from_files_to_the_hub_and_back(hub: FileServer, tmp_path: Path) -> None:
    source, folder = write_files(tmp_path / "source", a__txt="x1", b__txt="x2"), tmp_path / "data"
    import_files(source, folder)
    prepare(Config(num_shards=1, overwrite=True), folder)
    assert _shard_numbers(folder) == ({"0"}, {"5"})
    assert hub.log
    (folder / "notes.parquet").write_bytes(b"the user's own")
    import_files(source, folder, overwrite=True)
    assert _names(folder) == {"manifest.json", "notes.parquet", *load_manifest(folder).files}
