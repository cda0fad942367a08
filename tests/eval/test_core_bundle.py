"""A bundle's categories, and its download. What a bundle holds else is in tests/test_core_eval.py."""

from __future__ import annotations

import io
import json
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nanochat.common import UserError
from nanochat.data import download
from nanochat.eval.core_bundle import find_bundle, read_bundle
from nanochat.eval.core_prompts import CoreExample, CoreTask
from scripts import base_eval
from tests.support.fileserver import FileServer, die_after, running, status
from tests.test_core_eval import HAND, write_bundle

CATEGORIES = ("history", "words", "history", "science", "words", "history")


def quiz(categories: tuple[str, ...] = CATEGORIES, num_fewshot: int = 1) -> CoreTask:
    """A task whose contexts name their categories."""
    examples = tuple(CoreExample(((f"{name} {i}", "x"),)) for i, name in enumerate(categories or CATEGORIES))
    return CoreTask("quiz", "language_modeling", num_fewshot, " ", 0.0, examples, categories)


def test_shots_are_of_the_category() -> None:
    """All the others of it, over many seeds, and never the question; as many as there are."""
    task = quiz()
    for index, name in enumerate(CATEGORIES):
        drawn = {shot.options[0][0] for seed in range(60) for shot in task.fewshot_examples(index, seed)}
        assert drawn == {f"{name} {other}" for other, same in enumerate(CATEGORIES) if same == name and other != index}
    assert task.max_fewshot == 0, "there is one question about science"
    assert [len(quiz(num_fewshot=9).fewshot_examples(index, 1)) for index in range(6)] == [2, 1, 2, 0, 1, 2]


def test_without_categories_nothing_changes() -> None:
    """One category for all is as none, to the order of the shots."""
    plain, one = quiz((), 3), quiz(("all",) * 6, 3)
    assert plain.max_fewshot == one.max_fewshot == 5
    for index in range(6):
        places = [[shot.options[0][0][-1] for shot in task.fewshot_examples(index, 42)] for task in (plain, one)]
        assert places[0] == places[1]


def with_categories(folder: Path, value: Any = True, names: tuple[str, ...] = ("a", "b", "a", "b")) -> Path:
    """The hand-made bundle, where `words` has categories."""
    write_bundle(folder, 1)
    path = folder / "core.yaml"
    path.write_text(path.read_text(encoding="utf-8") + f"\n  has_categories: {json.dumps(value)}", encoding="utf-8")
    rows = [{**row, "category": name} if name else row for row, name in zip(HAND["words"][1], names, strict=True)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "eval_data" / "sub" / "words.jsonl").write_text(text, encoding="utf-8")
    return folder


def test_categories_of_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    choice, schema, words = read_bundle(with_categories(tmp_path / "one")).tasks
    assert (choice.categories, schema.categories, words.categories) == ((), (), ("a", "b", "a", "b"))
    assert words.fewshot_examples(0, 42) == [words.examples[2]]
    assert capsys.readouterr().out == ""
    read_bundle(with_categories(tmp_path / "two", names=("a", "a", "a", "b")))
    assert capsys.readouterr().out == "words: its prompts should have 1 examples, but only 0 others exist\n"
    off = read_bundle(with_categories(tmp_path / "off", value=False)).tasks[2]
    assert off.categories == ()


@pytest.mark.parametrize(
    ("value", "names", "message"),
    [
        (True, ("a", "", "a", "b"), r"words\.jsonl, line 2: category must be a text"),
        ("yes", ("a", "b", "a", "b"), r"core\.yaml, line 14: has_categories is 'yes'"),
    ],
)
def test_bad_categories(tmp_path: Path, value: Any, names: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_bundle(with_categories(tmp_path / "bundle", value, names))


@pytest.mark.shared_data
def test_jeopardy(shared_data: Path) -> None:
    """Five categories, as the context of every question says in its first words."""
    [task] = [task for task in read_bundle(shared_data / "eval_bundle.zip").tasks if task.categories]
    assert task.label == "jeopardy"
    assert len(set(task.categories)) == 5
    for index in range(0, len(task.examples), 97):
        subject = task.examples[index].options[0][0].split(":")[0]
        shots = task.fewshot_examples(index, 42)
        assert len(shots) == 10
        assert {shot.options[0][0].split(":")[0] for shot in shots} == {subject}


# --- by its address ---------------------------------------------------------------------------------------------------


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    """It has a bundle, and something else."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(download, "FIRST_WAIT_SECONDS", 0.01)
    packed = shutil.make_archive(str(tmp_path / "packed"), "zip", write_bundle(tmp_path / "in" / "eval_bundle").parent)
    with running(FileServer({"b.zip": Path(packed).read_bytes(), "page": b"<html>"})) as server:
        yield server


def test_download(server: FileServer, base_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Once, also if the line breaks; after that it is found without the address."""
    address = server.address("b.zip")
    server.faults["b.zip"] = [die_after(100)]
    assert find_bundle(address) == find_bundle() == base_dir / "eval_bundle.zip"
    assert [task.label for task in read_bundle(base_dir / "eval_bundle.zip").tasks] == list(HAND)
    asked = len(server.log)
    assert find_bundle(address) == base_dir / "eval_bundle.zip"
    assert len(server.log) == asked
    assert "remove it to download it again" in capsys.readouterr().out


def test_what_is_no_bundle_is_not_kept(server: FileServer, base_dir: Path) -> None:
    with pytest.raises(UserError, match=r"page is no zip file"):
        find_bundle(server.address("page"))
    server.faults["b.zip"] = [status(404)]
    with pytest.raises(UserError, match="answered 404"):
        find_bundle(server.address("b.zip"))
    assert not list(base_dir.glob("*.zip"))


def test_a_zip_file_of_something_else(server: FileServer, base_dir: Path) -> None:
    """It is named, as any bundle is."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        file.writestr("a.txt", "a")
    server.files["other.zip"] = content.getvalue()
    with pytest.raises(UserError, match=r"eval_bundle\.zip is no evaluation bundle: core\.yaml is missing"):
        base_eval.main(base_eval.Config(eval_bundle=server.address("other.zip"), device="cpu"))
    assert base_dir.is_dir()
