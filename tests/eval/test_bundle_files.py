"""Bundles from anywhere: nothing outside is read, sizes are bounded before they are believed."""

from __future__ import annotations

import os
import random
import shutil
import stat
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nanochat.common import UserError
from nanochat.eval import bundle_files
from nanochat.eval.bundle_files import check_plain_path, open_files, read_text
from nanochat.eval.core_bundle import read_bundle
from tests.support.bundles import HAND_TASKS, write_hand_bundle
from tests.support.refusals import refusal

BOM = b"\xef\xbb\xbf"


def pack(folder: Path, path: Path) -> Path:
    """Pack a folder as a zip file."""
    return Path(shutil.make_archive(str(path.with_suffix("")), "zip", folder))


def with_member(path: Path, name: str | zipfile.ZipInfo, content: bytes = b"x", **options: Any) -> Path:
    """Add a member to a zip file."""
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(name, content, **options)
    return path


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    return pack(write_hand_bundle(tmp_path / "bundle"), tmp_path / "packed.zip")


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["a.jsonl", "a/b-c/d_e.jsonl", "\u00e4.jsonl"])
def test_plain_paths(path: str) -> None:
    check_plain_path(path)


@pytest.mark.parametrize(
    "path",
    ["", "/etc/passwd", "..", "../a", "a/../../b", "./a", "a//b", "a/", ".hidden", "a\\b", "a\0b", "a\nb", "a" * 300],
)
def test_other_paths(path: str, tmp_path: Path) -> None:
    assert refusal(check_plain_path, path)
    folder = write_hand_bundle(tmp_path / "bundle")
    core = folder / "core.yaml"
    uri = path.encode("unicode_escape").decode().replace("\0", "\\0")
    core.write_text(core.read_text(encoding="utf-8").replace("sub/choice.jsonl", f'"{uri}"'), encoding="utf-8")
    with pytest.raises(UserError, match=r"core\.yaml, line 2: dataset_uri: a part of the path"):
        read_bundle(folder)


@pytest.mark.parametrize("name", ["core.yaml", "eval_meta_data.csv", "eval_data", "eval_data/sub/words.jsonl"])
def test_links_out_of_a_folder(tmp_path: Path, name: str) -> None:
    folder = write_hand_bundle(tmp_path / "bundle")
    outside = tmp_path / "outside"
    (folder / name).rename(outside)
    (folder / name).symlink_to(outside)
    with pytest.raises(UserError, match=r"is a link that leads out of the bundle: copy the file into it"):
        read_bundle(folder)
    (folder / name).unlink()
    outside.rename(folder / f"moved-{Path(name).name}")
    (folder / name).symlink_to(folder / f"moved-{Path(name).name}")  # within the bundle
    assert [task.label for task in read_bundle(folder).tasks] == list(HAND_TASKS)
    (tmp_path / "link").symlink_to(folder)  # the bundle itself may be a link
    assert len(read_bundle(tmp_path / "link").tasks) == 3


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    folder = write_hand_bundle(tmp_path / "bundle")
    path = folder / "eval_data" / "sub" / "words.jsonl"
    path.unlink()
    os.mkfifo(path)
    assert read_bundle(folder).missing == ("words",)


# --- zip files --------------------------------------------------------------------------------------------------------


def link_member() -> zipfile.ZipInfo:
    info = zipfile.ZipInfo("eval_data/link.jsonl")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info


