"""The manifest's check: names that lead out of the folder, and every wrong type or number, are one line and no harm."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat.common import UserError
from nanochat.data import manifest as module
from nanochat.data.manifest import MAX_SHARD_BYTES, find_faults, is_shard_name, load_manifest, read_manifest
from nanochat.data.shards import open_split, write_dataset
from nanochat.dataset import Config, prepare
from tests.support.datasets import import_files, write_files

GOOD = {
    "format": 1,
    "source": "files:a",
    "train": ["a.parquet", "b.parquet"],
    "validation": "v.parquet",
    "files": {
        name: {"documents": 1, "bytes": 10, "sha256": "0" * 64} for name in ("a.parquet", "b.parquet", "v.parquet")
    },
    "recipe": {},
}
BAD_NAMES = [
    *("../../victim.parquet", "/etc/passwd", "sub/a.parquet", "..", ".", "", "C:\\a.parquet", "a\\b.parquet"),
    *(".hidden.parquet", "manifest.json", "x" * 300 + ".parquet", None, 7, ["a.parquet"]),
    *("a\x00.parquet", "a\n.parquet", "a.parquet\n", "\x1b[2J.parquet", "\ud800.parquet"),
]
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


def _paths(value: Any, prefix: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the place of each value in nested JSON, of the whole first."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [prefix, *(path for key, inner in items for path in _paths(inner, (*prefix, key)))]


def _replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = _replaced(value[path[0]], path[1:], new)
    return copy


@settings(deadline=None)
@given(st.sampled_from(_paths(GOOD)), json_values)
def test_any_value_in_any_place_is_accepted_as_such_or_a_fault_of_one_line(path: tuple[Any, ...], value: Any) -> None:
    content = _replaced(GOOD, path, value)
    faults = list(find_faults(content))
    assert all("\n" not in fault and fault.isprintable() and len(fault) < 400 for fault in faults)
    if faults:
        return
    assert all(is_shard_name(name) for name in (*content["train"], content["validation"], *content["files"]))
    for info in content["files"].values():
        assert all(type(info[key]) is int and info[key] >= 0 for key in ("documents", "bytes"))
    assert {*content["train"], content["validation"]} <= set(content["files"])


@settings(deadline=None)
@given(st.text(max_size=20) | st.text(alphabet="a./\\.\x00", max_size=12).map(lambda text: text + ".parquet"))
def test_the_name_of_a_shard_is_one_part_of_a_path(name: str) -> None:
    if is_shard_name(name):
        assert Path(name).name == name
        assert os.path.normpath(name) == name
        assert name.isprintable()
        assert not name.startswith(".")


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ((), [], "it holds a list without entries, not an object"),
        (("format",), True, "format is True: must be 1"),
        (("format",), 2, "format is 2: must be 1"),
        (("source",), "\ud800", "source is "),
        (("train",), [], "train is a list without entries: must be a list of at least one shard"),
        (("train",), ["a.parquet", "a.parquet"], r"train\[1\] is a.parquet again"),
        (("train",), ["v.parquet"], "validation is v.parquet again"),
        (("train",), ["c.parquet"], r"train\[0\] is c.parquet, which files does not have"),
        (("files", "a.parquet", "bytes"), MAX_SHARD_BYTES + 1, "bytes of a.parquet is 17592186044417: must be"),
        (("files", "a.parquet", "documents"), -1, "documents of a.parquet is -1: must be"),
        (("files", "a.parquet", "documents"), 10**4200, "a number of more than 18 digits"),
        (("files", "a.parquet", "documents"), 1.0, "documents of a.parquet is 1.0"),
        (("files", "a.parquet", "sha256"), "0" * 63, "sha256 of a.parquet is '000"),
        (("files", "a.parquet"), None, "files has None for a.parquet"),
        (("recipe",), None, "recipe is None"),
    ],
)
def test_each_kind_of_fault_names_place_value_and_rule(path: tuple[Any, ...], value: Any, message: str) -> None:
    first_fault = next(iter(find_faults(_replaced(GOOD, path, value))))
    assert re.match(message, first_fault) or message in first_fault


@pytest.mark.parametrize(
    "content",
    [b"\xff\xfe", b"[" * 100_000, b"9" * 5000, b'{"format": NaN}', b"", b"\x00" * 50, b"null"],
)
def test_a_file_that_is_no_manifest(tmp_path: Path, content: bytes) -> None:
    write_files(tmp_path, manifest__json=content)
    with pytest.raises(UserError, match=r"manifest\.json is not a data set's manifest: .*--overwrite") as caught:
        read_manifest(tmp_path)
    assert str(caught.value).isprintable()


def test_several_faults_are_counted(tmp_path: Path) -> None:
    write_files(tmp_path, manifest__json=json.dumps({"format": 1, "source": 3}))
    with pytest.raises(UserError, match=r"train is missing \(and 3 more faults\)"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("name", BAD_NAMES, ids=ascii)
@pytest.mark.parametrize("place", ["train", "validation", "files"])
def test_nothing_outside_the_folder_is_read_or_deleted(tmp_path: Path, name: Any, place: str) -> None:
    """The hub's shards that are damaged are deleted and downloaded again; a manifest cannot name another file."""
    victim = write_files(tmp_path, victim__parquet="precious") / "victim.parquet"
    content = json.loads(json.dumps(GOOD | {"source": "hub:karpathy/fineweb-edu-100b-shuffle"}))
    if place == "files":
        content["files"][name if isinstance(name, str) else str(name)] = content["files"]["a.parquet"]
    else:
        content[place] = [name] if place == "train" else name
        if isinstance(name, str):
            content["files"][name] = content["files"]["a.parquet"]
    folder = write_files(tmp_path / "base" / "data", manifest__json=json.dumps(content))
    for call in (lambda: load_manifest(folder), lambda: prepare(Config(num_shards=1), folder)):
        with pytest.raises(UserError, match=r"manifest\.json is not a data set's manifest"):
            call()
    assert victim.read_bytes() == b"precious"


