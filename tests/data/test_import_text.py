"""Import of a user's own files: the rules of splitting, cutting and skipping, and errors that name the file."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat.common import UserError
from nanochat.data import import_text
from nanochat.data.import_text import split_long_text
from nanochat.data.shards import shard_paths, write_shard
from nanochat.dataset import Config, prepare
from tests.support.datasets import WORDS, import_files, numbered_texts, read_splits, write_files


def test_texts_of_parquet_have_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One long text among short ones, and a column whose size says so before it is unpacked."""
    monkeypatch.setattr(import_text, "MAX_LINE_CHARS", 1000)
    pq.write_table(pa.table({"text": ["x" * 1000, *"abc"]}), tmp_path / "fits.parquet")
    import_files(tmp_path / "fits.parquet", tmp_path / "data")
    for name, texts in (("one", ["c" * 1001, *"abcdefgh"]), ("mean", ["a" * 5000, "b" * 5000])):
        pq.write_table(pa.table({"text": texts}), tmp_path / f"{name}.parquet", use_dictionary=False)
        with monkeypatch.context() as patch:
            if name == "mean":
                patch.setattr(import_text, "to_text", None)
            with pytest.raises(UserError, match=r"a text of about [\d,]+ bytes: at most 1,000 are allowed"):
                import_files(tmp_path / f"{name}.parquet", tmp_path / name)


