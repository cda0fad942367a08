"""Evaluation bundles: what is read, what is refused and in which words, and the download."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nanochat.common import UserError
from nanochat.data import download
from nanochat.eval.core_bundle import PUBLIC_BUNDLE, find_bundle, open_bundle, read_bundle
from nanochat.system.credentials import is_on_hub
from tests.support.bundles import HAND_TASKS, write_bundle, write_hand_bundle
from tests.support.fileserver import FileServer, die_after, running, status

CHOICE = "eval_data/sub/choice.jsonl"


def change(name: str, old: str, new: str) -> Callable[[Path], None]:
    """Return a function that replaces a text in a file of a bundle."""

    def edit(folder: Path) -> None:
        path = folder / name
        content = path.read_bytes()
        assert old.encode() in content
        path.write_bytes(content.replace(old.encode(), new.encode("latin-1"), 1))

    return edit


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (change(CHOICE, '{"query": "Q", "choices": ["ccc"', '{"query": "Q" "choices": ["ccc"'), [CHOICE, "line 2:"]),
        (change(CHOICE, '"gold": 0', '"gold": 3'), [CHOICE, "line 3: gold is 3", "0 to 2"]),
        (change(CHOICE, '"gold": 0', '"gold": true'), [CHOICE, "line 3: gold is True"]),
        (change(CHOICE, '"a", "ccc"', '"a"'), [CHOICE, "line 1: choices must be a list of two"]),
        (change(CHOICE, '"query"', '"question"'), [CHOICE, "line 1: query must be a text"]),
        (change(CHOICE, "ccc", "c\xffc"), [CHOICE, "line 1: not UTF-8"]),
        (change(CHOICE, "ccc", r"c\ud83d"), [CHOICE, r"line 1: half a surrogate pair, \ud83d"]),
        (change("core.yaml", '" "', r'"\ud83d"'), ["core.yaml, line 7: not YAML", "surrogates not allowed"]),
        (change("eval_data/sub/words.jsonl", '"ok"', '""'), ["words.jsonl", "line 1: continuation must be a text"]),
        (change("eval_data/sub/schema.jsonl", "context_options", "x"), ["schema.jsonl", "line 1: context_options"]),
        (lambda folder: (folder / CHOICE).write_bytes(b"\n[1]\n"), [CHOICE, "line 2: a line must be a JSON object"]),
        (lambda folder: (folder / CHOICE).write_bytes(b""), [CHOICE, "no examples"]),
        (lambda folder: (folder / "core.yaml").unlink(), ["core.yaml is missing"]),
        (lambda folder: (folder / "eval_meta_data.csv").unlink(), ["eval_meta_data.csv is missing"]),
        (lambda folder: shutil.rmtree(folder / "eval_data"), ["none of the tasks in core.yaml"]),
        (change("core.yaml", "  dataset_uri: sub/schema", "  dataset_uri: [sub/schema"), ["core.yaml, line", "YAML"]),
        (change("core.yaml", "type: schema", "type: scheme"), ["core.yaml, line 8: icl_task_type is 'scheme'"]),
        (change("core.yaml", "  - 0", "  - many"), ["core.yaml, line 2: num_fewshot is ['many']"]),
        (change("core.yaml", "label: schema", "label: choice"), ["core.yaml, line 8", "choice is listed twice"]),
        (change("core.yaml", "icl_tasks", "tasks"), ["core.yaml, line 1: icl_tasks"]),
        (change("eval_meta_data.csv", "schema,50,", "schema,fifty,"), ["eval_meta_data.csv, line 3", "fifty"]),
        (change("eval_meta_data.csv", "schema,50,", "schema,100,"), ["eval_meta_data.csv, line 3", "100.0 percent"]),
        (
            change("eval_meta_data.csv", "schema,50,", "scheme,50,"),
            ["core.yaml, line 8", "no line for the task schema"],
        ),
        (change("eval_meta_data.csv", "Random", "Wild"), ["eval_meta_data.csv, line 1", "'Random baseline'"]),
        (change("eval_meta_data.csv", "Random", '"' + "x" * 200_000), ["eval_meta_data.csv, line 1", "field limit"]),
        (lambda folder: (folder / "eval_meta_data.csv").write_bytes(b""), ["eval_meta_data.csv, line 1: the columns"]),
        (change("core.yaml", "  - 0", "  - 0\n  added: 2024-13-45"), ["core.yaml, line 6: not YAML (month must be"]),
        (change("core.yaml", "  - 0", "  - !!bool x"), ["core.yaml, line 5: not YAML"]),
        (change("core.yaml", "  - 0", "  - " + "[" * 3000), ["core.yaml, line 5: not YAML", "recursion"]),
        (change("core.yaml", "  - 0", "  - \0"), ["core.yaml, line 5: not YAML", "special characters"]),
    ],
)
def test_a_bad_bundle(tmp_path: Path, spoil: Callable[[Path], Any], words: list[str]) -> None:
    folder = write_hand_bundle(tmp_path / "bundle")
    read_bundle(folder)
    spoil(folder)
    with pytest.raises(UserError) as caught:
        read_bundle(folder)
    assert [word for word in words if word not in str(caught.value)] == []


def test_a_zip_file_is_like_its_folder(tmp_path: Path) -> None:
    """Also with one folder around all files; a damaged zip file is refused."""
    tasks = read_bundle(write_hand_bundle(tmp_path / "in" / "eval_bundle")).tasks
    for root in (tmp_path / "in", tmp_path / "in" / "eval_bundle"):
        path = Path(shutil.make_archive(str(tmp_path / "packed"), "zip", root))
        assert read_bundle(path).tasks == tasks
    content = path.read_bytes()
    offset = content.index(b"eval_data/sub/words.jsonl") + 40
    for damaged in (content[:-30], content[:offset] + b"\0\0\0\0" + content[offset + 4 :], b"no zip file"):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"packed\.zip"):
            read_bundle(path)


@pytest.mark.slow
def test_a_flipped_bit_is_no_traceback(tmp_path: Path) -> None:
    """With any bit of a zip file flipped, the bundle is read or refused by a UserError of one line."""
    tasks = {"a": ("language_modeling", [{"context": "a", "continuation": "b"}])}
    path = Path(shutil.make_archive(str(tmp_path / "packed"), "zip", write_bundle(tmp_path / "in", tasks)))
    content = path.read_bytes()
    messages = []
    for bit in range(0, 8 * len(content), 3):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            read_bundle(path)
        except UserError as error:
            messages.append(str(error))
    assert len(messages) > len(content)
    assert not any("\n" in text for text in messages)


def test_tasks_are_selected_by_label(tmp_path: Path) -> None:
    bundle = read_bundle(write_bundle(tmp_path / "bundle"))
    assert [task.label for task in bundle.select(["words", "choice"])] == ["choice", "words"]
    with pytest.raises(UserError, match="no task none: choose from choice, schema, words"):
        bundle.select(["choice", "none"])


# --- categories -------------------------------------------------------------------------------------------------------


def with_categories(folder: Path, value: Any = True, categories: tuple[str, ...] = ("a", "b", "a", "b")) -> Path:
    """The bundle of HAND_TASKS, in which `words` has categories."""
    write_hand_bundle(folder, 1)
    path = folder / "core.yaml"
    path.write_text(path.read_text(encoding="utf-8") + f"\n  has_categories: {json.dumps(value)}", encoding="utf-8")
    rows = [
        {**row, "category": category} if category else row
        for row, category in zip(HAND_TASKS["words"][1], categories, strict=True)
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "eval_data" / "sub" / "words.jsonl").write_text(text, encoding="utf-8")
    return folder


def test_categories_of_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    choice, schema, words = read_bundle(with_categories(tmp_path / "one")).tasks
    assert (choice.categories, schema.categories, words.categories) == ((), (), ("a", "b", "a", "b"))
    assert words.fewshot_examples(0, 42) == [words.examples[2]]
    assert capsys.readouterr().out == ""
    read_bundle(with_categories(tmp_path / "two", categories=("a", "a", "a", "b")))
    assert capsys.readouterr().out == "words: its prompts should have 1 examples, but the task has only 0 others\n"
    off = read_bundle(with_categories(tmp_path / "off", value=False)).tasks[2]
    assert off.categories == ()


@pytest.mark.parametrize(
    ("value", "categories", "message"),
    [
        (True, ("a", "", "a", "b"), r"words\.jsonl, line 2: category must be a text"),
        ("yes", ("a", "b", "a", "b"), r"core\.yaml, line 14: has_categories is 'yes'"),
    ],
)
def test_bad_categories(tmp_path: Path, value: Any, categories: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_bundle(with_categories(tmp_path / "bundle", value, categories))


@pytest.mark.shared_data
def test_jeopardy(shared_data: Path) -> None:
    """Five categories, with which the context of every question begins."""
    [task] = [task for task in read_bundle(shared_data / "eval_bundle.zip").tasks if task.categories]
    assert task.label == "jeopardy"
    assert len(set(task.categories)) == 5
    for index in range(0, len(task.examples), 97):
        subject = task.examples[index].options[0][0].split(":")[0]
        examples = task.fewshot_examples(index, 42)
        assert len(examples) == 10
        assert {example.options[0][0].split(":")[0] for example in examples} == {subject}


# --- download ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    """A server of a bundle and of a page."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(download, "FIRST_WAIT_SECONDS", 0.01)
    packed = shutil.make_archive(
        str(tmp_path / "packed"), "zip", write_hand_bundle(tmp_path / "in" / "eval_bundle").parent
    )
    with running(FileServer({"b.zip": Path(packed).read_bytes(), "page": b"<html>"})) as server:
        yield server


