"""Words of train and test: the embedded ones, invented ones, and those of a list."""

from __future__ import annotations

import re
import string
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat.common import UserError
from tasks.spellingbee import SimpleSpelling, SpellingBee
from tasks.words import collect_world_words, invent_words, is_test_word, load_words


def test_train_and_test_share_no_word() -> None:
    asked_words = {}
    for split in ("train", "test"):
        for task in (SpellingBee(split, size=6000), SimpleSpelling(split, size=6000)):
            asked_words[split] = {conversation["word"] for conversation in task}
            assert asked_words[split] == set(load_words(split)), "6,000 rows ask for every word"
    assert not asked_words["train"] & asked_words["test"]
    assert len(asked_words["test"]) >= 900
    assert len(asked_words["train"]) >= 4000


def test_a_word_keeps_its_split_in_every_list(tmp_path: Path, shared_data: Path) -> None:
    small = tmp_path / "small.txt"
    small.write_text("\n".join(["apple", "pear", "plum", "cherry", *load_words("test")[:50]]), encoding="utf-8")
    english = tmp_path / "english.txt"
    english.write_bytes(b"\n".join((shared_data / "words_alpha.txt").read_bytes().split(b"\n")[::12]))
    for path in (small, english):
        train, test = set(load_words("train", path)), set(load_words("test", path))
        assert train
        assert test
        assert not train & test
        assert not train & set(load_words("test"))
        assert not test & set(load_words("train"))
    assert abs(len(load_words("test", english)) / len(load_words("train", english)) - 1 / 5) < 0.02


def test_the_split_of_a_word_never_changes() -> None:
    """A model was trained on the words of the training split: changing the split would test it on them."""
    words = "apple pear plum cherry lantern strawberry hedgehog kite straße owl".split()
    assert [word for word in words if is_test_word(word)] == ["hedgehog", "straße"]


@given(st.text(string.ascii_lowercase, min_size=3, max_size=16))
def test_a_word_of_a_list_is_in_one_split(tmp_path_factory: pytest.TempPathFactory, word: str) -> None:
    path = tmp_path_factory.mktemp("words") / "list.txt"
    path.write_text(f"{word}\n", encoding="utf-8")
    split, other = ("test", "train") if is_test_word(word) else ("train", "test")
    assert load_words(split, path) == (word,)
    with pytest.raises(UserError, match="no word to"):
        load_words(other, path)


def test_world_words_and_invented_words() -> None:
    real = collect_world_words()
    assert {"lantern", "hedgehog", "lighthouse"} <= set(real)
    assert len(real) > 1500
    invented = invent_words(real, 500)
    assert len(set(invented)) == 500
    assert not set(invented) & set(real)
    assert invented == invent_words(real, 500) != invent_words(real, 500, seed=1)
    prefixes = {word[:2] for word in real}
    suffixes = {word[-1:] for word in real}
    for word in invented:
        assert re.fullmatch("[a-z]{3,10}", word)
        assert word[:2] in prefixes
        assert word[-1] in suffixes


def test_a_list_in_the_base_folder_is_used(base_dir: Path) -> None:
    embedded = load_words("test")
    content = "\ufeffApple\r\ncan't\r\n\r\n  Pear \r\nab\r\nstraße\r\n" + "\r\n".join(embedded[:3])
    (base_dir / "words.txt").write_text(content, encoding="utf-8", newline="")
    assert sorted([*load_words("train"), *load_words("test")]) == sorted({"apple", "pear", "straße", *embedded[:3]})
    assert SpellingBee("train", size=4)[0]["word"] in {"apple", "pear", "straße"}


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "No such file"), (b"", "no word to"), (b"a b\n12\n", "no word to"), (b"\xff\xfe", "UTF-8")],
)
def test_a_faulty_list_is_named(content: bytes | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=rf"{re.escape(str(path))}.*{message}"):
        SpellingBee(word_list=path)[0]