@pytest.mark.parametrize(
    ("name", "content", "options", "words"),
    [
        (link_member(), b"/etc/passwd", {}, "'eval_data/link.jsonl' is a link"),
        ("../a", b"", {}, "'../a' has a name that is no plain, relative path"),
        ("/a", b"", {}, "'/a' has a name"),
        ("a\\b", b"", {}, "has a name"),
        ("a//b", b"", {}, "'a//b' has a name"),
        ("a.jsonl", bytes(8 << 20), {"compress_type": zipfile.ZIP_DEFLATED}, "'a.jsonl' is 8 MB from 8,"),
        ("a.jsonl", b"x", {"compress_type": zipfile.ZIP_BZIP2}, "'a.jsonl' is compressed in an unusual way"),
        ("a.jsonl", b"x", {"compress_type": zipfile.ZIP_LZMA}, "'a.jsonl' is compressed in an unusual way"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_members_that_a_bundle_does_not_have(
    packed: Path, name: Any, content: bytes, options: dict[str, Any], words: str
) -> None:
    with_member(packed, name, content, **options)
    assert words in (refusal(read_bundle, packed) or "")


def test_a_zip_file_of_a_mac(packed: Path) -> None:
    for name in ("__MACOSX/._core.yaml", "__MACOSX/eval_data/._words.jsonl", ".DS_Store"):
        with_member(packed, name)
    assert len(read_bundle(packed).tasks) == 3


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_member_twice(packed: Path) -> None:
    with_member(packed, "core.yaml", b"icl_tasks: []")
    assert "has the file 'core.yaml' twice" in (refusal(read_bundle, packed) or "")


@pytest.mark.parametrize(
    ("name", "limit", "words"),
    [
        ("MAX_MEMBERS", 5, "files: a bundle has at most 5"),
        ("MAX_TOTAL_BYTES", 1000, "MB when unpacked: a bundle has at most"),
        ("MAX_DIRECTORY_BYTES", 300, "its list of files is too long"),
    ],
)
def test_bounds(packed: Path, monkeypatch: pytest.MonkeyPatch, name: str, limit: int, words: str) -> None:
    monkeypatch.setattr(bundle_files, name, limit)
    assert words in (refusal(read_bundle, packed) or "")


def patch_directory(path: Path, member: str, offset: int, value: int) -> None:
    """Change a number of four bytes in a member's entry of the list of members."""
    content = bytearray(path.read_bytes())
    start = content.rindex(member.encode()) - 46
    assert content[start : start + 4] == b"PK\1\2"
    struct.pack_into("<I", content, start + offset, value)
    path.write_bytes(content)


@pytest.mark.parametrize(("offset", "value"), [(24, 10), (24, 10**6), (20, 5), (20, 10**6), (42, 0), (42, 2**31)])
def test_sizes_and_places_that_are_wrong(packed: Path, offset: int, value: int) -> None:
    """24: size, 20: compressed size, 42: place."""
    patch_directory(packed, "eval_data/sub/words.jsonl", offset, value)
    assert refusal(read_bundle, packed)


def test_encrypted(packed: Path) -> None:
    patch_directory(packed, "eval_data/sub/words.jsonl", 8, 1 | (8 << 16))
    assert "is encrypted: pack it without a password" in (refusal(read_bundle, packed) or "")


def test_a_small_file_of_gigabytes(packed: Path) -> None:
    """3.2 GB are refused by the size that is announced, before anything is unpacked."""
    patch_directory(packed, "eval_data/sub/words.jsonl", 24, 3_200_000_000)
    assert "has 3,052 MB when unpacked: a bundle has at most 512 MB" in (refusal(read_bundle, packed) or "")


# --- text -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_packed", [False, True])
def test_a_byte_order_mark_in_every_file(tmp_path: Path, is_packed: bool) -> None:
    folder = write_hand_bundle(tmp_path / "bundle")
    tasks = read_bundle(folder).tasks
    for path in folder.rglob("*"):
        if path.is_file():
            path.write_bytes(BOM + path.read_bytes().replace(b"\n", b"\r\n"))
    assert read_bundle(pack(folder, tmp_path / "packed.zip") if is_packed else folder).tasks == tasks


@pytest.mark.parametrize("name", ["core.yaml", "eval_meta_data.csv", "eval_data/sub/words.jsonl"])
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32", "utf-32-be"])
def test_other_encodings(tmp_path: Path, name: str, encoding: str) -> None:
    folder = write_hand_bundle(tmp_path / "bundle")
    path = folder / name
    path.write_bytes(path.read_text(encoding="utf-8").encode(encoding))
    error = refusal(read_bundle, folder) or ""
    assert f"{name}, line 1: " in error
    if encoding in ("utf-16", "utf-32"):
        assert f"not UTF-8 but {encoding.upper()}" in error


@pytest.mark.parametrize(
    ("name", "limit"), [("core.yaml", 1 << 17), ("eval_meta_data.csv", 1 << 20), ("eval_data/sub/words.jsonl", 1 << 28)]
)
def test_files_that_are_too_long(tmp_path: Path, name: str, limit: int) -> None:
    folder = write_hand_bundle(tmp_path / "bundle")
    with open(folder / name, "r+b") as file:
        file.truncate(limit + 1)  # without taking up space
    assert f"{name} has more than {limit:,} bytes" in (refusal(read_bundle, folder) or "")


LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{after}: &{after} [{', '.join(['*' + before] * 9)}]\n"
    for before, after in zip("abcdefghi", "bcdefghij", strict=True)
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (LAUGHS, "line 2: not YAML (aliases are not allowed"),
        ("a: &a {b: 1}\nc:\n  <<: *a\n", "line 3: not YAML (aliases are not allowed"),
        ("a: &a [*a]\n", "line 1: not YAML (aliases are not allowed"),
        ("c:\n  <<: {b: 1}\n", "line 2: not YAML (merges are not allowed"),
        ("icl_tasks: 1\nicl_tasks: 2\n", "line 2: not YAML (the key 'icl_tasks' comes twice"),
        ("!!python/object/apply:os.system ['true']\n", "line 1: not YAML (could not determine a constructor"),
        ("a: " + "9" * 5000, "line 1: not YAML (Exceeds the limit"),
        ("? " * 5000, "not YAML"),
        ("- " * 5000, "not YAML"),
        ("{" * 5000, "not YAML"),
        ("--- a\n--- b\n", "line 2: not YAML (expected a single document"),
        ("icl_tasks:\n- [label]\n", "line 1: ['label']: each of icl_tasks must be a mapping"),
        ("a" * 100_000, "line 1: icl_tasks must be a list of tasks"),
    ],
    ids=range(13),
)
def test_yaml_that_is_refused(tmp_path: Path, text: str, words: str) -> None:
    folder = write_hand_bundle(tmp_path / "bundle")
    (folder / "core.yaml").write_text(text, encoding="utf-8")
    assert words in (refusal(read_bundle, folder) or "")


# --- anything ---------------------------------------------------------------------------------------------------------

FILES = ("core.yaml", "eval_meta_data.csv", "eval_data/sub/choice.jsonl", "eval_data/sub/schema.jsonl")
VALUES = (
    b"null", b"true", b"-1", b"1e999", b"9" * 5000, b'"\\ud800"', b"[]", b"{}", b"[[[]]]", b'""', b"~", b"&a", b"*a",
    b"<<: {}", b"2024-13-45", b".nan", b"NaN", b"!!int x", b"\xff", b"\0", BOM, b"\n", b"\r", b",", b'"', b"{", b"..",
)  # fmt: skip
SPLITTERS = b' \n":,[]{}-'


def mutate(content: bytes, rng: random.Random) -> bytes:
    """Replace a word of a file by another value, or cut, repeat or change a part of it."""
    start = rng.randrange(len(content))
    end = min(len(content), start + rng.randrange(1, 30))
    kind = rng.randrange(5)
    if kind == 0:
        return content[:start]
    if kind == 1:
        return content[:start] + content[end:]
    if kind == 2:
        return content[:start] + content[start:end] * 2 + content[end:]
    if kind == 3:
        return content[:start] + bytes([rng.randrange(256)]) + content[start + 1 :]
    while start and content[start - 1] not in SPLITTERS:
        start -= 1
    end = start
    while end < len(content) and content[end] not in SPLITTERS:
        end += 1
    return content[:start] + rng.choice(VALUES) + content[end:]


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_a_mutation_is_read_or_refused_in_a_line(tmp_path: Path, name: str) -> None:
    folder = write_hand_bundle(tmp_path / "bundle")
    content = (folder / name).read_bytes()
    rng = random.Random(name)
    refusals = 0
    for _ in range(300):
        mutated = mutate(content, rng)
        if rng.random() < 0.5:
            mutated = mutate(mutated or b"x", rng)
        (folder / name).write_bytes(mutated)
        refusals += refusal(read_bundle, folder) is not None
    assert refusals > 100


yaml_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3) | st.integers(), inner, max_size=3),
    max_leaves=5,
)
ENTRY_KEYS = ("label", "dataset_uri", "num_fewshot", "icl_task_type", "continuation_delimiter", "has_categories")


@given(key=st.sampled_from(ENTRY_KEYS), value=yaml_values)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
def test_any_type_in_the_list_of_tasks(tmp_path_factory: pytest.TempPathFactory, key: str, value: Any) -> None:
    import yaml

    folder = tmp_path_factory.mktemp("bundle") / "bundle"
    write_hand_bundle(folder)
    content = yaml.safe_load((folder / "core.yaml").read_text(encoding="utf-8"))
    content["icl_tasks"][0][key] = value
    (folder / "core.yaml").write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
    refusal(read_bundle, folder)


def test_reading(tmp_path: Path) -> None:
    with open_files(write_hand_bundle(tmp_path / "bundle")) as files:
        assert read_text(files, "core.yaml").startswith("icl_tasks:")
        with pytest.raises(UserError, match=r"none\.jsonl is missing"):
            read_text(files, "none.jsonl")