def test_download(server: FileServer, base_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A bundle is downloaded once, also if the connection breaks; then it is found without the address."""
    address = server.address("b.zip")
    server.faults["b.zip"] = [die_after(100)]
    assert find_bundle(address) == find_bundle() == base_dir / "eval_bundle.zip"
    content = server.files["b.zip"]
    digest = hashlib.sha256(content).hexdigest()
    assert f"eval_bundle.zip, {len(content):,} bytes, SHA-256 {digest}\n" in capsys.readouterr().out
    assert [task.label for task in read_bundle(base_dir / "eval_bundle.zip").tasks] == list(HAND_TASKS)
    num_requests = len(server.log)
    assert find_bundle(address) == base_dir / "eval_bundle.zip"
    assert len(server.log) == num_requests
    assert f"Using {base_dir / 'eval_bundle.zip'}: remove it to download {address}" in capsys.readouterr().out
    (base_dir / "eval_bundle").mkdir()  # the user's own, which comes first
    assert find_bundle(address) == find_bundle() == base_dir / "eval_bundle"
    assert len(server.log) == num_requests


def test_no_token_goes_to_the_server_of_a_bundle(
    server: FileServer, base_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    assert find_bundle(server.address("b.zip")) == base_dir / "eval_bundle.zip"
    assert set(server.authorizations) == {None}
    assert not is_on_hub(PUBLIC_BUNDLE)


def test_a_full_disk_is_a_user_error(server: FileServer, base_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def raise_disk_full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", raise_disk_full)
    with pytest.raises(UserError, match=r"b\.zip cannot be downloaded to .*: .*No space left"):
        find_bundle(server.address("b.zip"))
    assert not (base_dir / "eval_bundle.zip").exists()


def test_a_download_that_is_no_zip_file_is_removed(server: FileServer, base_dir: Path) -> None:
    with pytest.raises(UserError, match=r"page is not a zip file"):
        find_bundle(server.address("page"))
    server.faults["b.zip"] = [status(404)]
    with pytest.raises(UserError, match="answered 404"):
        find_bundle(server.address("b.zip"))
    assert not list(base_dir.glob("*.zip"))


def test_a_zip_file_of_something_else(server: FileServer, base_dir: Path) -> None:
    """The error names it, as for any bundle."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        file.writestr("a.txt", "a")
    server.files["other.zip"] = content.getvalue()
    with pytest.raises(UserError, match=r"eval_bundle\.zip is not an evaluation bundle: core\.yaml is missing"):
        open_bundle(server.address("other.zip"))
    assert base_dir.is_dir()