def test_an_overwritten_manifest_deletes_only_shards_of_its_folder(tmp_path: Path) -> None:
    victim = write_files(tmp_path, victim__txt="precious") / "victim.txt"
    folder = write_files(tmp_path / "base" / "data", notes__md="mine")
    content = GOOD | {"train": ["../../victim.txt"], "files": {"../../victim.txt": {}}}
    write_files(folder, manifest__json=json.dumps(content))
    source = write_files(tmp_path / "source", a__txt="one", b__txt="two")
    import_files(source, folder, overwrite=True)
    assert (victim.read_bytes(), (folder / "notes.md").read_bytes()) == (b"precious", b"mine")


@pytest.mark.parametrize("linked", ["shard", "manifest"])
def test_a_link_out_of_the_folder_is_refused_and_one_within_followed(tmp_path: Path, linked: str) -> None:
    written = write_dataset(["a"], ["b"], tmp_path / "data", source="test")
    path = tmp_path / "data" / (written.train[0] if linked == "shard" else "manifest.json")
    kept = path.rename(path.with_name("kept"))
    path.symlink_to(kept)
    assert len(open_split("train", tmp_path / "data")) == 1
    path.unlink()
    path.symlink_to(kept.rename(tmp_path / "outside"))
    with pytest.raises(UserError, match=r"is a symbolic link to .*outside, out of the data set's folder: put the file"):
        open_split("train", tmp_path / "data")
    assert (tmp_path / "outside").exists()


def test_a_folder_that_is_a_link(tmp_path: Path) -> None:
    write_dataset(["a"], ["b"], tmp_path / "large_disk", source="test")
    (tmp_path / "data").symlink_to(tmp_path / "large_disk")
    assert len(open_split("train", tmp_path / "data")) == 1


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes on this system")
@pytest.mark.parametrize("name", ["manifest.json", "shard_00000.parquet"])
def test_a_pipe_does_not_block(tmp_path: Path, name: str) -> None:
    write_dataset(["a"], ["b"], tmp_path, source="test")
    (tmp_path / name).unlink()
    os.mkfifo(tmp_path / name)
    with pytest.raises(UserError, match=name):
        open_split("train", tmp_path)


def test_a_manifest_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "manifest.json").mkdir()
    with pytest.raises(UserError, match=r"manifest\.json"):
        read_manifest(tmp_path)
    monkeypatch.setattr(module, "MAX_MANIFEST_BYTES", 100)
    with pytest.raises(UserError, match="a manifest has at most 100"):
        read_manifest(write_files(tmp_path / "large", manifest__json=" " * 101))


def test_the_documents_of_the_manifest_are_compared(tmp_path: Path) -> None:
    written = write_dataset(["a"], ["b"], tmp_path, source="test")
    files = {name: dataclasses.replace(info, documents=5) for name, info in written.files.items()}
    dataclasses.replace(written, files=files).save(tmp_path)
    with pytest.raises(UserError, match=r"has 1 documents, in manifest\.json 5: make the data set again"):
        open_split("train", tmp_path)