def test_a_folder_of_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = numbered_texts(90)
    source = write_files(
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
    write_files(source / ".git", config__txt="never seen")
    write_files(source / "sub" / "deeper", **{f"t{n}__md": text for n, text in enumerate(texts[30:60])})
    write_shard(texts[60:], source / "sub" / "rows.parquet")
    train, val = import_files(source, tmp_path / "data", docs_per_shard=40)
    odd = ["voil\ufffd, a caf\ufffd", "a file from Windows\nof two lines", "a mark before", "half \ufffd a pair"]
    assert sorted(train + val) == sorted(texts + odd)
    assert 1 <= len(val) <= 12
    assert len(shard_paths("train", tmp_path / "data")) == 3
    out = capsys.readouterr().out
    assert "1 files of other kinds are skipped (picture.png)" in out
    assert "2 files without text were skipped (blank.md, empty.txt)" in out
    assert "1 files are not UTF-8" in out
    assert "latin.txt" in out


@pytest.mark.parametrize("name", ["book.txt", "book.md"])
@pytest.mark.parametrize("size", [100, 10_000, 300_000])
def test_a_single_book_is_divided(tmp_path: Path, name: str, size: int) -> None:
    """A book gives several documents that join to the book again, however large the chunks are in which it is read."""
    book = (
        "".join(text + "\n\n" for text in numbered_texts(size // 20, words=25))[:size]
        if size > 5000
        else "x" * 1999 + "y" * 60
    )
    write_files(tmp_path, **{name.replace(".", "__"): book})
    train, val = import_files(tmp_path / name, tmp_path / "data", shuffle=False)
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
    """Both splits have documents for any hashes of a few documents."""
    monkeypatch.setattr(import_text, "VALIDATION_SHARE", share)
    texts = numbered_texts(9)
    train, val = import_files(
        write_files(tmp_path / "s", **{f"t{n}__txt": text for n, text in enumerate(texts)}), tmp_path / "d"
    )
    assert (len(train), sorted(train + val)) == (train_count, sorted(texts))


def test_one_short_text_is_too_little(tmp_path: Path) -> None:
    for contents, description in (
        ({"a__txt": "short"}, "a single document"),
        ({"a__txt": "same", "b__md": "same"}, "a single"),
    ):
        with pytest.raises(UserError, match=f"holds {description}.*: at least two are needed"):
            prepare(Config(source=str(write_files(tmp_path / "s", **contents))), tmp_path / "data")
    with pytest.raises(UserError, match="holds no text"):
        prepare(Config(source=str(write_files(tmp_path / "t", a__txt="", b__txt="\n"))), tmp_path / "data")


def test_a_line_of_50_megabytes(tmp_path: Path) -> None:
    line = ("".join(WORDS) + " " + "z" * 900) * 52_000
    source = write_files(tmp_path / "source", big__txt=line, other__jsonl=json.dumps({"text": line[:5_000_000]}))
    train, val = import_files(source, tmp_path / "data", shuffle=False)
    assert max(map(len, train + val)) <= 100_000
    assert sum(map(len, train + val)) == len(line) + 5_000_000


@given(st.text(alphabet="ab \n", max_size=80), st.integers(1, 20))
def test_parts_join_to_the_text_and_end_at_paragraphs(text: str, limit: int) -> None:
    parts = list(split_long_text(text, limit))
    assert "".join(parts) == text
    assert all(len(part) <= limit for part in parts)
    assert all(len(part) > limit // 2 for part in parts[:-1])
    if 2 * len("aa bb\n\n") <= limit:
        assert next(split_long_text("x" * (limit - 6) + "\n\naa bb cc dd", limit)).endswith("\n\n")


def test_of_parquet_files_the_last_one_is_validation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = numbered_texts(50)
    for number, rows in enumerate((texts[:20], [*texts[20:40], texts[45], texts[45]], texts[40:])):
        write_files(tmp_path / "source")
        pq.write_table(pa.table({"id": [1] * len(rows), "body": rows}), tmp_path / "source" / f"part{number}.parquet")
    train, val = import_files(tmp_path / "source", tmp_path / "data", text_column="body", shuffle=False)
    assert (train, val) == (texts[:40], texts[40:])
    assert "2 training documents are in the validation split as well and were left out" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"no column 'text', but id, body \(--text_column"):
        prepare(Config(source=str(tmp_path / "source"), overwrite=True), tmp_path / "data")
    with pytest.raises(UserError, match="column 'id' holds int64, not text"):
        prepare(Config(source=str(tmp_path / "source"), text_column="id", overwrite=True), tmp_path / "data")
    assert read_splits(tmp_path / "data") == (texts[:40], texts[40:])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{oops", "not JSON"),
        (b'["a"]', 'expected an object with a string under "text"'),
        (b'{"text": 3}', "expected an object with a string"),
        (b'{"body": "x"}', "--text_column names another"),
        (b"[" * 100_000, r"not JSON that can be read \(brackets too deep\)"),
        (b"9" * 5000, r"not JSON that can be read \(a number with too many digits\)"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: bytes, message: str) -> None:
    source = write_files(tmp_path / "source", rows__jsonl=b'{"text": "fine"}\n\n' + line + b"\n")
    with pytest.raises(UserError, match=f"rows.jsonl, line 3: .*{message}"):
        prepare(Config(source=str(source)), tmp_path / "data")
    assert not (tmp_path / "data" / "manifest.json").exists()


def test_sources_that_cannot_be_read(tmp_path: Path) -> None:
    broken = write_files(tmp_path / "broken", a__parquet="no", b__parquet="no")
    only = write_files(tmp_path / "only", a__pdf="%PDF")
    for source, message in (
        (tmp_path / "absent", "no such file or folder"),
        (only, r"none of its 1 files can be read \(.txt"),
        (write_files(tmp_path / "nothing"), r"holds no files \(.txt"),
        (broken, "cannot be read as parquet"),
        (tmp_path, "contains the folder"),
    ):
        with pytest.raises(UserError, match=message):
            prepare(Config(source=str(source)), tmp_path / "data")


# --- faulty text ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [190, 200, 590])
def test_a_single_page_gives_two_documents(tmp_path: Path, length: int) -> None:
    page = numbered_texts(1, words=200)[0][:length]
    source = write_files(tmp_path / "source", a__txt=page.encode("utf-16-le"), b__txt=page.encode("utf-32"))
    if length < 200:
        with pytest.raises(UserError, match=r"holds a single document: .*without a byte order mark"):
            import_files(source, tmp_path / "data")
        return
    train, val = import_files(source, tmp_path / "data")
    assert len(train) == len(val) == 2  # the two files hold the same page
    assert {train[0] + val[0], val[0] + train[0]} & {page}


def _import_with_notices(source: Path, capsys: pytest.CaptureFixture[str], **settings: object) -> tuple[list[str], str]:
    """Import a folder and return all of its documents, sorted, and what was printed."""
    capsys.readouterr()
    train, val = import_files(source, source.parent / "data", overwrite=True, **settings)
    assert not any("\ufeff" in text or "\x00\x00" in text for text in train + val)
    return sorted(train + val), capsys.readouterr().out


def test_text_of_every_encoding_and_binary_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = numbered_texts(8)
    encodings = ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"]
    pairs = [*enumerate(zip(texts, encodings, strict=True))]
    source = write_files(
        tmp_path / "source",
        **{f"t{n}__txt": text.encode(name) for n, (text, name) in pairs},
        **{f"l{n}__jsonl": json.dumps({"text": f"{n}{text}"}).encode(name) for n, (text, name) in pairs},
        picture__txt=b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\xff\xfe",
        sparse__txt=b"\0" * 4096,
        nul__txt="one\0NUL in it",
    )
    documents, out = _import_with_notices(source, capsys)
    assert documents == sorted([*texts, *(f"{n}{text}" for n, text in enumerate(texts)), "one\0NUL in it"])
    assert "2 files hold binary data, not text, and were skipped (picture.txt, sparse.txt)" in out
    assert "8 files without a byte order mark were read as UTF-16 or UTF-32" in out
    assert "1 documents have NUL characters, which were kept (nul.txt)" in out


def test_byte_order_marks_of_joined_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = "".join('\ufeff{"text": "' + text + '"}\r\n' for text in ("\\ufeffone", "two"))
    source = write_files(tmp_path / "source", a__jsonl=lines, b__txt="\ufeff\ufeffthree")
    pq.write_table(pa.table({"text": ["\ufefffour", "\ufeff"]}), source / "c.parquet")
    documents, out = _import_with_notices(source, capsys)
    assert documents == ["four", "one", "three", "two"]
    assert "1 rows or lines without text (null or blank) were left out" in out


def test_nulls_and_broken_text_are_the_same_in_jsonl_and_parquet(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = ["first", None, "", "  ", "second", None, "third"]
    jsonl = "".join(json.dumps({"text": row}) + "\n" for row in rows)
    results = []
    for name, content in (("a.jsonl", jsonl.encode()), ("a.parquet", b"")):
        source = write_files(tmp_path / name / "source", **{name.replace(".", "__"): content})
        if not content:
            pq.write_table(pa.table({"text": rows}), source / name)
        results.append(_import_with_notices(source, capsys))
        assert "4 rows or lines without text (null or blank) were left out" in results[-1][1]
    assert results[0][0] == results[1][0] == ["first", "second", "third"]

    broken = b"caf\xe9 and more"
    source = write_files(
        tmp_path / "broken", a__txt=broken, b__jsonl=b'{"text": "' + broken + b' text"}\n{"text": "\\udc00"}'
    )
    column = pa.array([broken + b" rows", None], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"text": column}), source / "c.parquet")
    documents, out = _import_with_notices(source, capsys)
    text = "caf\ufffd and more"
    assert documents == [text, text + " rows", text + " text", "\ufffd"]
    assert (
        "3 files are not UTF-8; unreadable bytes became U+FFFD, in 1 rows of parquet (a.txt, b.jsonl, c.parquet)" in out
    )
    assert "1 lines of jsonl had half a surrogate pair, which became U+FFFD" in out


@pytest.mark.parametrize("kind", [pa.large_string(), pa.binary(), pa.dictionary(pa.int32(), pa.string())], ids=str)
def test_parquet_columns_of_every_type_of_text(tmp_path: Path, kind: pa.DataType) -> None:
    source, texts = write_files(tmp_path / "source"), numbered_texts(6)
    for number in range(2):
        pq.write_table(pa.table({"text": pa.array(texts[number::2]).cast(kind)}), source / f"{number}.parquet")
    assert import_files(source, tmp_path / "data", shuffle=False) == (texts[::2], texts[1::2])


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ([("text", [1, 2])], "column 'text' holds int64, not text"),
        ([("text", [["a"], ["b"]])], "column 'text' holds list<"),
        ([("text", [b"\xff\xd8", b"\xff\xd8\x00"])], "column 'text' holds binary that is not UTF-8, not text"),
        ([("body", ["a", "b"]), ("url", ["c", "d"])], r"no column 'text', but body, url \(--text_column names another"),
        ([("text", ["a", "b"]), ("text", ["c", "d"])], "2 columns 'text': rename all but one"),
    ],
)  # fmt: skip
def test_other_columns_are_named(tmp_path: Path, columns: list[tuple[str, list]], message: str) -> None:
    source = write_files(tmp_path / "source")
    table = pa.table([pa.array(values) for _, values in columns], names=[name for name, _ in columns])
    pq.write_table(table, source / "a.parquet")
    with pytest.raises(UserError, match=message):
        import_files(source, tmp_path / "data")


def test_column_names_of_the_user(tmp_path: Path) -> None:
    source, texts = write_files(tmp_path / "source"), numbered_texts(4)
    for column in ("a.b", "Spalte \u00fc", "text ", "0"):
        pq.write_table(pa.table({"text": [1, 2, 3, 4], column: texts}), source / "a.parquet")
        train, val = import_files(source, tmp_path / "data", text_column=column, overwrite=True)
        assert sorted(train + val) == texts
        with pytest.raises(UserError, match="no column"):
            import_files(source, tmp_path / "data", text_column="missing", overwrite=True)


@pytest.mark.parametrize("num_with_text", [1, 2, 3])
def test_parquet_files_without_text_at_the_end(tmp_path: Path, num_with_text: int) -> None:
    """Validation is the last file with text; a single one is divided like any other text."""
    source, texts = write_files(tmp_path / "source"), numbered_texts(90)
    parts = [texts[:30], texts[30:60], texts[60:]][:num_with_text]
    for number, rows in enumerate([*parts, [None, " "], []]):
        pq.write_table(pa.table({"text": pa.array(rows, pa.string())}), source / f"{number}.parquet")
    train, val = import_files(source, tmp_path / "data", shuffle=False)
    assert sorted(train + val) == sorted(text for part in parts for text in part)
    if num_with_text > 1:
        assert val == parts[-1]
    else:
        assert 0 < len(val) < len(train)


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ('{"body": "x", "id\\u001b": 1}', r"found an object with body, id\\x1b \(--text_column"),
        ("{}", "found an object with no keys"),
        ('{"text": 3}', "found a number under it"),
        ('{"text": true}', "found true or false under it"),
        ('{"text": ["a"]}', "found a list under it"),
        ('{"text": {"a": 1}}', "found an object under it"),
        ('["text"]', "found a list"),
        ("null", "found null"),
        ('"text"', "found a string"),
        ("3", "found a number"),
    ],
)
def test_what_a_line_holds_instead_is_named(tmp_path: Path, line: str, found: str) -> None:
    source = write_files(tmp_path / "source", a__jsonl='{"text": "fine"}\n' + line)
    with pytest.raises(UserError, match=f'a.jsonl, line 2: expected an object with a string under "text", {found}'):
        import_files(source, tmp_path / "data")


