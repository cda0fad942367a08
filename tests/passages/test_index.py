"""Search in an index: the nearest passages, any input, several threads, and files that are damaged or foreign."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat.common import UserError
from nanochat.documents.document import write_documents
from nanochat.passages.build import build_index
from nanochat.passages.index import APPLICATION_ID, PassageIndex, default_index_path
from nanochat.passages.passage import Passage
from tests.support.damage import damaged_bytes, outcome
from tests.support.documents import DOCUMENTS, HOSTILE_NAME, HOSTILE_TEXT, TEA, make_index


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("index")
    make_index(folder).close()
    return folder


@pytest.fixture(scope="module")
def index(folder: Path) -> Iterator[PassageIndex]:
    with PassageIndex.open(folder / "passages.sqlite") as index:
        yield index


def copy_index(folder: Path, target: Path) -> Path:
    """Copy the files of an index, and return the path of its database."""
    for path in folder.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target / "passages.sqlite"


def accept(path: Path) -> None:
    """Write the hash of a changed database into passages.json, as someone would who changed both."""
    facts = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    facts["index_sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    path.with_suffix(".json").write_text(json.dumps(facts), encoding="utf-8")


# Search


@pytest.mark.parametrize(
    ("question", "document", "beginning"),
    [
        ("Where does tea come from?", "drinks/tea.md", "Tea is a drink"),
        ("How do I brew tea?", "drinks/tea.md", "Boil water"),
        ("HOW LONG DO THE LEAVES WAIT??", "drinks/tea.md", "Boil water"),
        ("Who is kept awake by coffee?", "drinks/coffee.md", "A cup of it"),
        ("日本の首都は？", "旅行/東京.txt", "東京都"),
        ("1400万人", "旅行/東京.txt", "東京都"),
        ("grinding", "drinks/coffee.md", "Grind the beans"),  # another form of the word
    ],
)
def test_the_nearest_passage(index: PassageIndex, question: str, document: str, beginning: str) -> None:
    best = index.search(question)[0]
    assert best.document == document
    assert best.text.startswith(beginning)


def test_the_order_and_the_number_of_results(index: PassageIndex) -> None:
    found = index.search("water leaves coffee tea", 10)
    assert len(found) == len(set(found)) == 4
    scores = [passage.score for passage in found]
    assert scores == sorted(scores, reverse=True)
    assert scores[-1] > 0
    assert index.search("water leaves coffee tea", 2) == found[:2]
    assert index.search("giraffe") == []
    assert index.search("") == []


def test_equal_passages_come_in_the_order_of_the_documents(tmp_path: Path) -> None:
    write_documents([TEA, *(DOCUMENTS[1:])] * 3, tmp_path / "documents.jsonl")
    build_index(tmp_path / "documents.jsonl")
    with PassageIndex.open(tmp_path / "passages.sqlite") as index:
        found = index.search("Boil water", 9)
        assert [passage.text for passage in found] == [found[0].text] * 3
        assert found == index.search("Boil water", 9)


def test_earlier_messages_count_less(index: PassageIndex) -> None:
    assert index.search("How long?", context="Is there coffee?")[0].document == "drinks/coffee.md"
    best = index.search("How to brew tea?", context="Is there coffee for the night?")[0]
    assert best.document == "drinks/tea.md"


def test_hostile_texts_come_back_as_they_are(index: PassageIndex) -> None:
    best = index.search("wombat")[0]
    assert best.document == HOSTILE_NAME
    assert best.text == HOSTILE_TEXT


@given(st.one_of(st.text(), st.lists(st.sampled_from(['"', "tea", "AND", "NOT", "NEAR(", "*", "^", "text:", "\0"]))))
def test_any_question(index: PassageIndex, question: str | list[str]) -> None:
    text = question if isinstance(question, str) else " ".join(question)
    assert all(isinstance(passage, Passage) for passage in index.search(text, context=text))


def test_a_long_question(index: PassageIndex) -> None:
    words = " ".join(f"word{number}" for number in range(10_000))
    assert index.search(f"tea {words}", context=words)[0].document == "drinks/tea.md"


def test_several_threads(index: PassageIndex) -> None:
    questions = ["Boil water", "Ngozi", "東京", "wombat"] * 25
    expected = [index.search(question) for question in questions]
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(index.search, questions)) == expected


# Files


def test_files_that_are_missing_or_of_other_documents(folder: Path, tmp_path: Path, base_dir: Path) -> None:
    assert default_index_path() == base_dir / "documents" / "passages.sqlite"
    with pytest.raises(UserError, match=r"passages\.sqlite is missing: run python -m scripts\.index_documents"):
        PassageIndex.open(None)
    path = copy_index(folder, tmp_path)
    write_documents([TEA], tmp_path / "documents.jsonl")
    with pytest.raises(UserError, match=r"belongs to other documents than .*documents\.jsonl, which has changed: run"):
        PassageIndex.open(path)
    (tmp_path / "documents.jsonl").unlink()  # an index that was copied alone is complete
    with PassageIndex.open(path) as index:
        assert index.search("Ngozi")
    path.with_suffix(".json").unlink()
    with pytest.raises(UserError, match=r"passages\.json is missing"):
        PassageIndex.open(path)


def test_an_open_index_survives_its_replacement(folder: Path, tmp_path: Path) -> None:
    path = copy_index(folder, tmp_path)
    with PassageIndex.open(path) as index:
        other = tmp_path / "other"
        other.write_bytes(b"")
        other.replace(path)
        assert index.search("Ngozi")


def test_an_index_is_not_written_to(folder: Path, tmp_path: Path) -> None:
    path = copy_index(folder, tmp_path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    with PassageIndex.open(path) as index:
        index.search("Ngozi")
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            index._connection.execute("INSERT INTO passages VALUES (99, '', '', '')")
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


@given(st.data())
def test_damage_is_found(folder: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    tmp_path = tmp_path_factory.mktemp("damaged")
    path = copy_index(folder, tmp_path)
    path.write_bytes(data.draw(damaged_bytes(path.read_bytes())))
    if path.read_bytes() == (folder / path.name).read_bytes():
        return
    index, message = outcome(lambda: PassageIndex.open(path))
    assert index is None
    assert "is damaged" in message


@given(st.data())
def test_damage_with_a_matching_hash_is_one_line_or_a_result(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = copy_index(folder, tmp_path_factory.mktemp("damaged"))
    path.write_bytes(data.draw(damaged_bytes(path.read_bytes())))
    accept(path)

    def search() -> list[Passage]:
        with PassageIndex.open(path) as index:
            return index.search("Boil water for coffee in 東京", 9)

    found, message = outcome(search)
    assert found is not None or "python -m scripts.index_documents" in message


@pytest.mark.parametrize(
    "statements",
    [
        ["CREATE TABLE a (b)"],
        [f"PRAGMA application_id = {APPLICATION_ID}", "CREATE TABLE a (b)"],
    ],
)
def test_a_database_of_another_program(folder: Path, tmp_path: Path, statements: list[str]) -> None:
    path = copy_index(folder, tmp_path)
    path.unlink()
    connection = sqlite3.connect(path)
    for statement in statements:
        connection.execute(statement)
    connection.commit()
    connection.close()
    accept(path)
    with pytest.raises(UserError, match="is no index of passages: run"):
        PassageIndex.open(path)


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("CREATE TRIGGER t AFTER INSERT ON passages BEGIN DELETE FROM passages; END", "is no index of passages"),
        ("CREATE VIEW v AS SELECT 1", "is no index of passages"),
        ("UPDATE passages SET text = x'ff'", "a row has other types than a passage"),
        ("UPDATE passages SET headings = 'x'", "cannot be read"),
        ("UPDATE passages SET headings = '[1]'", "a row has other types"),
        ("UPDATE passages SET headings = '{}'", "a row has other types"),
        ("UPDATE passages SET headings = printf('%.9999c', '[')", "cannot be read"),
        ("UPDATE passages SET document = NULL", "a row has other types"),
        ("UPDATE passages SET text = CAST(x'ff' AS TEXT)", "cannot be read"),
    ],
)
def test_a_database_that_was_changed(folder: Path, tmp_path: Path, statement: str, message: str) -> None:
    path = copy_index(folder, tmp_path)
    connection = sqlite3.connect(path)
    connection.execute(statement)
    connection.commit()
    connection.close()
    accept(path)

    def search() -> list[Passage]:
        with PassageIndex.open(path) as index:
            return index.search("Boil water")

    found, given_message = outcome(search)
    assert found is None
    assert message in given_message


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": 2}', "\0", '{"format": 1, "documents_sha256": 3}'])
def test_facts_that_are_damaged(folder: Path, tmp_path: Path, content: str) -> None:
    path = copy_index(folder, tmp_path)
    path.with_suffix(".json").write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=r"passages\.json.*run python -m scripts\.index_documents"):
        PassageIndex.open(path)


# Places, edges and rarity, against the table itself


def test_the_place_of_a_passage(folder: Path, index: PassageIndex) -> None:
    with sqlite3.connect(folder / "passages.sqlite") as connection:
        rows = connection.execute("SELECT id, document, headings, text FROM passages ORDER BY id").fetchall()
    found = {passage.number: passage for row in rows for passage in index.search(row[3], len(rows))}
    assert sorted(found) == [row[0] for row in rows]
    for place, (number, document, headings, _) in enumerate(rows):
        before = rows[place - 1][1:3] if place else (None, None)
        next_document = rows[place + 1][1] if place + 1 < len(rows) else None
        assert found[number].is_first == (before[0] != document)
        assert found[number].is_last == (next_document != document)
        assert found[number].begins_section == (before != (document, headings))
        own = [row[0] for row in rows if row[1] == document]
        edges = index.edges(found[number])
        assert [edge.number for edge in edges] == sorted({*own[:3], *own[-3:]})
        assert [(edge.is_first, edge.is_last) for edge in edges] == [
            (edge.number == own[0], edge.number == own[-1]) for edge in edges
        ]


def test_rarity(index: PassageIndex) -> None:
    assert index.rarity("velmora") == 1
    assert 0 < index.rarity("tea") < index.rarity("wombat") < 1
    assert index.rarity("leaf") == 1
    assert index.rarity("leaves") < 1, "both sides are stemmed"
    assert index.rarity("tea") == index.rarity("tea")
