"""The data set on disk, and what makes it: a user's files, the storyworld, the hub (a local server in its place)."""

from __future__ import annotations

import dataclasses
import json
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat import dataset
from nanochat.common import UserError
from nanochat.data import download, shards
from nanochat.data import import_text as textfiles
from nanochat.data.import_text import split_long_text
from nanochat.data.shards import Documents, write_shard
from nanochat.dataset import Config, iter_documents, load_manifest, open_split, prepare, shard_paths, write_dataset
from tests.conftest import ROOT
from tests.support.fileserver import FileServer, running

WORDS = "the sun rises over a quiet village while old friends talk about boats birds and bread".split()


def _texts(count: int, seed: int = 0, words: int = 60) -> list[str]:
    chance = random.Random(seed)
    return [f"{number}: " + " ".join(chance.choices(WORDS, k=words)) for number in range(count)]


def _both(folder: Path) -> tuple[list[str], list[str]]:
    return list(iter_documents("train", folder)), list(iter_documents("val", folder))


def _import(source: Path, folder: Path, **values: object) -> tuple[list[str], list[str]]:
    prepare(Config(source=str(source), **values), folder)
    return _both(folder)


def _files(folder: Path, **contents: str | bytes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        data = content.encode() if isinstance(content, str) else content
        (folder / name.replace("__", ".")).write_bytes(data)
    return folder


def _state(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Every file but the lock, with its time and contents."""
    files = [path for path in folder.iterdir() if path.is_file() and path.name != ".lock"]
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {".lock"}


# --- shards and manifest ----------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(st.lists(st.text(max_size=20), min_size=1, max_size=40), st.integers(1, 9), st.integers(1, 9), st.data())
def test_what_is_written_is_read(texts: list[str], per_shard: int, per_group: int, data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "ROW_GROUP_DOCUMENTS", per_group)
        write_dataset(texts, ["held out"], Path(name), source="test", docs_per_shard=per_shard)
        documents = open_split("train", Path(name))
        start, step = data.draw(st.integers(0, len(texts) + 1)), data.draw(st.integers(1, len(texts) + 1))
        assert len(documents) == len(texts)
        assert list(documents.iter_texts(start, step)) == texts[start::step]
        arrays = list(documents.iter_arrays(start))
        assert [text for array in arrays for text in array.to_pylist()] == texts[start:]
        assert all(len(array) and array.type == pa.string() for array in arrays)
        assert list(iter_documents("val", Path(name))) == ["held out"]
        assert len(shard_paths("train", Path(name))) == -(-len(texts) // per_shard)


def test_row_groups_have_1024_documents_and_few_characters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def sizes(path: Path) -> list[int]:
        metadata = pq.read_metadata(path)
        return [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]

    write_shard(_texts(2500, words=1), tmp_path / "a.parquet")
    assert sizes(tmp_path / "a.parquet") == [1024, 1024, 452]
    monkeypatch.setattr(shards, "ROW_GROUP_CHARACTERS", 1000)
    write_shard(["x" * 400] * 7, tmp_path / "b.parquet")
    assert sizes(tmp_path / "b.parquet") == [3, 3, 1]


def test_one_row_group_is_read_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_dataset(_texts(3000, words=1), ["held out"], tmp_path, source="test")
    documents = open_split("train", tmp_path)
    read: list[int] = []
    true = pq.ParquetFile.read_row_group
    monkeypatch.setattr(
        pq.ParquetFile, "read_row_group", lambda self, n, **more: read.append(n) or true(self, n, **more)
    )
    iterator = documents.iter_texts(1030)
    assert next(iterator).startswith("1030:")
    assert read == [1]
    arrays = documents.iter_arrays(1030)
    assert next(arrays)[0].as_py().startswith("1030:")
    assert read == [1, 1]


def test_a_row_without_text_counts(tmp_path: Path) -> None:
    manifest = write_dataset(["x"] * 3, ["held out"], tmp_path, source="test")
    path = tmp_path / manifest.train[0]
    pq.write_table(pa.table({"id": [1, 2, 3], "text": ["a", None, "b"]}), path)
    files = {**manifest.files, path.name: dataset.read_shard_info(path)}
    dataclasses.replace(manifest, files=files).save(tmp_path)
    assert list(iter_documents("train", tmp_path)) == ["a", "", "b"]
    [array] = open_split("train", tmp_path).iter_arrays()
    assert array.to_pylist() == ["a", "", "b"]
    assert array.null_count == 0
    # What other programs may have written; dictionary codes come back as such.
    for kind in (pa.dictionary(pa.int32(), pa.string()), pa.large_string(), pa.binary()):
        pq.write_table(pa.table({"text": pa.array([b"a", None, b"\xc3\xa9"]).cast(pa.string()).cast(kind)}), path)
        [array] = Documents([path]).iter_arrays()
        assert array.to_pylist() == list(Documents([path]).iter_texts()) == ["a", "", "é"]
        assert array.type in (pa.string(), pa.large_string())


def test_the_hash_is_of_the_contents(tmp_path: Path) -> None:
    def made(name: str, train: list[str], val: list[str], **more: object) -> str:
        return write_dataset(train, val, tmp_path / name, source=name, **more).hash()

    first = made("a", ["1", "2"], ["3"])
    assert made("b", ["1", "2"], ["3"], recipe={"made": "later"}) == first
    others = [
        made("c", ["2", "1"], ["3"]),
        made("d", ["1", "2"], ["4"]),
        made("e", ["1", "2"], ["3"], docs_per_shard=1),
    ]
    assert len({first, *others}) == 4
    assert load_manifest(tmp_path / "a").hash() == first


def test_no_data_set(base_dir: Path) -> None:
    with pytest.raises(UserError, match=r"no data set in .*base_data: make one"):
        open_split("train")
    assert not (base_dir / "base_data").exists()


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_missing_shard_is_named(tmp_path: Path, split: str) -> None:
    write_dataset(["a"], ["b"], tmp_path, source="test")
    path = shard_paths(split, tmp_path)[0]
    whole = path.read_bytes()
    for spoil in (lambda: path.write_bytes(whole[:-1]), path.unlink):
        spoil()
        with pytest.raises(
            UserError, match=f"{path.name}, {'the validation' if split == 'val' else 'a training'} shard"
        ):
            open_split("train", tmp_path)


def test_validation_is_what_the_manifest_names(tmp_path: Path) -> None:
    """Another shard, last by name, changes nothing."""
    write_dataset(["a"], ["b"], tmp_path, source="test")
    write_shard(["c"], tmp_path / "shard_99999.parquet")
    assert _both(tmp_path) == (["a"], ["b"])


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_split_without_documents(tmp_path: Path, split: str) -> None:
    manifest = write_dataset(["a"], ["b"], tmp_path, source="test")
    path = shard_paths(split, tmp_path)[0]
    facts = write_shard([], path)
    dataclasses.replace(manifest, files={**manifest.files, path.name: facts}).save(tmp_path)
    with pytest.raises(UserError, match=f"the {split} split .* has no documents"):
        open_split(split, tmp_path)
    with pytest.raises(UserError, match="gives no validation documents"):
        write_dataset(["a"], [], tmp_path / "other", source="test")
    with pytest.raises(UserError, match="gives no training documents"):
        write_dataset([], ["a"], tmp_path / "other", source="test")
    assert not (tmp_path / "other" / "manifest.json").exists()


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"format": 9}', '{"format": 1, "train": ["a"], "files": {}}', "\x00"]
)
def test_a_broken_manifest(tmp_path: Path, content: str) -> None:
    _files(tmp_path / "data", manifest__json=content)
    with pytest.raises(UserError, match=r"manifest\.json"):
        load_manifest(tmp_path / "data")
    source = _files(tmp_path / "source", a__txt="one", b__txt="two")
    with pytest.raises(UserError, match=r"manifest\.json"):
        prepare(Config(source=str(source)), tmp_path / "data")
    assert len(_import(source, tmp_path / "data", overwrite=True)[0]) == 1


def test_a_shard_that_is_not_parquet(tmp_path: Path) -> None:
    manifest = write_dataset(["a"], ["b"], tmp_path, source="test")
    path = tmp_path / manifest.train[0]
    path.write_bytes(b"x" * path.stat().st_size)
    with pytest.raises(UserError, match=r"cannot be read as parquet .*: delete it"):
        open_split("train", tmp_path)
    with pytest.raises(UserError, match="no split 'test'"):
        open_split("test", tmp_path)


# --- a user's own files -----------------------------------------------------------------------------------------------


def test_a_folder_of_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = _texts(90)
    source = _files(
        tmp_path / "source",
        empty__txt="",
        blank__md=" \n\n ",
        latin__txt="voil\xe0, a caf\xe9".encode("latin-1"),
        wide__TXT="a file from Windows\r\nof two lines".encode("utf-16"),
        marked__txt="\ufeffa mark before".encode(),
        picture__png=b"\x89PNG",
        _hidden__txt="never seen",
        lines__jsonl="\n".join(json.dumps({"text": text, "id": 1}) for text in texts[:30]) + "\n\n",
        half__jsonl=b'{"text": "half \\ud83d a pair"}',
    )
    (source / "_hidden.txt").rename(source / ".hidden.txt")
    _files(source / ".git", config__txt="never seen")
    _files(source / "sub" / "deeper", **{f"t{n}__md": text for n, text in enumerate(texts[30:60])})
    write_shard(texts[60:], source / "sub" / "rows.parquet")
    train, val = _import(source, tmp_path / "data", docs_per_shard=40)
    odd = ["voil\ufffd, a caf\ufffd", "a file from Windows\nof two lines", "a mark before", "half ? a pair"]
    assert sorted(train + val) == sorted(texts + odd)
    assert 1 <= len(val) <= 12
    assert len(shard_paths("train", tmp_path / "data")) == 3
    out = capsys.readouterr().out
    assert "1 files of other kinds are left aside (picture.png)" in out
    assert "2 files without text were skipped (blank.md, empty.txt)" in out
    assert "1 files are not UTF-8" in out
    assert "latin.txt" in out


@pytest.mark.parametrize("name", ["book.txt", "book.md"])
@pytest.mark.parametrize("size", [100, 10_000, 300_000])
def test_a_single_book_is_divided(tmp_path: Path, name: str, size: int) -> None:
    """From 5,000 characters on, it makes several blocks that join to the book again, whatever the file is read in."""
    book = (
        "".join(text + "\n\n" for text in _texts(size // 20, words=25))[:size] if size > 5000 else "x" * 1999 + "y" * 60
    )
    _files(tmp_path, **{name.replace(".", "__"): book})
    train, val = _import(tmp_path / name, tmp_path / "data", shuffle=False)
    assert train
    assert val
    assert max(map(len, train + val)) <= max(2000, size // 64 + 1)
    positions = sorted((book.index(text), text) for text in train + val)
    assert "".join(text for _, text in positions) == book
    assert train == [text for _, text in positions if text in set(train)]  # in the order of the book
    assert len(val) == 1 or 0.005 < sum(map(len, val)) / size < 0.12


@pytest.mark.parametrize(("share", "train_count"), [(0.0, 8), (1.0, 1)])
def test_neither_split_is_ever_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: float, train_count: int
) -> None:
    """Whatever the hashes of a few documents happen to be."""
    monkeypatch.setattr(textfiles, "VALIDATION_SHARE", share)
    texts = _texts(9)
    train, val = _import(_files(tmp_path / "s", **{f"t{n}__txt": text for n, text in enumerate(texts)}), tmp_path / "d")
    assert (len(train), sorted(train + val)) == (train_count, sorted(texts))


def test_one_short_text_is_too_little(tmp_path: Path) -> None:
    for contents, found in (
        ({"a__txt": "short"}, "a single document"),
        ({"a__txt": "same", "b__md": "same"}, "a single"),
    ):
        with pytest.raises(UserError, match=f"holds {found}.*: at least two are needed"):
            prepare(Config(source=str(_files(tmp_path / "s", **contents))), tmp_path / "data")
    with pytest.raises(UserError, match="holds no text"):
        prepare(Config(source=str(_files(tmp_path / "t", a__txt="", b__txt="\n"))), tmp_path / "data")


def test_a_line_of_50_megabytes(tmp_path: Path) -> None:
    line = ("".join(WORDS) + " " + "z" * 900) * 52_000
    source = _files(tmp_path / "source", big__txt=line, other__jsonl=json.dumps({"text": line[:5_000_000]}))
    train, val = _import(source, tmp_path / "data", shuffle=False)
    assert max(map(len, train + val)) <= 100_000
    assert sum(map(len, train + val)) == len(line) + 5_000_000


@given(st.text(alphabet="ab \n", max_size=80), st.integers(1, 20))
def test_cut_loses_nothing_and_prefers_paragraphs(text: str, limit: int) -> None:
    pieces = list(split_long_text(text, limit))
    assert "".join(pieces) == text
    assert all(len(piece) <= limit for piece in pieces)
    assert all(len(piece) > limit // 2 for piece in pieces[:-1])
    if 2 * len("aa bb\n\n") <= limit:
        assert next(split_long_text("x" * (limit - 6) + "\n\naa bb cc dd", limit)).endswith("\n\n")


def test_of_parquet_files_the_last_one_is_validation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = _texts(50)
    for number, rows in enumerate((texts[:20], [*texts[20:40], texts[45], texts[45]], texts[40:])):
        _files(tmp_path / "source")
        pq.write_table(pa.table({"id": [1] * len(rows), "body": rows}), tmp_path / "source" / f"part{number}.parquet")
    train, val = _import(tmp_path / "source", tmp_path / "data", text_column="body", shuffle=False)
    assert (train, val) == (texts[:40], texts[40:])
    assert "2 training documents also stand in validation and were left out" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"no column 'text', but id, body \(--text_column"):
        prepare(Config(source=str(tmp_path / "source"), overwrite=True), tmp_path / "data")
    with pytest.raises(UserError, match="column 'id' holds int64, not text"):
        prepare(Config(source=str(tmp_path / "source"), text_column="id", overwrite=True), tmp_path / "data")
    assert _both(tmp_path / "data") == (texts[:40], texts[40:])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{oops", "not JSON"),
        (b'["a"]', 'expected an object with a string under "text"'),
        (b'{"text": 3}', "expected an object with a string"),
        (b'{"body": "x"}', "--text_column names another"),
        (b"[" * 100_000, "not JSON"),
        (b"9" * 5000, "not JSON"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: bytes, message: str) -> None:
    source = _files(tmp_path / "source", rows__jsonl=b'{"text": "fine"}\n\n' + line + b"\n")
    with pytest.raises(UserError, match=f"rows.jsonl, line 3: .*{message}"):
        prepare(Config(source=str(source)), tmp_path / "data")
    assert not (tmp_path / "data" / "manifest.json").exists()


def test_sources_that_cannot_be_read(tmp_path: Path) -> None:
    broken = _files(tmp_path / "broken", a__parquet="no", b__parquet="no")
    only = _files(tmp_path / "only", a__pdf="%PDF")
    for source, message in (
        (tmp_path / "absent", "no such file or folder"),
        (only, r"none of its 1 files can be read \(.txt"),
        (_files(tmp_path / "nothing"), "none of its 0 files"),
        (broken, "cannot be read as parquet"),
        (tmp_path, "the data set is written below it"),
    ):
        with pytest.raises(UserError, match=message):
            prepare(Config(source=str(source)), tmp_path / "data")


@pytest.mark.parametrize(
    "bad", [{"num_shards": 0}, {"num_shards": 1823}, {"workers": 0}, {"max_chars": 5}, {"seed": -1}]
)
def test_impossible_settings(bad: dict[str, int]) -> None:
    with pytest.raises(UserError, match=f"^{next(iter(bad))} is {next(iter(bad.values()))}: "):
        Config(**bad)
    with pytest.raises(UserError, match="num_shards is -1: only the hub"):
        Config(source="storyworld", num_shards=-1)


def test_the_order_depends_on_the_seed_alone(tmp_path: Path) -> None:
    texts = _texts(300, words=3)
    source = _files(tmp_path / "source", a__jsonl="\n".join(json.dumps({"text": text}) for text in texts))
    plain, val = _import(source, tmp_path / "1", shuffle=False)
    first, _ = _import(source, tmp_path / "2")
    again, _ = _import(source, tmp_path / "3")
    other, _ = _import(source, tmp_path / "4", seed=1)
    assert plain == [text for text in texts if text not in set(val)]
    assert first == again != other
    assert sorted(first) == sorted(other) == sorted(plain)
    assert sum(abs(plain.index(text) - place) for place, text in enumerate(first)) > 20 * len(first)


@pytest.mark.parametrize("piles", [1, 2, 7])
def test_shuffling_in_piles(tmp_path: Path, piles: int) -> None:
    texts = ["line\nbreak", "é \u2028", *_texts(500, words=2)]
    result = list(dataset.shuffle_on_disk(texts, 3, piles, tmp_path))
    assert sorted(result) == sorted(texts)
    assert result == list(dataset.shuffle_on_disk(texts, 3, piles, tmp_path)) != texts
    halves = sum(text in set(texts[:250]) for text in result[:250])
    assert 75 < halves < 175  # 125 by chance, with a deviation of 8
    assert not list(tmp_path.iterdir())


def test_a_second_import_does_nothing_and_another_one_asks(tmp_path: Path) -> None:
    source, folder = _files(tmp_path / "source", a__txt="one", b__txt="two", c__txt="three"), tmp_path / "data"
    before = _import(source, folder)
    state = _state(folder)
    assert _import(source, folder) == before
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
    train, val = _import(source, folder, overwrite=True)
    assert sorted(train + val) == ["four", "one", "three", "two"]
    assert not set(_state(folder)) & set(state) - {"manifest.json"}  # the replaced shards are gone
    Path(shard_paths("train", folder)[0]).unlink()
    assert _import(source, folder) == (train, val)  # a shard that is missing is written again


def test_killed_in_the_middle_the_old_data_set_stays(base_dir: Path, tmp_path: Path) -> None:
    old, folder = _files(tmp_path / "old", a__txt="one", b__txt="two"), base_dir / "base_data"
    before = _import(old, folder)
    state = _state(folder)
    big = _files(tmp_path / "big", **{f"t{n}__txt": "\n\n".join(_texts(1000, seed=n)) for n in range(20)})
    command = [sys.executable, "-m", "nanochat.dataset", "--source", str(big), "--overwrite", "--docs_per_shard=2"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while len(list(folder.glob("shard_*_0000?.parquet"))) < 3:  # one is there from before
        assert process.poll() is None
        time.sleep(0.005)
    process.kill()
    assert process.wait() == -9
    assert _names(folder) > set(state)
    assert _both(folder) == before
    assert {name: _state(folder)[name] for name in state} == state
    train, val = _import(big, folder, overwrite=True, docs_per_shard=8192)
    assert len(train) > 50 > len(val) > 0
    assert _names(folder) == {*load_manifest(folder).files, "manifest.json"}


def test_two_imports_at_once_take_turns(base_dir: Path, tmp_path: Path) -> None:
    source = _files(tmp_path / "source", **{f"t{n}__txt": text for n, text in enumerate(_texts(50))})
    command = [sys.executable, "-m", "nanochat.dataset", "--source", str(source)]
    processes = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [process.wait(60) for process in processes] == [0, 0]
    train, val = _both(base_dir / "base_data")
    assert sorted(train + val) == sorted(_texts(50))
    assert json.loads((base_dir / "report" / "dataset.json").read_text(encoding="utf-8"))["metrics"]


def test_one_line_and_exit_code_2(base_dir: Path) -> None:
    command = [sys.executable, "-m", "nanochat.dataset", "--source", "/no/such/folder"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "/no/such/folder" in done.stderr
    assert not (base_dir / "report").exists()


# --- the storyworld ---------------------------------------------------------------------------------------------------


def test_the_storyworld(tmp_path: Path) -> None:
    config = Config(source="storyworld", num_shards=2, docs_per_shard=60)
    manifest = prepare(config, tmp_path)
    train, val = _both(tmp_path)
    assert [manifest.files[name].documents for name in (*manifest.train, manifest.validation)] == [60, 60, 60]
    assert not set(train) & set(val)
    state = _state(tmp_path)
    assert prepare(config, tmp_path) == manifest
    assert _state(tmp_path) == state
    more = prepare(
        dataclasses.replace(config, num_shards=3), tmp_path
    )  # made anew without a question: it can be had again
    assert _both(tmp_path)[0][:120] == train
    assert len(more.train) == 3
    assert not set(manifest.files) & _names(tmp_path)
    assert prepare(dataclasses.replace(config, seed=1), tmp_path).hash() != manifest.hash()


# --- the hub ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    """Six shards of ten documents, the last one for validation."""
    monkeypatch.setattr(dataset, "HUB_SHARDS", 6)
    monkeypatch.setattr(download, "FIRST_WAIT_SECONDS", 0.01)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("NANOCHAT_HUB_DIR", raising=False)
    contents = {}
    for number in range(6):
        path = tmp_path / "made.parquet"
        write_shard([f"{number}.{row}" for row in range(10)], path)
        contents[f"shard_{number:05d}.parquet"] = path.read_bytes()
    with running(FileServer(contents)) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server


def _numbers(folder: Path) -> tuple[set[str], set[str]]:
    train, val = _both(folder)
    return {text[0] for text in train}, {text[0] for text in val}


def test_the_hub(hub: FileServer, tmp_path: Path) -> None:
    folder = tmp_path / "data"

    def brought(**values: object) -> set[str]:
        hub.log.clear()
        prepare(Config(**values), folder)
        return {name[10:11] for name, _, _ in hub.log}

    assert brought(num_shards=2) == {"0", "1", "5"}
    assert _numbers(folder) == ({"0", "1"}, {"5"})
    assert list(iter_documents("train", folder))[:11] == [*(f"0.{row}" for row in range(10)), "1.0"]
    assert brought(num_shards=2) == set()
    assert brought(num_shards=4) == {"2", "3"}
    assert brought(num_shards=1) == set()  # takes nothing away
    assert _numbers(folder) == ({"0", "1", "2", "3"}, {"5"})
    (folder / "shard_00001.parquet").write_bytes(b"cut")
    (folder / "shard_00005.parquet").unlink()
    assert brought(num_shards=4) == {"1", "5"}
    manifest = load_manifest(folder)
    assert {name: facts.sha256 for name, facts in manifest.files.items()} == {
        name: shards.file_sha256(folder / name) for name in manifest.files
    }
    assert brought(num_shards=1, overwrite=True) == set()
    assert _names(folder) == {"manifest.json", "shard_00000.parquet", "shard_00005.parquet"}


def test_a_stopped_download_keeps_what_it_has(hub: FileServer, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    prepare(Config(num_shards=1), folder)
    lost = hub.files.pop("shard_00003.parquet")
    with pytest.raises(UserError, match=r"shard_00003\.parquet .*404"):
        prepare(Config(num_shards=4, workers=1), folder)
    assert _numbers(folder) == ({"0"}, {"5"})  # the data set of before
    hub.files["shard_00003.parquet"] = lost
    hub.log.clear()
    prepare(Config(num_shards=4), folder)
    assert [name[10] for name, _, _ in hub.log] == ["3"]
    assert _numbers(folder) == ({"0", "1", "2", "3"}, {"5"})


def test_something_else_than_a_shard(hub: FileServer, tmp_path: Path) -> None:
    good = hub.files["shard_00000.parquet"]
    hub.files["shard_00000.parquet"] = b"<html>please log in</html>"
    with pytest.raises(UserError, match=r"something else than a shard as shard_00000\.parquet"):
        prepare(Config(num_shards=1), tmp_path / "data")
    hub.files["shard_00000.parquet"] = good
    prepare(Config(num_shards=1), tmp_path / "data")
    assert _numbers(tmp_path / "data") == ({"0"}, {"5"})


def test_a_mirror_on_disk(hub: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mirror = tmp_path / "mirror" / dataset.HUB_REPOSITORY
    _files(
        mirror, **{name.replace(".", "__"): hub.files[name] for name in ("shard_00000.parquet", "shard_00005.parquet")}
    )
    monkeypatch.setenv("NANOCHAT_HUB_DIR", str(tmp_path / "mirror"))
    prepare(Config(num_shards=2), tmp_path / "data")
    assert [name for name, _, _ in hub.log] == ["shard_00001.parquet"]
    assert _numbers(tmp_path / "data") == ({"0", "1"}, {"5"})


def test_from_files_to_the_hub_and_back(hub: FileServer, tmp_path: Path) -> None:
    source, folder = _files(tmp_path / "source", a__txt="x1", b__txt="x2"), tmp_path / "data"
    _import(source, folder)
    prepare(Config(num_shards=1, overwrite=True), folder)
    assert _numbers(folder) == ({"0"}, {"5"})
    assert hub.log
    (folder / "notes.parquet").write_bytes(b"the user's own")
    _import(source, folder, overwrite=True)
    assert _names(folder) == {"manifest.json", "notes.parquet", *load_manifest(folder).files}


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    with pytest.raises(UserError, match="file"):
        prepare(Config(num_shards=1), tmp_path / "file" / "data")


# --- real text --------------------------------------------------------------------------------------------------------


def test_textbooks(shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "text" / "textbooks"
    rows = [pq.read_table(path).column("text").to_pylist() for path in sorted(source.glob("*.parquet"))]
    train, val = _import(source, tmp_path)
    assert val == rows[-1]
    texts = [text for part in rows[:-1] for text in part]
    assert sum(map(len, train)) == sum(map(len, texts))
    whole = {text for text in texts if len(text) <= 100_000}
    assert Counter(text for text in train if text in whole) == Counter(text for text in texts if text in whole)
    assert sum(text in set(rows[0]) for text in train[:500]) < 150  # the first book does not come first


def test_a_folder_of_stories(shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "text" / "folder"
    train, val = _import(source, tmp_path)
    whole = sum(len(path.read_text(encoding="utf-8")) for path in source.rglob("*.md"))
    assert sum(map(len, train + val)) == whole
    assert 0.005 < sum(map(len, val)) / whole < 0.1