def test_an_endless_line_is_refused_before_it_is_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(import_text, "MAX_LINE_CHARS", 1000)
    line = json.dumps({"text": "x" * 980}) + "\n"
    assert len(line) <= 1000
    source = write_files(tmp_path / "source", a__jsonl=line + '{"text": "y"}')
    assert sum(map(len, import_files(source, tmp_path / "data"))) == 2
    write_files(source, b__jsonl='{"text": "fine"}\n{"text": "' + "x" * 5000)
    with pytest.raises(
        UserError, match=r"b\.jsonl, line 2: more than 1,000 characters; jsonl has one document on each"
    ):
        import_files(source, tmp_path / "data", overwrite=True)


@pytest.mark.parametrize("change", ["grows", "is replaced", "vanishes"])
def test_a_file_that_changes_during_the_import(tmp_path: Path, change: str) -> None:
    source = write_files(tmp_path / "source", **{f"t{n}__txt": text for n, text in enumerate(numbered_texts(50))})
    before = import_files(source, tmp_path / "data")
    state = sorted(path.name for path in (tmp_path / "data").iterdir())
    write_files(source, z__txt="one more")
    files = import_text.TextFiles(source)
    train, val = files.split()
    list(val)
    first = next(train)
    if change == "grows":
        with open(source / "t3.txt", "a", encoding="utf-8") as file:
            file.write("more")
    elif change == "is replaced":
        write_files(source, t3__txt=(source / "t3.txt").read_bytes()[::-1])
    else:
        (source / "z.txt").unlink()
    assert first
    with pytest.raises(UserError, match=r"has changed during the import: import it when|cannot be read: No such file"):
        list(train)
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == state
    assert read_splits(tmp_path / "data") == before


# --- real text --------------------------------------------------------------------------------------------------------


def test_textbooks(shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "text" / "textbooks"
    rows = [pq.read_table(path).column("text").to_pylist() for path in sorted(source.glob("*.parquet"))]
    train, val = import_files(source, tmp_path)
    assert val == rows[-1]
    texts = [text for part in rows[:-1] for text in part]
    assert sum(map(len, train)) == sum(map(len, texts))
    uncut = {text for text in texts if len(text) <= 100_000}
    assert Counter(text for text in train if text in uncut) == Counter(text for text in texts if text in uncut)
    assert sum(text in set(rows[0]) for text in train[:500]) < 150  # the first book does not come first


def test_a_folder_of_stories(shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "text" / "folder"
    train, val = import_files(source, tmp_path)
    num_characters = sum(len(path.read_text(encoding="utf-8")) for path in source.rglob("*.md"))
    assert sum(map(len, train + val)) == num_characters
    assert 0.005 < sum(map(len, val)) / num_characters < 0.1
